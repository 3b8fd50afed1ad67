#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"
#include "kernels/optimizer/optimizer.h"

namespace xsr::cuda {

/// What a step leaves on the device for its caller and for the update.
struct StepOutcome {
  static constexpr int32_t kMaxLosses = 6;
  double losses[kMaxLosses] = {};
  double gradient_norm = 0;
  float gradient_scale = 0;  // of clipping
  int32_t finite = 0;        // 1: losses and norm are; else the update does nothing
};

// Pointers to floats are 16-byte aligned, those to bf16 8-byte: a thread moves four elements at
// once.

/// Sums of squares of kNormBlock elements each, which gradient_norm_cuda adds up.
static constexpr int64_t kNormBlock = 1 << 15;
static constexpr int64_t norm_parts_cuda(int64_t n) { return (n + kNormBlock - 1) / kNormBlock; }

/// outcome ← the global norm of the gradient, √ Σ x² in double in an order that n alone fixes, the
/// scale that clips it (as torch.nn.utils.clip_grad_norm_: by clip_norm / (norm + 1e-6) where that
/// is below 1; clip_norm 0 = never), and whether it and outcome->losses [num_losses] are finite.
///
/// x [n]   parts [norm_parts_cuda(n)] doubles
Status gradient_norm_cuda(const float* x, int64_t n, double clip_norm, int32_t num_losses,
                          double* parts, StepOutcome* outcome, Stream stream);

/// adam_update_f32 over [0, n) in one launch, with outcome->gradient_scale for step's; nothing
/// where outcome->finite is 0.
///
/// step, outcome  on the device
Status adam_update_f32_cuda(float* value, const float* gradient, float* first_moment,
                            float* second_moment, float* max_second_moment, uint16_t* narrow,
                            int64_t n, const kernels::AdamStep* step, const StepOutcome* outcome,
                            Stream stream);

/// narrow[i] ← x[i] in bf16, to nearest even
Status narrow_forward_bf16_cuda(const float* x, int64_t n, uint16_t* narrow, Stream stream);

}  // namespace xsr::cuda
