#pragma once
#include <cstdint>
#include <vector>

#include "training/batch.h"

namespace xsr::training {

/// How the bags of words of XTR and UGT are built (docs/methods.md). All off is the release.
struct TargetSettings {
  bool count_weighted = false;  // count/len, which sums to 1; else 1/len on every distinct id
  bool clean_ids = false;       // the id under <MASK>; else <MASK> is an id like any other
  bool add_masses = false;      // UGT: a masked word that the other side has too gets both masses
};

/// One bag of words a sentence: t[b, v] ≥ 0, zero where nothing is listed. A bag may sum to less
/// than 1, and may be empty.
struct SparseTarget {
  std::vector<int32_t>
      offsets;  // [2B + 1] into the others; sentence b has [offsets[b], offsets[b + 1])
  std::vector<int32_t> token_ids;  // rising within a sentence
  std::vector<float> masses;       // > 0
};

/// XTR (Mao et al. 2021, as released): of each sentence, the words of the other side.
SparseTarget xtr_target(const PairBatch& batch, const TargetSettings& settings);
/// UGT: XTR, but a masked side gives half its mass to the word under <MASK>.
SparseTarget ugt_target(const PairBatch& batch, const TargetSettings& settings);
/// SMLM: of a masked side, the word under <MASK>; of other sentences nothing.
SparseTarget smlm_target(const PairBatch& batch);

}  // namespace xsr::training
