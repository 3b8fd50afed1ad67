#pragma once
#include "kernels/activation/activation.h"
#include "kernels/cuda/stream.h"

namespace xsr::cuda {

/// activation_forward_f32 on the device over a matrix, with the result in f32, in bf16, or both:
///
/// x [N, F] f32   out [N, F] f32 or null; may be x itself   narrow [N, F] bf16 or null
///
/// Strides in elements. kNone with narrow alone rounds x to bf16.
Status activation_forward_cuda(const float* x, int64_t x_stride, int32_t N, int32_t F,
                               kernels::Activation activation, float* out, int64_t out_stride,
                               uint16_t* narrow, int64_t narrow_stride, Stream stream);

}  // namespace xsr::cuda
