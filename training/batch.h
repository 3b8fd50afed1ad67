#pragma once
#include <cstdint>
#include <vector>

namespace xsr::training {

/// B pairs, packed without padding: the B sentences of side 1, then the B of side 2.
struct PairBatch {
  int32_t num_pairs = 0;               // B
  std::vector<int32_t> token_ids;      // [N], as the encoder reads them, <MASK> included
  std::vector<int32_t> cu_seqlens;     // [2B + 1]
  std::vector<int32_t> masked_id;      // [B], the id that <MASK> replaced; -1 = nothing is masked
  std::vector<int32_t> masked_row;     // [B], its index in token_ids; -1 = nothing is masked
  std::vector<uint8_t> masked_side;    // [B], 0 or 1
  std::vector<uint64_t> pair_numbers;  // [B], the pair's place in the data set, for messages

  int32_t num_sentences() const { return 2 * num_pairs; }
  int32_t num_tokens() const { return cu_seqlens.empty() ? 0 : cu_seqlens.back(); }
  bool operator==(const PairBatch&) const = default;
};

}  // namespace xsr::training
