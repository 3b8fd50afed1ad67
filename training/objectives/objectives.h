#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "training/batch.h"
#include "training/objectives/contrastive.h"
#include "training/objectives/generative_head.h"
#include "training/objectives/sim.h"

namespace xsr::training {

/// What is trained: a weighted sum (docs/methods.md). A weight of 0 leaves a part out.
struct ObjectiveConfig {
  double xtr_weight = 0;
  double ugt_weight = 1;
  double smlm_weight = 0;
  double align_weight = 2;
  double sim_weight = 2;
  double info_nce_weight = 0;
  TargetSettings targets;
  ContrastiveSettings align;
  SimSettings sim;
  ContrastiveSettings info_nce = kInfoNce;
};

/// Throws Error(INVALID_ARGUMENT) naming an impossible setting.
void validate(const ObjectiveConfig& config);

struct LossPart {
  std::string_view name;  // "xtr", "ugt", "smlm", "align", "sim", "info_nce"
  double weight = 0;
  double value = 0;  // unweighted
};

struct LossParts {
  std::vector<LossPart> parts;  // those with a weight, in the order above
  double total = 0;             // Σ weight · value
};

/// The weighted sum of all objectives on one batch, forward and backward.
class Objectives {
 public:
  /// Keeps references to table, kernels and threads. Throws Error(INVALID_ARGUMENT).
  Objectives(const ObjectiveConfig& objectives, const ModelConfig& config,
             const ParameterTable& table, Precision precision, const kernels::KernelTable& kernels,
             ThreadPool& threads);

  /// u          [2B, C]  sentence embeddings in the order of the batch, row stride u_stride ≥ C
  /// values              the parameters
  /// narrow     [table size]  the parameters in bf16 as Optimizer::step writes them; null = not
  ///                     at hand
  /// du         [2B, C]  row stride du_stride; +=
  /// gradients           += (head.* and embedding.token); null = losses only, and du is not touched
  LossParts forward_backward(const PairBatch& batch, const float* u, int64_t u_stride,
                             const FlatBuffer& values, const uint16_t* narrow, float* du,
                             int64_t du_stride, FlatBuffer* gradients);

 private:
  const ObjectiveConfig objectives_;
  const int32_t hidden_size_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  GenerativeHead head_;
};

}  // namespace xsr::training
