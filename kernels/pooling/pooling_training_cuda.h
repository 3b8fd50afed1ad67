#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"
#include "kernels/pooling/pooling.h"

namespace xsr::cuda {

/// Pooling of a LayerNorm's output that stands nowhere, (x − mean) · rstd · gamma + beta, by mean
/// or of the first rows, as pooling_forward_cuda; status 1 for the largest.
///
/// x [N, C]   statistics [N, 2] mean and rstd   gamma, beta [C]   out [B, C]
/// C is a multiple of 4, x, gamma, beta and out are 16-byte aligned
/// sentence_of [N]  =, a row's sentence, -1 from cu_seqlens[B] on; for layernorm_backward_cuda
Status norm_pooling_forward_cuda(const float* x, const float* statistics, const float* gamma,
                                 const float* beta, const int32_t* cu_seqlens, int32_t B, int32_t N,
                                 int32_t C, kernels::Pooling pooling, float* out,
                                 int32_t* sentence_of, Stream stream);

/// dx ← the gradient of every token row, as pooling_backward_f32; rows from cu_seqlens[B] up to N,
/// which belong to no sentence, become zero.
Status pooling_backward_f32_cuda(const float* x, const float* dy, const int32_t* cu_seqlens,
                                 int32_t B, int32_t N, int32_t C, kernels::Pooling pooling,
                                 float* dx, Stream stream);

/// out ← x at unit length, as l2_normalize_forward_f32; x [B, C] is kept for the backward pass.
Status l2_unit_forward_f32_cuda(const float* x, int32_t B, int32_t C, float* out, Stream stream);

/// dx += gradient of x from dy, that of l2_unit_forward_f32_cuda's out; as
/// l2_normalize_backward_f32. x, dy, dx [B, C]
Status l2_unit_backward_f32_cuda(const float* x, const float* dy, int32_t B, int32_t C, float* dx,
                                 Stream stream);

}  // namespace xsr::cuda
