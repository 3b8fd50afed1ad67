#include "kernels/attention/attention_training_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Dropout;

namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = kWarps * kWarp;

/// The block's shared memory: two tiles of 32 rows of D (stride D + 1, so that lanes that read one
/// column each of another row meet no bank twice), and for every warp two rows of D and of 32.
struct Shared {
  float *tile_a, *tile_b, *row_a, *row_b, *weights_a, *weights_b;
};
size_t shared_bytes(int32_t D) {
  return sizeof(float) * (size_t)(2 * kWarp * (D + 1) + 2 * kWarps * (D + kWarp));
}
__device__ inline Shared shared_layout(int32_t D) {
  float* at = shared_memory<float>();
  const int32_t warp = (int32_t)threadIdx.x / kWarp;
  float* rows = at + 2 * kWarp * (D + 1);
  float* weights = rows + 2 * kWarps * D;
  return {at,
          at + kWarp * (D + 1),
          rows + 2 * warp * D,
          rows + (2 * warp + 1) * D,
          weights + 2 * warp * kWarp,
          weights + (2 * warp + 1) * kWarp};
}

/// tile ← rows [first, first + 32) of x, zeros from `end` on; the whole block.
__device__ inline void stage(const float* x, int64_t stride, int32_t first, int32_t end, int32_t D,
                             float* tile) {
  for (int32_t e = (int32_t)threadIdx.x; e < kWarp * D; e += kThreads) {
    const int32_t row = e / D, d = e % D;
    tile[row * (D + 1) + d] = first + row < end ? x[(first + row) * stride + d] : 0.0f;
  }
}

/// Both tiles, before and behind which the block waits for its warps.
__device__ inline void stage_both(const float* a, int64_t stride_a, const float* b,
                                  int64_t stride_b, int32_t first, int32_t end, int32_t D,
                                  const Shared& s) {
  __syncthreads();
  stage(a, stride_a, first, end, D, s.tile_a);
  stage(b, stride_b, first, end, D, s.tile_b);
  __syncthreads();
}

/// Puts a row before the warp.
__device__ inline void take_row(const float* x, int32_t D, float* row) {
  for (int32_t d = lane_id(); d < D; d += kWarp) row[d] = x[d];
}

__device__ inline float dot(const float* row, const float* tile, int32_t D) {
  const float* other = tile + lane_id() * (D + 1);
  float sum = 0;
  for (int32_t d = 0; d < D; ++d) sum += row[d] * other[d];
  return sum;
}

/// sums[k] += Σ_j weights[j] · tile[j][lane + 32 k]
template <int32_t kPerLane>
__device__ inline void add_rows(const float* weights, const float* tile, int32_t D,
                                float (&sums)[kPerLane]) {
  XSR_UNROLL
  for (int32_t k = 0; k < kPerLane; ++k) {
    const int32_t d = lane_id() + k * kWarp;
    if (d >= D) break;
    for (int32_t j = 0; j < kWarp; ++j) sums[k] += weights[j] * tile[j * (D + 1) + d];
  }
}

template <int32_t kPerLane>
__device__ inline void put(const float (&values)[kPerLane], float factor, int32_t D, int64_t at,
                           float* out, uint16_t* narrow) {
  XSR_UNROLL
  for (int32_t k = 0; k < kPerLane; ++k) {
    const int32_t d = lane_id() + k * kWarp;
    if (d >= D) break;
    const float value = values[k] * factor;
    if (out != nullptr) out[at + d] = value;
    if (narrow != nullptr) narrow[at + d] = f32_to_bf16(value);
  }
}

/// What dropout makes of probability (row, column).
__device__ inline float multiplier(const Dropout* dropout, uint32_t stream, int32_t row,
                                   int32_t column) {
  if (dropout->threshold == 0) return 1;
  const uint32_t counter[4] = {(uint32_t)column / 4, (uint32_t)row, dropout->stream + stream,
                               dropout->step};
  uint32_t words[4];
  kernels::philox4x32(counter, dropout->key, words);
  return words[column % 4] >= dropout->threshold ? dropout->scale : 0.0f;
}

/// Zeros into columns [at, at + count) of rows [first, last).
__device__ inline void clear_rows(int32_t first, int32_t last, int64_t stride, int64_t at,
                                  int32_t count, float* out, uint16_t* narrow) {
  for (int32_t i = first; i < last; ++i) {
    for (int32_t d = (int32_t)threadIdx.x; d < count; d += kThreads) {
      if (out != nullptr) out[i * stride + at + d] = 0;
      if (narrow != nullptr) narrow[i * stride + at + d] = 0;
    }
  }
}

