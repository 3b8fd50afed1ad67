#include "kernels/activation/activation_training_cuda.h"

#include "kernels/activation/activation_ref.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Activation;

namespace {

__global__ void activation_forward_kernel(const float* x, int64_t n, Activation activation,
                                          float* out, uint16_t* narrow) {
  const int64_t i = quad_of_thread();
  if (i >= n) return;
  Quad four = load_quad(x, i, n);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) four.value[e] = kernels::activate_ref(four.value[e], activation);
  if (out != nullptr) store_quad(out, i, n, four);
  if (narrow != nullptr) store_quad(narrow, i, n, four);
}

__global__ void activation_backward_kernel(const float* x, int64_t n, Activation activation,
                                           float* d, uint16_t* narrow) {
  const int64_t i = quad_of_thread();
  if (i >= n) return;
  const Quad at = load_quad(x, i, n);
  Quad four = load_quad(d, i, n);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e)
    four.value[e] *= kernels::activation_slope_ref(at.value[e], activation);
  store_quad(d, i, n, four);
  if (narrow != nullptr) store_quad(narrow, i, n, four);
}

}  // namespace

Status activation_forward_f32_cuda(const float* x, int64_t n, Activation activation, float* out,
                                   uint16_t* narrow, Stream stream) {
  return launch(activation_forward_kernel, quad_blocks(n), kQuadThreads, 0, stream, x, n,
                activation, out, narrow);
}

Status activation_backward_f32_cuda(const float* x, int64_t n, Activation activation, float* d,
                                    uint16_t* narrow, Stream stream) {
  return launch(activation_backward_kernel, quad_blocks(n), kQuadThreads, 0, stream, x, n,
                activation, d, narrow);
}

}  // namespace xsr::cuda
