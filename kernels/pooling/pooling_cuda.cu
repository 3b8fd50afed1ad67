#include "kernels/cuda/device.h"
#include "kernels/cuda/row.h"
#include "kernels/pooling/pooling_cuda.h"

namespace xsr::cuda {
namespace {

using kernels::Pooling;

constexpr int32_t kThreads = 128;
constexpr int32_t kAtOnce = 8;

/// A thread has kValues columns of a sentence, side by side.
template <int32_t kValues>
__global__ void __launch_bounds__(kThreads)
    pooling_forward_kernel(const float* x, int64_t x_stride, const int32_t* cu_seqlens, int32_t C,
                           Pooling pooling, float* out, int64_t out_stride) {
  const int64_t b = blockIdx.x;
  const int32_t c = (int32_t)(blockIdx.y * blockDim.x + threadIdx.x) * kValues;
  if (c >= C) return;
  const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  const auto load = [&](int32_t i, float(&values)[kValues]) {
    load_values(x + i * x_stride + c, values);
  };
  float pooled[kValues] = {};
  if (pooling == Pooling::kMean) {
    add_ahead<kAtOnce>(begin, end, 1, pooled, load);  // in row order
    XSR_UNROLL
    for (int32_t e = 0; e < kValues; ++e) {
      if (begin < end) pooled[e] /= (float)(end - begin);
    }
  } else if (begin < end) {
    load(begin, pooled);
    for (int32_t i = begin + 1; pooling == Pooling::kMax && i < end; i += kAtOnce) {
      float tokens[kAtOnce][kValues];
      XSR_UNROLL
      for (int32_t k = 0; k < kAtOnce; ++k) load(i + k < end ? i + k : end - 1, tokens[k]);
      XSR_UNROLL
      for (int32_t k = 0; k < kAtOnce; ++k) {
        XSR_UNROLL
        for (int32_t e = 0; e < kValues; ++e)
          pooled[e] = tokens[k][e] > pooled[e] ? tokens[k][e] : pooled[e];
      }
    }
  }
  store_values(out + b * out_stride + c, pooled);
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

/// A thread has so many columns.
dim3 columns_of_sentences(int32_t B, int32_t C, int32_t values) {
  const int32_t columns = kThreads * values;
  return dim3((unsigned)B, (unsigned)((C + columns - 1) / columns));
}

}  // namespace

Status pooling_forward_cuda(const float* x, int64_t x_stride, const int32_t* cu_seqlens, int32_t B,
                            int32_t C, Pooling pooling, float* out, int64_t out_stride,
                            Stream stream) {
  const bool quads = C % 4 == 0 && starts_whole(x, x_stride) && starts_whole(out, out_stride);
  return launch(quads ? pooling_forward_kernel<4> : pooling_forward_kernel<1>,
                columns_of_sentences(B, C, quads ? 4 : 1), dim3(kThreads), 0, stream, x, x_stride,
                cu_seqlens, C, pooling, out, out_stride);
}

Status first_rows_bf16_cuda(const uint16_t* x, int64_t x_stride, const int32_t* cu_seqlens,
                            int32_t B, int32_t C, uint16_t* out, int64_t out_stride,
                            Stream stream) {
  return launch(first_rows_bf16_kernel, columns_of_sentences(B, C, 1), dim3(kThreads), 0, stream, x,
                x_stride, cu_seqlens, C, out, out_stride);
}

Status l2_normalize_forward_cuda(float* x, int64_t stride, int32_t B, int32_t C, Stream stream) {
  constexpr int32_t kRows = kThreads / kWarp;
  return launch(l2_normalize_forward_kernel, dim3((unsigned)((B + kRows - 1) / kRows)),
                dim3(kThreads), 0, stream, x, stride, B, C);
}

}  // namespace xsr::cuda
