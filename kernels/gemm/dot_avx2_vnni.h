#pragma once
#include "kernels/simd/avx2.h"

namespace xsr::kernels {

/// sum + Σ of four products u8 · s8 in each 32-bit lane. As assembly, as in gemm_core_i8_avx512.h,
/// which says why.
static inline __attribute__((always_inline)) void dot(__m256i& sum, __m256i x, __m256i w) {
#if defined(XSR_EMULATE_ISA)
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
  sum = _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#else
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
#endif
}

}  // namespace xsr::kernels
