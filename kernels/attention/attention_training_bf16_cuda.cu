#include "kernels/attention/attention_tile_cuda.h"
#include "kernels/attention/attention_training_cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Dropout;

namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = kWarps * kWarp;
constexpr int32_t kBackwardTiles = 4;  // of shared memory a warp
static_assert(kChunkRows == kWarps * kTileRows);

/// This warp's tile: 16 rows of a sentence, or of those that belong to none. Tiles are numbered so
/// that sentence b's begin at cu_seqlens[b] / 16 + b: those before it never reach as far, whatever
/// their lengths, so no list of tiles is made. Some numbers have no rows.
struct WarpTile {
  AttentionTile rows;
  bool padding;
};
__device__ __forceinline__ WarpTile find_tile(const int32_t* cu_seqlens, int32_t B, int32_t N,
                                              int32_t number) {
  int32_t low = 0, high = B;  // the last b that begins at `number` or before; B is the padding
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (cu_seqlens[middle] / kTileRows + middle <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int32_t begin = cu_seqlens[low], end = low == B ? N : cu_seqlens[low + 1];
  return {{begin, end, begin + (number - begin / kTileRows - low) * kTileRows}, low == B};
}

/// Which of 16×16 probabilities stay, those of queries from `query` on and of the sentence's keys
/// from `key` on, a multiple of 16: this lane's bits are of query lane % 16, keys lane / 16 · 8 and
/// the next seven.
__device__ __forceinline__ uint32_t keep_bits(const Dropout& dropout, uint32_t stream,
                                              int32_t query, int32_t key) {
  uint32_t bits = 0;
  XSR_UNROLL
  for (int32_t quad = 0; quad < 2; ++quad) {
    const uint32_t counter[4] = {(uint32_t)(key + lane_id() / 16 * 8) / 4 + quad,
                                 (uint32_t)(query + lane_id() % 16), stream, dropout.step};
    uint32_t words[4];
    kernels::philox4x32(counter, dropout.key, words);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e)
      bits |= (uint32_t)(words[e] >= dropout.threshold) << (4 * quad + e);
  }
  return bits;
}

/// The bits of this lane's elements of two fragments, element i of fragment n at 4 n + i, whose
/// rows are queries and whose columns are keys.
__device__ __forceinline__ uint32_t query_bits(uint32_t bits) {
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  uint32_t mine = 0;
  XSR_UNROLL
  for (int32_t n = 0; n < 2; ++n) {
    XSR_UNROLL
    for (int32_t r = 0; r < 2; ++r)
      mine |= (__shfl_sync(kAllLanes, bits, n * 16 + r * 8 + g) >> 2 * t & 3u) << (4 * n + 2 * r);
  }
  return mine;
}
/// The same where rows are keys and columns are queries.
__device__ __forceinline__ uint32_t key_bits(uint32_t bits) {
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  uint32_t mine = 0;
  XSR_UNROLL
  for (int32_t n = 0; n < 2; ++n) {
    XSR_UNROLL
    for (int32_t i = 0; i < 4; ++i)
      mine |= (__shfl_sync(kAllLanes, bits, i / 2 * 16 + n * 8 + 2 * t + i % 2) >> g & 1u)
              << (4 * n + i);
  }
  return mine;
}

constexpr uint32_t kKeepAll = 0xffu;

