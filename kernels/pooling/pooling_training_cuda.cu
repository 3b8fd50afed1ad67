#include "kernels/pooling/pooling_training_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Pooling;

namespace {

constexpr int32_t kThreads = 128;

/// Block b: a sentence; block B: the rows behind the last one, which have none. A thread has four
/// columns.
__global__ void __launch_bounds__(kThreads)
    norm_pooling_forward_kernel(const float* x, const float* statistics, const float* gamma,
                                const float* beta, const int32_t* cu_seqlens, int32_t B, int32_t N,
                                int32_t C, bool mean, float* out, int32_t* sentence_of) {
  constexpr int32_t kAtOnce = 8;
  const int32_t b = (int32_t)blockIdx.x, c = 4 * (int32_t)(blockIdx.y * kThreads + threadIdx.x);
  const int32_t begin = cu_seqlens[b], end = b < B ? cu_seqlens[b + 1] : N;
  if (blockIdx.y == 0) {
    for (int32_t i = begin + (int32_t)threadIdx.x; i < end; i += kThreads)
      sentence_of[i] = b < B ? b : -1;
  }
  if (c >= C || b == B) return;
  const Quad scale = load_quad(gamma + c), shift = load_quad(beta + c);
  float pooled[4] = {};
  add_ahead<kAtOnce>(begin, mean || begin == end ? end : begin + 1, 1, pooled,
                     [&](int32_t i, float(&values)[4]) {
                       load_values(x + (int64_t)i * C + c, values);
                       XSR_UNROLL
                       for (int32_t e = 0; e < 4; ++e) {
                         values[e] = (values[e] - statistics[2 * (int64_t)i]) *
                                         statistics[2 * (int64_t)i + 1] * scale.value[e] +
                                     shift.value[e];
                       }
                     });
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) {
    if (mean && begin < end) pooled[e] /= (float)(end - begin);
  }
  store_values(out + (int64_t)b * C + c, pooled);
}

/// Block b: a sentence; block B: the rows behind the last one.
__global__ void pooling_backward_kernel(const float* x, const float* dy, const int32_t* cu_seqlens,
                                        int32_t B, int32_t N, int32_t C, Pooling pooling,
                                        float* dx) {
  const int32_t b = (int32_t)blockIdx.x, c = (int32_t)(blockIdx.y * kThreads + threadIdx.x);
  if (c >= C) return;
  const int32_t begin = cu_seqlens[b], end = b < B ? cu_seqlens[b + 1] : N;
  int32_t chosen = begin;
  for (int32_t i = begin + 1; b < B && pooling == Pooling::kMax && i < end; ++i) {
    if (x[(int64_t)i * C + c] > x[(int64_t)chosen * C + c]) chosen = i;
  }
  const float gradient = b < B ? dy[(int64_t)b * C + c] : 0.0f;
  for (int32_t i = begin; i < end; ++i) {
    dx[(int64_t)i * C + c] = pooling == Pooling::kMean ? gradient / (float)(end - begin)
                             : i == chosen             ? gradient
                                                       : 0.0f;
  }
}

__global__ void l2_unit_forward_kernel(const float* x, int32_t B, int32_t C, float* out) {
  const int32_t b = warp_row();
  if (b >= B) return;
  const float* row = x + (int64_t)b * C;
  double squares = 0;
  for (int32_t c = lane_id(); c < C; c += kWarp) squares += (double)row[c] * (double)row[c];
  squares = warp_sum(squares);
  const double scale = squares == 0 ? 1 : 1.0 / sqrt(squares);
  for (int32_t c = lane_id(); c < C; c += kWarp)
    out[(int64_t)b * C + c] = (float)((double)row[c] * scale);
}

__global__ void l2_unit_backward_kernel(const float* x, const float* dy, int32_t B, int32_t C,
                                        float* dx) {
  const int32_t b = warp_row();
  if (b >= B) return;
  const float *row = x + (int64_t)b * C, *gradient = dy + (int64_t)b * C;
  double squares = 0, dot = 0;
  for (int32_t c = lane_id(); c < C; c += kWarp) {
    squares += (double)row[c] * (double)row[c];
    dot += (double)row[c] * (double)gradient[c];
  }
  squares = warp_sum(squares);
  const double scale = squares == 0 ? 0 : 1.0 / sqrt(squares);
  const double along = warp_sum(dot) * scale * scale;
  for (int32_t c = lane_id(); c < C; c += kWarp)
    dx[(int64_t)b * C + c] += (float)(((double)gradient[c] - (double)row[c] * along) * scale);
}

}  // namespace

Status norm_pooling_forward_cuda(const float* x, const float* statistics, const float* gamma,
                                 const float* beta, const int32_t* cu_seqlens, int32_t B, int32_t N,
                                 int32_t C, Pooling pooling, float* out, int32_t* sentence_of,
                                 Stream stream) {
  if (pooling == Pooling::kMax) return 1;
  return launch(norm_pooling_forward_kernel, dim3(B + 1, blocks_of(C, 4 * kThreads)), kThreads, 0,
                stream, x, statistics, gamma, beta, cu_seqlens, B, N, C, pooling == Pooling::kMean,
                out, sentence_of);
}

Status pooling_backward_f32_cuda(const float* x, const float* dy, const int32_t* cu_seqlens,
                                 int32_t B, int32_t N, int32_t C, Pooling pooling, float* dx,
                                 Stream stream) {
  return launch(pooling_backward_kernel, dim3(B + 1, blocks_of(C, kThreads)), kThreads, 0, stream,
                x, dy, cu_seqlens, B, N, C, pooling, dx);
}

Status l2_unit_forward_f32_cuda(const float* x, int32_t B, int32_t C, float* out, Stream stream) {
  return launch(l2_unit_forward_kernel, blocks_of(B, kRowWarps), kRowWarps * kWarp, 0, stream, x, B,
                C, out);
}

Status l2_unit_backward_f32_cuda(const float* x, const float* dy, int32_t B, int32_t C, float* dx,
                                 Stream stream) {
  return launch(l2_unit_backward_kernel, blocks_of(B, kRowWarps), kRowWarps * kWarp, 0, stream, x,
                dy, B, C, dx);
}

}  // namespace xsr::cuda
