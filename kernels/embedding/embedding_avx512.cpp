#include "kernels/embedding/embedding.h"

#include "kernels/embedding/prefetch_rows.h"
#include "kernels/embedding/qkv_table_avx512.h"
#include "kernels/layernorm/layernorm_avx512.h"

namespace xsr::kernels {

namespace {

/// Rows [first, last) of out ← LayerNorm(sum(i, row)), without it where gamma is null. `sum` writes
/// the sum of token i's vectors to the row.
template <typename Sum>
inline void normalized_sums(const RowPrefetch& rows, int32_t first, int32_t last,
                            const float* gamma, const float* beta, float eps, int32_t C, float* out,
                            int64_t out_stride, float* rstd, const Sum& sum) {
  for (int32_t begin = first; begin < last; begin += kLayernormRows) {
    const int32_t end = begin + kLayernormRows < last ? begin + kLayernormRows : last;
    for (int32_t i = begin; i < end; ++i) {
      rows.reach(i);
      sum(i, out + i * out_stride);
    }
    if (gamma == nullptr) continue;
    float* const x = out + begin * out_stride;
    layernorm_rows_avx512(x, out_stride, end - begin, C, gamma, beta, eps, x, out_stride,
                          rstd == nullptr ? nullptr : rstd + begin);
  }
}

}  // namespace

void embedding_forward_f32_avx512(const int32_t* token_ids, const int32_t* positions, int32_t first,
                                  int32_t last, const void* token, const void* position,
                                  Storage storage, const float* token_type, const float* gamma,
                                  const float* beta, float eps, int32_t C, float* out,
                                  int64_t out_stride, float* rstd) {
  const RowPrefetch rows(token, C * storage_size(storage), token_ids, first, last);
  const auto sum = [=](int32_t i, float* row) {
    const int64_t t = (int64_t)token_ids[i] * C, p = (int64_t)positions[i] * C;
    for_each_vector(C, [&](int32_t c, __mmask16 mask) {
      __m512 value = _mm512_add_ps(load_f32(token, storage, t + c, mask),
                                   load_f32(position, storage, p + c, mask));
      if (token_type != nullptr)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, token_type + c));
      _mm512_mask_storeu_ps(row + c, mask, value);
    });
  };
  normalized_sums(rows, first, last, gamma, beta, eps, C, out, out_stride, rstd, sum);
}

void embedding_forward_i8_avx512(const int32_t* token_ids, const int32_t* positions, int32_t first,
                                 int32_t last, const int8_t* token, const float* token_scales,
                                 const int8_t* position, const float* position_scales,
                                 const float* token_type, const float* gamma, const float* beta,
                                 float eps, int32_t C, float* out, int64_t out_stride,
                                 float* rstd) {
  const RowPrefetch rows(token, C * (int64_t)sizeof *token, token_ids, first, last);
  const auto sum = [=](int32_t i, float* row) {
    const int64_t t = (int64_t)token_ids[i] * C, p = (int64_t)positions[i] * C;
    const __m512 token_scale = _mm512_set1_ps(token_scales[token_ids[i]]);
    const __m512 position_scale = _mm512_set1_ps(position_scales[positions[i]]);
    for_each_vector(C, [&](int32_t c, __mmask16 mask) {
      __m512 value = _mm512_add_ps(_mm512_mul_ps(load_i8(token + t + c, mask), token_scale),
                                   _mm512_mul_ps(load_i8(position + p + c, mask), position_scale));
      if (token_type != nullptr)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, token_type + c));
      _mm512_mask_storeu_ps(row + c, mask, value);
    });
  };
  normalized_sums(rows, first, last, gamma, beta, eps, C, out, out_stride, rstd, sum);
}

void qkv_table_forward_f32_avx512(const int32_t* token_ids, const int32_t* positions, int32_t first,
                                  int32_t last, const float* token_table,
                                  const float* position_table, const float* rstd, const float* bias,
                                  int32_t N, float* out, int64_t out_stride, uint16_t* narrow,
                                  int64_t narrow_stride) {
  qkv_table_forward(token_ids, positions, first, last, token_table, position_table, rstd, bias, N,
                    out, out_stride, narrow, narrow_stride);
}

void embedding_backward_f32_avx512(const float* de, int64_t de_stride, const RowBuckets& buckets,
                                   int32_t first, int32_t last, int32_t C, float* dtable) {
  for (int32_t u = first; u < last; ++u) {
    const int32_t *begin = buckets.rows + buckets.starts[u],
                  *end = buckets.rows + buckets.starts[u + 1];
    float* row = dtable + (int64_t)buckets.ids[u] * C;
    int32_t c = 0;
    for (; c + 128 <= C; c += 128) {
      __m512 sum[8];
      for (int j = 0; j < 8; ++j) sum[j] = _mm512_setzero_ps();
      for (const int32_t* r = begin; r < end; ++r) {
        const float* gradient = de + *r * de_stride + c;
        for (int j = 0; j < 8; ++j)
          sum[j] = _mm512_add_ps(sum[j], _mm512_loadu_ps(gradient + 16 * j));
      }
      for (int j = 0; j < 8; ++j) {
        float* at = row + c + 16 * j;
        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sum[j]));
      }
    }
    for (; c < C; c += 16) {
      const __mmask16 mask = tail_mask(C - c);
      __m512 sum = _mm512_setzero_ps();
      for (const int32_t* r = begin; r < end; ++r)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, de + *r * de_stride + c));
      _mm512_mask_storeu_ps(row + c, mask,
                            _mm512_add_ps(_mm512_maskz_loadu_ps(mask, row + c), sum));
    }
  }
}

}  // namespace xsr::kernels
