#pragma once
#include <cstdint>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"

namespace xsr::training {

/// SIM of Mao et al. 2021: how alike sentences are within side 1 should be how alike they are
/// within side 2.
///
///     P1 = rowsoftmax(U1 U1ᵀ)    P2 = rowsoftmax(U2 U2ᵀ)      diagonal included
///     loss = − Σ_ij log max(cos(argument · (P1 − P2)), min_cosine) / normaliser
///
/// Defaults: as released. The gradient is an unbounded tangent where |P1 − P2| nears 1; min_cosine
/// bounds it by argument / min_cosine, and cells beyond give none (as torch.clamp).
struct SimSettings {
  double argument = 1.5707963267948966;  // π/2; EMS: π
  bool divide_by_negatives = false;      // normaliser (B − 1)² as EMS, else 1
  double min_cosine = 0;                 // 0 = no bound
};

/// Gives the loss, unweighted, and adds weight · its gradient to du; arguments as of
/// contrastive_forward_backward.
double sim_forward_backward(const SimSettings& settings, double weight, int32_t num_pairs,
                            int32_t hidden_size, const float* u, int64_t u_stride, float* du,
                            int64_t du_stride, const kernels::KernelTable& kernels,
                            ThreadPool& threads);

}  // namespace xsr::training
