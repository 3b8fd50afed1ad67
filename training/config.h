#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/format/model_config.h"
#include "runtime/format/xsr_file.h"
#include "training/data/pair_sampler.h"
#include "training/data/tokenized_corpus.h"
#include "training/data/tokenizer_training.h"
#include "training/presets.h"
#include "training/schedule.h"
#include "training/step.h"

namespace xsr::training {

/// By what the dev evaluations choose the best weights.
enum class Selection { kRetrieval, kLoss };

/// Everything a run is given. The keys of config_keys() are its only way in.
struct TrainConfig {
  Preset preset = kDefaultPreset;
  std::string run;  // the run's folder
  uint64_t seed = 1;
  int32_t threads = 0;  // 0: the processors this process may use
  std::string isa = "auto";
  std::string device = "cpu";  // cuda_devices_of()

  std::vector<std::string> train, dev;  // [NAME=]FILE
  std::vector<int64_t> columns = {1, 2};
  int32_t num_columns = 0;   // of a line; 0: as many as columns asks for
  int64_t dev_pairs = 1000;  // held out of every language pair, without dev files
  std::string cache;         // folder; empty: the run's
  CorpusOptions corpus;
  SamplerOptions sampler;  // its seed is the run's

  std::string tokenizer;  // a SentencePiece model; empty: trained
  TokenizerOptions tokenizer_training;

  std::string init;     // a .xsr file or a checkpoint; empty: random
  std::string license;  // the terms the weights come under, as text or a file's name
  ModelConfig model;    // its vocabulary and ids come from the tokenizer
  bool mask = true;     // one token of each pair
  StepConfig step;      // its seed is the run's
  Schedule schedule;    // its beta2 is the optimiser's

  int64_t epochs = 12;
  int64_t steps = 0;             // > 0: instead of epochs
  int64_t log_every = 50;        // steps
  int64_t eval_every = 0;        // steps; 0: at the end of every epoch
  int64_t checkpoint_every = 0;  // steps; 0: by time alone
  double checkpoint_minutes = 10;
  bool dev_dropout = false;
  Selection selection = Selection::kRetrieval;
  int64_t patience = 0;        // evaluations; 0: never stop early
  int64_t average = 0;         // evaluations whose weights are averaged; 0: none
  DType dtype = DType::kBF16;  // of model.xsr

  explicit TrainConfig(Preset preset = kDefaultPreset);
};

/// Where a key's value lies in a TrainConfig.
struct Slot {
  struct Choice {
    std::vector<std::string> names;
    std::function<size_t()> get;
    std::function<void(size_t)> set;
  };
  std::variant<bool*, int32_t*, int64_t*, uint64_t*, double*, std::string*,
               std::vector<std::string>*, std::vector<double>*, std::vector<int64_t>*, Choice>
      target;
  double low = 0, high = 0;  // of numbers, both allowed; equal: any
};

/// One row of the table that the TOML file, the flags, --print-config and the documentation are
/// made from.
struct ConfigKey {
  const char* section;  // "" = above all sections
  const char* name;
  const char* help;  // unit and meaning
  Slot (*slot)(TrainConfig&);
  bool may_change = false;  // when a run is resumed: no weight depends on it

  std::string full_name() const {
    return section[0] == '\0' ? name : std::string(section) + "." + name;
  }
};

const std::vector<ConfigKey>& config_keys();

/// The key of that full name, or null.
const ConfigKey* find_key(std::string_view full_name);
/// The full name of the key nearest to what was written, by edit distance, for a message; "" when
/// none is near.
std::string nearest_key(std::string_view written);

/// Whether the key takes any number of values.
bool is_list(const ConfigKey& key);

/// "--optimizer.beta1 0.9" as given on the command line; a list has several values.
struct FlagValue {
  std::string key;  // full name
  std::vector<std::string> values;
};

/// Defaults, then the preset, then the file (empty path: none), then the flags. Throws
/// Error(INVALID_ARGUMENT) that begins with FILE:LINE or the flag: what was found, what is
/// expected, and for an unknown key the nearest one.
TrainConfig load_config(const std::string& path, const std::vector<FlagValue>& flags);

/// What no single key can tell: throws Error(INVALID_ARGUMENT) naming the keys that do not go
/// together.
void validate(const TrainConfig& config);

/// Keys that differ from the preset's and are not read beside the others, each with what stands in
/// its way: "schedule.warmup_steps (schedule.warmup is "untuned_linear")".
std::vector<std::string> idle_keys(const TrainConfig& config);

/// A TOML file that load_config reads back to the same config. helps: with a comment on each key.
std::string to_toml(const TrainConfig& config, bool helps);
/// The value alone, as in TOML.
std::string value_text(const ConfigKey& key, const TrainConfig& config);
/// Full name and value of every key on which the weights depend (not the may_change ones).
std::map<std::string, std::string> fixed_values(const TrainConfig& config);
/// The table of docs/training.md.
std::string keys_as_markdown();

}  // namespace xsr::training
