#pragma once
#include <cstdint>
#include <vector>

#include "runtime/device/cpu_threads.h"
#include "training/data/tokenized_corpus.h"

namespace xsr::training {

/// Pairs of a corpus that are for evaluation, and those that must not be trained on.
struct HeldOut {
  std::vector<uint64_t> dev;  // by part, then rising
  std::vector<uint64_t>
      excluded;  // rising; every pair that shares a sentence with dev, dev included
};

/// Chooses pairs_per_part pairs of every part, at most half of it, by a hash of (seed, sentence of
/// side 1), of the pairs of one sentence the first: the order of the lines matters to these alone.
/// No sentence stands twice on a side of a part's dev pairs (so that retrieval has one answer),
/// which can make them fewer.
HeldOut hold_out(const TokenizedCorpus& corpus, uint64_t pairs_per_part, uint64_t seed,
                 ThreadPool& pool);

/// The pairs of corpus, rising, that share a sentence (the same ids on the same side) with dev.
std::vector<uint64_t> pairs_shared_with(const TokenizedCorpus& corpus, const TokenizedCorpus& dev,
                                        ThreadPool& pool);

}  // namespace xsr::training
