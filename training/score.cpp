#include "training/score.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "converter/json_text.h"
#include "xsr/xsr.hpp"

namespace xsr::training {

std::vector<PairFileScore> score_model(const std::string& model, const std::vector<PairFile>& files,
                                       int32_t num_threads) {
  xsr_session_options options = {};
  options.num_threads = num_threads;
  Session session(Model(model), options);
  const auto embed = [&](const std::vector<std::string>& lines) {
    return session.embed(std::vector<std::string_view>(lines.begin(), lines.end()));
  };
  ThreadPool threads(num_threads);
  std::vector<PairFileScore> scores;
  for (const PairFile& file : files) {
    const PairLines sides = read_pairs(file);
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
  return json_text(list, 2) + "\n";
}

}  // namespace xsr::training
