#pragma once
// What the files of attention in pairs of bf16 (avx512_bf16, amx) share: operands and softmax.
#include "kernels/attention/attention_head.h"
#include "kernels/attention/attention_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

/// A (sentence, head) pair in pairs of bf16, 32 bits each.
struct Pairs {
  uint32_t* q;    // [rows][q_stride], pairs over D
  uint32_t* k;    // [D rounded up to 32, / 2][columns], transposed
  uint32_t* v;    // [ceil(rows/2)][v_stride], pairs over T
  float* scores;  // of some query rows, [][columns]
  uint16_t* p;    // their probabilities, [][columns]
  int32_t rows;   // T or more; those beyond T are 0
  int32_t q_stride, v_stride, columns;
};

/// Columns d to d + 31 of a row as 16 pairs; 0 beyond D.
static inline __m512i load_pairs(const float* row, int32_t d, int32_t D) {
  const __m512 low = _mm512_maskz_loadu_ps(tail_mask(D - d), row + d);
  const __m512 high = _mm512_maskz_loadu_ps(tail_mask(D - d - 16), row + d + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static inline void narrow_queries(const Head& head, const Pairs& pairs) {
  for (int32_t i = 0; i < pairs.rows; ++i) {
    for (int32_t d = 0; d < head.D; d += 32) {
      _mm512_store_si512(
          pairs.q + (int64_t)i * pairs.q_stride + d / 2,
          i < head.T ? load_pairs(head.q + i * head.stride, d, head.D) : _mm512_setzero_si512());
    }
  }
}

/// The columns beyond T are 0.
static inline void transpose_keys(const Head& head, const Pairs& pairs) {
  for (int32_t j = 0; j < pairs.columns; j += 16) {
    for (int32_t d = 0; d < head.D; d += 32) {
      __m512 rows[16];
      for (int i = 0; i < 16; ++i) {
        rows[i] = j + i < head.T
                      ? _mm512_castsi512_ps(load_pairs(head.k + (j + i) * head.stride, d, head.D))
                      : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      for (int i = 0; i < 16; ++i)
        _mm512_store_ps(pairs.k + (int64_t)(d / 2 + i) * pairs.columns + j, rows[i]);
    }
  }
}

/// Rows j and j + 1 side by side.
static inline void pair_values(const Head& head, const Pairs& pairs) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
  const __m512i turn = _mm512_load_si512(order);
  for (int32_t j = 0; j < pairs.rows; j += 2) {
    const float* row = head.v + j * head.stride;
    for (int32_t d = 0; d < pairs.v_stride; d += 16) {
      const __mmask16 mask = tail_mask(head.D - d);
      const __m512 even = j < head.T ? _mm512_maskz_loadu_ps(mask, row + d) : _mm512_setzero_ps();
      const __m512 odd =
          j + 1 < head.T ? _mm512_maskz_loadu_ps(mask, row + head.stride + d) : _mm512_setzero_ps();
      _mm512_store_si512(pairs.v + (int64_t)(j / 2) * pairs.v_stride + d,
                         _mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
    }
  }
}

/// 2^x within 4e-6, far closer than the bf16 it becomes; x ≤ 0.
static inline __m512 exp2_for_bf16(__m512 x) {
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
static inline float exponentiate_row(const float* scores, int32_t T, int32_t columns, float scale,
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

/// Scores of `rows` query rows, kMost at most, to probabilities before their division: inverse[m]
/// is what row m is to be multiplied by.
template <int kMost>
static inline __attribute__((always_inline)) void softmax_rows(const Head& head, const Pairs& pairs,
                                                               int32_t rows, float* inverse) {
  const float scale = head.scale * 1.44269504f;
  // Step by step over all rows: a reduction's latency hides behind the next row's. The largest
  // probability of a row is 1 and not rounded: without the shift the error is up to 2.3 times as
  // large.
  float shift[kMost];
#pragma GCC unroll 6
  for (int m = 0; m < rows; ++m)
    shift[m] = largest_score(pairs.scores + m * pairs.columns, head.T) * scale;
#pragma GCC unroll 6
  for (int m = 0; m < rows; ++m) {
    inverse[m] = 1 / exponentiate_row(pairs.scores + m * pairs.columns, head.T, pairs.columns,
                                      scale, shift[m], pairs.p + m * pairs.columns);
  }
}

/// The head's part of the first row of `narrow`, null where that is null.
static inline uint16_t* narrow_rows(const Head& head, uint16_t* narrow, int64_t stride) {
  return narrow == nullptr ? nullptr : narrow + head.begin * stride + head.h * head.D;
}

/// Where H·D is odd, the last head sets the column behind it to 0. rows: of narrow_rows.
static inline void end_narrow_rows(const Head& head, uint16_t* rows, int64_t stride, int32_t H) {
  if (rows == nullptr || H * head.D % 2 == 0 || head.h != H - 1) return;
  for (int32_t i = 0; i < head.T; ++i) rows[i * stride + head.D] = 0;
}

}  // namespace xsr::kernels
