#pragma once
#include <immintrin.h>

#include "kernels/dropout/dropout.h"

namespace xsr::kernels {

/// a · m in 64 bits, lane by lane: its upper and lower words.
static inline void multiply_wide(__m256i a, __m256i m, __m256i* high, __m256i* low) {
  const __m256i even = _mm256_mul_epu32(a, m);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}

/// The words of row `row`, columns [column, column + 32), in order; column is a multiple of 4.
/// Eight counters run side by side.
static inline void dropout_words(const Dropout& dropout, int32_t row, int32_t column,
                                 __m256i words[4]) {
  // This order of the counters makes the transposition below give whole runs of eight columns.
  __m256i c0 =
      _mm256_add_epi32(_mm256_set1_epi32(column / 4), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  __m256i c1 = _mm256_set1_epi32(row);
  __m256i c2 = _mm256_set1_epi32((int32_t)dropout.stream);
  __m256i c3 = _mm256_set1_epi32((int32_t)dropout.step);
  uint32_t k0 = dropout.key[0], k1 = dropout.key[1];
  for (int round = 0; round < 10; ++round) {
    __m256i high0, low0, high2, low2;
    multiply_wide(c0, _mm256_set1_epi32((int32_t)0xD2511F53u), &high0, &low0);
    multiply_wide(c2, _mm256_set1_epi32((int32_t)0xCD9E8D57u), &high2, &low2);
    c0 = _mm256_xor_si256(_mm256_xor_si256(high2, c1), _mm256_set1_epi32((int32_t)k0));
    c1 = low2;
    c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), _mm256_set1_epi32((int32_t)k1));
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const __m256i low01 = _mm256_unpacklo_epi32(c0, c1), high01 = _mm256_unpackhi_epi32(c0, c1);
  const __m256i low23 = _mm256_unpacklo_epi32(c2, c3), high23 = _mm256_unpackhi_epi32(c2, c3);
  words[0] = _mm256_unpacklo_epi64(low01, low23);
  words[1] = _mm256_unpackhi_epi64(low01, low23);
  words[2] = _mm256_unpacklo_epi64(high01, high23);
  words[3] = _mm256_unpackhi_epi64(high01, high23);
}

/// All bits set where word ≥ threshold.
static inline __m256 dropout_kept(__m256i words, const Dropout& dropout) {
  const __m256i threshold = _mm256_set1_epi32((int32_t)dropout.threshold);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(words, threshold), words));
}

}  // namespace xsr::kernels
