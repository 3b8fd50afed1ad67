#pragma once
// What the files of attention in pairs of bf16 (avx512_bf16, amx) share: operands and softmax.
#include "kernels/attention/attention_head.h"
#include "kernels/attention/attention_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

using NarrowHead = HeadOf<uint16_t>;

/// A (sentence, head) pair in pairs of bf16, 32 bits each.
struct Pairs {
  const uint16_t* q;  // [rows][q_stride], pairs over D
  uint32_t* k;        // [D rounded up to 32, / 2][columns], transposed
  uint32_t* v;        // [ceil(rows/2)][v_stride], pairs over T
  float* scores;      // of some query rows, [][columns]
  uint16_t* p;        // their probabilities, [][columns]
  int32_t rows;       // T or more; those beyond T are 0
  int64_t q_stride;   // in bf16
  int32_t v_stride, columns;
};

static inline __mmask32 narrow_tail_mask(int32_t n) {
  return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1u;
}

/// Columns d to d + 31 of a row; 0 beyond D.
static inline __m512i load_narrow(const uint16_t* row, int32_t d, int32_t D) {
  return _mm512_maskz_loadu_epi16(narrow_tail_mask(D - d), row + d);
}

/// Rows of whole vectors with zeros behind D and T.
static inline void copy_queries(const NarrowHead& head, int32_t rows, uint16_t* q,
                                int64_t q_stride) {
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t d = 0; d < head.D; d += 32) {
      _mm512_store_si512(
          q + i * q_stride + d,
          i < head.T ? load_narrow(head.q + i * head.stride, d, head.D) : _mm512_setzero_si512());
    }
  }
}

/// The columns beyond T are 0.
static inline void transpose_keys(const NarrowHead& head, const Pairs& pairs) {
  for (int32_t j = 0; j < pairs.columns; j += 16) {
    for (int32_t d = 0; d < head.D; d += 32) {
      __m512 rows[16];
      for (int i = 0; i < 16; ++i) {
        rows[i] = j + i < head.T
                      ? _mm512_castsi512_ps(load_narrow(head.k + (j + i) * head.stride, d, head.D))
                      : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      for (int i = 0; i < 16; ++i)
        _mm512_store_ps(pairs.k + (int64_t)(d / 2 + i) * pairs.columns + j, rows[i]);
    }
  }
}

/// Rows j and j + 1 side by side.
static inline void pair_values(const NarrowHead& head, const Pairs& pairs) {
  alignas(64) uint16_t order[2][32];  // columns 0 to 15 of both rows by turns, and 16 to 31
  for (int i = 0; i < 32; ++i) {
    order[0][i] = (uint16_t)(i / 2 + i % 2 * 32);
    order[1][i] = (uint16_t)(order[0][i] + 16);
  }
  const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
  for (int32_t j = 0; j < pairs.rows; j += 2) {
    const uint16_t* row = head.v + j * head.stride;
    uint32_t* const out = pairs.v + (int64_t)(j / 2) * pairs.v_stride;
    for (int32_t d = 0; d < pairs.v_stride; d += 32) {
      const __m512i even = j < head.T ? load_narrow(row, d, head.D) : _mm512_setzero_si512();
      const __m512i odd =
          j + 1 < head.T ? load_narrow(row + head.stride, d, head.D) : _mm512_setzero_si512();
      _mm512_store_si512(out + d, _mm512_permutex2var_epi16(even, low, odd));
      if (d + 16 < pairs.v_stride)
        _mm512_store_si512(out + d + 16, _mm512_permutex2var_epi16(even, high, odd));
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
static inline __attribute__((always_inline)) void softmax_rows(const NarrowHead& head,
                                                               const Pairs& pairs, int32_t rows,
                                                               float* inverse) {
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
static inline uint16_t* narrow_rows(const NarrowHead& head, uint16_t* narrow, int64_t stride) {
  return narrow == nullptr ? nullptr : narrow + head.begin * stride + head.h * head.D;
}

/// Where H·D is odd, the last head sets the column behind it to 0. rows: of narrow_rows.
static inline void end_narrow_rows(const NarrowHead& head, uint16_t* rows, int64_t stride,
                                   int32_t H) {
  if (rows == nullptr || H * head.D % 2 == 0 || head.h != H - 1) return;
  for (int32_t i = 0; i < head.T; ++i) rows[i * stride + head.D] = 0;
}

}  // namespace xsr::kernels
