#include "training/run_data.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <optional>

#include "converter/sentencepiece_info.h"
#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "runtime/format/partial_file.h"
#include "runtime/text/sentencepiece_model.h"
#include "training/checkpoint.h"
#include "training/data/held_out.h"
#include "training/initialization.h"
#include "training/model_file.h"

namespace xsr::training {
namespace {

namespace fs = std::filesystem;

std::string hash_of(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

/// The tokenizer, and where a message says it comes from.
struct TokenizerBytes {
  std::string bytes, from;
};

InitialModel read_init(const TrainConfig& config) {
  ConvertOptions options;
  options.num_heads = config.model.num_heads;
  options.activation = config.model.activation;
  options.lowercase = config.model.lowercase;
  options.pooling = config.model.pooling;
  options.layer_norm_eps = config.model.layer_norm_eps;
  return read_initial_model(config.init, options, config.seed);
}

std::string tokenizer_beside(const std::string& checkpoint) {
  return fs::path(checkpoint).replace_filename("tokenizer.model");
}

/// init: model.init, where it was read for its tokenizer.
TokenizerBytes find_tokenizer(const TrainConfig& config, bool resumed,
                              std::vector<LanguagePair>& languages, const DataLog& log,
                              std::optional<InitialModel>& init) {
  const std::string own = config.run + "/tokenizer.model";
  if (resumed) return {read_whole_file(own, " the run's tokenizer"), own};
  if (!config.tokenizer.empty()) {
    return {read_whole_file(config.tokenizer, " the tokenizer model"), config.tokenizer};
  }
  if (!config.init.empty()) {
    if (TrainingCheckpoint::recognize(config.init)) {
      const std::string beside = tokenizer_beside(config.init);
      return {read_whole_file(beside, " the tokenizer beside model.init"), beside};
    }
    init = read_init(config);
    if (init->tokenizer.empty()) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  config.init +
                      ": has no tokenizer; give the one it was trained with as "
                      "tokenizer.model");
    }
    return {init->tokenizer, config.init};
  }
  return {train_tokenizer(languages, config.tokenizer_training, log),
          "the tokenizer trained on data.train"};
}

ModelConfig complete_model(const TrainConfig& config, const TokenizerBytes& tokenizer) {
  const SentencePieceInfo info = sentencepiece_info(tokenizer.bytes, tokenizer.from);
  ModelConfig model = config.model;
  model.tokenizer = TokenizerKind::kSentencePiece;
  model.vocab_size = info.vocab_size;
  model.pad_id = info.pad_id;
  model.unk_id = info.unk_id;
  model.mask_id = info.mask_id;
  if (config.mask && info.mask_id < 0) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                tokenizer.from +
                    ": has no piece \"<MASK>\", which objective.mask needs; let the "
                    "tokenizer be trained, or set objective.mask = false");
  }
  validate(model);
  return model;
}

/// The run's model has to be that of model.init. theirs gives the file's value of a key, "" where
/// the file does not tell it.
void check_same_model(const TrainConfig& config,
                      const std::function<std::string(const ConfigKey&)>& theirs) {
  std::string differences;
  for (const char* name : {"model.num_layers", "model.hidden_size", "model.num_heads",
                           "model.intermediate_size", "model.max_seq_len", "model.activation",
                           "model.pooling", "model.lowercase", "model.layer_norm_eps"}) {
    const ConfigKey& key = *find_key(name);
    const std::string file = theirs(key), run = value_text(key, config);
    if (file != run && !file.empty())
      differences += fmt::format("\n  {} is {}, the file has {}", name, run, file);
  }
  if (differences.empty()) return;
  throw Error(XSR_STATUS_INVALID_ARGUMENT,
              fmt::format("{}: the run's model is another one:{}\nSet these keys as the file has "
                          "them, or leave model.init out.",
                          config.init, differences));
}

/// A row of the token table means the piece that it was trained for. theirs: the tokenizer of
/// model.init.
void check_same_pieces(const TrainConfig& config, std::string_view theirs, std::string_view ours) {
  if (theirs == ours) return;
  const SentencePieceModel of_file = parse_sentencepiece_model(theirs),
                           of_run = parse_sentencepiece_model(ours);
  const size_t common = std::min(of_file.pieces.size(), of_run.pieces.size());
  for (size_t id = 0; id < common; ++id) {  // another size has a message of its own
    const std::string_view file = of_file.text(of_file.pieces[id]),
                           run = of_run.text(of_run.pieces[id]);
    if (file == run) continue;
    throw Error(
        XSR_STATUS_INVALID_ARGUMENT,
        fmt::format("{}: token {} is \"{}\", in {} it is \"{}\"; leave tokenizer.model out, "
                    "so that the model's own is taken, or leave model.init out",
                    config.init, id, file, config.tokenizer, run));
  }
}

