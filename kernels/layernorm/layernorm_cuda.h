#pragma once
#include "kernels/cuda/stream.h"
#include "kernels/layernorm/layernorm.h"

namespace xsr::cuda {

/// layernorm_forward_f32 on the device, rows [0, N), with the result in f32, in bf16, or both:
///
/// x       [N, C] f32   out [N, C] f32 or null; may be x itself   narrow [N, C] bf16 or null
/// gamma, beta [C] f32  strides in elements; C ≤ 1024, else status 1
///
/// One warp a row: a row's bits depend on that row alone. Error as layernorm_forward_f32; bf16 is
/// its rounding to nearest even.
Status layernorm_forward_cuda(const float* x, int64_t x_stride, int32_t N, int32_t C,
                              const float* gamma, const float* beta, float eps, float* out,
                              int64_t out_stride, uint16_t* narrow, int64_t narrow_stride,
                              Stream stream);

}  // namespace xsr::cuda
