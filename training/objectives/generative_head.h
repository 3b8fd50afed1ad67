#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/format/model_config.h"
#include "training/objectives/sparse_target.h"
#include "training/parameters.h"
#include "training/precision.h"

namespace xsr::training {

/// A target and what its loss counts for in the sum.
struct WeightedTarget {
  const SparseTarget* target = nullptr;
  double weight = 1;
};

/// The generative head of papers.md 1a, forward and backward:
///
///     t = LayerNorm(swish(u Wᵀ + b))      z = t Eᵀ + c      q = softmax(z)
///     loss = (1/B) Σ_b Σ_v t[b, v] (log t[b, v] − log q[b, v])     for each target, unweighted
///     dz = (1/B) Σ_targets weight (mass q − t)
///
/// E is the token table, whose gradient this adds to. The vocabulary is walked in tiles of kTile
/// words with the logits transposed (kernels/loss/loss.h): no label matrix, no logits kept. The
/// exponentials are kept for the backward pass while they take at most `stored_bytes`, that is, for
/// a vocabulary of 50,000, up to a batch of 671 pairs in f32 and 1,342 in bf16; beyond, they are
/// computed again. Both ways give the same bits, and so does any number of threads.
class GenerativeHead {
 public:
  static constexpr int32_t kTile = 256;
  static constexpr int64_t kStoredBytes = int64_t{256} << 20;

  /// Keeps references to table, kernels and threads.
  GenerativeHead(const ModelConfig& config, const ParameterTable& table, Precision precision,
                 const kernels::KernelTable& kernels, ThreadPool& threads,
                 int64_t stored_bytes = kStoredBytes);

  /// Gives the loss of each target. Non-finite logits give losses that are not finite.
  ///
  /// u          [2B, C]  row stride u_stride ≥ C
  /// values              the parameters
  /// narrow     [table size]  the parameters in bf16 as the optimiser writes them, for
  ///                     Precision::kBF16; null = the token table is rounded tile by tile
  /// du         [2B, C]  row stride du_stride; +=
  /// gradients           +=; null = losses only, and du is not touched
  std::vector<double> forward_backward(std::span<const WeightedTarget> targets, int32_t num_pairs,
                                       const float* u, int64_t u_stride, const FlatBuffer& values,
                                       const uint16_t* narrow, float* du, int64_t du_stride,
                                       FlatBuffer* gradients);
};

}  // namespace xsr::training
