#include "bench/roofline_loops.h"
#include "kernels/gemm/dot_avx2_vnni.h"

namespace xsr::bench {

double dot_loop_avx2_vnni(int64_t iterations, const float* seed, float* sink) {
  __m256i x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm256_loadu_si256((const __m256i*)(seed + 8 * i));
  __m256i acc[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_loadu_si256((const __m256i*)(seed + 8 * (4 + i)));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) kernels::dot(acc[i], x[i % 4], x[(i + 1) % 4]);
  }
  __m256i sum = acc[0];
#pragma GCC unroll 12
  for (int i = 1; i < 12; ++i) sum = _mm256_add_epi32(sum, acc[i]);
  _mm256_storeu_si256((__m256i*)sink, sum);
  return 12.0 * 8 * 8 * static_cast<double>(iterations);
}

}  // namespace xsr::bench
