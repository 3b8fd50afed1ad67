#pragma once
#include "kernels/cuda/stream.h"
#include "kernels/pooling/pooling.h"

namespace xsr::cuda {

/// pooling_forward_f32 on the device, sentences [0, B).
Status pooling_forward_cuda(const float* x, int64_t x_stride, const int32_t* cu_seqlens, int32_t B,
                            int32_t C, kernels::Pooling pooling, float* out, int64_t out_stride,
                            Stream stream);

/// Pooling by the first token of bf16 rows: out [B, C] ← the first row of each sentence of x, zeros
/// where it has none.
Status first_rows_bf16_cuda(const uint16_t* x, int64_t x_stride, const int32_t* cu_seqlens,
                            int32_t B, int32_t C, uint16_t* out, int64_t out_stride, Stream stream);

/// l2_normalize_forward_f32 on the device, rows [0, B), one warp a row. The squares are summed in
/// f64.
Status l2_normalize_forward_cuda(float* x, int64_t stride, int32_t B, int32_t C, Stream stream);

}  // namespace xsr::cuda
