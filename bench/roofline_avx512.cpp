#include <immintrin.h>

#include "bench/roofline_loops.h"

namespace xsr::bench {

double fma_loop_avx512(int64_t iterations, const float* seed, float* sink) {
  __m512 x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm512_loadu_ps(seed + 16 * i);
  __m512 acc[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) acc[i] = _mm512_loadu_ps(seed + 16 * (4 + i));
  for (int64_t n = 0; n < iterations; ++n) {
    // Neighbours multiply different operands: units fed with the same bits again and again draw
    // less current and clock higher than a gemm's do.
#pragma GCC unroll 24
    for (int i = 0; i < 24; ++i) acc[i] = _mm512_fmadd_ps(x[i % 4], x[(i + 1) % 4], acc[i]);
  }
  __m512 sum = acc[0];
#pragma GCC unroll 24
  for (int i = 1; i < 24; ++i) sum = _mm512_add_ps(sum, acc[i]);
  _mm512_storeu_ps(sink, sum);
  return 24.0 * 16 * 2 * static_cast<double>(iterations);
}

uint64_t read_loop_avx512(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  __m512i acc[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) acc[i] = _mm512_setzero_si512();
  for (const char* end = p + bytes; p < end; p += 512) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[i] = _mm512_or_si512(acc[i], _mm512_load_si512(p + 64 * i));
  }
#pragma GCC unroll 8
  for (int i = 1; i < 8; ++i) acc[0] = _mm512_or_si512(acc[0], acc[i]);
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(acc[0]));
}

}  // namespace xsr::bench
