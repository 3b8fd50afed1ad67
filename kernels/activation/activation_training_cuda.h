#pragma once
#include <stdint.h>

#include "kernels/activation/activation.h"
#include "kernels/cuda/stream.h"

namespace xsr::cuda {

// Pointers are 16-byte aligned: a thread moves 16 bytes at once.

/// out[i] = f(x[i]), i < n, as activation_forward_f32; x is kept for the backward pass.
Status activation_forward_f32_cuda(const float* x, int64_t n, kernels::Activation activation,
                                   float* out, Stream stream);

/// d[i] ← d[i] · f'(x[i]), i < n, as activation_backward_f32.
Status activation_backward_f32_cuda(const float* x, int64_t n, kernels::Activation activation,
                                    float* d, Stream stream);

/// Backward of activation_forward_bf16_cuda (activation_cuda.h):
/// d[i, c] ← d[i, c] · f'(x[i, c] + bias[c]) in f32, rounded once.
///
/// x     [N, F] bf16, of the forward pass   bias [F] f32
/// d     [N, F] bf16, read and written; rows next to each other
Status activation_backward_bf16_cuda(const uint16_t* x, const float* bias, int32_t N, int32_t F,
                                     kernels::Activation activation, uint16_t* d, Stream stream);

}  // namespace xsr::cuda
