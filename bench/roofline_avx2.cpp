#include <immintrin.h>

#include "bench/roofline_loops.h"

namespace xsr::bench {

double fma_loop_avx2(int64_t iterations, const float* seed, float* sink) {
  __m256 x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm256_loadu_ps(seed + 8 * i);
  __m256 acc[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_loadu_ps(seed + 8 * (4 + i));
  for (int64_t n = 0; n < iterations; ++n) {
    // Different operands for neighbours: as in roofline_avx512.cpp.
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm256_fmadd_ps(x[i % 4], x[(i + 1) % 4], acc[i]);
  }
  __m256 sum = acc[0];
#pragma GCC unroll 12
  for (int i = 1; i < 12; ++i) sum = _mm256_add_ps(sum, acc[i]);
  _mm256_storeu_ps(sink, sum);
  return 12.0 * 8 * 2 * static_cast<double>(iterations);
}

double madd_loop_avx2(int64_t iterations, const float* seed, float* sink) {
  __m256i x[3];
  for (int i = 0; i < 3; ++i) x[i] = _mm256_loadu_si256((const __m256i*)(seed + 8 * i));
  __m256i acc[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) acc[i] = _mm256_loadu_si256((const __m256i*)(seed + 8 * (4 + i)));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      __m256i product;  // volatile: it is the same every time, and would be taken out of the loop
      __asm__ volatile("vpmaddwd %2, %1, %0" : "=x"(product) : "x"(x[i % 3]), "x"(x[(i + 1) % 3]));
      acc[i] = _mm256_add_epi32(acc[i], product);
    }
  }
  __m256i sum = acc[0];
#pragma GCC unroll 12
  for (int i = 1; i < 12; ++i) sum = _mm256_add_epi32(sum, acc[i]);
  _mm256_storeu_si256((__m256i*)sink, sum);
  return 12.0 * 16 * 2 * static_cast<double>(iterations);
}

uint64_t read_loop_avx2(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  __m256i acc[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) acc[i] = _mm256_setzero_si256();
  for (const char* end = p + bytes; p < end; p += 256) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      acc[i] =
          _mm256_or_si256(acc[i], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32 * i)));
  }
#pragma GCC unroll 8
  for (int i = 1; i < 8; ++i) acc[0] = _mm256_or_si256(acc[0], acc[i]);
  uint64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), acc[0]);
  return lanes[0] | lanes[1] | lanes[2] | lanes[3];
}

}  // namespace xsr::bench
