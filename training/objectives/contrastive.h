#pragma once
#include <cstdint>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"

namespace xsr::training {

/// In-batch cross-entropy between the two sides; negatives are the other pairs' other sides:
///
///     S = (⟨u1_i, u2_j⟩ − margin [i = j]) / temperature
///     loss = CE(rows of S, diagonal) + CE(columns of S, diagonal), each a mean over B; or half
///     that
///
/// Defaults: ALIGN of XSR, as released (Mao et al. 2021).
struct ContrastiveSettings {
  bool cosine = false;     // ⟨a, b⟩ = a·b / (|a| |b|); else a·b
  double temperature = 1;  // > 0
  bool mean_of_directions = false;
  double margin = 0;  // additive margin softmax (Feng et al. 2022), whose scale is 1 / temperature
};
/// Normalised InfoNCE, the contrastive loss of EMS (Mao et al. 2024, as released), without its
/// projection.
inline constexpr ContrastiveSettings kInfoNce{true, 0.1, true, 0};

/// Gives the loss, unweighted, and adds weight · its gradient to du.
///
/// u   [2B, C]  side 1, then side 2; row stride u_stride ≥ C
/// du  [2B, C]  row stride du_stride; +=; null = loss only
///
/// f32 with sums over the batch in double, whatever the trainer's precision: products of
/// unnormalised embeddings saturate narrower types. A vector of zeros has cosine 0 with everything.
/// A value that is not finite gives such a loss.
double contrastive_forward_backward(const ContrastiveSettings& settings, double weight,
                                    int32_t num_pairs, int32_t hidden_size, const float* u,
                                    int64_t u_stride, float* du, int64_t du_stride,
                                    const kernels::KernelTable& kernels, ThreadPool& threads);

}  // namespace xsr::training
