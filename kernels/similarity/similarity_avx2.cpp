#include "kernels/simd/avx2.h"
#include "kernels/similarity/similarity.h"

namespace xsr::kernels {
namespace {

/// Not fused: the bits are those of the plain loop.
template <int kRows>
inline void multiply_rows(const double* a, const double* panel, int32_t size, double* out) {
  __m256d low[kRows], high[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_pd();
  for (int32_t k = 0; k < size; ++k) {
    const __m256d first = _mm256_loadu_pd(panel + int64_t{k} * kPanelRows),
                  second = _mm256_loadu_pd(panel + int64_t{k} * kPanelRows + 4);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256d x = _mm256_broadcast_sd(a + int64_t{r} * size + k);
      low[r] = _mm256_add_pd(low[r], _mm256_mul_pd(x, first));
      high[r] = _mm256_add_pd(high[r], _mm256_mul_pd(x, second));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_pd(out + r * kPanelRows, low[r]);
    _mm256_storeu_pd(out + r * kPanelRows + 4, high[r]);
  }
}

}  // namespace

void inner_products_forward_f64_avx2(const double* a, const double* panel, int64_t rows,
                                     int32_t size, double* out) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) multiply_rows<4>(a + r * size, panel, size, out + r * kPanelRows);
  for (; r < rows; ++r) multiply_rows<1>(a + r * size, panel, size, out + r * kPanelRows);
}

}  // namespace xsr::kernels
