#include "kernels/attention/attention.h"

#include "kernels/attention/attention_head.h"
#include "kernels/attention/attention_tile_avx512.h"
#include "kernels/dropout/dropout_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

struct Core {
  static constexpr int32_t kQueryRows = 8;

  /// keys [T rows, stride] → transposed [D][columns]; the columns beyond T are zero.
  static void transpose_keys(const float* keys, int64_t stride, int32_t T, int32_t D,
                             float* transposed, int32_t columns) {
    for (int32_t j = 0; j < columns; j += 16) {
      for (int32_t d = 0; d < D; d += 16) {
        const __mmask16 mask = tail_mask(D - d);
        __m512 rows[16];
        for (int i = 0; i < 16; ++i) {
          rows[i] = j + i < T ? _mm512_maskz_loadu_ps(mask, keys + (j + i) * stride + d)
                              : _mm512_setzero_ps();
        }
        transpose_16x16(rows);
        const int32_t count = D - d < 16 ? D - d : 16;
        for (int i = 0; i < count; ++i)
          _mm512_store_ps(transposed + (int64_t)(d + i) * columns + j, rows[i]);
      }
    }
  }

  /// NV·16 columns of scores[m][j] = q_m · k_j for MR query rows.
  template <int MR, int NV>
  static void score_columns(const float* q, int64_t stride, const float* k, int32_t D,
                            int32_t columns, float* scores) {
    __m512 acc[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
    }
    for (int32_t d = 0; d < D; ++d, k += columns) {
      __m512 key[NV];
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) key[n] = _mm512_load_ps(k + 16 * n);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(q[m * stride + d]);
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_fmadd_ps(x, key[n], acc[m][n]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) _mm512_store_ps(scores + m * columns + 16 * n, acc[m][n]);
    }
  }

  template <int MR>
  static void score_rows(const float* q, int64_t stride, const float* transposed, int32_t D,
                         int32_t columns, float* scores) {
    int32_t j = 0;
    for (; j + 32 <= columns; j += 32)
      score_columns<MR, 2>(q, stride, transposed + j, D, columns, scores + j);
    if (j < columns) score_columns<MR, 1>(q, stride, transposed + j, D, columns, scores + j);
  }

  /// Turns a row of scores into e^(scale·(s - max)), in place; gives their sum and scale·max.
  /// Columns beyond T become 0.
  static float softmax_row(float* scores, int32_t T, float scale, float* largest) {
    *largest = largest_score(scores, T) * scale;
    const __m512 scales = _mm512_set1_ps(scale), shift = _mm512_set1_ps(*largest);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t j = 0; j < T; j += 16) {
      const __mmask16 mask = tail_mask(T - j);
      const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores + j), scales, shift);
      const __m512 p = _mm512_maskz_mov_ps(mask, exp_f32(x));
      sum = _mm512_add_ps(sum, p);
      _mm512_store_ps(scores + j, p);
    }
    return _mm512_reduce_add_ps(sum);
  }

  /// Drops probabilities of query row `row`, in place.
  static void drop_row(const Dropout& dropout, int32_t row, int32_t T, float* p) {
    const __m512 scale = _mm512_set1_ps(dropout.scale);
    for (int32_t begin = 0; begin < T; begin += 64) {
      __m512i words[4];
      dropout_words(dropout, row, begin, words);
      for (int32_t i = 0; i < 4 && begin + 16 * i < T; ++i) {
        float* at = p + begin + 16 * i;
        _mm512_store_ps(
            at, _mm512_maskz_mul_ps(dropout_kept(words[i], dropout), _mm512_load_ps(at), scale));
      }
    }
  }

  /// out[m] = Σ_j p[m][j] v_j for MR rows, NV·16 columns of which the last vector is masked;
  /// p[m][j] stands at p[m · row_step + j · column_step]. Divided by sum[m] unless sum is null.
  template <int MR, int NV>
  static void weigh_values(const float* p, int64_t row_step, int64_t column_step, const float* v,
                           int64_t v_stride, int32_t T, const float* sum, __mmask16 tail,
                           float* out, int64_t out_stride) {
    __m512 acc[MR][NV];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
    }
    for (int32_t j = 0; j < T; ++j, p += column_step) {
      __m512 value[NV];
#pragma GCC unroll 4
      for (int n = 0; n < NV - 1; ++n) value[n] = _mm512_loadu_ps(v + j * v_stride + 16 * n);
      value[NV - 1] = _mm512_maskz_loadu_ps(tail, v + j * v_stride + 16 * (NV - 1));
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(p[m * row_step]);
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_fmadd_ps(x, value[n], acc[m][n]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      if (sum != nullptr) {
        const __m512 sums = _mm512_set1_ps(sum[m]);
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_div_ps(acc[m][n], sums);
      }
#pragma GCC unroll 4
      for (int n = 0; n < NV - 1; ++n) _mm512_storeu_ps(out + m * out_stride + 16 * n, acc[m][n]);
      _mm512_mask_storeu_ps(out + m * out_stride + 16 * (NV - 1), tail, acc[m][NV - 1]);
    }
  }

  template <int MR>
  static void weigh_four_rows(const float* p, int64_t row_step, int64_t column_step, const float* v,
                              int64_t v_stride, int32_t T, int32_t D, const float* sum, float* out,
                              int64_t out_stride) {
    for_each_column_piece(D, [&]<int NV>(int32_t d, __mmask16 tail) {
      weigh_values<MR, NV>(p, row_step, column_step, v + d, v_stride, T, sum, tail, out + d,
                           out_stride);
    });
  }

  /// Up to eight rows, at most four at a time: so many sums stand in registers.
  template <int MR>
  static void weigh_rows(const float* p, int64_t row_step, int64_t column_step, const float* v,
                         int64_t v_stride, int32_t T, int32_t D, const float* sum, float* out,
                         int64_t out_stride) {
    constexpr int kFirst = MR > 4 ? 4 : MR;
    weigh_four_rows<kFirst>(p, row_step, column_step, v, v_stride, T, D, sum, out, out_stride);
    if constexpr (MR > 4) {
      weigh_four_rows<MR - 4>(p + 4 * row_step, row_step, column_step, v, v_stride, T, D,
                              sum == nullptr ? nullptr : sum + 4, out + 4 * out_stride, out_stride);
    }
  }

  /// Turns a row of scores into probabilities after dropout and a row of dO Vᵀ into dS, both in
  /// place. `row` is a row of the sentence.
  static void score_gradient(const Head& head, const HeadGradient& gradient, int32_t row) {
    float *p = gradient.dropped + (int64_t)row * head.columns,
          *ds = gradient.dscores + (int64_t)row * head.columns;
    const __m512 scale = _mm512_set1_ps(head.scale),
                 lse = _mm512_set1_ps(gradient.lse[row * gradient.lse_stride]),
                 keep = _mm512_set1_ps(head.dropout.scale);
    const bool drops = head.dropout.threshold != 0;
    __m512 sum = _mm512_setzero_ps(), weighted = _mm512_setzero_ps();
    for (int32_t begin = 0; begin < head.T; begin += 64) {
      __m512i words[4];
      if (drops) dropout_words(head.dropout, head.begin + row, begin, words);
      for (int32_t i = 0; i < 4 && begin + 16 * i < head.T; ++i) {
        const int32_t j = begin + 16 * i;
        const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(p + j), scale, lse);
        const __m512 probability = _mm512_maskz_mov_ps(tail_mask(head.T - j), exp_f32(x));
        __m512 dp = _mm512_load_ps(ds + j), dropped = probability;
        if (drops) {
          const __mmask16 kept = dropout_kept(words[i], head.dropout);
          dp = _mm512_maskz_mul_ps(kept, dp, keep);
          dropped = _mm512_maskz_mul_ps(kept, dropped, keep);
        }
        sum = _mm512_add_ps(sum, probability);
        weighted = _mm512_fmadd_ps(probability, dp, weighted);
        _mm512_store_ps(gradient.row + j, probability);
        _mm512_store_ps(p + j, dropped);
        _mm512_store_ps(ds + j, dp);
      }
    }
    const float factor = 1 / _mm512_reduce_add_ps(sum);
    const __m512 factors = _mm512_set1_ps(factor);
    const __m512 delta = _mm512_set1_ps(_mm512_reduce_add_ps(weighted) * factor);
    for (int32_t j = 0; j < head.T; j += 16) {
      const __m512 dp = _mm512_sub_ps(_mm512_load_ps(ds + j), delta);
      const __m512 probability = _mm512_mul_ps(_mm512_load_ps(gradient.row + j), factors);
      _mm512_store_ps(p + j, _mm512_mul_ps(_mm512_load_ps(p + j), factors));
      _mm512_store_ps(ds + j, _mm512_mul_ps(_mm512_mul_ps(probability, dp), scale));
    }
  }
};

}  // namespace

void attention_forward_f32_avx512(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                  int32_t first, int32_t last, int32_t first_head,
                                  int32_t last_head, int32_t H, int32_t D, float* out,
                                  int64_t out_stride, float* lse, float* scratch) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, Dropout(),
                out, out_stride, lse, scratch, attend<Core>);
}

void attention_dropout_forward_f32_avx512(const float* qkv, int64_t qkv_stride,
                                          const int32_t* cu_seqlens, int32_t first, int32_t last,
                                          int32_t first_head, int32_t last_head, int32_t H,
                                          int32_t D, const Dropout& dropout, float* out,
                                          int64_t out_stride, float* lse, float* scratch) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, dropout, out,
                out_stride, lse, scratch, attend<Core>);
}

void attention_backward_f32_avx512(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                   int32_t first, int32_t last, int32_t first_head,
                                   int32_t last_head, int32_t H, int32_t D, const float* lse,
                                   const Dropout& dropout, const float* dout, int64_t dout_stride,
                                   float* dqkv, int64_t dqkv_stride, float* scratch) {
  for_each_head_gradient(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, lse,
                         dropout, dout, dout_stride, dqkv, dqkv_stride, scratch,
                         attend_backward<Core>);
}

}  // namespace xsr::kernels
