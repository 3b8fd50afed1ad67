#pragma once
#include <stdint.h>

#include "kernels/activation/activation.h"
#include "kernels/cuda/stream.h"
#include "kernels/gemm/column_sum_cuda.h"

namespace xsr::cuda {

// Pointers are 16-byte aligned: a thread moves 16 bytes at once.

/// out[i] = f(x[i]), i < n, as activation_forward_f32; x is kept for the backward pass.
Status activation_forward_f32_cuda(const float* x, int64_t n, kernels::Activation activation,
                                   float* out, Stream stream);

/// d[i] ← d[i] · f'(x[i]), i < n, as activation_backward_f32.
Status activation_backward_f32_cuda(const float* x, int64_t n, kernels::Activation activation,
                                    float* d, Stream stream);

/// Blocks that share the rows of activation_backward_bf16_cuda, at most, whatever the device.
static constexpr int32_t kMostActivationBlocks = 132;

/// Floats that activation_backward_bf16_cuda needs beside its arguments.
static constexpr int64_t activation_backward_floats_cuda(int32_t N, int32_t F) {
  const int64_t blocks = (N + 7) / 8;
  return (blocks < kMostActivationBlocks ? blocks : kMostActivationBlocks) * F;
}

/// Backward of activation_forward_bf16_cuda (activation_cuda.h):
///
///     d[i, c] ← d[i, c] · f'(x[i, c] + bias[c]) in f32, rounded once
///     dbias[c] ← Σ_i of that before it is rounded
///
/// x     [N, F] bf16, of the forward pass   bias [F] f32
/// d     [N, F] bf16, read and written; rows next to each other
/// dbias [F] f32  =, rows added in an order that N alone fixes
/// parts [activation_backward_floats_cuda(N, F)]
/// later as of column_sum_cuda
Status activation_backward_bf16_cuda(const uint16_t* x, const float* bias, int32_t N, int32_t F,
                                     kernels::Activation activation, uint16_t* d, float* dbias,
                                     float* parts, PartSums* later, Stream stream);

}  // namespace xsr::cuda
