#include "kernels/layernorm/layernorm_avx512.h"

#include "kernels/layernorm/layernorm.h"

namespace xsr::kernels {

void layernorm_forward_f32_avx512(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                  int32_t C, const float* gamma, const float* beta, float eps,
                                  float* out, int64_t out_stride) {
  for (int32_t i = first; i < last; i += kLayernormRows) {
    const int32_t rows = last - i < kLayernormRows ? last - i : kLayernormRows;
    layernorm_rows_avx512(x + i * x_stride, x_stride, rows, C, gamma, beta, eps,
                          out + i * out_stride, out_stride, nullptr);
  }
}

void layernorm_backward_f32_avx512(const float* x, int64_t x_stride, const float* dy,
                                   int64_t dy_stride, int32_t N, int32_t first_block,
                                   int32_t last_block, int32_t C, const float* gamma, float eps,
                                   float* dx, int64_t dx_stride, float* dgamma_parts,
                                   float* dbeta_parts) {
  const __m512 zero = _mm512_setzero_ps();
  for (int32_t k = first_block; k < last_block; ++k) {
    float* dgamma = dgamma_parts + (int64_t)k * C;
    float* dbeta = dbeta_parts + (int64_t)k * C;
    for (int32_t c = 0; c < C; c += 16) {
      _mm512_mask_storeu_ps(dgamma + c, tail_mask(C - c), zero);
      _mm512_mask_storeu_ps(dbeta + c, tail_mask(C - c), zero);
    }
    for (int32_t i = k * kLayernormBlockRows; i < N && i < (k + 1) * kLayernormBlockRows; ++i) {
      const float* row = x + i * x_stride;
      const float* gradient = dy + i * dy_stride;
      const float mean_x = layernorm_mean_avx512(row, C);
      const __m512 mean = _mm512_set1_ps(mean_x);
      const __m512 rstd = _mm512_set1_ps(layernorm_rstd_avx512(row, C, mean_x, eps));
      __m512 sum = zero, sum_normalized = zero;  // of g and of g · x̂; lanes beyond C add 0
      for_each_vector(C, [&](int32_t c, __mmask16 mask) {
        const __m512 normalized =
            _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row + c), mean), rstd);
        const __m512 d = _mm512_maskz_loadu_ps(mask, gradient + c);
        const __m512 g = _mm512_mul_ps(d, _mm512_maskz_loadu_ps(mask, gamma + c));
        sum = _mm512_add_ps(sum, g);
        sum_normalized = _mm512_fmadd_ps(g, normalized, sum_normalized);
        _mm512_mask_storeu_ps(
            dgamma + c, mask,
            _mm512_fmadd_ps(d, normalized, _mm512_maskz_loadu_ps(mask, dgamma + c)));
        _mm512_mask_storeu_ps(dbeta + c, mask,
                              _mm512_add_ps(d, _mm512_maskz_loadu_ps(mask, dbeta + c)));
      });
      const __m512 mean_g = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)C);
      const __m512 mean_normalized =
          _mm512_set1_ps(_mm512_reduce_add_ps(sum_normalized) / (float)C);
      for_each_vector(C, [&](int32_t c, __mmask16 mask) {
        const __m512 normalized =
            _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row + c), mean), rstd);
        const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, gradient + c),
                                       _mm512_maskz_loadu_ps(mask, gamma + c));
        const __m512 centred =
            _mm512_fnmadd_ps(normalized, mean_normalized, _mm512_sub_ps(g, mean_g));
        _mm512_mask_storeu_ps(dx + i * dx_stride + c, mask, _mm512_mul_ps(rstd, centred));
      });
    }
  }
}

}  // namespace xsr::kernels
