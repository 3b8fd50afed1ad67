#include "kernels/attention/attention.h"
#include "kernels/attention/attention_head.h"
#include "kernels/attention/attention_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

// Six rows by four vectors: 24 sums, four vectors and one broadcast, of 32 registers.
constexpr int kQueryRows = 6, kMostVectors = 4;

/// A (sentence, head) pair in pairs of bf16, 32 bits each.
struct Pairs {
  uint32_t* q;    // [T][q_stride], pairs over D
  uint32_t* k;    // [ceil(D/2)][columns], transposed
  uint32_t* v;    // [ceil(T/2)][v_stride], pairs over T
  float* scores;  // [kQueryRows][columns]
  uint16_t* p;    // [kQueryRows][columns], probabilities
  int32_t q_stride, v_stride, columns;
};

/// Columns d to d + 31 of a row as 16 pairs; 0 beyond D.
inline __m512i load_pairs(const float* row, int32_t d, int32_t D) {
  const __m512 low = _mm512_maskz_loadu_ps(tail_mask(D - d), row + d);
  const __m512 high = _mm512_maskz_loadu_ps(tail_mask(D - d - 16), row + d + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

void narrow_queries(const Head& head, const Pairs& pairs) {
  for (int32_t i = 0; i < head.T; ++i) {
    for (int32_t d = 0; d < head.D; d += 32) {
      _mm512_store_si512(pairs.q + (int64_t)i * pairs.q_stride + d / 2,
                         load_pairs(head.q + i * head.stride, d, head.D));
    }
  }
}

/// The columns beyond T are 0.
void transpose_keys(const Head& head, const Pairs& pairs) {
  for (int32_t j = 0; j < pairs.columns; j += 16) {
    for (int32_t d = 0; d < head.D; d += 32) {
      __m512 rows[16];
      for (int i = 0; i < 16; ++i) {
        rows[i] = j + i < head.T
                      ? _mm512_castsi512_ps(load_pairs(head.k + (j + i) * head.stride, d, head.D))
                      : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      const int32_t left = (head.D - d + 1) / 2, count = left < 16 ? left : 16;
      for (int i = 0; i < count; ++i)
        _mm512_store_ps(pairs.k + (int64_t)(d / 2 + i) * pairs.columns + j, rows[i]);
    }
  }
}

/// Rows j and j + 1 side by side; the row beyond T is 0.
void pair_values(const Head& head, const Pairs& pairs) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
  const __m512i turn = _mm512_load_si512(order);
  for (int32_t j = 0; j < head.T; j += 2) {
    const float* row = head.v + j * head.stride;
    for (int32_t d = 0; d < head.D; d += 16) {
      const __mmask16 mask = tail_mask(head.D - d);
      const __m512 even = _mm512_maskz_loadu_ps(mask, row + d);
      const __m512 odd =
          j + 1 < head.T ? _mm512_maskz_loadu_ps(mask, row + head.stride + d) : _mm512_setzero_ps();
      _mm512_store_si512(pairs.v + (int64_t)(j / 2) * pairs.v_stride + d,
                         _mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
    }
  }
}

inline __m512bh broadcast_pair(const void* pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, 4);
  return (__m512bh)_mm512_set1_epi32(bits);
}

/// scores[m][0 … 16·NV) = q_m · k_j for MR rows.
template <int MR, int NV>
void score_columns(const uint32_t* q, int32_t q_stride, const uint32_t* k, int32_t columns,
                   int32_t pairs, float* scores) {
  __m512 acc[MR][NV];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
  }
  for (int32_t d = 0; d < pairs; ++d, k += columns) {
    __m512bh key[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) key[n] = (__m512bh)_mm512_load_si512(k + 16 * n);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const __m512bh x = broadcast_pair(q + m * q_stride + d);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], x, key[n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) _mm512_store_ps(scores + m * columns + 16 * n, acc[m][n]);
  }
}

template <int MR>
void score_rows(const Head& head, const Pairs& pairs, int32_t row) {
  const uint32_t* q = pairs.q + (int64_t)row * pairs.q_stride;
  for (int32_t j = 0; j < pairs.columns;) {
    const auto score = [&]<int NV>() {
      score_columns<MR, NV>(q, pairs.q_stride, pairs.k + j, pairs.columns, (head.D + 1) / 2,
                            pairs.scores + j);
      j += 16 * NV;
    };
    switch ((pairs.columns - j) / 16) {
      case 1:
        score.template operator()<1>();
        break;
      case 2:
        score.template operator()<2>();
        break;
      case 3:
        score.template operator()<3>();
        break;
      default:
        score.template operator()<kMostVectors>();
    }
  }
}

