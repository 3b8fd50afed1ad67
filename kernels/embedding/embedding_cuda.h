#pragma once
#include "kernels/cuda/stream.h"
#include "kernels/embedding/embedding.h"

namespace xsr::cuda {

/// embedding_forward_f32 on the device, rows [0, N), with the result in f32, in bf16, or both:
///
/// token, position  [V, C], [P, C] in `storage`, without gaps
/// gamma, beta [C]  both null: the sum without the LayerNorm; rstd is not written then
/// out    [N, C] f32 or null   narrow [N, C] bf16 or null   rstd [N] or null; strides in elements
///
/// C ≤ 1024, else status 1. One warp a row: a row's bits depend on that row alone.
Status embedding_forward_cuda(const int32_t* token_ids, const int32_t* positions, int32_t N,
                              const void* token, const void* position, kernels::Storage storage,
                              const float* token_type, const float* gamma, const float* beta,
                              float eps, int32_t C, float* out, int64_t out_stride,
                              uint16_t* narrow, int64_t narrow_stride, float* rstd, Stream stream);

/// qkv_table_forward_f32 on the device, rows [0, rows), with the result in f32, in bf16, or both:
/// tables without gaps; out [rows, N] f32 or null; narrow [rows, N] bf16 or null, rounded once,
/// with the bias in it, unlike a product into bf16; both of row stride out_stride. Pointers to f32
/// are 16-byte aligned, narrow 8-byte.
Status qkv_table_forward_cuda(const int32_t* token_ids, const int32_t* positions, int32_t rows,
                              const float* token_table, const float* position_table,
                              const float* rstd, const float* bias, int32_t N, float* out,
                              uint16_t* narrow, int64_t out_stride, Stream stream);

}  // namespace xsr::cuda