template <int32_t kFragments>
__device__ __forceinline__ void clear_sums(float (&c)[kFragments][4]) {
  XSR_UNROLL
  for (int32_t n = 0; n < kFragments; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
}

/// Zeros into D columns of the tile's rows.
__device__ __forceinline__ void clear_rows(const AttentionTile& tile, int32_t D, uint16_t* to,
                                           int64_t stride) {
  const int32_t last = tile.row + kTileRows < tile.end ? tile.row + kTileRows : tile.end;
  for (int32_t i = tile.row; i < last; ++i) {
    for (int32_t d = lane_id(); d < D; d += kWarp) to[i * stride + d] = 0;
  }
}

/// This warp's 16 rows of its block's chunk; none where the chunk ends before.
__device__ __forceinline__ AttentionTile warp_tile(const AttentionTile& chunk) {
  return {chunk.begin, chunk.end, chunk.row + (int32_t)threadIdx.x / kWarp * kTileRows};
}

/// to [16, 16] ← what round_fragments() gave.
__device__ __forceinline__ void put_fragments(const uint32_t (&a)[4], uint16_t* to,
                                              int32_t stride) {
  uint16_t* const mine = to + lane_id() / 4 * stride + 2 * (lane_id() % 4);
  XSR_UNROLL
  for (int32_t i = 0; i < 4; ++i) vector_at<uint32_t>(mine + i % 2 * 8 * stride + i / 2 * 8) = a[i];
}
/// The transpose of 16×16 elements, rows `stride` apart, as the `a` of an mma.
__device__ __forceinline__ void load_transposed(const uint16_t* from, int32_t stride,
                                                uint32_t (&a)[4]) {
  uint32_t r[4];
  load_matrix_x4_transposed(r, from + lane_id() % 16 * stride + lane_id() / 16 * 8);
  a[0] = r[0], a[1] = r[2], a[2] = r[1], a[3] = r[3];
}

/// Σ_d tile[row][d] · x[d] of rows g and g + 8; x starts at a multiple of 16 bytes.
template <int32_t kD>
__device__ __forceinline__ void dot_rows(const uint16_t* tile, const float* x, int32_t D,
                                         float (&dots)[2]) {
  const uint16_t* row = tile + lane_id() % 16 * TileShape<kD>::kStride;
  float sum = 0;
  for (int32_t d = lane_id() / 16 * kEight; d < D; d += 2 * kEight) {
    float a[kEight], b[kEight];
    load_eight(row + d, true, kEight, a);
    load_eight(x + d, true, kEight, b);
    XSR_UNROLL
    for (int32_t e = 0; e < kEight; ++e) sum += a[e] * b[e];
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 16);
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) dots[r] = __shfl_sync(kAllLanes, sum, lane_id() / 4 + r * 8);
}

template <int32_t kD>
__global__ void __launch_bounds__(kThreads, TileShape<kD>::kBlocks)
    attention_training_forward_bf16_kernel(const uint16_t* qkv, const float* bias,
                                           const int32_t* cu_seqlens, int32_t B, int32_t N,
                                           int32_t H, int32_t D, const Dropout* dropout,
                                           uint32_t place, uint16_t* out, float* lse) {
  const WarpTile tile = find_tile(cu_seqlens, B, N, global_warp_id());
  if (tile.rows.row >= tile.rows.end) return;  // the whole warp, and only warps meet here
  const int32_t h = (int32_t)blockIdx.y, C = H * D;
  if (tile.padding) {
    clear_rows(tile.rows, D, out + h * D, C);
    return;
  }
  const bool drops = dropout->threshold != 0;
  const uint32_t stream = dropout->stream + place + (uint32_t)h;
  attend<kD, true>(
      head_rows(qkv, 3 * (int64_t)C, bias, H, D, h), tile.rows, drops ? dropout->scale : 1.0f,
      [&](float(&p)[2][4], int32_t key) {
        if (!drops) return;
        const uint32_t keep = query_bits(keep_bits(*dropout, stream, tile.rows.row, key));
        XSR_UNROLL
        for (int32_t e = 0; e < 8; ++e) {
          if ((keep >> e & 1u) == 0) p[e / 4][e % 4] = 0;
        }
      },
      out + h * D, C, lse + h, H);
}

/// e^(dot / sqrt(D) − lse) of scale = log2(e) / sqrt(D) and lse · log2(e)
__device__ __forceinline__ float exp_of_score(float dot, float scale, float lse2) {
  return exp2_approximate(__fmul_rn(dot, scale) - lse2);
}

