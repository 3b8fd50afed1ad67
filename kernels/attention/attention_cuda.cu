#include "kernels/attention/attention_cuda.h"

#include "kernels/attention/attention_tile_cuda.h"
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

// ---- bf16: a warp a tile and head.

template <int32_t kD, bool kWhole>
__global__ void __launch_bounds__(kThreads, TileShape<kD>::kBlocks)
    attention_forward_bf16_kernel(const uint16_t* qkv, int64_t qkv_stride, const float* bias,
                                  const AttentionTile* tiles, int32_t num_tiles, int32_t H,
                                  int32_t D, uint16_t* out, int64_t out_stride, float* lse) {
  const int32_t item = global_warp_id();
  if (item >= num_tiles * H) return;  // the whole warp, and only warps meet here
  const AttentionTile tile = tiles[item / H];
  if (tile.begin == tile.end) return;
  const int32_t h = item % H;
  attend<kD, kWhole>(
      head_rows(qkv, qkv_stride, bias, H, D, h), tile, 1, [](float(&)[2][4], int32_t) {},
      out + h * D, out_stride, lse == nullptr ? nullptr : lse + h, H);
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

Status attention_forward_bf16_cuda(const uint16_t* qkv, int64_t qkv_stride, const float* bias,
                                   const AttentionTile* tiles, int32_t num_tiles, int32_t H,
                                   int32_t D, uint16_t* out, int64_t out_stride, float* lse,
                                   Stream stream) {
  if (D > kMostHeadDim) return 1;
  const bool whole = D % kEight == 0 && qkv_stride % kEight == 0 && out_stride % kEight == 0;
  return with_head_dim(D, [&](auto rounded) {
    constexpr int32_t kD = decltype(rounded)::value;
    const auto kernel =
        whole ? attention_forward_bf16_kernel<kD, true> : attention_forward_bf16_kernel<kD, false>;
    return launch(kernel, dim3((unsigned)((num_tiles * H + kWarps - 1) / kWarps)), dim3(kThreads),
                  tile_bytes<kD>(kWarps, kForwardTiles), stream, qkv, qkv_stride, bias, tiles,
                  num_tiles, H, D, out, out_stride, lse);
  });
}

}  // namespace xsr::cuda
