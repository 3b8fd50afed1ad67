#include "kernels/attention/attention.h"

#include "kernels/attention/attention_head.h"
#include "kernels/dropout/dropout_avx2.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

struct Core {
  static constexpr int32_t kQueryRows = 4;

  /// rows[j] lane i  →  rows[i] lane j.
  static void transpose_8x8(__m256 (&rows)[8]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int half = 0; half < 2; ++half) {
        u[i + 2 * half] = _mm256_shuffle_ps(t[i + half], t[i + 2 + half], 0x44);
        u[i + 2 * half + 1] = _mm256_shuffle_ps(t[i + half], t[i + 2 + half], 0xee);
      }
    }
    // u[4 g + c] holds, in 128-bit lane l, column 4 l + c of rows 4 g … 4 g + 3.
    for (int c = 0; c < 4; ++c) {
      rows[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
      rows[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
    }
  }

  /// keys [T rows, stride] → transposed [D][columns]; the columns beyond T are zero.
  static void transpose_keys(const float* keys, int64_t stride, int32_t T, int32_t D,
                             float* transposed, int32_t columns) {
    for (int32_t j = 0; j < columns; j += 8) {
      for (int32_t d = 0; d < D; d += 8) {
        const __m256i mask = tail_mask8(D - d);
        __m256 rows[8];
        for (int i = 0; i < 8; ++i) {
          rows[i] = j + i < T ? _mm256_maskload_ps(keys + (j + i) * stride + d, mask)
                              : _mm256_setzero_ps();
        }
        transpose_8x8(rows);
        const int32_t count = D - d < 8 ? D - d : 8;
        for (int i = 0; i < count; ++i)
          _mm256_store_ps(transposed + (int64_t)(d + i) * columns + j, rows[i]);
      }
    }
  }

  /// scores[m][j] = q_m · k_j for MR query rows and every column.
  template <int MR>
  static void score_rows(const float* q, int64_t stride, const float* transposed, int32_t D,
                         int32_t columns, float* scores) {
    for (int32_t j = 0; j < columns; j += 16) {
      __m256 acc[MR][2];
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
      const float* k = transposed + j;
      for (int32_t d = 0; d < D; ++d, k += columns) {
        const __m256 k0 = _mm256_load_ps(k), k1 = _mm256_load_ps(k + 8);
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) {
          const __m256 x = _mm256_broadcast_ss(q + m * stride + d);
          acc[m][0] = _mm256_fmadd_ps(x, k0, acc[m][0]);
          acc[m][1] = _mm256_fmadd_ps(x, k1, acc[m][1]);
        }
      }
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        _mm256_store_ps(scores + m * columns + j, acc[m][0]);
        _mm256_store_ps(scores + m * columns + j + 8, acc[m][1]);
      }
    }
  }

  /// Turns a row of scores into e^(scale·(s - max)), in place; gives their sum and scale·max.
  /// Columns beyond T become 0.
  static float softmax_row(float* scores, int32_t T, float scale, float* largest) {
    const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
    __m256 peak = lowest;
    for (int32_t j = 0; j < T; j += 8) {
      const __m256 mask = _mm256_castsi256_ps(tail_mask8(T - j));
      peak = _mm256_max_ps(peak, _mm256_blendv_ps(lowest, _mm256_load_ps(scores + j), mask));
    }
    *largest = reduce_max(peak) * scale;
    const __m256 scales = _mm256_set1_ps(scale), shift = _mm256_set1_ps(*largest);
    __m256 sum = _mm256_setzero_ps();
    for (int32_t j = 0; j < T; j += 8) {
      const __m256 mask = _mm256_castsi256_ps(tail_mask8(T - j));
      const __m256 x = _mm256_fmsub_ps(_mm256_load_ps(scores + j), scales, shift);
      const __m256 p = _mm256_and_ps(mask, exp_f32(x));
      sum = _mm256_add_ps(sum, p);
      _mm256_store_ps(scores + j, p);
    }
    return reduce_add(sum);
  }

  /// Drops probabilities of query row `row`, in place.
  static void drop_row(const Dropout& dropout, int32_t row, int32_t T, float* p) {
    const __m256 scale = _mm256_set1_ps(dropout.scale);
    for (int32_t begin = 0; begin < T; begin += 32) {
      __m256i words[4];
      dropout_words(dropout, row, begin, words);
      for (int32_t i = 0; i < 4 && begin + 8 * i < T; ++i) {
        float* at = p + begin + 8 * i;
        const __m256 multiplier = _mm256_and_ps(dropout_kept(words[i], dropout), scale);
        _mm256_store_ps(at, _mm256_mul_ps(_mm256_load_ps(at), multiplier));
      }
    }
  }

  /// out[m] = Σ_j p[m][j] v_j for MR rows and the 16 columns from d on, of which `count` exist;
  /// p[m][j] stands at p[m · row_step + j · column_step]. Divided by sum[m] unless sum is null.
  template <int MR>
  static void weigh_values(const float* p, int64_t row_step, int64_t column_step, const float* v,
                           int64_t v_stride, int32_t T, const float* sum, int64_t count, float* out,
                           int64_t out_stride) {
    const __m256i mask0 = tail_mask8(count), mask1 = tail_mask8(count - 8);
    __m256 acc[MR][2];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    for (int32_t j = 0; j < T; ++j, p += column_step) {
      const __m256 v0 = _mm256_maskload_ps(v + j * v_stride, mask0),
                   v1 = _mm256_maskload_ps(v + j * v_stride + 8, mask1);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        const __m256 x = _mm256_broadcast_ss(p + m * row_step);
        acc[m][0] = _mm256_fmadd_ps(x, v0, acc[m][0]);
        acc[m][1] = _mm256_fmadd_ps(x, v1, acc[m][1]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      if (sum != nullptr) {
        const __m256 sums = _mm256_set1_ps(sum[m]);
        acc[m][0] = _mm256_div_ps(acc[m][0], sums);
        acc[m][1] = _mm256_div_ps(acc[m][1], sums);
      }
      store_up_to_8(out + m * out_stride, count, acc[m][0]);
      store_up_to_8(out + m * out_stride + 8, count - 8, acc[m][1]);
    }
  }

  template <int MR>
  static void weigh_rows(const float* p, int64_t row_step, int64_t column_step, const float* v,
                         int64_t v_stride, int32_t T, int32_t D, const float* sum, float* out,
                         int64_t out_stride) {
    for (int32_t d = 0; d < D; d += 16) {
      weigh_values<MR>(p, row_step, column_step, v + d, v_stride, T, sum, D - d, out + d,
                       out_stride);
    }
  }

  /// Turns a row of scores into probabilities after dropout and a row of dO Vᵀ into dS, both in
  /// place. `row` is a row of the sentence.
  static void score_gradient(const Head& head, const HeadGradient& gradient, int32_t row) {
    float *p = gradient.dropped + (int64_t)row * head.columns,
          *ds = gradient.dscores + (int64_t)row * head.columns;
    const __m256 scale = _mm256_set1_ps(head.scale),
                 lse = _mm256_set1_ps(gradient.lse[row * gradient.lse_stride]),
                 keep = _mm256_set1_ps(head.dropout.scale);
    const bool drops = head.dropout.threshold != 0;
    __m256 sum = _mm256_setzero_ps(), weighted = _mm256_setzero_ps();
    for (int32_t begin = 0; begin < head.T; begin += 32) {
      __m256i words[4];
      if (drops) dropout_words(head.dropout, head.begin + row, begin, words);
      for (int32_t i = 0; i < 4 && begin + 8 * i < head.T; ++i) {
        const int32_t j = begin + 8 * i;
        const __m256 mask = _mm256_castsi256_ps(tail_mask8(head.T - j));
        const __m256 x = _mm256_fmsub_ps(_mm256_load_ps(p + j), scale, lse);
        const __m256 probability = _mm256_and_ps(mask, exp_f32(x));
        __m256 dp = _mm256_load_ps(ds + j), dropped = probability;
        if (drops) {
          const __m256 multiplier = _mm256_and_ps(dropout_kept(words[i], head.dropout), keep);
          dp = _mm256_mul_ps(dp, multiplier);
          dropped = _mm256_mul_ps(dropped, multiplier);
        }
        sum = _mm256_add_ps(sum, probability);
        weighted = _mm256_fmadd_ps(probability, dp, weighted);
        _mm256_store_ps(gradient.row + j, probability);
        _mm256_store_ps(p + j, dropped);
        _mm256_store_ps(ds + j, dp);
      }
    }
    const float factor = 1 / reduce_add(sum);
    const __m256 factors = _mm256_set1_ps(factor);
    const __m256 delta = _mm256_set1_ps(reduce_add(weighted) * factor);
    for (int32_t j = 0; j < head.T; j += 8) {
      const __m256 dp = _mm256_sub_ps(_mm256_load_ps(ds + j), delta);
      const __m256 probability = _mm256_mul_ps(_mm256_load_ps(gradient.row + j), factors);
      _mm256_store_ps(p + j, _mm256_mul_ps(_mm256_load_ps(p + j), factors));
      _mm256_store_ps(ds + j, _mm256_mul_ps(_mm256_mul_ps(probability, dp), scale));
    }
  }
};

}  // namespace

void attention_forward_f32_avx2(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                int32_t H, int32_t D, float* out, int64_t out_stride, float* lse,
                                float* scratch) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, Dropout(),
                out, out_stride, lse, scratch, attend<Core>);
}

void attention_dropout_forward_f32_avx2(const float* qkv, int64_t qkv_stride,
                                        const int32_t* cu_seqlens, int32_t first, int32_t last,
                                        int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                        const Dropout& dropout, float* out, int64_t out_stride,
                                        float* lse, float* scratch) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, dropout, out,
                out_stride, lse, scratch, attend<Core>);
}

void attention_backward_f32_avx2(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                 int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                 int32_t H, int32_t D, const float* lse, const Dropout& dropout,
                                 const float* dout, int64_t dout_stride, float* dqkv,
                                 int64_t dqkv_stride, float* scratch) {
  for_each_head_gradient(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, lse,
                         dropout, dout, dout_stride, dqkv, dqkv_stride, scratch,
                         attend_backward<Core>);
}

}  // namespace xsr::kernels