template <int32_t kPerLane>
__global__ void __launch_bounds__(kThreads)
    attention_training_forward_kernel(const float* qkv, const int32_t* cu_seqlens, int32_t B,
                                      int32_t N, int32_t H, int32_t D, const Dropout* dropout,
                                      uint32_t place, float* out, uint16_t* narrow, float* lse) {
  const int32_t b = (int32_t)blockIdx.x, h = (int32_t)blockIdx.y;
  const int64_t C = (int64_t)H * D;
  if (b == B) {
    clear_rows(cu_seqlens[B], N, C, h * D, D, out, narrow);
    return;
  }
  const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  const float *q = qkv + h * D, *k = q + C, *v = k + C;
  const float scale = 1 / sqrtf((float)D);
  const Shared s = shared_layout(D);
  for (int32_t group = begin; group < end; group += kWarps) {
    const int32_t i = group + (int32_t)threadIdx.x / kWarp;
    const bool active = i < end;  // the whole warp
    if (active) take_row(q + i * 3 * C, D, s.row_a);
    float largest = -INFINITY, sum = 0, context[kPerLane] = {};
    for (int32_t tile = begin; tile < end; tile += kWarp) {
      if (group == begin || end - begin > kWarp) {
        stage_both(k, 3 * C, v, 3 * C, tile, end, D, s);
      }
      if (!active) continue;
      __syncwarp();
      const int32_t j = tile + lane_id();
      const float score = j < end ? dot(s.row_a, s.tile_a, D) * scale : -INFINITY;
      const float peak = fmaxf(largest, warp_max(score));
      const float correction = expf(largest - peak);
      const float p = j < end ? expf(score - peak) : 0.0f;
      sum = sum * correction + warp_sum(p);
      largest = peak;
      s.weights_a[lane_id()] =
          j < end ? p * multiplier(dropout, place + (uint32_t)h, i, j - begin) : 0.0f;
      __syncwarp();
      XSR_UNROLL
      for (int32_t e = 0; e < kPerLane; ++e) context[e] *= correction;
      add_rows(s.weights_a, s.tile_b, D, context);
    }
    if (!active) continue;
    put(context, 1 / sum, D, i * C + h * D, out, narrow);
    if (lane_id() == 0) lse[(int64_t)i * H + h] = largest + logf(sum);
    __syncwarp();
  }
}

