#include "training/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "runtime/format/partial_file.h"
#include "training/metrics.h"
#include "training/run.h"

namespace xsr::training {
namespace {

using nlohmann::ordered_json;

// Pixels.
constexpr double kPanelWidth = 500, kPanelHeight = 280;
constexpr double kLeft = 64, kRight = 90, kTop = 36, kBottom = 36;
constexpr int kColumns = 2;
// More points than this in a curve are drawn as the means of equal shares.
constexpr size_t kMostPoints = 400;
constexpr size_t kMostPairsBothWays = 2;  // more language pairs: the mean of both directions
constexpr double kLogRatio = 50;  // largest to smallest, beyond which an axis is logarithmic
const char* const kColors[] = {"#1f6fb4", "#d9601a", "#2a9246", "#a23b9c", "#8a6d1d",
                               "#c5304a", "#127e8a", "#6b5bb5", "#5f6b73", "#4d8f1f"};

struct Point {
  double x = 0, y = 0;
};

struct Curve {
  std::string label;
  std::vector<Point> points;
  bool dots = false;
};

struct Panel {
  std::string title;
  std::vector<Curve> curves;
};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

/// 1, 2 or 5 times a power of ten, so that about `wanted` of them cover the span.
double nice_step(double span, int wanted) {
  const double raw = span / wanted;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * 0.999) return factor * power;
  }
  return 10 * power;
}

std::string tick_label(double value) {
  if (std::fabs(value) >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (std::fabs(value) >= 1e4) return fmt::format("{:.4g}k", value / 1e3);
  return fmt::format("{:.4g}", std::fabs(value) < 1e-12 ? 0.0 : value);
}

struct Axis {
  double low = 0, high = 1;
  bool logarithmic = false;
  std::vector<double> ticks;

  /// 0 at the low end, 1 at the high one.
  double place(double value) const {
    if (!logarithmic) return (value - low) / (high - low);
    return std::log(value / low) / std::log(high / low);
  }
};

Axis linear_axis(double low, double high, int wanted) {
  if (high - low <= 1e-9 * std::max(std::fabs(low), std::fabs(high))) {  // one value only
    const double around = low == 0 ? 1 : 0.05 * std::fabs(low);
    low -= around;
    high += around;
  }
  const double step = nice_step(high - low, wanted);
  Axis axis;
  axis.low = std::floor(low / step + 1e-9) * step;
  axis.high = std::ceil(high / step - 1e-9) * step;
  const int count = static_cast<int>(std::lround((axis.high - axis.low) / step));
  for (int i = 0; i <= count; ++i) axis.ticks.push_back(axis.low + i * step);
  return axis;
}

Axis log_axis(double low, double high) {
  Axis axis;
  axis.logarithmic = true;
  axis.low = low * 0.9;
  axis.high = high * 1.1;
  const int first = static_cast<int>(std::floor(std::log10(axis.low)));
  const int last = static_cast<int>(std::ceil(std::log10(axis.high)));
  const bool few = last - first <= 2;
  for (int e = first; e <= last; ++e) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10, e);
      if ((factor == 1 || few) && tick >= axis.low && tick <= axis.high) axis.ticks.push_back(tick);
    }
  }
  return axis;
}

std::vector<Point> thinned(const std::vector<Point>& points) {
  if (points.size() <= kMostPoints) return points;
  std::vector<Point> out;
  for (size_t i = 0; i < kMostPoints; ++i) {
    const size_t first = points.size() * i / kMostPoints;
    const size_t last = points.size() * (i + 1) / kMostPoints;
    Point mean;
    for (size_t k = first; k < last; ++k) {
      mean.x += points[k].x;
      mean.y += points[k].y;
    }
    const double count = static_cast<double>(last - first);
    out.push_back({mean.x / count, mean.y / count});
  }
  return out;
}

/// Where the curves' labels stand: at their last points, moved apart so that they can be read.
std::vector<double> label_places(const std::vector<double>& wanted, double low, double high) {
  constexpr double kLine = 12;
  std::vector<size_t> order(wanted.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return wanted[a] < wanted[b]; });
  std::vector<double> places(wanted.size());
  double next = low;
  for (const size_t i : order) {
    places[i] = std::max(wanted[i], next);
    next = places[i] + kLine;
  }
  // What ran over the lower edge moves up again.
  double limit = high;
  for (size_t k = order.size(); k-- > 0;) {
    places[order[k]] = std::min(places[order[k]], limit);
    limit = places[order[k]] - kLine;
  }
  return places;
}

