#pragma once
#include <immintrin.h>

#include "kernels/dropout/dropout.h"

namespace xsr::kernels {

/// a · m in 64 bits, lane by lane: its upper and lower words.
static inline void multiply_wide(__m512i a, __m512i m, __m512i* high, __m512i* low) {
  const __m512i even = _mm512_mul_epu32(a, m);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  *high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  *low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}

/// The words of row `row`, columns [column, column + 64), in order; column is a multiple of 4.
/// Sixteen counters run side by side.
static inline void dropout_words(const Dropout& dropout, int32_t row, int32_t column,
                                 __m512i words[4]) {
  // This order of the counters makes the transposition below give whole runs of sixteen columns.
  __m512i c0 =
      _mm512_add_epi32(_mm512_set1_epi32(column / 4),
                       _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i c1 = _mm512_set1_epi32(row);
  __m512i c2 = _mm512_set1_epi32((int32_t)dropout.stream);
  __m512i c3 = _mm512_set1_epi32((int32_t)dropout.step);
  uint32_t k0 = dropout.key[0], k1 = dropout.key[1];
  for (int round = 0; round < 10; ++round) {
    __m512i high0, low0, high2, low2;
    multiply_wide(c0, _mm512_set1_epi32((int32_t)0xD2511F53u), &high0, &low0);
    multiply_wide(c2, _mm512_set1_epi32((int32_t)0xCD9E8D57u), &high2, &low2);
    c0 = _mm512_xor_si512(_mm512_xor_si512(high2, c1), _mm512_set1_epi32((int32_t)k0));
    c1 = low2;
    c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), _mm512_set1_epi32((int32_t)k1));
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const __m512i low01 = _mm512_unpacklo_epi32(c0, c1), high01 = _mm512_unpackhi_epi32(c0, c1);
  const __m512i low23 = _mm512_unpacklo_epi32(c2, c3), high23 = _mm512_unpackhi_epi32(c2, c3);
  words[0] = _mm512_unpacklo_epi64(low01, low23);
  words[1] = _mm512_unpackhi_epi64(low01, low23);
  words[2] = _mm512_unpacklo_epi64(high01, high23);
  words[3] = _mm512_unpackhi_epi64(high01, high23);
}

/// The lanes where word ≥ threshold.
static inline __mmask16 dropout_kept(__m512i words, const Dropout& dropout) {
  return _mm512_cmpge_epu32_mask(words, _mm512_set1_epi32((int32_t)dropout.threshold));
}

}  // namespace xsr::kernels
