#include "kernels/activation/activation_training_cuda.h"

#include "kernels/activation/activation_ref.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/eight.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Activation;

namespace {

constexpr int32_t kThreads = 256;

__global__ void activation_forward_kernel(const float* x, int64_t n, Activation activation,
                                          float* out) {
  const int64_t i = quad_of_thread();
  if (i >= n) return;
  Quad four = load_quad(x, i, n);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) four.value[e] = kernels::activate_ref(four.value[e], activation);
  store_quad(out, i, n, four);
}

__global__ void activation_backward_kernel(const float* x, int64_t n, Activation activation,
                                           float* d) {
  const int64_t i = quad_of_thread();
  if (i >= n) return;
  const Quad at = load_quad(x, i, n);
  Quad four = load_quad(d, i, n);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e)
    four.value[e] *= kernels::activation_slope_ref(at.value[e], activation);
  store_quad(d, i, n, four);
}

__global__ void activation_backward_bf16_kernel(const uint16_t* x, const float* bias, int64_t N,
                                                int32_t F, Activation activation, uint16_t* d) {
  const int32_t groups = (F + kEight - 1) / kEight;
  const int64_t item = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (item >= N * groups) return;
  const int32_t c = (int32_t)(item % groups) * kEight;
  const int64_t at = item / groups * F + c;
  const bool whole = F % kEight == 0;
  float values[kEight], shift[kEight], gradient[kEight];
  load_eight(x + at, whole, F - c, values);
  load_eight(bias + c, whole, F - c, shift);
  load_eight(d + at, whole, F - c, gradient);
  XSR_UNROLL
  for (int32_t e = 0; e < kEight; ++e)
    gradient[e] *= kernels::activation_slope_ref(values[e] + shift[e], activation);
  store_eight(d + at, whole, F - c, gradient);
}

}  // namespace

Status activation_forward_f32_cuda(const float* x, int64_t n, Activation activation, float* out,
                                   Stream stream) {
  return launch(activation_forward_kernel, quad_blocks(n), kQuadThreads, 0, stream, x, n,
                activation, out);
}

Status activation_backward_f32_cuda(const float* x, int64_t n, Activation activation, float* d,
                                    Stream stream) {
  return launch(activation_backward_kernel, quad_blocks(n), kQuadThreads, 0, stream, x, n,
                activation, d);
}

Status activation_backward_bf16_cuda(const uint16_t* x, const float* bias, int32_t N, int32_t F,
                                     Activation activation, uint16_t* d, Stream stream) {
  return launch(activation_backward_bf16_kernel,
                blocks_of((int64_t)N * ((F + kEight - 1) / kEight), kThreads), kThreads, 0, stream,
                x, bias, N, F, activation, d);
}

}  // namespace xsr::cuda
