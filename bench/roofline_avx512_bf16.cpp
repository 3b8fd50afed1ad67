#include <immintrin.h>

#include "bench/roofline_loops.h"

namespace xsr::bench {

double dot_loop_avx512_bf16(int64_t iterations, const float* seed, float* sink) {
  __m512bh x[4];
  for (int i = 0; i < 4; ++i) {
    x[i] =
        _mm512_cvtne2ps_pbh(_mm512_loadu_ps(seed + 16 * i), _mm512_loadu_ps(seed + 16 * (i + 4)));
  }
  __m512 acc[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) acc[i] = _mm512_loadu_ps(seed + 16 * (4 + i));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < 24; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], x[i % 4], x[(i + 1) % 4]);
  }
  __m512 sum = acc[0];
#pragma GCC unroll 24
  for (int i = 1; i < 24; ++i) sum = _mm512_add_ps(sum, acc[i]);
  _mm512_storeu_ps(sink, sum);
  return 24.0 * 16 * 4 * static_cast<double>(iterations);
}

}  // namespace xsr::bench