/// What 16 queries have to do with 16 keys at a time: rows of a fragment are queries, columns keys.
///
/// Σ_j P ∘ dP is taken over the terms that it is taken from later, and not as dO · O: where one key
/// has all of a row, they cancel to the bit; __fmul_rn, here and in exp_of_score,
/// since a product that is not rounded before its difference would not.
template <int32_t kD>
struct QueryTile {
  const uint16_t *q, *gradient;
  float scale, factor;  // scale: log2(e) / sqrt(D), which makes exponents of 2 of scores
  // Of rows g and g + 8. lse2 is log2(e) times what the forward pass wrote. shift is dO · V's bias,
  // which all dP of a query have, and which cancels in dP - delta if none is dropped.
  float lse2[2] = {0, 0}, shift[2] = {0, 0};
  float row_factor[2] = {0, 0}, row_delta[2] = {0, 0};  // 1 / Σ_j E and Σ_j P ∘ dP, after divide()

  __device__ __forceinline__ void load_lse(const float* of_head, int32_t H, int32_t row,
                                           int32_t end) {
    XSR_UNROLL
    for (int32_t r = 0; r < 2; ++r) {
      const int64_t i = row + lane_id() / 4 + r * 8;
      if (i < end) lse2[r] = __fmul_rn(of_head[i * H], kLog2E);
    }
  }
  /// E and dP of tiles of keys and values, of which the sentence has `count` rows from here on.
  __device__ __forceinline__ void take(const uint16_t* k, const uint16_t* v, int32_t count,
                                       uint32_t keep, float (&p)[2][4], float (&dp)[2][4]) {
    const auto there = [&](int32_t e) { return e / 4 * 8 + 2 * (lane_id() % 4) + e % 2 < count; };
    clear_sums(p);
    add_dots<kD>(q, k, p);
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      float& score = p[e / 4][e % 4];
      score = there(e) ? exp_of_score(score, scale, lse2[e % 4 / 2]) : 0.0f;
    }
    clear_sums(dp);
    add_dots<kD>(gradient, v, dp);
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      float& product = dp[e / 4][e % 4];
      product =
          there(e) && (keep >> e & 1u) != 0 ? __fmul_rn(product + shift[e % 4 / 2], factor) : 0.0f;
    }
  }
  /// Adds this lane's share to the sums.
  __device__ __forceinline__ void count(const float (&p)[2][4], const float (&dp)[2][4]) {
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      row_factor[e % 4 / 2] += p[e / 4][e % 4];
      row_delta[e % 4 / 2] += p[e / 4][e % 4] * dp[e / 4][e % 4];
    }
  }
  __device__ __forceinline__ void divide() {
    XSR_UNROLL
    for (int32_t r = 0; r < 2; ++r) {
      row_factor[r] = 1 / quad_sum(row_factor[r]);
      row_delta[r] = quad_sum(row_delta[r]) * row_factor[r];
    }
  }
  /// P of E, and dS of dP.
  __device__ __forceinline__ void finish(float (&p)[2][4], float (&dp)[2][4]) const {
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      const int32_t n = e / 4, i = e % 4;
      p[n][i] = p[n][i] * row_factor[i / 2];
      dp[n][i] = p[n][i] * (dp[n][i] - row_delta[i / 2]);
    }
  }
};