/// 2^x within 4e-6, far closer than the bf16 it becomes; x ≤ 0.
inline __m512 exp2_for_bf16(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00966636837f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0559219755f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240223497f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693121016f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

/// p ← e^(score·scale - shift) in bf16, columns beyond T 0; gives the sum of what was rounded, so
/// that the weights add up to 1.
/// scale and shift are times log2 e.
inline float exponentiate_row(const float* scores, int32_t T, int32_t columns, float scale,
                              float shift, uint16_t* p) {
  const __m512 scales = _mm512_set1_ps(scale), shifts = _mm512_set1_ps(shift);
  __m512 sum = _mm512_setzero_ps();
  for (int32_t j = 0; j < columns; j += 16) {
    __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores + j), scales, shifts);
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // NaN passes; -∞ would become NaN
    const __m512 value = _mm512_maskz_mov_ps(tail_mask(T - j), exp2_for_bf16(x));
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(value);
    _mm256_storeu_si256((__m256i*)(p + j), rounded);
    sum = _mm512_add_ps(sum,
                        _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  }
  return _mm512_reduce_add_ps(sum);
}

/// Columns d to d + 16·NV of MR rows of the result, the last vector masked.
template <int MR, int NV>
void weigh_columns(const Head& head, const Pairs& pairs, int32_t row, int32_t d,
                   const float* inverse, __mmask16 tail, uint16_t* narrow, int64_t narrow_stride) {
  __m512 acc[MR][NV];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
  }
  const uint32_t* v = pairs.v + d;
  const uint16_t* p = pairs.p;
  for (int32_t j = 0; j < head.T; j += 2, v += pairs.v_stride, p += 2) {
    __m512bh value[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) value[n] = (__m512bh)_mm512_load_si512(v + 16 * n);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const __m512bh x = broadcast_pair(p + m * pairs.columns);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], x, value[n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
    const __m512 factor = _mm512_set1_ps(inverse[m]);
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) {
      const __m512 result = _mm512_mul_ps(acc[m][n], factor);
      const __mmask16 mask = n == NV - 1 ? tail : (__mmask16)0xffff;
      if (head.out != nullptr)
        _mm512_mask_storeu_ps(head.out + (row + m) * head.out_stride + d + 16 * n, mask, result);
      if (narrow != nullptr)
        store_narrow(narrow + (row + m) * narrow_stride + d + 16 * n, mask, result);
    }
  }
}

template <int MR>
void attend_rows(const Head& head, const Pairs& pairs, int32_t row, uint16_t* narrow,
                 int64_t narrow_stride) {
  const float scale = head.scale * 1.44269504f;
  score_rows<MR>(head, pairs, row);
  // Step by step over all rows: a reduction's latency hides behind the next row's. The largest
  // probability of a row is 1 and not rounded: without the shift the error is up to 2.3 times as
  // large.
  float shift[MR], inverse[MR];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
    shift[m] = largest_score(pairs.scores + m * pairs.columns, head.T) * scale;
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
    inverse[m] = 1 / exponentiate_row(pairs.scores + m * pairs.columns, head.T, pairs.columns,
                                      scale, shift[m], pairs.p + m * pairs.columns);
  }
  for_each_column_piece(head.D, [&]<int NV>(int32_t d, __mmask16 tail) {
    weigh_columns<MR, NV>(head, pairs, row, d, inverse, tail, narrow, narrow_stride);
  });
}

}  // namespace

void attention_forward_bf16_avx512_bf16(const float* qkv, int64_t qkv_stride,
                                        const int32_t* cu_seqlens, int32_t first, int32_t last,
                                        int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                        float* out, int64_t out_stride, uint16_t* narrow,
                                        int64_t narrow_stride, float* scratch) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, {}, out,
                out_stride, nullptr, scratch, [=](const Head& head) {
                  Pairs pairs;
                  pairs.columns = (head.T + 15) / 16 * 16;
                  pairs.q_stride = (D + 31) / 32 * 16;
                  pairs.v_stride = (D + 15) / 16 * 16;
                  pairs.q = (uint32_t*)scratch;
                  pairs.k = pairs.q + (int64_t)head.T * pairs.q_stride;
                  pairs.v = pairs.k + (int64_t)((D + 1) / 2) * pairs.columns;
                  pairs.scores = (float*)(pairs.v + (int64_t)((head.T + 1) / 2) * pairs.v_stride);
                  pairs.p = (uint16_t*)(pairs.scores + (int64_t)kQueryRows * pairs.columns);
                  uint16_t* const rows = narrow == nullptr
                                             ? nullptr
                                             : narrow + head.begin * narrow_stride + head.h * D;
                  narrow_queries(head, pairs);
                  transpose_keys(head, pairs);
                  pair_values(head, pairs);
                  for_each_tile<kQueryRows>(head.T, [&]<int MR>(int32_t row) {
                    attend_rows<MR>(head, pairs, row, rows, narrow_stride);
                  });
                  if (rows != nullptr && H * D % 2 == 1 && head.h == H - 1) {
                    for (int32_t i = 0; i < head.T; ++i) rows[i * narrow_stride + D] = 0;
                  }
                });
}

}  // namespace xsr::kernels
