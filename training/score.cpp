#include "training/score.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "runtime/error.h"
#include "runtime/text/line_reader.h"
#include "xsr/xsr.hpp"

namespace xsr::training {
namespace {

std::vector<std::string> read_lines(const std::string& path) {
  LineReader reader(path);
  LineBatch batch;
  std::vector<std::string> lines;
  while (reader.read(1 << 16, 16 << 20, batch)) {
    for (size_t i = 0; i < batch.size(); ++i) lines.emplace_back(batch.line(i));
  }
  return lines;
}

struct Sides {
  std::vector<std::string> first, second;
};

Sides read_pairs(const PairFile& file) {
  Sides sides;
  sides.first = read_lines(file.first);
  if (!file.second.empty()) {
    sides.second = read_lines(file.second);
    if (sides.first.size() != sides.second.size()) {
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{} has {} lines, {} has {}; expected the same sentence in the same "
                              "line of both",
                              file.first, sides.first.size(), file.second, sides.second.size()));
    }
  } else {
    for (size_t i = 0; i < sides.first.size(); ++i) {
      std::string& line = sides.first[i];
      const size_t tab = line.find('\t');
      if (tab == std::string::npos) {
        throw Error(XSR_STATUS_BAD_FILE,
                    fmt::format("{}:{}: has 1 column, expected 2, split by TAB. Two files of one "
                                "sentence a line are given as FILE,FILE",
                                file.first, i + 1));
      }
      const size_t end = line.find('\t', tab + 1);
      sides.second.push_back(line.substr(tab + 1, end == std::string::npos ? end : end - tab - 1));
      line.resize(tab);
    }
  }
  if (sides.first.empty()) throw Error(XSR_STATUS_BAD_FILE, file.first + ": has no lines");
  return sides;
}

}  // namespace

PairFile parse_pair_file(const std::string& text) {
  PairFile file;
  std::string files = text;
  if (const size_t equals = text.find('='); equals != std::string::npos) {
    file.name = text.substr(0, equals);
    files = text.substr(equals + 1);
  }
  const size_t comma = files.find(',');
  file.first = files.substr(0, comma);
  if (comma != std::string::npos) file.second = files.substr(comma + 1);
  if (file.name.empty()) {
    const std::string a = std::filesystem::path(file.first).stem();
    const std::string b = std::filesystem::path(file.second).stem();
    file.name = b.empty() || a == b ? a : a + "-" + b;
  }
  return file;
}

std::vector<PairFileScore> score_model(const std::string& model, const std::vector<PairFile>& files,
                                       int32_t num_threads) {
  xsr_session_options options = {};
  options.num_threads = num_threads;
  Session session(Model(model), options);
  const auto embed = [&](const std::vector<std::string>& lines) {
    return session.embed(std::vector<std::string_view>(lines.begin(), lines.end()));
  };
  ThreadPool threads(num_threads > 0 ? num_threads : usable_cpus());
  std::vector<PairFileScore> scores;
  for (const PairFile& file : files) {
    const Sides sides = read_pairs(file);
    const std::vector<float> u1 = embed(sides.first);
    const std::vector<float> u2 = embed(sides.second);
    scores.push_back(
        {file.name, score_retrieval(u1.data(), u2.data(), static_cast<int64_t>(sides.first.size()),
                                    static_cast<int32_t>(session.embedding_size()), threads)});
  }
  return scores;
}

std::string scores_as_markdown(const std::vector<PairFileScore>& scores) {
  std::string text = "| P@1, % | pairs | 1 → 2 | 2 → 1 | mean |\n| --- | --- | --- | --- | --- |\n";
  double forward = 0, backward = 0;
  int64_t pairs = 0;
  const auto row = [&](const std::string& name, int64_t n, double f, double b) {
    text += fmt::format("| {} | {} | {:.1f} | {:.1f} | {:.2f} |\n", name, n, 100 * f, 100 * b,
                        50 * (f + b));
  };
  for (const auto& [name, score] : scores) {
    row(name, score.pairs, score.forward_share(), score.backward_share());
    forward += score.forward_share();
    backward += score.backward_share();
    pairs += score.pairs;
  }
  const double count = static_cast<double>(scores.size());
  if (scores.size() > 1) row("mean", pairs, forward / count, backward / count);
  return text;
}

std::string scores_as_json(const std::vector<PairFileScore>& scores) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& [name, score] : scores) {
    list.push_back({{"name", name},
                    {"pairs", score.pairs},
                    {"forward", score.forward},
                    {"backward", score.backward},
                    {"p1_forward", score.forward_share()},
                    {"p1_backward", score.backward_share()}});
  }
  return list.dump(2) + "\n";
}

}  // namespace xsr::training
