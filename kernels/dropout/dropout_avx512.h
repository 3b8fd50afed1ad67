#pragma once
#include <immintrin.h>

#include "kernels/dropout/dropout.h"

namespace xsr::kernels {

/// a · m in 64 bits, lane by lane: its upper and lower words.
static inline void multiply_wide(__m512i a, __m512i m, __m512i* high, __m512i* low) {
  // Shuffles rather than shifts: they have twice as many units.
  const __m512 even = _mm512_castsi512_ps(_mm512_mul_epu32(a, m));
  const __m512i upper = _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(a)));
  const __m512 odd = _mm512_castsi512_ps(_mm512_mul_epu32(upper, m));
  *high = _mm512_castps_si512(_mm512_mask_movehdup_ps(odd, 0x5555, even));
  *low = _mm512_castps_si512(_mm512_mask_moveldup_ps(even, 0xaaaa, odd));
}

/// The words of row `row`, columns [column, column + 16 W), in order; column is a multiple of 4.
/// Sixteen counters run side by side; of more than 64 columns the next sixteen fill the time that
/// the ten rounds of the first wait for each other.
template <int W>
static inline void dropout_words(const Dropout& dropout, int32_t row, int32_t column,
                                 __m512i (&words)[W]) {
  static_assert(W % 4 == 0);
  constexpr int B = W / 4;
  __m512i c0[B], c1[B], c2[B], c3[B];
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b) {
    // This order of the counters makes the transposition below give whole runs of sixteen columns.
    c0[b] =
        _mm512_add_epi32(_mm512_set1_epi32(column / 4 + 16 * b),
                         _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    c1[b] = _mm512_set1_epi32(row);
    c2[b] = _mm512_set1_epi32((int32_t)dropout.stream);
    c3[b] = _mm512_set1_epi32((int32_t)dropout.step);
  }
  uint32_t k0 = dropout.key[0], k1 = dropout.key[1];
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      __m512i high0, low0, high2, low2;
      multiply_wide(c0[b], _mm512_set1_epi32((int32_t)0xD2511F53u), &high0, &low0);
      multiply_wide(c2[b], _mm512_set1_epi32((int32_t)0xCD9E8D57u), &high2, &low2);
      c0[b] = _mm512_xor_si512(_mm512_xor_si512(high2, c1[b]), _mm512_set1_epi32((int32_t)k0));
      c1[b] = low2;
      c2[b] = _mm512_xor_si512(_mm512_xor_si512(high0, c3[b]), _mm512_set1_epi32((int32_t)k1));
      c3[b] = low0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b) {
    const __m512i low01 = _mm512_unpacklo_epi32(c0[b], c1[b]),
                  high01 = _mm512_unpackhi_epi32(c0[b], c1[b]);
    const __m512i low23 = _mm512_unpacklo_epi32(c2[b], c3[b]),
                  high23 = _mm512_unpackhi_epi32(c2[b], c3[b]);
    words[4 * b] = _mm512_unpacklo_epi64(low01, low23);
    words[4 * b + 1] = _mm512_unpackhi_epi64(low01, low23);
    words[4 * b + 2] = _mm512_unpacklo_epi64(high01, high23);
    words[4 * b + 3] = _mm512_unpackhi_epi64(high01, high23);
  }
}

/// The lanes where word ≥ threshold.
static inline __mmask16 dropout_kept(__m512i words, const Dropout& dropout) {
  return _mm512_cmpge_epu32_mask(words, _mm512_set1_epi32((int32_t)dropout.threshold));
}

}  // namespace xsr::kernels