/// dQ of a warp's rows of a sentence, and for the next kernel delta and shift, and the factors that
/// make P of E. The keys pass by twice, for the sums and for dQ.
template <int32_t kD>
__device__ __forceinline__ void backward_queries(const HeadRows& head, const AttentionTile& tile,
                                                 int32_t H, int32_t h, const float* lse,
                                                 const Dropout& dropout, uint32_t stream,
                                                 const uint16_t* dout, uint16_t* dqkv,
                                                 float2* delta, float* factors) {
  const int32_t D = head.D, C = head.C;
  uint16_t* const q = warp_tiles<kD>(kBackwardTiles);
  uint16_t* const gradient = q + TileShape<kD>::kSize;
  uint16_t* const k = gradient + TileShape<kD>::kSize;
  uint16_t* const v = k + TileShape<kD>::kSize;
  copy_tile_async<kD>(dout + h * D, C, tile.row, tile.end, D, gradient);
  copy_commit();
  head.fill<kD, true>(0, tile.row, tile.end, q);
  copy_wait<0>();
  const bool drops = dropout.threshold != 0;
  QueryTile<kD> queries = {q, gradient, kLog2E / sqrtf((float)D), drops ? dropout.scale : 1.0f};
  queries.load_lse(lse + h, H, tile.row, tile.end);
  if (drops) {
    __syncwarp();
    dot_rows<kD>(gradient, head.value_bias(), D, queries.shift);
  }
  float p[2][4], dp[2][4], dq[kD / 8][4];
  const auto take = [&](int32_t key) {
    __syncwarp();
    copy_tile_async<kD>(head.x + C, head.stride, key, tile.end, D, k);
    copy_tile_async<kD>(head.x + 2 * C, head.stride, key, tile.end, D, v);
    copy_commit();
    const uint32_t keep =
        drops ? query_bits(keep_bits(dropout, stream, tile.row, key - tile.begin)) : kKeepAll;
    copy_wait<0>();
    __syncwarp();
    queries.take(k, v, tile.end - key, keep, p, dp);
  };
  for (int32_t key = tile.begin; key < tile.end; key += kTileRows) {
    take(key);
    queries.count(p, dp);
  }
  queries.divide();
  clear_sums(dq);
  for (int32_t key = tile.begin; key < tile.end; key += kTileRows) {
    take(key);
    queries.finish(p, dp);
    add_rows<kD>(dp, k, dq);
  }
  put_rows<kD>(dq, queries.scale * kLn2, tile.row, tile.end, D, dqkv + h * D, head.stride);
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const int64_t row = tile.row + lane_id() / 4 + r * 8;
    if (row >= tile.end || lane_id() % 4 != 0) continue;
    delta[row * H + h] = make_float2(queries.row_delta[r], queries.shift[r]);
    factors[row * H + h] = queries.row_factor[r];
  }
}

/// The shared memory of a block that has Q, K, V and dO of up to kChunkRows rows: a place each, of
/// which those of V and K are P's and dS's in the end, a row a query.
template <int32_t kD>
struct WholeShape {
  static constexpr int32_t kWeightStride = kChunkRows + 8;
  static constexpr int32_t kPlace =
      kChunkRows *
      (TileShape<kD>::kStride > kWeightStride ? TileShape<kD>::kStride : kWeightStride);
  static constexpr size_t kBytes = sizeof(uint16_t) * 4 * kPlace;
  static_assert(kBytes >= tile_bytes<kD>(kWarps, kBackwardTiles));
};

