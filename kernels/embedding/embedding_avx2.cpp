#include "kernels/embedding/embedding.h"

#include "kernels/embedding/prefetch_rows.h"
#include "kernels/layernorm/layernorm_avx2.h"

namespace xsr::kernels {

void embedding_forward_f32_avx2(const int32_t* token_ids, const int32_t* positions, int32_t first,
                                int32_t last, const void* token, const void* position,
                                Storage storage, const float* token_type, const float* gamma,
                                const float* beta, float eps, int32_t C, float* out,
                                int64_t out_stride, float* rstd) {
  const RowPrefetch rows(token, C * storage_size(storage), token_ids, first, last);
  for (int32_t i = first; i < last; ++i) {
    rows.reach(i);
    const int64_t t = (int64_t)token_ids[i] * C, p = (int64_t)positions[i] * C;
    float* row = out + i * out_stride;
    for (int32_t c = 0; c < C; c += 8) {
      __m256 value = _mm256_add_ps(load_f32(token, storage, t + c, C - c),
                                   load_f32(position, storage, p + c, C - c));
      if (token_type != nullptr) value = _mm256_add_ps(value, load_up_to_8(token_type + c, C - c));
      store_up_to_8(row + c, C - c, value);
    }
    if (gamma == nullptr) continue;
    const float inverse = layernorm_row_avx2(row, C, gamma, beta, eps, row);
    if (rstd != nullptr) rstd[i] = inverse;
  }
}

void embedding_forward_i8_avx2(const int32_t* token_ids, const int32_t* positions, int32_t first,
                               int32_t last, const int8_t* token, const float* token_scales,
                               const int8_t* position, const float* position_scales,
                               const float* token_type, const float* gamma, const float* beta,
                               float eps, int32_t C, float* out, int64_t out_stride, float* rstd) {
  const RowPrefetch rows(token, C * (int64_t)sizeof *token, token_ids, first, last);
  for (int32_t i = first; i < last; ++i) {
    rows.reach(i);
    const int64_t t = (int64_t)token_ids[i] * C, p = (int64_t)positions[i] * C;
    const __m256 token_scale = _mm256_set1_ps(token_scales[token_ids[i]]);
    const __m256 position_scale = _mm256_set1_ps(position_scales[positions[i]]);
    float* row = out + i * out_stride;
    for (int32_t c = 0; c < C; c += 8) {
      __m256 value = _mm256_add_ps(_mm256_mul_ps(load_i8(token + t + c, C - c), token_scale),
                                   _mm256_mul_ps(load_i8(position + p + c, C - c), position_scale));
      if (token_type != nullptr) value = _mm256_add_ps(value, load_up_to_8(token_type + c, C - c));
      store_up_to_8(row + c, C - c, value);
    }
    const float inverse = layernorm_row_avx2(row, C, gamma, beta, eps, row);
    if (rstd != nullptr) rstd[i] = inverse;
  }
}

void qkv_table_forward_f32_avx2(const int32_t* token_ids, const int32_t* positions, int32_t first,
                                int32_t last, const float* token_table, const float* position_table,
                                const float* rstd, const float* bias, int32_t N, float* out,
                                int64_t out_stride, uint16_t* narrow, int64_t narrow_stride) {
  for (int32_t i = first; i < last; ++i) {
    const float* token = token_table + (int64_t)token_ids[i] * N;
    const float* position = position_table + (int64_t)positions[i] * N;
    // The next row comes from DRAM: its lines are asked for while this one is worked on.
    const float* next = i + 1 < last ? token_table + (int64_t)token_ids[i + 1] * N : token;
    const __m256 scale = _mm256_set1_ps(rstd[i]);
    for (int32_t n = 0; n < N; n += 8) {
      _mm_prefetch((const char*)(next + n), _MM_HINT_T0);
      const __m256 sum =
          _mm256_add_ps(load_up_to_8(token + n, N - n), load_up_to_8(position + n, N - n));
      const __m256 value = _mm256_fmadd_ps(sum, scale, load_up_to_8(bias + n, N - n));
      if (out != nullptr) store_up_to_8(out + i * out_stride + n, N - n, value);
      if (narrow != nullptr) store_bf16(narrow + i * narrow_stride + n, value, N - n);
    }
  }
}

void embedding_backward_f32_avx2(const float* de, int64_t de_stride, const RowBuckets& buckets,
                                 int32_t first, int32_t last, int32_t C, float* dtable) {
  for (int32_t u = first; u < last; ++u) {
    const int32_t *begin = buckets.rows + buckets.starts[u],
                  *end = buckets.rows + buckets.starts[u + 1];
    float* row = dtable + (int64_t)buckets.ids[u] * C;
    int32_t c = 0;
    for (; c + 64 <= C; c += 64) {
      __m256 sum[8];
      for (int j = 0; j < 8; ++j) sum[j] = _mm256_setzero_ps();
      for (const int32_t* r = begin; r < end; ++r) {
        const float* gradient = de + *r * de_stride + c;
        for (int j = 0; j < 8; ++j)
          sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(gradient + 8 * j));
      }
      for (int j = 0; j < 8; ++j) {
        float* at = row + c + 8 * j;
        _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), sum[j]));
      }
    }
    for (; c < C; c += 8) {
      __m256 sum = _mm256_setzero_ps();
      for (const int32_t* r = begin; r < end; ++r)
        sum = _mm256_add_ps(sum, load_up_to_8(de + *r * de_stride + c, C - c));
      store_up_to_8(row + c, C - c, _mm256_add_ps(load_up_to_8(row + c, C - c), sum));
    }
  }
}

}  // namespace xsr::kernels
