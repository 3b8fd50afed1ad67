#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/device.h"

namespace xsr::cuda {
namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = kWarps * kWarp;
constexpr int32_t kRowsPerWarp = kTileRows / kWarps;

// ---- f32: a block a tile and head, each warp four of its rows, lane = key for the scores and
// column for the output.

template <int32_t kColumns>  // of 32 lanes: D ≤ 32 · kColumns
__global__ void __launch_bounds__(kThreads)
    attention_forward_f32_kernel(const float* qkv, int64_t qkv_stride, const AttentionTile* tiles,
                                 int32_t H, int32_t D, float* out, int64_t out_stride, float* lse) {
  const AttentionTile tile = tiles[blockIdx.x];
  const int32_t h = (int32_t)blockIdx.y, warp = (int32_t)threadIdx.x / kWarp, lane = lane_id();
  if (tile.begin == tile.end) return;
  const int32_t stride = D + 1;  // odd or not, lanes that read one column fall into many banks
  float* const q = shared_memory<float>();
  float* const k = q + kTileRows * stride;
  float* const v = k + kWarp * stride;
  const float scale = 1.0f / sqrtf((float)D);
  /// Rows [first, first + rows) of Q, K or V (0, 1, 2), zeros beyond the sentence.
  const auto fill = [&](float* to, int32_t first, int32_t rows, int32_t which) {
    for (int32_t i = (int32_t)threadIdx.x; i < rows * D; i += kThreads) {
      const int32_t row = first + i / D, d = i % D;
      to[i / D * stride + d] =
          row < tile.end ? qkv[row * qkv_stride + (which * H + h) * D + d] : 0.0f;
    }
  };
  fill(q, tile.row, kTileRows, 0);

  float largest[kRowsPerWarp], sum[kRowsPerWarp], o[kRowsPerWarp][kColumns];
  XSR_UNROLL
  for (int32_t r = 0; r < kRowsPerWarp; ++r) {
    largest[r] = -INFINITY;
    sum[r] = 0;
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) o[r][i] = 0;
  }
  for (int32_t key = tile.begin; key < tile.end; key += kWarp) {
    __syncthreads();  // the keys before have been read
    fill(k, key, kWarp, 1);
    fill(v, key, kWarp, 2);
    __syncthreads();
    const int32_t keys = tile.end - key < kWarp ? tile.end - key : kWarp;
    XSR_UNROLL
    for (int32_t r = 0; r < kRowsPerWarp; ++r) {
      const float* query = q + (warp * kRowsPerWarp + r) * stride;
      float dot = 0;
      for (int32_t d = 0; d < D; ++d) dot += query[d] * k[lane * stride + d];
      const float score = lane < keys ? dot * scale : -INFINITY;
      const float before = largest[r];
      largest[r] = fmaxf(before, warp_max(score));
      const float shrink = expf(before - largest[r]);
      const float p = expf(score - largest[r]);
      sum[r] = sum[r] * shrink + warp_sum(p);
      XSR_UNROLL
      for (int32_t i = 0; i < kColumns; ++i) o[r][i] *= shrink;
      for (int32_t j = 0; j < keys; ++j) {
        const float weight = __shfl_sync(kAllLanes, p, j);
        XSR_UNROLL
        for (int32_t i = 0; i < kColumns; ++i) {
          const int32_t d = lane + i * kWarp;
          if (d < D) o[r][i] += weight * v[j * stride + d];
        }
      }
    }
  }
  XSR_UNROLL
  for (int32_t r = 0; r < kRowsPerWarp; ++r) {
    const int32_t row = tile.row + warp * kRowsPerWarp + r;
    if (row >= tile.end) continue;
    XSR_UNROLL
    for (int32_t i = 0; i < kColumns; ++i) {
      const int32_t d = lane + i * kWarp;
      if (d < D) out[row * out_stride + h * D + d] = o[r][i] / sum[r];
    }
    if (lse != nullptr && lane == 0) lse[(int64_t)row * H + h] = largest[r] + logf(sum[r]);
  }
}

// ---- bf16: a warp a tile and head. Fragments as device.h says of mma_m16n8k16.

