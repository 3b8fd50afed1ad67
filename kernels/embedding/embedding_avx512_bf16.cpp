#include "kernels/embedding/embedding.h"

#include "kernels/embedding/qkv_table_avx512.h"

namespace xsr::kernels {

void qkv_table_forward_f32_avx512_bf16(const int32_t* token_ids, const int32_t* positions,
                                       int32_t first, int32_t last, const float* token_table,
                                       const float* position_table, const float* rstd,
                                       const float* bias, int32_t N, float* out, int64_t out_stride,
                                       uint16_t* narrow, int64_t narrow_stride) {
  qkv_table_forward(token_ids, positions, first, last, token_table, position_table, rstd, bias, N,
                    out, out_stride, narrow, narrow_stride);
}

}  // namespace xsr::kernels
