#include "kernels/loss/loss_ref.h"

namespace xsr::kernels {

void vocabulary_softmax_forward_f32_ref(const float* z, int64_t z_stride, int32_t R,
                                        const float* bias, int32_t first, int32_t last, float* max,
                                        float* sum, float* e, int64_t e_stride, uint16_t* narrow,
                                        int64_t narrow_stride) {
  vocabulary_softmax_forward_ref(z, z_stride, R, bias, first, last, max, sum, e, e_stride, narrow,
                                 narrow_stride);
}

void vocabulary_softmax_backward_f32_ref(const float* e, int64_t e_stride, int32_t R, int32_t N,
                                         const float* factor, float* dz, int64_t dz_stride,
                                         float* dbias) {
  vocabulary_softmax_backward_ref(e, e_stride, R, N, factor, dz, dz_stride, dbias);
}

void vocabulary_softmax_backward_bf16_ref(const uint16_t* e, int64_t e_stride, int32_t R, int32_t N,
                                          const float* factor, uint16_t* dz, int64_t dz_stride,
                                          float* dbias) {
  for (int32_t v = 0; v < R; ++v) {
    float total = 0;
    for (int32_t b = 0; b < N; ++b) {
      const float value = f32_from_bf16(e[v * e_stride + b]) * factor[b];
      dz[v * dz_stride + b] = bf16_from_f32(value);
      total += value;
    }
    if (dbias != nullptr) dbias[v] += total;
  }
}

void softmax_forward_f32_ref(const float* s, int64_t s_stride, int32_t first, int32_t last,
                             int32_t N, float gain, float* p, int64_t p_stride, float* max,
                             float* sum) {
  softmax_forward_ref(s, s_stride, first, last, N, gain, p, p_stride, max, sum);
}

void sim_forward_backward_f32_ref(float* p1, float* p2, int64_t stride, int32_t first, int32_t last,
                                  int32_t N, double argument, double min_cosine, double gain,
                                  double* loss) {
  sim_forward_backward_ref(p1, p2, stride, first, last, N, argument, min_cosine, gain, loss);
}

}  // namespace xsr::kernels