constexpr int32_t kKeys = 64;  // at a time

/// Columns d and d + 1 of a row rounded to bf16; zeros beyond D and where there is no row.
__device__ __forceinline__ uint32_t load_pair(const float* row, int32_t d, int32_t D, bool wanted) {
  const float low = wanted && d < D ? row[d] : 0.0f;
  const float high = wanted && d + 1 < D ? row[d + 1] : 0.0f;
  return f32_to_bf16_pair(low, high);
}

/// Over the four lanes that share the rows of a fragment.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

template <int32_t kD>  // D rounded up
__global__ void __launch_bounds__(kThreads)
    attention_forward_bf16_kernel(const float* qkv, int64_t qkv_stride, const AttentionTile* tiles,
                                  int32_t num_tiles, int32_t H, int32_t D, uint16_t* out,
                                  int64_t out_stride, float* lse) {
  const int32_t item = global_warp_id();
  if (item >= num_tiles * H) return;  // the whole warp, and only warps meet here
  const AttentionTile tile = tiles[item / H];
  if (tile.begin == tile.end) return;
  const int32_t h = item % H, lane = lane_id(), g = lane / 4, t = lane % 4;
  constexpr int32_t kStride = kD + 8;  // so that eight rows of ldmatrix fall into all banks
  uint16_t* const v = shared_memory<uint16_t>() + (int32_t)threadIdx.x / kWarp * 16 * kStride;
  const float scale = 1.0f / sqrtf((float)D);
  /// Pairs (d, d + 1) of a row of Q, K or V (0, 1, 2).
  const auto pair = [&](int32_t row, int32_t which, int32_t d) {
    return load_pair(qkv + row * qkv_stride + (which * H + h) * D, d, D, row < tile.end);
  };

  uint32_t q[kD / 16][4];
  XSR_UNROLL
  for (int32_t s = 0; s < kD / 16; ++s) {
    XSR_UNROLL
    for (int32_t i = 0; i < 4; ++i)
      q[s][i] = pair(tile.row + g + i % 2 * 8, 0, s * 16 + 2 * t + i / 2 * 8);
  }
  float o[kD / 8][4];
  XSR_UNROLL
  for (int32_t n = 0; n < kD / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
  float largest[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
  float sum[2] = {0, 0};                      // this lane's share

  for (int32_t key = tile.begin; key < tile.end; key += kKeys) {
    float p[kKeys / 8][4];  // scores, then probabilities
    float most[2] = {-INFINITY, -INFINITY};
    XSR_UNROLL
    for (int32_t n = 0; n < kKeys / 8; ++n) {
      p[n][0] = p[n][1] = p[n][2] = p[n][3] = 0;
      if (key + n * 8 < tile.end) {  // the same for the whole warp
        XSR_UNROLL
        for (int32_t s = 0; s < kD / 16; ++s) {
          const int32_t row = key + n * 8 + g;
          const uint32_t b[2] = {pair(row, 1, s * 16 + 2 * t), pair(row, 1, s * 16 + 2 * t + 8)};
          mma_m16n8k16(p[n], q[s], b);
        }
      }
      XSR_UNROLL
      for (int32_t i = 0; i < 4; ++i) {
        p[n][i] = key + n * 8 + 2 * t + i % 2 < tile.end ? p[n][i] * scale : -INFINITY;
        most[i / 2] = fmaxf(most[i / 2], p[n][i]);
      }
    }
    float shrink[2];
    XSR_UNROLL
    for (int32_t r = 0; r < 2; ++r) {
      const float before = largest[r];
      largest[r] = fmaxf(before, quad_max(most[r]));
      shrink[r] = expf(before - largest[r]);
      sum[r] *= shrink[r];
    }
    XSR_UNROLL
    for (int32_t n = 0; n < kD / 8; ++n) {
      XSR_UNROLL
      for (int32_t i = 0; i < 4; ++i) o[n][i] *= shrink[i / 2];
    }
    XSR_UNROLL
    for (int32_t n = 0; n < kKeys / 8; ++n) {
      XSR_UNROLL
      for (int32_t i = 0; i < 4; ++i) {
        p[n][i] = expf(p[n][i] - largest[i / 2]);
        sum[i / 2] += p[n][i];
      }
    }
    XSR_UNROLL
    for (int32_t s = 0; s < kKeys / 16; ++s) {
      if (key + s * 16 >= tile.end) continue;  // the same for the whole warp
      // Rows beyond the sentence become zeros: their probability is 0, but 0 · NaN is not.
      for (int32_t i = lane; i < 16 * kD / 2; i += kWarp) {
        const int32_t row = i / (kD / 2), d = i % (kD / 2) * 2;
        *reinterpret_cast<uint32_t*>(v + row * kStride + d) = pair(key + s * 16 + row, 2, d);
      }
      __syncwarp();
      const uint32_t a[4] = {f32_to_bf16_pair(p[2 * s][0], p[2 * s][1]),
                             f32_to_bf16_pair(p[2 * s][2], p[2 * s][3]),
                             f32_to_bf16_pair(p[2 * s + 1][0], p[2 * s + 1][1]),
                             f32_to_bf16_pair(p[2 * s + 1][2], p[2 * s + 1][3])};
      XSR_UNROLL
      for (int32_t n = 0; n < kD / 16; ++n) {
        uint32_t b[4];  // two columns of fragments
        load_matrix_x4_transposed(b, v + lane % 16 * kStride + n * 16 + lane / 16 * 8);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
        mma_m16n8k16(o[2 * n], a, first);
        mma_m16n8k16(o[2 * n + 1], a, second);
      }
      __syncwarp();
    }
  }
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const float total = quad_sum(sum[r]);
    const int32_t row = tile.row + g + r * 8;
    if (row >= tile.end) continue;
    uint16_t* to = out + row * out_stride + h * D;
    XSR_UNROLL
    for (int32_t n = 0; n < kD / 8; ++n) {
      XSR_UNROLL
      for (int32_t i = 0; i < 2; ++i) {
        const int32_t d = n * 8 + 2 * t + i;
        if (d < D) to[d] = f32_to_bf16(o[n][2 * r + i] / total);
      }
    }
    if (lse != nullptr && t == 0) lse[(int64_t)row * H + h] = largest[r] + logf(total);
  }
}

}  // namespace

