#include <immintrin.h>

#include "bench/roofline_loops.h"

namespace xsr::bench {

double dot_loop_avx512_vnni(int64_t iterations, const float* seed, float* sink) {
  __m512i x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm512_loadu_si512(seed + 16 * i);
  __m512i acc[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) acc[i] = _mm512_loadu_si512(seed + 16 * (4 + i));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < 24; ++i)  // as in gemm_core_i8_avx512.h, where the assembly is explained
      __asm__("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(x[i % 4]), "v"(x[(i + 1) % 4]));
  }
  __m512i sum = acc[0];
#pragma GCC unroll 24
  for (int i = 1; i < 24; ++i) sum = _mm512_add_epi32(sum, acc[i]);
  _mm512_storeu_si512(sink, sum);
  return 24.0 * 16 * 8 * static_cast<double>(iterations);
}

}  // namespace xsr::bench
