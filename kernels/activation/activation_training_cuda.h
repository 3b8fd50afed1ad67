#pragma once
#include <stdint.h>

#include "kernels/activation/activation.h"
#include "kernels/cuda/stream.h"

namespace xsr::cuda {

// Pointers to floats are 16-byte aligned, those to bf16 8-byte: a thread moves four elements at
// once.

/// out[i] = f(x[i]), i < n, as activation_forward_f32; x is kept for the backward pass.
///
/// out     [n]  null = not wanted
/// narrow  [n]  the same in bf16, to nearest even; null = not wanted
Status activation_forward_f32_cuda(const float* x, int64_t n, kernels::Activation activation,
                                   float* out, uint16_t* narrow, Stream stream);

/// d[i] ← d[i] · f'(x[i]), i < n, as activation_backward_f32.
///
/// d       [n]  read and written
/// narrow  [n]  the result in bf16; null = not wanted
Status activation_backward_f32_cuda(const float* x, int64_t n, kernels::Activation activation,
                                    float* d, uint16_t* narrow, Stream stream);

}  // namespace xsr::cuda
