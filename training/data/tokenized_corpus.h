#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/device/cpu_threads.h"
#include "runtime/format/mapped_file.h"
#include "runtime/format/model_config.h"
#include "training/data/log.h"
#include "training/data/parallel_text.h"

namespace xsr::training {

struct CorpusOptions {
  bool strict = false;                // a faulty line is an error, not dropped
  size_t max_line_bytes = 256 << 10;  // a longer line is a fault
  int32_t min_tokens = 1;             // per side
  int32_t max_tokens = 0;  // per side; 0: longer sentences are cut to the model's max_seq_len
  double max_ratio = 0;    // longer side / shorter side in tokens; 0: any
};

/// Throws Error(INVALID_ARGUMENT) for filters that make no sense for a model of that max_seq_len.
void validate(const CorpusOptions& options, int32_t max_seq_len);

/// Sentence pairs as token ids, in a mapped file that is made once from the text and then shared by
/// runs: the corpus cache. Immutable; for any number of threads at once.
class TokenizedCorpus {
 public:
  /// One pair of languages: pairs [first_pair, first_pair + num_pairs).
  struct Part {
    std::string name;
    uint64_t first_pair = 0, num_pairs = 0;
    DropReport drops;
  };
  struct File {
    std::string path;
    ContentHash hash;
    uint64_t first_pair = 0;
  };

  /// Opens the cache at cache_path when it is whole and was made of the same files (by their
  /// content; those without a hash are hashed), tokenizer, config and options; makes it otherwise,
  /// in parallel, and says why. Only config's tokenizer fields and max_seq_len matter. Memory does
  /// not grow with the text. The file takes its name when it is whole: a run that is killed leaves
  /// the old one. While another process makes caches in the same folder this one waits.
  /// Throws Error (an input file, its line or the cache), Stopped.
  static std::shared_ptr<const TokenizedCorpus> open_or_build(
      const std::string& cache_path, std::vector<LanguagePair> languages, const ModelConfig& config,
      std::string_view tokenizer_model, const CorpusOptions& options, ThreadPool& pool,
      const DataLog& log = {});

  uint64_t num_pairs() const { return num_pairs_; }
  std::span<const Part> parts() const { return parts_; }
  std::span<const File> files() const { return files_; }
  int32_t vocab_size() const { return vocab_size_; }
  uint64_t num_tokens() const { return num_tokens_; }
  uint64_t longest_pair() const { return longest_pair_; }  // tokens, both sides
  bool was_built() const { return built_; }                // now, rather than opened

  /// Tokens of a side (0 or 1), at least 1.
  int32_t length(uint64_t pair, int side) const;
  void append_ids(uint64_t pair, int side, std::vector<int32_t>& ids) const;
  /// A hash of a side's ids; the same for the same sentence in any corpus of the same tokenizer.
  uint64_t sentence_hash(uint64_t pair, int side) const;
  /// "FILE:LINE" of the text.
  std::string place(uint64_t pair) const;

 private:
  friend class CorpusWriter;
  struct Record;
  TokenizedCorpus(const std::string& path, const std::string& key, ThreadPool& pool);
  /// A side's ids as they stand in the file, and how many they are.
  std::pair<const unsigned char*, size_t> stored(uint64_t pair, int side) const;

  std::unique_ptr<MappedFile> map_;
  const Record* records_ = nullptr;        // [num_pairs]
  const unsigned char* tokens_ = nullptr;  // [num_tokens], uint16 or int32
  bool wide_ = false;                      // int32
  uint64_t num_pairs_ = 0, num_tokens_ = 0, longest_pair_ = 0;
  int32_t vocab_size_ = 0;
  bool built_ = false;
  std::vector<Part> parts_;
  std::vector<File> files_;
};

}  // namespace xsr::training
