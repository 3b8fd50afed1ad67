#include "kernels/optimizer/optimizer_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::AdamStep;

namespace {

constexpr int32_t kThreads = kQuadThreads;

__global__ void sum_of_squares_kernel(const float* x, int64_t n, double* parts) {
  __shared__ double scratch[kWarp];
  const int64_t first = (int64_t)blockIdx.x * kNormBlock;
  const int64_t last = first + kNormBlock < n ? first + kNormBlock : n;
  double sum = 0;
  for (int64_t i = first + 4 * threadIdx.x; i < last; i += 4 * kThreads) {
    const Quad four = load_quad(x, i, last);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) sum += (double)four.value[e] * (double)four.value[e];
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void gradient_norm_kernel(const double* parts, int32_t count, double clip_norm,
                                     int32_t num_losses, StepOutcome* outcome) {
  __shared__ double scratch[kWarp];
  double sum = 0;
  for (int32_t i = (int32_t)threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  const double norm = sqrt(sum);
  double unseen = norm - norm;  // NaN where something is not finite
  for (int32_t k = 0; k < num_losses; ++k) unseen += outcome->losses[k] - outcome->losses[k];
  const double scale = clip_norm > 0 ? clip_norm / (norm + 1e-6) : 1;
  outcome->gradient_norm = norm;
  outcome->gradient_scale = (float)(scale < 1 ? scale : 1);
  outcome->finite = unseen == 0;
}

__global__ void adam_update_kernel(float* value, const float* gradient, float* first_moment,
                                   float* second_moment, float* max_second_moment, uint16_t* narrow,
                                   int64_t n, const AdamStep* step, const StepOutcome* outcome) {
  const int64_t i = quad_of_thread();
  if (i >= n || outcome->finite == 0) return;
  const AdamStep s = *step;
  const float scale = outcome->gradient_scale;
  const bool amsgrad = max_second_moment != nullptr;
  const Quad g4 = load_quad(gradient, i, n);
  Quad x4 = load_quad(value, i, n), m4 = load_quad(first_moment, i, n),
       v4 = load_quad(second_moment, i, n), w4 = {};
  if (amsgrad) w4 = load_quad(max_second_moment, i, n);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) {
    const float x = x4.value[e];
    const float g = g4.value[e] * scale + s.l2 * x;
    const float m = s.beta1 * m4.value[e] + s.one_minus_beta1 * g;
    const float v = s.beta2 * v4.value[e] + s.one_minus_beta2 * g * g;
    const float w = amsgrad && w4.value[e] > v ? w4.value[e] : v;
    m4.value[e] = m;
    v4.value[e] = v;
    w4.value[e] = w;
    x4.value[e] = x - (s.shrink * x + s.step_size * m / (sqrtf(w) * s.inverse_correction2 + s.eps));
  }
  store_quad(first_moment, i, n, m4);
  store_quad(second_moment, i, n, v4);
  if (amsgrad) store_quad(max_second_moment, i, n, w4);
  store_quad(value, i, n, x4);
  if (narrow != nullptr) store_quad(narrow, i, n, x4);
}

__global__ void narrow_forward_kernel(const float* x, int64_t n, uint16_t* narrow) {
  const int64_t i = quad_of_thread();
  if (i < n) store_quad(narrow, i, n, load_quad(x, i, n));
}

}  // namespace

Status gradient_norm_cuda(const float* x, int64_t n, double clip_norm, int32_t num_losses,
                          double* parts, StepOutcome* outcome, Stream stream) {
  const int32_t count = (int32_t)norm_parts_cuda(n);
  const Status status = launch(sum_of_squares_kernel, count, kThreads, 0, stream, x, n, parts);
  if (status != 0) return status;
  return launch(gradient_norm_kernel, 1, kThreads, 0, stream, parts, count, clip_norm, num_losses,
                outcome);
}

Status adam_update_f32_cuda(float* value, const float* gradient, float* first_moment,
                            float* second_moment, float* max_second_moment, uint16_t* narrow,
                            int64_t n, const AdamStep* step, const StepOutcome* outcome,
                            Stream stream) {
  return launch(adam_update_kernel, quad_blocks(n), kThreads, 0, stream, value, gradient,
                first_moment, second_moment, max_second_moment, narrow, n, step, outcome);
}

Status narrow_forward_bf16_cuda(const float* x, int64_t n, uint16_t* narrow, Stream stream) {
  return launch(narrow_forward_kernel, quad_blocks(n), kThreads, 0, stream, x, n, narrow);
}

}  // namespace xsr::cuda