std::string draw_panel(const Panel& panel, double x0, double y0) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  double x_low = kInf, x_high = -kInf, y_low = kInf, y_high = -kInf;
  for (const Curve& curve : panel.curves) {
    for (const Point& p : curve.points) {
      x_low = std::min(x_low, p.x);
      x_high = std::max(x_high, p.x);
      y_low = std::min(y_low, p.y);
      y_high = std::max(y_high, p.y);
    }
  }
  Axis x = linear_axis(std::min(0.0, x_low), x_high, 5);
  x.high = std::max(x_high, x.low + 1);  // the curves fill the width
  const Axis y = y_low > 0 && y_high / y_low > kLogRatio ? log_axis(y_low, y_high)
                                                         : linear_axis(y_low, y_high, 4);
  const double left = x0 + kLeft, right = x0 + kPanelWidth - kRight;
  const double top = y0 + kTop, bottom = y0 + kPanelHeight - kBottom;
  const auto px = [&](double v) { return left + x.place(v) * (right - left); };
  const auto py = [&](double v) { return bottom - y.place(v) * (bottom - top); };

  std::string svg =
      fmt::format("<text class=\"title\" x=\"{:.1f}\" y=\"{:.1f}\">{}{}</text>\n", left, y0 + 22,
                  escaped(panel.title), y.logarithmic ? " (logarithmic)" : "");
  for (const double tick : y.ticks) {
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text class=\"y\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        left, py(tick), right, py(tick), left - 6, py(tick) + 4, tick_label(tick));
  }
  for (const double tick : x.ticks) {
    if (tick > x.high) continue;
    svg += fmt::format(
        "<line class=\"tick\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text class=\"x\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        px(tick), bottom, px(tick), bottom + 4, px(tick), bottom + 17, tick_label(tick));
  }
  svg += fmt::format(
      "<line class=\"axis\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", left,
      bottom, right, bottom);
  std::vector<double> ends;
  for (size_t i = 0; i < panel.curves.size(); ++i) {
    const Curve& curve = panel.curves[i];
    const char* color = kColors[i % std::size(kColors)];
    std::string path;
    for (const Point& p : curve.points) {
      path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", px(p.x), py(p.y));
    }
    svg += fmt::format("<polyline stroke=\"{}\" points=\"{}\"/>\n", color, path);
    if (curve.dots || curve.points.size() == 1) {
      for (const Point& p : curve.points) {
        svg += fmt::format("<circle fill=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\"/>\n", color,
                           px(p.x), py(p.y));
      }
    }
    ends.push_back(py(curve.points.back().y) + 4);
  }
  const std::vector<double> places = label_places(ends, top + 4, bottom + 4);
  for (size_t i = 0; i < panel.curves.size(); ++i) {
    svg += fmt::format("<text class=\"label\" fill=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
                       kColors[i % std::size(kColors)], right + 6, places[i],
                       escaped(panel.curves[i].label));
  }
  return svg;
}

/// The value at a path of names, or nothing where it is missing or was not finite.
const ordered_json* at(const ordered_json& record, std::initializer_list<std::string> names) {
  const ordered_json* value = &record;
  for (const std::string& name : names) {
    if (!value->is_object() || !value->contains(name)) return nullptr;
    value = &(*value)[name];
  }
  return value->is_number() ? value : nullptr;
}

Curve curve_of(const std::vector<ordered_json>& records, const std::string& kind,
               const std::string& label, std::initializer_list<std::string> names,
               double factor = 1) {
  Curve curve;
  curve.label = label;
  for (const ordered_json& record : records) {
    if (record["kind"] != kind) continue;
    if (const ordered_json* value = at(record, names)) {
      curve.points.push_back({record["step"].get<double>(), factor * value->get<double>()});
    }
  }
  curve.points = thinned(curve.points);
  curve.dots = kind == "dev" && curve.points.size() < 60;
  return curve;
}

/// The names under `name` in any record, in the order in which they turn up.
std::vector<std::string> names_under(const std::vector<ordered_json>& records,
                                     const std::string& name) {
  std::vector<std::string> names;
  for (const ordered_json& record : records) {
    if (!record.contains(name) || !record[name].is_object()) continue;
    for (const auto& [key, value] : record[name].items()) {
      if (std::find(names.begin(), names.end(), key) == names.end()) names.push_back(key);
    }
  }
  return names;
}