Status attention_forward_f32_cuda(const float* qkv, int64_t qkv_stride, const AttentionTile* tiles,
                                  int32_t num_tiles, int32_t H, int32_t D, float* out,
                                  int64_t out_stride, float* lse, Stream stream) {
  if (D > kMostHeadDim) return 1;
  const auto kernel = D <= 32   ? attention_forward_f32_kernel<1>
                      : D <= 64 ? attention_forward_f32_kernel<2>
                                : attention_forward_f32_kernel<4>;
  const size_t shared = sizeof(float) * (size_t)((kTileRows + 2 * kWarp) * (D + 1));
  return launch(kernel, dim3((unsigned)num_tiles, (unsigned)H), dim3(kThreads), shared, stream, qkv,
                qkv_stride, tiles, H, D, out, out_stride, lse);
}

Status attention_forward_bf16_cuda(const float* qkv, int64_t qkv_stride, const AttentionTile* tiles,
                                   int32_t num_tiles, int32_t H, int32_t D, uint16_t* out,
                                   int64_t out_stride, float* lse, Stream stream) {
  if (D > kMostHeadDim) return 1;
  const auto kernel = D <= 32   ? attention_forward_bf16_kernel<32>
                      : D <= 64 ? attention_forward_bf16_kernel<64>
                                : attention_forward_bf16_kernel<128>;
  const int32_t rounded = D <= 32 ? 32 : D <= 64 ? 64 : 128;
  const size_t shared = sizeof(uint16_t) * (size_t)(kWarps * 16 * (rounded + 8));
  return launch(kernel, dim3((unsigned)((num_tiles * H + kWarps - 1) / kWarps)), dim3(kThreads),
                shared, stream, qkv, qkv_stride, tiles, num_tiles, H, D, out, out_stride, lse);
}

}  // namespace xsr::cuda