/// dQ, dK and dV of a sentence of up to kChunkRows tokens, which a block reads once. A warp owns 16
/// queries, with their probabilities in registers, and then 16 keys; where the sentence has fewer
/// tiles than the block has warps, the others own the next heads, whose own blocks have nothing to
/// do. What is added in which order is as in backward_queries() and the kernel behind it: the
/// results have the same bits.
template <int32_t kD>
__device__ __forceinline__ void backward_whole(const uint16_t* qkv, const float* bias,
                                               int32_t begin, int32_t end, int32_t H, int32_t D,
                                               int32_t first_head, const float* lse,
                                               const Dropout& dropout, uint32_t first_stream,
                                               const uint16_t* dout, uint16_t* dqkv) {
  constexpr int32_t kStride = TileShape<kD>::kStride, kPlace = WholeShape<kD>::kPlace,
                    kWeightStride = WholeShape<kD>::kWeightStride;
  const int32_t tiles = (end - begin + kTileRows - 1) / kTileRows;
  const int32_t warps = tiles <= 2 ? tiles : kWarps;  // of a head
  if (first_head % (kWarps / warps) != 0) return;     // the whole block
  const int32_t warp = (int32_t)threadIdx.x / kWarp, mine = warp % warps;
  const int32_t h = first_head + warp / warps, C = H * D, row = begin + mine * kTileRows;
  const bool works = h < H && mine < tiles;
  const int64_t stride = 3 * (int64_t)C;
  const HeadRows head = head_rows(qkv, stride, bias, H, D, h);
  // Of the warps of this head; row 0 is the sentence's first.
  const int32_t rows = warp / warps * warps * kTileRows;
  uint16_t* const q = shared_memory<uint16_t>() + rows * kStride;
  uint16_t* const gradient = q + kPlace;
  uint16_t* const k = gradient + kPlace;
  uint16_t* const v = k + kPlace;
  uint16_t* const scores = shared_memory<uint16_t>() + 2 * kPlace + rows * kWeightStride;
  uint16_t* const weights = scores + kPlace;
  const bool drops = dropout.threshold != 0;
  const uint32_t stream = first_stream + (uint32_t)h;
  const int32_t own = mine * kTileRows;
  QueryTile<kD> queries = {q + own * kStride, gradient + own * kStride, kLog2E / sqrtf((float)D),
                           drops ? dropout.scale : 1.0f};
  uint32_t kept[kWarps][4], ds[kWarps][4];  // P without what is dropped
  if (works) {
    copy_tile_async<kD>(head.x + C, stride, row, end, D, k + own * kStride);
    copy_tile_async<kD>(head.x + 2 * C, stride, row, end, D, v + own * kStride);
    copy_tile_async<kD>(dout + h * D, C, row, end, D, gradient + own * kStride);
    copy_commit();
    queries.load_lse(lse + h, H, row, end);
    head.fill<kD, true>(0, row, end, q + own * kStride);
    copy_wait<0>();
  }
  __syncthreads();
  if (works) {
    if (drops) dot_rows<kD>(queries.gradient, head.value_bias(), D, queries.shift);
    float p[kWarps][2][4], dp[kWarps][2][4];
    uint32_t bits = ~0u;
    XSR_UNROLL
    for (int32_t j = 0; j < kWarps; ++j) {
      if (j >= tiles) break;
      const int32_t key = j * kTileRows;
      if (drops) {
        const uint32_t keep = query_bits(keep_bits(dropout, stream, row, key));
        bits = (bits & ~(kKeepAll << 8 * j)) | keep << 8 * j;
      }
      queries.take(k + key * kStride, v + key * kStride, end - begin - key, bits >> 8 * j, p[j],
                   dp[j]);
      queries.count(p[j], dp[j]);
    }
    queries.divide();
    XSR_UNROLL
    for (int32_t j = 0; j < kWarps; ++j) {
      if (j >= tiles) break;
      queries.finish(p[j], dp[j]);
      XSR_UNROLL
      for (int32_t e = 0; e < 8; ++e) {
        if ((bits >> (8 * j + e) & 1u) == 0) p[j][e / 4][e % 4] = 0;
      }
      round_fragments(p[j], kept[j]);
      round_fragments(dp[j], ds[j]);
    }
    float dq[kD / 8][4];
    clear_sums(dq);
    XSR_UNROLL
    for (int32_t j = 0; j < kWarps; ++j) {
      if (j >= tiles) break;
      add_rows<kD>(ds[j], k + j * kTileRows * kStride, dq);
    }
    put_rows<kD>(dq, queries.scale * kLn2, row, end, D, dqkv + h * D, stride);
  }
  __syncthreads();  // K and V have been read
  if (works) {
    XSR_UNROLL
    for (int32_t j = 0; j < kWarps; ++j) {
      if (j >= tiles) break;
      put_fragments(kept[j], weights + own * kWeightStride + j * kTileRows, kWeightStride);
      put_fragments(ds[j], scores + own * kWeightStride + j * kTileRows, kWeightStride);
    }
  }
  __syncthreads();
  if (!works) return;
  // The sums over queries for 16 keys, `weights` transposed.
  const auto add_queries = [&](const uint16_t* of_keys, const uint16_t* of_queries,
                               float(&sums)[kD / 8][4]) {
    clear_sums(sums);
    for (int32_t i = 0; i < tiles; ++i) {
      uint32_t a[4];
      load_transposed(of_keys + i * kTileRows * kWeightStride + own, kWeightStride, a);
      add_rows<kD>(a, of_queries + i * kTileRows * kStride, sums);
    }
  };
  float sums[kD / 8][4];
  add_queries(scores, q, sums);
  put_rows<kD>(sums, queries.scale * kLn2, row, end, D, dqkv + h * D + C, stride);
  add_queries(weights, gradient, sums);
  put_rows<kD>(sums, queries.factor, row, end, D, dqkv + h * D + 2 * C, stride);
}

