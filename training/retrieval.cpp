#include "training/retrieval.h"

#include <algorithm>
#include <vector>

namespace xsr::training {

RetrievalScore score_pairs(Trainer& trainer, const BatchBuilder& builder,
                           std::span<const uint64_t> pairs, const SamplerOptions& batches,
                           ThreadPool& threads, const std::function<void()>& before_batch) {
  const int32_t C = trainer.config().hidden_size;
  std::vector<float> sides[2];
  PairBatch batch;
  while (!pairs.empty()) {
    before_batch();
    const size_t count = builder.fitting(pairs, batches.batch_pairs, batches.batch_tokens);
    builder.build(pairs.first(count), batch);
    trainer.embed(batch);
    const float* u = trainer.embeddings().data();
    for (std::vector<float>& side : sides) {
      side.insert(side.end(), u, u + count * C);
      u += count * C;
    }
    pairs = pairs.subspan(count);
  }
  return score_retrieval(sides[0].data(), sides[1].data(),
                         static_cast<int64_t>(sides[0].size()) / C, C, threads);
}

}  // namespace xsr::training
