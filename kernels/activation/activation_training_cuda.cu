#include "kernels/activation/activation_training_cuda.h"

#include "kernels/activation/activation_bf16_cuda.h"
#include "kernels/activation/activation_ref.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/eight.h"
#include "kernels/cuda/training.h"
#include "kernels/gemm/column_sum_cuda.h"

namespace xsr::cuda {

using kernels::Activation;

namespace {

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

/// A warp two rows at a time, a lane eight of their columns, whose sums it keeps. kWhole: 8 divides
/// F, and all four loads are under way at once. kSwish: the activation, whatever is given, so that
/// no element asks which it is. parts [gridDim.y, F]
template <bool kWhole, bool kSwish>
__global__ void __launch_bounds__(kRowWarps* kWarp)
    activation_backward_bf16_kernel(const uint16_t* x, const float* bias, int32_t N, int32_t F,
                                    Activation activation, uint16_t* d, float* parts) {
  constexpr int32_t kAtOnce = 2;
  if constexpr (kSwish) activation = Activation::kSwish;
  const int32_t first = (int32_t)blockIdx.x * kWarpColumns, c = first + kEight * lane_id();
  const int32_t warp = (int32_t)threadIdx.x / kWarp;
  float sums[kEight] = {};
  if (c < F) {
    float shift[kEight];
    load_eight(bias + c, kWhole, F - c, shift);
    const int32_t step = (int32_t)gridDim.y * kRowWarps;
    for (int32_t i = (int32_t)blockIdx.y * kRowWarps + warp; i < N; i += kAtOnce * step) {
      float values[kAtOnce][kEight], gradient[kAtOnce][kEight];
      XSR_UNROLL
      for (int32_t k = 0; k < kAtOnce; ++k) {
        const int32_t row = i + k * step < N ? i + k * step : i;  // the first again
        load_eight(x + (int64_t)row * F + c, kWhole, F - c, values[k]);
        load_eight(d + (int64_t)row * F + c, kWhole, F - c, gradient[k]);
      }
      XSR_UNROLL
      for (int32_t k = 0; k < kAtOnce; ++k) {
        if (i + k * step >= N) break;
        XSR_UNROLL
        for (int32_t e = 0; e < kEight; ++e) {
          gradient[k][e] *= slope_for_bf16(values[k][e] + shift[e], activation);
          sums[e] += gradient[k][e];
        }
        store_eight(d + (int64_t)(i + k * step) * F + c, kWhole, F - c, gradient[k]);
      }
    }
  }
  add_columns_of_warps(sums, warp, F - first, parts + (int64_t)blockIdx.y * F + first);
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
                                     Activation activation, uint16_t* d, float* dbias, float* parts,
                                     PartSums* later, Stream stream) {
  const int32_t rows = blocks_of(N, kRowWarps);
  const int32_t blocks = rows < kMostActivationBlocks ? rows : kMostActivationBlocks;
  const auto kernel = F % kEight != 0 ? activation_backward_bf16_kernel<false, false>
                      : activation == Activation::kSwish
                          ? activation_backward_bf16_kernel<true, true>
                          : activation_backward_bf16_kernel<true, false>;
  const Status status = launch(kernel, dim3(blocks_of(F, kWarpColumns), blocks), kRowWarps * kWarp,
                               0, stream, x, bias, N, F, activation, d, parts);
  return status != 0 ? status : add_blocks_cuda(parts, blocks, F, dbias, later, stream);
}

}  // namespace xsr::cuda
