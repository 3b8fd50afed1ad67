#include "kernels/activation/activation_cuda.h"

#include "kernels/activation/activation_bf16_cuda.h"
#include "kernels/activation/activation_ref.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/eight.h"

namespace xsr::cuda {
namespace {

using kernels::activate_ref;
using kernels::Activation;

__global__ void __launch_bounds__(256)
    activation_forward_kernel(const float* x, int64_t x_stride, int32_t F, Activation activation,
                              float* out, int64_t out_stride) {
  const int64_t i = blockIdx.x;
  const int32_t c = (int32_t)(blockIdx.y * blockDim.x + threadIdx.x);
  if (c >= F) return;
  out[i * out_stride + c] = activate_ref(x[i * x_stride + c], activation);
}

constexpr int32_t kThreads = 128, kRows = 2;

/// Two rows a thread, which share the bias. kSwish: the activation, whatever is given, so that no
/// element asks which it is.
template <bool kSwish>
__global__ void __launch_bounds__(kThreads)
    activation_forward_bf16_kernel(const uint16_t* x, int64_t x_stride, const float* bias,
                                   int32_t N, int32_t F, Activation activation, uint16_t* out,
                                   int64_t out_stride) {
  const int64_t first = (int64_t)blockIdx.x * kRows;
  const int32_t rows = N - first < kRows ? (int32_t)(N - first) : kRows;
  const int32_t c = (int32_t)(blockIdx.y * kThreads + threadIdx.x) * kEight;
  if (c >= F) return;
  if constexpr (kSwish) activation = Activation::kSwish;
  const bool whole = c + kEight <= F && x_stride % kEight == 0 && out_stride % kEight == 0;
  float values[kRows][kEight] = {}, shift[kEight];
  XSR_UNROLL
  for (int32_t r = 0; r < kRows; ++r) {
    if (r < rows) load_eight(x + (first + r) * x_stride + c, whole, F - c, values[r]);
  }
  load_eight(bias + c, whole, F - c, shift);
  XSR_UNROLL
  for (int32_t r = 0; r < kRows; ++r) {
    XSR_UNROLL
    for (int32_t e = 0; e < kEight; ++e)
      values[r][e] = activate_for_bf16(values[r][e] + shift[e], activation);
    if (r < rows) store_eight(out + (first + r) * out_stride + c, whole, F - c, values[r]);
  }
}

}  // namespace

Status activation_forward_cuda(const float* x, int64_t x_stride, int32_t N, int32_t F,
                               Activation activation, float* out, int64_t out_stride,
                               Stream stream) {
  return launch(activation_forward_kernel, dim3((unsigned)N, (unsigned)((F + 255) / 256)),
                dim3(256), 0, stream, x, x_stride, F, activation, out, out_stride);
}

Status activation_forward_bf16_cuda(const uint16_t* x, int64_t x_stride, const float* bias,
                                    int32_t N, int32_t F, Activation activation, uint16_t* out,
                                    int64_t out_stride, Stream stream) {
  constexpr int32_t kColumns = kThreads * kEight;
  return launch(
      activation == Activation::kSwish ? activation_forward_bf16_kernel<true>
                                       : activation_forward_bf16_kernel<false>,
      dim3((unsigned)((N + kRows - 1) / kRows), (unsigned)((F + kColumns - 1) / kColumns)),
      dim3(kThreads), 0, stream, x, x_stride, bias, N, F, activation, out, out_stride);
}

}  // namespace xsr::cuda
