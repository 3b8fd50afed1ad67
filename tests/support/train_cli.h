#pragma once
// What runs the built xsr-train on a toy corpus.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "tests/support/files.h"
#include "tests/support/tool_test.h"

namespace xsr::test {

inline const std::string kTrainTool = XSR_BINARY_DIR "/training/xsr-train";

/// Sentences of two invented languages: word i of one is word i of the other, so that a model can
/// learn which belong together from a few hundred pairs.
inline std::string toy_corpus(int pairs) {
  std::mt19937 random(5);
  const auto word = [](int i, const char* vowels, const char* consonants) {
    std::string w;
    for (int k = 0; k < 3; ++k, i /= 4) {
      w += consonants[i % 4 + k];
      w += vowels[(i + k) % 4];
    }
    return w;
  };
  std::string text;
  for (int p = 0; p < pairs; ++p) {
    std::string a, b;
    const int length = 3 + static_cast<int>(random() % 4);
    for (int k = 0; k < length; ++k) {
      const int i = static_cast<int>(random() % 40);
      a += (k ? " " : "") + word(i, "aeio", "bdfgkl");
      b += (k ? " " : "") + word(i, "uyaj", "mnprst");
    }
    text += a + "\t" + b + "\n";
  }
  return text;
}

class TrainCli : public ToolTest {
 protected:
  TrainCli() : ToolTest(kTrainTool) {
    write("toy.tsv", toy_corpus(700));
    write("toy.toml", kConfig);
  }

  static constexpr char kConfig[] = R"(seed = 3
threads = 2
[data]
train = ["toy.tsv"]
dev_pairs = 100
batch_pairs = 32
[tokenizer]
vocab_size = 110
character_coverage = 1.0
[model]
num_layers = 1
hidden_size = 32
num_heads = 2
intermediate_size = 48
max_seq_len = 40
[objective]
ugt_weight = 0.1
align_weight = 0.0
sim_weight = 0.0
info_nce_weight = 1.0
[schedule]
learning_rate = 5e-3
warmup = "none"
decay = "constant"
[train]
steps = 60
log_every = 5
eval_every = 20
checkpoint_every = 7
)";

  Outcome train(const std::string& arguments, const std::string& before = "") const {
    return run("--config toy.toml " + arguments, before);
  }

  /// Everything that has to come out the same, whatever happened on the way.
  void expect_same_results(const std::string& a, const std::string& b) const {
    for (const char* file :
         {"model.xsr", "checkpoint.safetensors", "best.safetensors", "tokenizer.model"}) {
      EXPECT_TRUE(read_file(path(a + "/" + file)) == read_file(path(b + "/" + file)))
          << file << " of " << a << " and of " << b << " differ";
    }
  }
};

inline std::vector<nlohmann::json> metrics_of(const std::string& run, const std::string& kind) {
  std::vector<nlohmann::json> records;
  for (const std::string& line : read_lines(run + "/metrics.jsonl")) {
    nlohmann::json record = nlohmann::json::parse(line);
    if (record["kind"] == kind) records.push_back(std::move(record));
  }
  return records;
}

}  // namespace xsr::test