/// The gradients of a sentence of up to `whole` tokens in a block; dQ of the others by their
/// chunks, whose blocks are the first, since they take longest.
template <int32_t kD>
__global__ void __launch_bounds__(kThreads, TileShape<kD>::kBlocks)
    attention_backward_bf16_kernel(const uint16_t* qkv, const float* bias,
                                   const int32_t* cu_seqlens, int32_t B, int32_t N, int32_t H,
                                   int32_t D, const AttentionTile* chunks, int32_t num_chunks,
                                   int32_t whole, const float* lse, const Dropout* dropout,
                                   uint32_t place, const uint16_t* dout, uint16_t* dqkv,
                                   float2* delta, float* factors) {
  // Heads are next to each other, as their columns are in memory.
  const int32_t h = (int32_t)blockIdx.x % H, item = (int32_t)blockIdx.x / H, C = H * D;
  const int64_t stride = 3 * (int64_t)C;
  const uint32_t stream = dropout->stream + place;
  if (item < num_chunks) {
    const AttentionTile tile = warp_tile(chunks[item]);
    if (tile.row >= tile.end) return;  // the whole warp, and only warps meet here
    backward_queries<kD>(head_rows(qkv, stride, bias, H, D, h), tile, H, h, lse, *dropout,
                         stream + (uint32_t)h, dout, dqkv, delta, factors);
    return;
  }
  const int32_t b = item - num_chunks;  // B has no sentence
  const int32_t first_padding = cu_seqlens[B], begin = cu_seqlens[b],
                end = b < B ? cu_seqlens[b + 1] : begin;
  // Zeros into the rows that belong to no sentence, of which every block has its share.
  for (int32_t row = first_padding + b; row < N; row += B + 1) {
    const int32_t pieces = D / kEight;
    for (int32_t i = (int32_t)threadIdx.x; i < 3 * pieces; i += kThreads) {
      uint16_t* const to = dqkv + row * stride + i / pieces * C + h * D + i % pieces * kEight;
      vector_at<uint4>(to) = make_uint4(0, 0, 0, 0);
    }
  }
  if (begin < end && end - begin <= whole)
    backward_whole<kD>(qkv, bias, begin, end, H, D, h, lse, *dropout, stream, dout, dqkv);
}

/// dK and dV of 64 keys, a chunk of a sentence: rows of a fragment are keys, columns queries.
template <int32_t kD>
__global__ void __launch_bounds__(kThreads, TileShape<kD>::kBlocks)
    attention_backward_keys_bf16_kernel(const uint16_t* qkv, const float* bias,
                                        const AttentionTile* chunks, int32_t H, int32_t D,
                                        const float* lse, const Dropout* dropout, uint32_t place,
                                        const uint16_t* dout, const float2* delta,
                                        const float* factors, uint16_t* dqkv) {
  const AttentionTile tile = warp_tile(chunks[blockIdx.x]);
  if (tile.row >= tile.end) return;  // the whole warp, and only warps meet here
  const int32_t h = (int32_t)blockIdx.y, C = H * D;
  const int64_t stride = 3 * (int64_t)C;
  const int32_t t = lane_id() % 4;
  const HeadRows head = head_rows(qkv, stride, bias, H, D, h);
  uint16_t* const k = warp_tiles<kD>(kBackwardTiles);
  uint16_t* const v = k + TileShape<kD>::kSize;
  uint16_t* const q = v + TileShape<kD>::kSize;
  uint16_t* const gradient = q + TileShape<kD>::kSize;
  copy_tile_async<kD>(head.x + C, stride, tile.row, tile.end, D, k);
  copy_tile_async<kD>(head.x + 2 * C, stride, tile.row, tile.end, D, v);
  copy_commit();
  const float scale = kLog2E / sqrtf((float)D);
  const bool drops = dropout->threshold != 0;
  const float factor = drops ? dropout->scale : 1.0f;
  const uint32_t stream = dropout->stream + place + (uint32_t)h;

  float dk[kD / 8][4], dv[kD / 8][4];
  clear_sums(dk);
  clear_sums(dv);
  for (int32_t query = tile.begin; query < tile.end; query += kTileRows) {
    __syncwarp();
    copy_tile_async<kD>(dout + h * D, C, query, tile.end, D, gradient);
    copy_commit();
    head.fill<kD, true>(0, query, tile.end, q);
    copy_wait<0>();
    __syncwarp();
    float p[2][4], ds[2][4];
    clear_sums(p);
    clear_sums(ds);
    add_dots<kD>(k, q, p);
    add_dots<kD>(v, gradient, ds);
    const uint32_t keep =
        drops ? key_bits(keep_bits(*dropout, stream, query, tile.row - tile.begin)) : kKeepAll;
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      const int32_t n = e / 4, i = e % 4;
      const int64_t row = query + n * 8 + 2 * t + i % 2;  // of the query
      const bool there = row < tile.end, kept = (keep >> e & 1u) != 0;
      const float probability =
          there ? exp_of_score(p[n][i], scale, __fmul_rn(lse[row * H + h], kLog2E)) *
                      factors[row * H + h]
                : 0.0f;
      const float2 of_row = there ? delta[row * H + h] : make_float2(0, 0);
      const float dp = kept ? __fmul_rn(ds[n][i] + of_row.y, factor) : 0.0f;
      ds[n][i] = probability * (dp - of_row.x);
      p[n][i] = kept ? probability : 0.0f;
    }
    add_rows<kD>(ds, q, dk);
    add_rows<kD>(p, gradient, dv);
  }
  put_rows<kD>(dk, scale * kLn2, tile.row, tile.end, D, dqkv + h * D + C, stride);
  put_rows<kD>(dv, factor, tile.row, tile.end, D, dqkv + h * D + 2 * C, stride);
}

