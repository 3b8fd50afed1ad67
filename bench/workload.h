#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "xsr/xsr.h"

namespace xsr::bench {

/// Token sequences as xsr_session_embed_ids takes them.
struct IdBatch {
  std::vector<int32_t> token_ids;
  std::vector<size_t> offsets{0};

  size_t count() const { return offsets.size() - 1; }
  void append(const std::vector<int32_t>& ids);
};

/// Ids in [first, vocab_size) that look like text's to a cache: any row of the table, no row
/// preferred, so that the look-ups come from memory.
class RandomIds {
 public:
  RandomIds(int32_t vocab_size, uint32_t seed);
  std::vector<int32_t> take(int32_t count);

 private:
  std::mt19937 random_;
  std::uniform_int_distribution<int32_t> ids_;
};

/// Sentences of log-normal lengths: mean 24.9 tokens, sigma 0.7 of the logarithm, 1 to 195 (less
/// where the model's maximum is less): what bitext corpora look like. A function of
/// the arguments alone.
IdBatch log_normal_sentences(int32_t sentences, int32_t vocab_size, int32_t max_seq_len,
                             uint32_t seed);

/// One sentence a line of space-separated ids. Throws Error naming file and line.
IdBatch read_ids(const std::string& path, int32_t vocab_size);

/// One sentence a line; a final line without newline counts, and so do blank lines.
std::vector<std::string> read_lines(const std::string& path);

}  // namespace xsr::bench
