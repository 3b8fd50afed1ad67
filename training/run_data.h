#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/device/cpu_threads.h"
#include "training/config.h"
#include "training/data/pair_sampler.h"
#include "training/data/tokenized_corpus.h"
#include "training/parameters.h"
#include "training/step.h"

namespace xsr::training {

/// An input of a run, told by its bytes.
struct InputFile {
  std::string key;   // "data.train", "data.dev", "tokenizer", "model.init"
  std::string path;  // for messages
  std::string hash;  // XXH3-128, hexadecimal
  std::string pair;  // of data: the name of its language pair

  std::string file_name() const;
};

/// Makes the folder, and those it stands in, where they are missing; gives it back. Throws
/// Error(IO).
const std::string& make_folder(const std::string& folder);

/// What a run is made of before its first step.
struct RunData {
  ModelConfig model;      // complete: with the tokenizer's vocabulary and ids
  std::string tokenizer;  // the bytes of a SentencePiece model
  std::vector<InputFile> inputs;
  std::shared_ptr<const TokenizedCorpus> train, dev;  // dev: train itself where pairs are held out
  std::vector<uint64_t> excluded;                     // of train
  std::vector<uint8_t> maskable;                      // [V]
  struct DevPart {
    std::string name;
    std::vector<uint64_t> pairs;  // of dev
  };
  std::vector<DevPart> dev_parts;       // those that have pairs
  std::unique_ptr<FlatBuffer> initial;  // null: random, or the run is resumed

  PairSampler sampler(const TrainConfig& config) const;
  /// Sets what the trainer's parameters start from.
  void initialize(const TrainConfig& config, Trainer& trainer) const;
};

/// Reads or trains the tokenizer, tokenises the text (or opens the cache) and holds dev pairs out.
/// resumed: the tokenizer is the run's own file, and model.init is neither read nor among the
/// inputs. check is called with the inputs before anything is made of them. Throws Error, Stopped,
/// what check throws.
RunData prepare_data(const TrainConfig& config, bool resumed, ThreadPool& threads,
                     const DataLog& log,
                     const std::function<void(std::span<const InputFile>)>& check = {});

}  // namespace xsr::training
