#include "kernels/layernorm/layernorm_avx2.h"

#include "kernels/layernorm/layernorm.h"

namespace xsr::kernels {

void layernorm_forward_f32_avx2(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                int32_t C, const float* gamma, const float* beta, float eps,
                                float* out, int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    layernorm_row_avx2(x + i * x_stride, C, gamma, beta, eps, out + i * out_stride);
  }
}

void layernorm_backward_f32_avx2(const float* x, int64_t x_stride, const float* dy,
                                 int64_t dy_stride, int32_t N, int32_t first_block,
                                 int32_t last_block, int32_t C, const float* gamma, float eps,
                                 float* dx, int64_t dx_stride, float* dgamma_parts,
                                 float* dbeta_parts) {
  const __m256 zero = _mm256_setzero_ps();
  for (int32_t k = first_block; k < last_block; ++k) {
    float* dgamma = dgamma_parts + (int64_t)k * C;
    float* dbeta = dbeta_parts + (int64_t)k * C;
    for (int32_t c = 0; c < C; c += 8) {
      store_up_to_8(dgamma + c, C - c, zero);
      store_up_to_8(dbeta + c, C - c, zero);
    }
    for (int32_t i = k * kLayernormBlockRows; i < N && i < (k + 1) * kLayernormBlockRows; ++i) {
      const float* row = x + i * x_stride;
      const float* gradient = dy + i * dy_stride;
      float mean_x;
      const __m256 rstd = _mm256_set1_ps(layernorm_statistics_avx2(row, C, eps, &mean_x));
      const __m256 mean = _mm256_set1_ps(mean_x);
      __m256 sum = zero, sum_normalized = zero;  // of g and of g · x̂; lanes beyond C add 0
      for (int32_t c = 0; c < C; c += 8) {
        const __m256 normalized =
            _mm256_mul_ps(_mm256_sub_ps(load_up_to_8(row + c, C - c), mean), rstd);
        const __m256 d = load_up_to_8(gradient + c, C - c);
        const __m256 g = _mm256_mul_ps(d, load_up_to_8(gamma + c, C - c));
        sum = _mm256_add_ps(sum, g);
        sum_normalized = _mm256_fmadd_ps(g, normalized, sum_normalized);
        store_up_to_8(dgamma + c, C - c,
                      _mm256_fmadd_ps(d, normalized, load_up_to_8(dgamma + c, C - c)));
        store_up_to_8(dbeta + c, C - c, _mm256_add_ps(d, load_up_to_8(dbeta + c, C - c)));
      }
      const __m256 mean_g = _mm256_set1_ps(reduce_add(sum) / (float)C);
      const __m256 mean_normalized = _mm256_set1_ps(reduce_add(sum_normalized) / (float)C);
      for (int32_t c = 0; c < C; c += 8) {
        const __m256 normalized =
            _mm256_mul_ps(_mm256_sub_ps(load_up_to_8(row + c, C - c), mean), rstd);
        const __m256 g =
            _mm256_mul_ps(load_up_to_8(gradient + c, C - c), load_up_to_8(gamma + c, C - c));
        const __m256 centred =
            _mm256_fnmadd_ps(normalized, mean_normalized, _mm256_sub_ps(g, mean_g));
        store_up_to_8(dx + i * dx_stride + c, C - c, _mm256_mul_ps(rstd, centred));
      }
    }
  }
}

}  // namespace xsr::kernels
