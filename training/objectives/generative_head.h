#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/format/model_config.h"
#include "training/objectives/vocabulary_loss.h"
#include "training/parameters.h"
#include "training/precision.h"

namespace xsr::training {

/// The generative head of Mao et al. 2021, as released, forward and backward:
///
///     t = LayerNorm(swish(u Wᵀ + b))      z = t Eᵀ + c      loss of VocabularyLoss
///
/// E is the token table, whose gradient this adds to. The transform is f32 in every precision: it
/// is a hundredth of the head.
class GenerativeHead {
 public:
  /// Keeps references to table, kernels and threads.
  GenerativeHead(const ModelConfig& config, const ParameterTable& table, Precision precision,
                 const kernels::KernelTable& kernels, ThreadPool& threads,
                 int64_t stored_bytes = VocabularyLoss::kStoredBytes);

  /// Gives the loss of each target, unweighted. Logits that are not finite give losses that are
  /// not.
  ///
  /// u          [2B, C]  row stride u_stride ≥ C
  /// values              the parameters
  /// narrow     [table size]  the parameters in bf16 as Optimizer::step writes them, for
  ///                     Precision::kBF16; null = the token table is rounded tile by tile
  /// du         [2B, C]  row stride du_stride; +=
  /// gradients           +=; null = losses only, and du is not touched
  std::vector<double> forward_backward(std::span<const WeightedTarget> targets, int32_t num_pairs,
                                       const float* u, int64_t u_stride, const FlatBuffer& values,
                                       const uint16_t* narrow, float* du, int64_t du_stride,
                                       FlatBuffer* gradients);

 private:
  void transform(int32_t S, const float* u, int64_t u_stride, const FlatBuffer& values);
  void transform_backward(int32_t S, const float* u, int64_t u_stride, const FlatBuffer& values,
                          float* du, int64_t du_stride, FlatBuffer& gradients);

  const int32_t C;
  const float layer_norm_eps_;
  const Parameter &token_, &weight_, &bias_, &gamma_, &beta_, &output_bias_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  VocabularyLoss vocabulary_;
  // [2B, row_stride(C)] each: u Wᵀ + b, its swish, t, and the gradient that walks back
  Workspace pre_, activated_, t_, gradient_;
  Workspace panels_, norm_parts_, scratch_;
};

}  // namespace xsr::training