std::unique_ptr<FlatBuffer> initial_values(const TrainConfig& config, const ModelConfig& model,
                                           std::string_view tokenizer,
                                           std::optional<InitialModel> init) {
  const ParameterTable table(model);
  if (TrainingCheckpoint::recognize(config.init)) {
    const TrainingCheckpoint checkpoint(config.init);
    CheckpointFields theirs = checkpoint.object("config");
    check_same_model(config, [&](const ConfigKey& key) { return theirs[key.full_name()]; });
    const std::string beside = tokenizer_beside(config.init);
    if (!config.tokenizer.empty() && fs::exists(beside))  // else it is the run's
      check_same_pieces(config, read_whole_file(beside, " the tokenizer beside model.init"),
                        tokenizer);
    auto values = std::make_unique<FlatBuffer>(table.size());
    checkpoint.read(table, "value.", *values);
    return values;
  }
  if (!init) init = read_init(config);
  InitialModel initial = with_layers(std::move(*init), model.num_layers, config.seed);
  TrainConfig theirs = config;
  theirs.model = initial.config;
  theirs.model.max_seq_len = initial.config.num_positions - config.model.position_offset;
  check_same_model(config, [&](const ConfigKey& key) { return value_text(key, theirs); });
  check_same_vocabulary(config.init, initial.config, model);
  if (!initial.tokenizer.empty()) check_same_pieces(config, initial.tokenizer, tokenizer);
  return std::move(initial.values);
}

std::string cache_path(const TrainConfig& config, const std::string& what,
                       const std::vector<std::string>& files, const std::string& tokenizer_hash) {
  if (config.cache.empty()) return config.run + "/" + what + ".tokens";
  // Runs of other data or another tokenizer have their own caches in a shared folder.
  make_folder(config.cache);
  std::string key = tokenizer_hash;
  for (const std::string& file : files) key += "\n" + file;
  return fmt::format("{}/{}-{:016x}.tokens", config.cache, what,
                     XXH3_64bits(key.data(), key.size()));
}

}  // namespace

const std::string& make_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw Error(XSR_STATUS_IO, folder + ": cannot create the folder: " + error.message());
  return folder;
}

std::string InputFile::file_name() const { return fs::path(path).filename(); }

PairSampler RunData::sampler(const TrainConfig& config) const {
  return {BatchBuilder(train, config.mask ? model.mask_id : -1, maskable, config.seed), excluded,
          config.sampler};
}

void RunData::initialize(const TrainConfig& config, Trainer& trainer) const {
  FlatBuffer& values = trainer.mutable_values();
  if (initial) {
    std::copy_n(initial->data(), values.size(), values.data());
  } else {
    initialize_parameters(model, trainer.table(), config.seed, values);
  }
}

RunData prepare_data(const TrainConfig& config, bool resumed, ThreadPool& threads,
                     const DataLog& log,
                     const std::function<void(std::span<const InputFile>)>& check) {
  std::vector<LanguagePair> train =
      parse_language_pairs(config.train, config.columns, config.num_columns);
  std::vector<LanguagePair> dev =
      parse_language_pairs(config.dev, config.columns, config.num_columns);
  RunData data;
  const auto add_texts = [&](const char* key, std::vector<LanguagePair>& languages) {
    hash_texts(languages, log.stop);
    for (const LanguagePair& language : languages) {
      for (const TextFile& file : language.files)
        data.inputs.push_back({key, file.path, file.hash.hex, language.name});
    }
  };
  add_texts("data.train", train);
  add_texts("data.dev", dev);
  std::optional<InitialModel> init;
  TokenizerBytes tokenizer = find_tokenizer(config, resumed, train, log, init);
  data.model = complete_model(config, tokenizer);
  data.tokenizer = std::move(tokenizer.bytes);
  const std::string tokenizer_hash = hash_of(data.tokenizer);
  const std::string own = config.run + "/tokenizer.model";
  data.inputs.push_back({"tokenizer", own, tokenizer_hash, ""});
  if (check) check(data.inputs);
  if (!resumed) {
    write_whole_file(own, data.tokenizer);
    if (!config.init.empty()) {
      data.initial = initial_values(config, data.model, data.tokenizer, std::move(init));
      data.inputs.push_back({"model.init", config.init, hash_file(config.init, log.stop).hex, ""});
    }
  }

  const auto open = [&](const std::string& what, const std::vector<LanguagePair>& languages,
                        const std::vector<std::string>& files) {
    return TokenizedCorpus::open_or_build(cache_path(config, what, files, tokenizer_hash),
                                          languages, data.model, data.tokenizer, config.corpus,
                                          threads, log);
  };
  data.train = open("train", train, config.train);
  std::vector<uint64_t> dev_pairs;
  if (!dev.empty()) {
    data.dev = open("dev", dev, config.dev);
    data.excluded = pairs_shared_with(*data.train, *data.dev, threads);
    for (uint64_t pair = 0; pair < data.dev->num_pairs(); ++pair) dev_pairs.push_back(pair);
  } else if (config.dev_pairs > 0) {
    data.dev = data.train;
    HeldOut held =
        hold_out(*data.train, static_cast<uint64_t>(config.dev_pairs), config.seed, threads);
    data.excluded = std::move(held.excluded);
    dev_pairs = std::move(held.dev);
  }
  if (data.dev) {
    for (const TokenizedCorpus::Part& part : data.dev->parts()) {
      const auto first = std::lower_bound(dev_pairs.begin(), dev_pairs.end(), part.first_pair);
      const auto last = std::lower_bound(first, dev_pairs.end(), part.first_pair + part.num_pairs);
      if (first != last) data.dev_parts.push_back({part.name, {first, last}});
    }
  }
  data.maskable = maskable_tokens(data.tokenizer, data.model);
  return data;
}

}  // namespace xsr::training
