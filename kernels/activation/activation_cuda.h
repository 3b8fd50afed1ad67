#pragma once
#include "kernels/activation/activation.h"
#include "kernels/cuda/stream.h"

namespace xsr::cuda {

/// activation_forward_f32 on the device over a matrix:
///
/// x [N, F]   out [N, F]; may be x itself; strides in elements
Status activation_forward_cuda(const float* x, int64_t x_stride, int32_t N, int32_t F,
                               kernels::Activation activation, float* out, int64_t out_stride,
                               Stream stream);

/// out[i, c] ← f(x[i, c] + bias[c]) in f32, rounded to nearest even once: what follows a product
/// into bf16, which has no bias.
///
/// x     [N, F] bf16   out [N, F] bf16; may be x itself   bias [F] f32
///
/// All three start at multiples of 16 bytes; strides in elements, and columns from F on are left as
/// they are.
Status activation_forward_bf16_cuda(const uint16_t* x, int64_t x_stride, const float* bias,
                                    int32_t N, int32_t F, kernels::Activation activation,
                                    uint16_t* out, int64_t out_stride, Stream stream);

}  // namespace xsr::cuda
