#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "runtime/device/cpu_threads.h"
#include "runtime/evaluation/retrieval.h"
#include "training/data/pair_sampler.h"
#include "training/step.h"

namespace xsr::training {

/// score_retrieval of pairs of a corpus, embedded without dropout in batches as large as those of
/// training; builder masks nothing. Leaves the last batch in trainer.embeddings(). before_batch may
/// throw, which ends it.
RetrievalScore score_pairs(
    Trainer& trainer, const BatchBuilder& builder, std::span<const uint64_t> pairs,
    const SamplerOptions& batches, ThreadPool& threads,
    const std::function<void()>& before_batch = [] {});

}  // namespace xsr::training
