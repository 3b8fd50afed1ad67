#pragma once
#include "kernels/attention/attention.h"
#include "kernels/cuda/stream.h"

namespace xsr::cuda {

/// Up to 16 query rows of one sentence, [row, min(row + 16, end)), among its rows [begin, end).
struct AttentionTile {
  int32_t begin, end, row;
};
constexpr int32_t kTileRows = 16;
constexpr int32_t kMostHeadDim = 128;

/// Lists the tiles of B sentences, in order; tiles [attention_tile_count(N, B)]. Returns how many.
static constexpr int32_t attention_tile_count(int32_t N, int32_t B) { return N / kTileRows + B; }
static inline int32_t attention_tiles(const int32_t* cu_seqlens, int32_t B, AttentionTile* tiles) {
  int32_t count = 0;
  for (int32_t b = 0; b < B; ++b) {
    for (int32_t row = cu_seqlens[b]; row < cu_seqlens[b + 1]; row += kTileRows)
      tiles[count++] = {cu_seqlens[b], cu_seqlens[b + 1], row};
  }
  return count;
}

/// attention_forward_f32 on the device, all heads of the tiles' rows, on the CUDA cores:
///
/// qkv    [N, 3, H, D] f32, row stride in elements
/// tiles  [num_tiles] on the device; tiles with begin = end = row do nothing
/// out    [N, H·D] f32, row stride in elements
/// lse    [N, H], or null
///
/// D ≤ 128, else status 1. One warp a query row: keys and values pass through shared memory 32 at a
/// time, scores stay in registers, the softmax is kept up as they pass. A row's bits depend on its
/// sentence alone. Error as attention_forward_f32.
Status attention_forward_f32_cuda(const float* qkv, int64_t qkv_stride, const AttentionTile* tiles,
                                  int32_t num_tiles, int32_t H, int32_t D, float* out,
                                  int64_t out_stride, float* lse, Stream stream);

/// The same on the tensor cores, of bf16: the probabilities are rounded before they meet V (their
/// sum is not), and so is the result; sums are f32. One warp a tile and head, 32 keys at a time;
/// scores never leave registers.
///
/// qkv   [N, 3, H, D] bf16, row stride in elements
/// bias  [3, H, D] f32, of Q, K and V; null = it is in qkv. Q plus its bias is rounded again; V's
///       is added behind the probabilities; on K's no probability depends, so it is not read
/// out   [N, H·D] bf16, row stride in elements
/// lse   of scores without K's bias
///
/// qkv and bias start at multiples of 16 bytes.
Status attention_forward_bf16_cuda(const uint16_t* qkv, int64_t qkv_stride, const float* bias,
                                   const AttentionTile* tiles, int32_t num_tiles, int32_t H,
                                   int32_t D, uint16_t* out, int64_t out_stride, float* lse,
                                   Stream stream);

}  // namespace xsr::cuda