template <int32_t kPerLane>
__global__ void __launch_bounds__(kThreads,
                                  4)  // 128 registers a thread: without the 4, 72 and spills
    attention_backward_kernel(const float* qkv, const int32_t* cu_seqlens, int32_t B, int32_t N,
                              int32_t H, int32_t D, const float* lse, const Dropout* dropout,
                              uint32_t place, const float* dout, float* dqkv, uint16_t* narrow,
                              float2* of_rows) {
  const int32_t b = (int32_t)blockIdx.x, h = (int32_t)blockIdx.y;
  const int64_t C = (int64_t)H * D;
  if (b == B) {
    for (int32_t part = 0; part < 3; ++part)
      clear_rows(cu_seqlens[B], N, 3 * C, part * C + h * D, D, dqkv, narrow);
    return;
  }
  const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  const bool one_tile = end - begin <= kWarp;
  const float *q = qkv + h * D, *k = q + C, *v = k + C, *gradient = dout + h * D;
  const float scale = 1 / sqrtf((float)D);
  const uint32_t stream = place + (uint32_t)h;
  const Shared s = shared_layout(D);

  // A query a warp: Σ_j E and Σ_j P ∘ dP, then dQ. The latter sum is taken over the terms that it
  // is taken from later, and not as dO · O: where one key has all of a row, they cancel to the bit;
  // __fmul_rn, here and where lse is taken from a score, since a product that is not rounded before
  // its difference would not.
  for (int32_t group = begin; group < end; group += kWarps) {
    const int32_t i = group + (int32_t)threadIdx.x / kWarp;
    const bool active = i < end;  // the whole warp
    float dq[kPerLane] = {}, factor = 0, row_delta = 0, row_lse = 0, p = 0, dp = 0;
    if (active) {
      take_row(q + i * 3 * C, D, s.row_a);
      take_row(gradient + i * C, D, s.row_b);
      row_lse = lse[(int64_t)i * H + h];
    }
    for (int32_t pass = 0; pass < 2; ++pass) {
      for (int32_t tile = begin; tile < end; tile += kWarp) {
        if (one_tile ? group == begin && pass == 0 : true) {
          stage_both(k, 3 * C, v, 3 * C, tile, end, D, s);
        }
        if (!active) continue;
        __syncwarp();
        const int32_t j = tile + lane_id();
        if (pass == 0 || !one_tile) {
          p = j < end ? expf(__fmul_rn(dot(s.row_a, s.tile_a, D), scale) - row_lse) : 0.0f;
          dp = j < end
                   ? __fmul_rn(dot(s.row_b, s.tile_b, D), multiplier(dropout, stream, i, j - begin))
                   : 0.0f;
        }
        if (pass == 0) {
          factor += p;
          row_delta += p * dp;
          continue;
        }
        s.weights_a[lane_id()] = p * factor * (dp - row_delta) * scale;
        __syncwarp();
        add_rows(s.weights_a, s.tile_a, D, dq);
      }
      if (active && pass == 0) {
        factor = 1 / warp_sum(factor);
        row_delta = warp_sum(row_delta) * factor;
      }
    }
    if (active) {
      put(dq, 1, D, i * 3 * C + h * D, dqkv, narrow);
      if (lane_id() == 0) of_rows[(int64_t)i * H + h] = make_float2(row_delta, factor);
    }
    __syncwarp();
  }

  // A key a warp: dK and dV, over the queries.
  for (int32_t group = begin; group < end; group += kWarps) {
    const int32_t j = group + (int32_t)threadIdx.x / kWarp;
    const bool active = j < end;  // the whole warp
    float dk[kPerLane] = {}, dv[kPerLane] = {};
    if (active) {
      take_row(k + j * 3 * C, D, s.row_a);
      take_row(v + j * 3 * C, D, s.row_b);
    }
    for (int32_t tile = begin; tile < end; tile += kWarp) {
      if (group == begin || !one_tile) {
        stage_both(q, 3 * C, gradient, C, tile, end, D,
                   s);  // waits for of_rows of the loop above, too
      }
      if (!active) continue;
      __syncwarp();
      const int32_t i = tile + lane_id();
      float ds = 0, dropped = 0;
      if (i < end) {
        const float2 of_row = of_rows[(int64_t)i * H + h];
        const float e = expf(__fmul_rn(dot(s.row_a, s.tile_a, D), scale) - lse[(int64_t)i * H + h]);
        const float p = e * of_row.y;
        const float factor = multiplier(dropout, stream, i, j - begin);
        const float dp = __fmul_rn(dot(s.row_b, s.tile_b, D), factor);
        dropped = p * factor;
        ds = p * (dp - of_row.x) * scale;
      }
      s.weights_a[lane_id()] = ds;
      s.weights_b[lane_id()] = dropped;
      __syncwarp();
      add_rows(s.weights_a, s.tile_a, D, dk);
      add_rows(s.weights_b, s.tile_b, D, dv);
    }
    if (active) {
      put(dk, 1, D, j * 3 * C + C + h * D, dqkv, narrow);
      put(dv, 1, D, j * 3 * C + 2 * C + h * D, dqkv, narrow);
    }
    __syncwarp();
  }
}

}  // namespace

Status attention_training_forward_f32_cuda(const float* qkv, const int32_t* cu_seqlens, int32_t B,
                                           int32_t N, int32_t H, int32_t D, const Dropout* dropout,
                                           uint32_t place, float* out, uint16_t* narrow, float* lse,
                                           Stream stream) {
  const auto kernel = D <= 32   ? attention_training_forward_kernel<1>
                      : D <= 64 ? attention_training_forward_kernel<2>
                                : attention_training_forward_kernel<4>;
  return launch(kernel, dim3(B + 1, H), kThreads, shared_bytes(D), stream, qkv, cu_seqlens, B, N, H,
                D, dropout, place, out, narrow, lse);
}

Status attention_backward_f32_cuda(const float* qkv, const int32_t* cu_seqlens, int32_t B,
                                   int32_t N, int32_t H, int32_t D, const float* lse,
                                   const Dropout* dropout, uint32_t place, const float* dout,
                                   float* dqkv, uint16_t* narrow, float* delta, Stream stream) {
  const auto kernel = D <= 32   ? attention_backward_kernel<1>
                      : D <= 64 ? attention_backward_kernel<2>
                                : attention_backward_kernel<4>;
  return launch(kernel, dim3(B + 1, H), kThreads, shared_bytes(D), stream, qkv, cu_seqlens, B, N, H,
                D, lse, dropout, place, dout, dqkv, narrow, reinterpret_cast<float2*>(delta));
}

}  // namespace xsr::cuda
