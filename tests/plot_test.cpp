// What xsr-train plot draws: which points, where, and how the axes are labelled.
#include "training/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <regex>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "tests/support/files.h"
#include "tests/support/temp_folder.h"

namespace xsr::training {
namespace {

using testing::ElementsAre;

struct Picture {
  std::string title;
  std::vector<std::string> x_labels, y_labels;
  std::vector<std::pair<double, double>> points;  // pixels
  size_t circles = 0;
};

std::vector<std::string> all(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::vector<std::string> found;
  for (std::sregex_iterator at(text.begin(), text.end(), regex), end; at != end; ++at)
    found.push_back((*at)[1]);
  return found;
}

/// The panel of the learning rate, value(step) at steps 1, 2, ...
Picture drawn(int steps, const std::function<double(int)>& value) {
  const test::TempFolder run;
  std::ofstream metrics(run / "metrics.jsonl");
  for (int step = 1; step <= steps; ++step) {
    char line[200];
    std::snprintf(line, sizeof line,
                  "{\"kind\": \"train\", \"step\": %d, \"time\": 1, \"learning_rate\": %.17g}\n",
                  step, value(step));
    metrics << line;
  }
  metrics.close();
  plot_run(run / "", run / "plot.svg");
  const std::string svg = test::read_file(run / "plot.svg");
  Picture picture;
  picture.title = all(svg, "class=\"title\"[^>]*>([^<]*)<").at(0);
  picture.x_labels = all(svg, "class=\"x\"[^>]*>([^<]*)<");
  picture.y_labels = all(svg, "class=\"y\"[^>]*>([^<]*)<");
  picture.circles = all(svg, "(<circle)").size();
  const auto lines = all(svg, "<polyline[^>]*points=\"([^\"]*)\"");
  EXPECT_EQ(lines.size(), 1u);
  for (const std::string& point : all(lines.at(0), "([^ ]+)")) {
    double x = 0, y = 0;
    EXPECT_EQ(std::sscanf(point.c_str(), "%lf,%lf", &x, &y), 2) << point;
    picture.points.emplace_back(x, y);
  }
  return picture;
}

/// A panel's curves stand between these pixels.
constexpr double kLeft = 64, kRight = 410, kTop = 66, kBottom = 274;

TEST(Plot, AFewPointsStandWhereTheyAre) {
  const Picture picture = drawn(4, [](int step) { return 10.0 * step; });
  EXPECT_EQ(picture.title, "learning rate");
  EXPECT_THAT(picture.x_labels, ElementsAre("0", "1", "2", "3", "4"));
  EXPECT_THAT(picture.y_labels, ElementsAre("10", "20", "30", "40"));
  ASSERT_EQ(picture.points.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(picture.points[i].first, kLeft + (kRight - kLeft) * (i + 1) / 4, 0.051);
    EXPECT_NEAR(picture.points[i].second, kBottom - (kBottom - kTop) * i / 3, 0.051);
  }
}

TEST(Plot, FourHundredPointsAreAllDrawn) {
  const Picture picture = drawn(400, [](int step) { return step % 2 == 0 ? 10.0 : 20.0; });
  ASSERT_EQ(picture.points.size(), 400u);
  EXPECT_NEAR(picture.points[0].second, kTop, 0.051);
  EXPECT_NEAR(picture.points[1].second, kBottom, 0.051);
}

TEST(Plot, MorePointsAreTheMeansOfEqualShares) {
  // 1001, 1002, ... 1800, two by two: 1001.5 at 1.5, ... 1799.5 at 799.5.
  const Picture picture = drawn(800, [](int step) { return 1000.0 + step; });
  EXPECT_THAT(picture.x_labels, ElementsAre("0", "200", "400", "600"));
  EXPECT_THAT(picture.y_labels, ElementsAre("1000", "1200", "1400", "1600", "1800"));
  ASSERT_EQ(picture.points.size(), 400u);
  EXPECT_NEAR(picture.points[0].first, 64.65, 0.051);     // 64 + 346 · 1.5 / 799.5
  EXPECT_NEAR(picture.points[0].second, 273.61, 0.051);   // 274 - 208 · 1.5 / 800
  EXPECT_NEAR(picture.points[199].first, 236.89, 0.051);  // 399.5
  EXPECT_NEAR(picture.points[399].first, 410, 0.051);
  EXPECT_NEAR(picture.points[399].second, 66.13, 0.051);
}

TEST(Plot, NoPointIsLeftOutOfTheMeans) {
  // 1000 points: shares of two and three by turns, 1 and 2, 3 to 5, ... 998 to 1000.
  const Picture thousand = drawn(1000, [](int) { return 10.0; });
  ASSERT_EQ(thousand.points.size(), 400u);
  EXPECT_NEAR(thousand.points[0].first, 64.52, 0.051);  // 64 + 346 · 1.5 / 999
  EXPECT_NEAR(thousand.points[1].first, 65.39, 0.051);  // 4
  // 401 points: the last share has two, 10 and 30.
  const Picture picture = drawn(401, [](int step) { return step == 401 ? 30.0 : 10.0; });
  ASSERT_EQ(picture.points.size(), 400u);
  EXPECT_NEAR(picture.points[398].second, kBottom, 0.051);
  EXPECT_NEAR(picture.points[399].second, kTop, 0.051);  // 20, the largest
  EXPECT_EQ(picture.y_labels.back(), "20");
}

TEST(Plot, AnAxisHasStepsOfOneTwoOrFive) {
  const auto labels = [](double low, double high) {
    return drawn(2, [=](int step) { return step == 1 ? low : high; }).y_labels;
  };
  EXPECT_THAT(labels(0, 1), ElementsAre("0", "0.5", "1"));
  EXPECT_THAT(labels(0, 4), ElementsAre("0", "1", "2", "3", "4"));
  EXPECT_THAT(labels(0, 7), ElementsAre("0", "2", "4", "6", "8"));
  EXPECT_THAT(labels(-0.1, 0.1), ElementsAre("-0.1", "-0.05", "0", "0.05", "0.1"));
  EXPECT_THAT(labels(0.0031, 0.0069), ElementsAre("0.003", "0.004", "0.005", "0.006", "0.007"));
  EXPECT_THAT(labels(0, 40000), ElementsAre("0", "10k", "20k", "30k", "40k"));
  EXPECT_THAT(labels(1e6, 2.5e6), ElementsAre("1M", "1.5M", "2M", "2.5M"));
}

TEST(Plot, AnAxisOfOneValueStandsAroundIt) {
  const auto labels = [](double value) { return drawn(3, [=](int) { return value; }).y_labels; };
  EXPECT_THAT(labels(3), ElementsAre("2.8", "2.9", "3", "3.1", "3.2"));
  EXPECT_THAT(labels(0), ElementsAre("-1", "-0.5", "0", "0.5", "1"));
}

TEST(Plot, AnAxisBeyondAFactorOfFiftyIsLogarithmic) {
  const auto ends = [](double low, double high) {
    return drawn(2, [=](int step) { return step == 1 ? low : high; });
  };
  EXPECT_EQ(ends(1, 50).title, "learning rate");
  const Picture two = ends(1.2, 70);  // from 1.08 to 77
  EXPECT_EQ(two.title, "learning rate (logarithmic)");
  EXPECT_THAT(two.y_labels, ElementsAre("2", "5", "10", "20", "50"));
  const Picture many = ends(0.01, 10);
  EXPECT_THAT(many.y_labels, ElementsAre("0.01", "0.1", "1", "10"));
  // 0.009 below and 11 above: log(0.01 / 0.009) / log(11 / 0.009) = 0.01482 of 208 pixels.
  EXPECT_NEAR(many.points[0].second, 270.92, 0.051);
  EXPECT_NEAR(many.points[1].second, 68.79, 0.051);
  EXPECT_EQ(ends(-1, 100).title, "learning rate") << "not below zero";
}

TEST(Plot, OnePointIsADot) {
  const Picture picture = drawn(1, [](int) { return 5.0; });
  EXPECT_EQ(picture.circles, 1u);
  EXPECT_EQ(drawn(2, [](int) { return 5.0; }).circles, 0u);
  EXPECT_THROW(drawn(0, [](int) { return 5.0; }), Error);
}

/// The dev panel of P@1 with these language pairs, each 0.5 one way and 0.75 the other.
std::string dev_picture(const std::vector<std::string>& pairs) {
  const test::TempFolder run;
  std::ofstream metrics(run / "metrics.jsonl");
  for (int step = 1; step <= 2; ++step) {
    metrics << "{\"kind\": \"dev\", \"step\": " << step << ", \"time\": 1, \"p1\": {";
    for (const std::string& pair : pairs)
      metrics << '"' << pair << "\": {\"forward\": 0.5, \"backward\": 0.75}, ";
    metrics << "\"mean\": 0.625}}\n";
  }
  metrics.close();
  plot_run(run / "", run / "plot.svg");
  return test::read_file(run / "plot.svg");
}

TEST(Plot, ManyLanguagePairsAreTheMeansOfBothDirections) {
  const std::string two = dev_picture({"en-fr", "en-de"}),
                    three = dev_picture({"en-fr", "en-de", "en-it"});
  EXPECT_EQ(all(two, "(<polyline)").size(), 5u) << "the mean, and either pair both ways";
  EXPECT_THAT(two, testing::HasSubstr("en-fr →"));
  EXPECT_THAT(three, testing::Not(testing::HasSubstr("→")));
  // Every pair's mean is the mean of all: four curves upon each other.
  const std::vector<std::string> lines = all(three, "<polyline[^>]*points=\"([^\"]*)\"");
  ASSERT_EQ(lines.size(), 4u);
  for (const std::string& line : lines) EXPECT_EQ(line, lines[0]);
}

TEST(Plot, ANameIsTextWhateverItsCharacters) {
  const std::string svg = dev_picture({"<a>&b"});
  EXPECT_THAT(svg, testing::HasSubstr("&lt;a&gt;&amp;b →"));
  EXPECT_THAT(svg, testing::Not(testing::HasSubstr("<a>")));
}

}  // namespace
}  // namespace xsr::training
