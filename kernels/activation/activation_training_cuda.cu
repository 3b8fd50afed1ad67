#include "kernels/activation/activation_training_cuda.h"

#include "kernels/activation/activation_ref.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Activation;

namespace {

constexpr int32_t kThreads = 256;

__global__ void activation_forward_kernel(const float* x, int64_t n, Activation activation,
                                          float* out, uint16_t* narrow) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= n) return;
  const float value = kernels::activate_ref(x[i], activation);
  if (out != nullptr) out[i] = value;
  if (narrow != nullptr) narrow[i] = f32_to_bf16(value);
}

__global__ void activation_backward_kernel(const float* x, int64_t n, Activation activation,
                                           float* d, uint16_t* narrow) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= n) return;
  const float value = d[i] * kernels::activation_slope_ref(x[i], activation);
  d[i] = value;
  if (narrow != nullptr) narrow[i] = f32_to_bf16(value);
}

}  // namespace

Status activation_forward_f32_cuda(const float* x, int64_t n, Activation activation, float* out,
                                   uint16_t* narrow, Stream stream) {
  return launch(activation_forward_kernel, blocks_of(n, kThreads), kThreads, 0, stream, x, n,
                activation, out, narrow);
}

Status activation_backward_f32_cuda(const float* x, int64_t n, Activation activation, float* d,
                                    uint16_t* narrow, Stream stream) {
  return launch(activation_backward_kernel, blocks_of(n, kThreads), kThreads, 0, stream, x, n,
                activation, d, narrow);
}

}  // namespace xsr::cuda