std::vector<Panel> make_panels(const std::vector<ordered_json>& records) {
  std::vector<Panel> panels;
  const auto add = [&](const std::string& title, std::vector<Curve> curves) {
    std::erase_if(curves, [](const Curve& c) { return c.points.empty(); });
    if (!curves.empty()) panels.push_back({title, std::move(curves)});
  };
  for (const std::string& part : names_under(records, "loss")) {
    add("loss: " + part, {curve_of(records, "train", "training", {"loss", part}),
                          curve_of(records, "dev", "dev", {"loss", part})});
  }
  std::vector<Curve> retrieval = {curve_of(records, "dev", "mean", {"p1", "mean"}, 100)};
  std::vector<std::string> pairs = names_under(records, "p1");
  std::erase(pairs, "mean");
  for (const std::string& pair : pairs) {
    Curve forward = curve_of(records, "dev", pair + " →", {"p1", pair, "forward"}, 100);
    Curve backward = curve_of(records, "dev", pair + " ←", {"p1", pair, "backward"}, 100);
    if (pairs.size() <= kMostPairsBothWays || forward.points.size() != backward.points.size()) {
      retrieval.push_back(std::move(forward));
      retrieval.push_back(std::move(backward));
      continue;
    }
    forward.label = pair;
    for (size_t i = 0; i < forward.points.size(); ++i) {
      forward.points[i].y = (forward.points[i].y + backward.points[i].y) / 2;
    }
    retrieval.push_back(std::move(forward));
  }
  add("P@1 on dev, %", std::move(retrieval));
  add("learning rate", {curve_of(records, "train", "", {"learning_rate"})});
  add("norm of the gradient", {curve_of(records, "train", "", {"gradient_norm"})});
  add("pairs/s", {curve_of(records, "train", "", {"pairs_per_second"})});
  return panels;
}

std::string draw(const std::vector<Panel>& panels, const std::string& title) {
  const size_t rows = (panels.size() + kColumns - 1) / kColumns;
  const double width = kColumns * kPanelWidth;
  const double height = static_cast<double>(rows) * kPanelHeight + 40;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" font-family=\"sans-serif\" font-size=\"11\">\n"
      "<style>.title{{font-size:13px;font-weight:bold}}.grid{{stroke:#e3e3e3}}"
      ".axis,.tick{{stroke:#888}}.y{{text-anchor:end;fill:#555}}.x{{text-anchor:middle;fill:#555}}"
      "polyline{{fill:none;stroke-width:1.5;stroke-linejoin:round}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
      "<text x=\"{2}\" y=\"20\" font-size=\"12\" fill=\"#555\">{3}; x: steps</text>\n",
      width, height, kLeft, escaped(title));
  for (size_t i = 0; i < panels.size(); ++i) {
    svg += draw_panel(panels[i], static_cast<double>(i % kColumns) * kPanelWidth,
                      30 + static_cast<double>(i / kColumns) * kPanelHeight);
  }
  return svg + "</svg>\n";
}

std::string last_figures(const std::vector<ordered_json>& records) {
  std::string rows;
  const auto row = [&](const std::string& name, double value) {
    rows += fmt::format("<tr><td>{}</td><td>{:.6g}</td></tr>\n", escaped(name), value);
  };
  for (const std::string kind : {"train", "dev"}) {
    const auto last = std::find_if(records.rbegin(), records.rend(),
                                   [&](const ordered_json& r) { return r["kind"] == kind; });
    if (last == records.rend()) continue;
    row(kind + ": step", (*last)["step"].get<double>());
    const ordered_json flat = last->flatten();
    for (const auto& [key, value] : flat.items()) {
      if (value.is_number() && key != "/step" && key != "/time") {
        row(kind + ": " + key.substr(1), value.get<double>());
      }
    }
  }
  return rows;
}

}  // namespace

bool is_picture_name(const std::string& name) {
  const std::string suffix = std::filesystem::path(name).extension();
  return suffix == ".svg" || suffix == ".html";
}

void plot_run(const std::string& run, const std::string& output) {
  if (!is_picture_name(output)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                output + ": expected a name that ends with .svg or .html");
  }
  const std::vector<ordered_json> records = read_metrics(run + "/metrics.jsonl");
  const std::vector<Panel> panels = make_panels(records);
  if (panels.empty()) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT, run + "/metrics.jsonl: there is nothing to draw yet");
  }
  const std::string name = std::filesystem::path(run).lexically_normal().string();
  const std::string svg = draw(panels, name);
  std::string text = svg;
  if (output.ends_with(".html")) {
    const std::string config = run_config_path(run);
    const std::string toml = std::filesystem::exists(config) ? read_whole_file(config) : "";
    text = fmt::format(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\n"
        "<style>body{{font-family:sans-serif;margin:1.5em}}svg{{max-width:100%;height:auto}}"
        "td{{padding:1px 12px 1px 0}}td+td{{text-align:right;font-variant-numeric:tabular-nums}}"
        "</style></head><body>\n<h1>{0}</h1>\n{1}<h2>Last figures</h2>\n<table>\n{2}</table>\n"
        "<details><summary>Config</summary><pre>{3}</pre></details>\n</body></html>\n",
        escaped(name), svg, last_figures(records), escaped(toml));
  } else {
    text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n" + svg;
  }
  write_whole_file(output, text);
}

}  // namespace xsr::training
