#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// One step of Adam or AdamW, as PyTorch 2 defines them; what depends on the step alone is computed
/// once, in double, by the caller (training/optimizer.cpp).
struct AdamStep {
  float gradient_scale = 1;  // of clipping by the global norm
  float l2 = 0;              // coupled weight decay: l2 · value is added to the gradient
  float shrink = 0;  // decoupled weight decay: lr · decay; 1 − shrink would lose its digits in f32
  float beta1 = 0.9f;
  float one_minus_beta1 = 0.1f;
  float beta2 = 0.999f;
  float one_minus_beta2 = 0.001f;
  float step_size = 0;            // lr / (1 − β1^t)
  float inverse_correction2 = 1;  // 1 / √(1 − β2^t)
  float eps = 1e-8f;
};

/// For the elements [first, last) of flat buffers:
///
///     g = gradient · gradient_scale + l2 · value
///     m = β1 m + (1 − β1) g          v = β2 v + (1 − β2) g²          w = max(w, v)  (AMSGrad)
///     value = value − (shrink · value + step_size · m / (√w · inverse_correction2 + eps))
///
/// value, first_moment, second_moment  [n]  read and written
/// gradient                            [n]
/// max_second_moment                   [n]  w, read and written; null = plain Adam: w is v
/// narrow                              [n]  the new value rounded to bf16, to nearest even; null =
///                                          not wanted
///
/// An element's bits depend on that element alone. Error against the double reference ≤ 2× that of
/// the plain f32 loop. Pure: no allocation, no threads, no globals. Source: Kingma & Ba 2015,
/// algorithm 1; Reddi et al. 2018, algorithm 2; Loshchilov & Hutter 2019, algorithm 2.
using adam_update_f32_t = void(float* value, const float* gradient, float* first_moment,
                               float* second_moment, float* max_second_moment, uint16_t* narrow,
                               int64_t first, int64_t last, const AdamStep& step);

adam_update_f32_t adam_update_f32_ref, adam_update_f32_avx2, adam_update_f32_avx512;

/// Σ x[i]², i < n, accumulated in double: eight sums, element i in sum i % 8, added at the end as
/// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). Every ISA gives the same bits.
using sum_of_squares_f32_t = double(const float* x, int64_t n);

sum_of_squares_f32_t sum_of_squares_f32_ref, sum_of_squares_f32_avx2, sum_of_squares_f32_avx512;

}  // namespace xsr::kernels