/// Blocks of four tiles, those of the rows that belong to no sentence too, by heads.
dim3 grid_of(int32_t B, int32_t N, int32_t H) {
  return dim3((unsigned)blocks_of(attention_tile_count(N, B + 1), kWarps), (unsigned)H);
}

}  // namespace

Status attention_training_forward_bf16_cuda(const uint16_t* qkv, const float* bias,
                                            const int32_t* cu_seqlens, int32_t B, int32_t N,
                                            int32_t H, int32_t D, const Dropout* dropout,
                                            uint32_t place, uint16_t* out, float* lse,
                                            Stream stream) {
  if (!attention_bf16_takes(D)) return 1;
  return with_head_dim(D, [&](auto rounded) {
    constexpr int32_t kD = decltype(rounded)::value;
    return launch(attention_training_forward_bf16_kernel<kD>, grid_of(B, N, H), dim3(kThreads),
                  tile_bytes<kD>(kWarps, kForwardTiles), stream, qkv, bias, cu_seqlens, B, N, H, D,
                  dropout, place, out, lse);
  });
}

Status attention_backward_bf16_cuda(const uint16_t* qkv, const float* bias,
                                    const int32_t* cu_seqlens, int32_t B, int32_t N, int32_t H,
                                    int32_t D, const AttentionTile* chunks, int32_t num_chunks,
                                    const float* lse, const Dropout* dropout, uint32_t place,
                                    const uint16_t* dout, uint16_t* dqkv, float* delta,
                                    Stream stream, int32_t whole) {
  if (!attention_bf16_takes(D) || whole > kChunkRows) return 1;
  return with_head_dim(D, [&](auto rounded) {
    constexpr int32_t kD = decltype(rounded)::value;
    float2* const pairs = reinterpret_cast<float2*>(delta);
    float* const factors = delta + 2 * (int64_t)N * H;
    const Status status = launch(
        attention_backward_bf16_kernel<kD>, dim3((unsigned)(num_chunks + B + 1) * (unsigned)H),
        dim3(kThreads), WholeShape<kD>::kBytes, stream, qkv, bias, cu_seqlens, B, N, H, D, chunks,
        num_chunks, whole, lse, dropout, place, dout, dqkv, pairs, factors);
    if (status != 0) return status;
    return launch(attention_backward_keys_bf16_kernel<kD>, dim3(num_chunks, H), dim3(kThreads),
                  tile_bytes<kD>(kWarps, kBackwardTiles), stream, qkv, bias, chunks, H, D, lse,
                  dropout, place, dout, pairs, factors, dqkv);
  });
}

}  // namespace xsr::cuda
