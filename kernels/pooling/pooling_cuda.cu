#include "kernels/cuda/device.h"
#include "kernels/pooling/pooling_cuda.h"

namespace xsr::cuda {
namespace {

using kernels::Pooling;

constexpr int32_t kThreads = 128;
constexpr int32_t kAtOnce = 8;

__global__ void __launch_bounds__(kThreads)
    pooling_forward_kernel(const float* x, int64_t x_stride, const int32_t* cu_seqlens, int32_t C,
                           Pooling pooling, float* out, int64_t out_stride) {
  const int64_t b = blockIdx.x;
  const int32_t c = (int32_t)(blockIdx.y * blockDim.x + threadIdx.x);
  if (c >= C) return;
  const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  const auto at = [&](int32_t i) { return x[i * x_stride + c]; };
  float value = 0;
  if (pooling == Pooling::kMean) {
    value = sum_ahead<kAtOnce>(begin, end, 1, at);  // in row order
    if (begin < end) value /= (float)(end - begin);
  } else if (begin < end) {
    value = at(begin);
    for (int32_t i = begin + 1; pooling == Pooling::kMax && i < end; i += kAtOnce) {
      float tokens[kAtOnce];
      XSR_UNROLL
      for (int32_t k = 0; k < kAtOnce; ++k) tokens[k] = i + k < end ? at(i + k) : -INFINITY;
      XSR_UNROLL
      for (int32_t k = 0; k < kAtOnce; ++k) value = tokens[k] > value ? tokens[k] : value;
    }
  }
  out[b * out_stride + c] = value;
}

__global__ void __launch_bounds__(kThreads)
    first_rows_bf16_kernel(const uint16_t* x, int64_t x_stride, const int32_t* cu_seqlens,
                           int32_t C, uint16_t* out, int64_t out_stride) {
  const int64_t b = blockIdx.x;
  const int32_t c = (int32_t)(blockIdx.y * blockDim.x + threadIdx.x);
  if (c >= C) return;
  const int64_t first = cu_seqlens[b];
  out[b * out_stride + c] = first < cu_seqlens[b + 1] ? x[first * x_stride + c] : (uint16_t)0;
}

__global__ void __launch_bounds__(kThreads)
    l2_normalize_forward_kernel(float* x, int64_t stride, int32_t B, int32_t C) {
  const int32_t b = global_warp_id();
  if (b >= B) return;
  float* row = x + b * stride;
  double squares = 0;
  for (int32_t c = lane_id(); c < C; c += kWarp) squares += (double)row[c] * (double)row[c];
  squares = warp_sum(squares);
  if (squares == 0) return;
  const double scale = 1.0 / sqrt(squares);
  for (int32_t c = lane_id(); c < C; c += kWarp) row[c] = (float)((double)row[c] * scale);
}

/// A thread a column.
dim3 columns_of_sentences(int32_t B, int32_t C) {
  return dim3((unsigned)B, (unsigned)((C + kThreads - 1) / kThreads));
}

}  // namespace

Status pooling_forward_cuda(const float* x, int64_t x_stride, const int32_t* cu_seqlens, int32_t B,
                            int32_t C, Pooling pooling, float* out, int64_t out_stride,
                            Stream stream) {
  return launch(pooling_forward_kernel, columns_of_sentences(B, C), dim3(kThreads), 0, stream, x,
                x_stride, cu_seqlens, C, pooling, out, out_stride);
}

Status first_rows_bf16_cuda(const uint16_t* x, int64_t x_stride, const int32_t* cu_seqlens,
                            int32_t B, int32_t C, uint16_t* out, int64_t out_stride,
                            Stream stream) {
  return launch(first_rows_bf16_kernel, columns_of_sentences(B, C), dim3(kThreads), 0, stream, x,
                x_stride, cu_seqlens, C, out, out_stride);
}

Status l2_normalize_forward_cuda(float* x, int64_t stride, int32_t B, int32_t C, Stream stream) {
  constexpr int32_t kRows = kThreads / kWarp;
  return launch(l2_normalize_forward_kernel, dim3((unsigned)((B + kRows - 1) / kRows)),
                dim3(kThreads), 0, stream, x, stride, B, C);
}

}  // namespace xsr::cuda
