#include "kernels/embedding/embedding_ref.h"

#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"

namespace xsr::kernels {

void embedding_forward_f32_ref(const int32_t* token_ids, const int32_t* positions, int32_t first,
                               int32_t last, const void* token, const void* position,
                               Storage storage, const float* token_type, const float* gamma,
                               const float* beta, float eps, int32_t C, float* out,
                               int64_t out_stride, float* rstd) {
  embedding_forward_ref(token_ids, positions, first, last, token, position, storage, token_type,
                        gamma, beta, eps, C, out, out_stride, rstd);
}

void embedding_forward_i8_ref(const int32_t* token_ids, const int32_t* positions, int32_t first,
                              int32_t last, const int8_t* token, const float* token_scales,
                              const int8_t* position, const float* position_scales,
                              const float* token_type, const float* gamma, const float* beta,
                              float eps, int32_t C, float* out, int64_t out_stride, float* rstd) {
  embedding_quantized_ref(token_ids, positions, first, last, token, token_scales, position,
                          position_scales, token_type, gamma, beta, eps, C, out, out_stride, rstd);
}

void qkv_table_forward_f32_ref(const int32_t* token_ids, const int32_t* positions, int32_t first,
                               int32_t last, const float* token_table, const float* position_table,
                               const float* rstd, const float* bias, int32_t N, float* out,
                               int64_t out_stride, uint16_t* narrow, int64_t narrow_stride) {
  qkv_table_forward_ref(token_ids, positions, first, last, token_table, position_table, rstd, bias,
                        N, [&](int32_t i, int32_t n, float value) {
                          if (out != nullptr) out[i * out_stride + n] = value;
                          if (narrow != nullptr)
                            narrow[i * narrow_stride + n] = bf16_from_f32(value);
                        });
}

void embedding_backward_f32_ref(const float* de, int64_t de_stride, const RowBuckets& buckets,
                                int32_t first, int32_t last, int32_t C, float* dtable) {
  embedding_backward_ref(de, de_stride, buckets, first, last, C, dtable);
}

}  // namespace xsr::kernels
