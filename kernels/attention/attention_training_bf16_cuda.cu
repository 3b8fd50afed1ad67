#include "kernels/attention/attention_tile_cuda.h"
#include "kernels/attention/attention_training_cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {

using kernels::Dropout;

namespace {

constexpr int32_t kWarps = 4;
constexpr int32_t kThreads = kWarps * kWarp;
constexpr int32_t kQueryTiles = 5, kKeyTiles = 4;  // of shared memory a warp

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

/// Σ_d tile[row][d] · x[d] of rows g and g + 8.
template <int32_t kD>
__device__ __forceinline__ void dot_rows(const uint16_t* tile, const float* x, int32_t D,
                                         float (&dots)[2]) {
  const uint16_t* row = tile + lane_id() % 16 * TileShape<kD>::kStride;
  float sum = 0;
  for (int32_t d = lane_id() / 16; d < D; d += 2) sum += bf16_to_f32(row[d]) * x[d];
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

/// dQ and, for the next kernel, delta and shift, and the factors that make P of E: rows of a
/// fragment are queries, columns keys.
template <int32_t kD>
__global__ void __launch_bounds__(kThreads, TileShape<kD>::kBlocks)
    attention_backward_queries_bf16_kernel(const uint16_t* qkv, const float* bias,
                                           const int32_t* cu_seqlens, int32_t B, int32_t N,
                                           int32_t H, int32_t D, const float* lse,
                                           const Dropout* dropout, uint32_t place,
                                           const uint16_t* dout, uint16_t* dqkv, float2* delta,
                                           float* factors) {
  const WarpTile found = find_tile(cu_seqlens, B, N, global_warp_id());
  const AttentionTile tile = found.rows;
  if (tile.row >= tile.end) return;  // the whole warp, and only warps meet here
  const int32_t h = (int32_t)blockIdx.y, C = H * D;
  const int64_t stride = 3 * (int64_t)C;
  if (found.padding) {
    for (int32_t part = 0; part < 3; ++part) clear_rows(tile, D, dqkv + part * C + h * D, stride);
    return;
  }
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  const HeadRows head = head_rows(qkv, stride, bias, H, D, h);
  uint16_t* const q = warp_tiles<kD>(kQueryTiles);
  uint16_t* const gradient = q + TileShape<kD>::kSize;
  uint16_t* const k = gradient + TileShape<kD>::kSize;
  uint16_t* const next_k = k + TileShape<kD>::kSize;
  uint16_t* const v = next_k + TileShape<kD>::kSize;
  head.fill<kD, true>(0, tile.row, tile.end, q);
  fill_tile<kD, true>(dout + h * D, C, nullptr, tile.row, tile.end, D, gradient);
  const float scale = 1.0f / sqrtf((float)D);
  const bool drops = dropout->threshold != 0;
  const float factor = drops ? dropout->scale : 1.0f;
  const uint32_t stream = dropout->stream + place + (uint32_t)h;
  float row_lse[2], row_factor[2] = {0, 0}, row_delta[2] = {0, 0};
  // dO · V's bias, which all dP of a query have, and which cancels in dP - delta if none is
  // dropped.
  float shift[2] = {0, 0};
  if (drops) {
    __syncwarp();
    dot_rows<kD>(gradient, head.value_bias(), D, shift);
  }
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const int64_t row = tile.row + g + r * 8;
    row_lse[r] = row < tile.end ? lse[row * H + h] : 0.0f;
  }

  // Σ_j E and Σ_j P ∘ dP, then dQ. The latter is taken over the terms that it is taken from later,
  // and not as dO · O: where one key has all of a row, they cancel to the bit; __fmul_rn, here and
  // where lse is taken from a score, since a product that is not rounded before its difference
  // would not.
  float dq[kD / 8][4];
  // E and dP of 16 keys, which go to `keys`.
  const auto take = [&](int32_t key, uint16_t* keys, float(&p)[2][4], float(&dp)[2][4]) {
    __syncwarp();
    head.fill<kD, true>(1, key, tile.end, keys);
    head.fill<kD, true>(2, key, tile.end, v);
    __syncwarp();
    clear_sums(p);
    clear_sums(dp);
    add_dots<kD>(q, keys, p);
    add_dots<kD>(gradient, v, dp);
    const uint32_t keep =
        drops ? query_bits(keep_bits(*dropout, stream, tile.row, key - tile.begin)) : kKeepAll;
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      const int32_t n = e / 4, i = e % 4;
      const bool there = key + n * 8 + 2 * t + i % 2 < tile.end;
      p[n][i] = there ? expf(__fmul_rn(p[n][i], scale) - row_lse[i / 2]) : 0.0f;
      dp[n][i] = there && (keep >> e & 1u) != 0 ? __fmul_rn(dp[n][i] + shift[i / 2], factor) : 0.0f;
    }
  };
  const auto count = [&](const float(&p)[2][4], const float(&dp)[2][4]) {
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      row_factor[e % 4 / 2] += p[e / 4][e % 4];
      row_delta[e % 4 / 2] += p[e / 4][e % 4] * dp[e / 4][e % 4];
    }
  };
  const auto divide = [&] {
    XSR_UNROLL
    for (int32_t r = 0; r < 2; ++r) {
      row_factor[r] = 1 / quad_sum(row_factor[r]);
      row_delta[r] = quad_sum(row_delta[r]) * row_factor[r];
    }
    clear_sums(dq);
  };
  const auto add = [&](const float(&p)[2][4], float(&dp)[2][4], const uint16_t* keys) {
    XSR_UNROLL
    for (int32_t e = 0; e < 8; ++e) {
      const int32_t n = e / 4, i = e % 4;
      dp[n][i] = p[n][i] * row_factor[i / 2] * (dp[n][i] - row_delta[i / 2]);
    }
    add_rows<kD>(dp, keys, dq);
  };
  const int32_t second = tile.begin + kTileRows;
  if (tile.end - tile.begin <= 2 * kTileRows) {  // most sentences: E and dP stay in registers
    float p[2][4], dp[2][4], next_p[2][4] = {}, next_dp[2][4] = {};
    take(tile.begin, k, p, dp);
    count(p, dp);
    if (second < tile.end) {
      take(second, next_k, next_p, next_dp);
      count(next_p, next_dp);
    }
    divide();
    add(p, dp, k);
    if (second < tile.end) add(next_p, next_dp, next_k);
  } else {
    float p[2][4], dp[2][4];
    for (int32_t key = tile.begin; key < tile.end; key += kTileRows) {
      take(key, k, p, dp);
      count(p, dp);
    }
    divide();
    for (int32_t key = tile.begin; key < tile.end; key += kTileRows) {
      take(key, k, p, dp);
      add(p, dp, k);
    }
  }
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const int64_t row = tile.row + g + r * 8;
    if (row >= tile.end) continue;
    put_row<kD, true>(dq, r, scale, nullptr, 0, D, dqkv + row * stride + h * D);
    if (t == 0) {
      delta[row * H + h] = make_float2(row_delta[r], shift[r]);
      factors[row * H + h] = row_factor[r];
    }
  }
}

/// dK and dV: rows of a fragment are keys, columns queries.
template <int32_t kD>
__global__ void __launch_bounds__(kThreads, TileShape<kD>::kBlocks)
    attention_backward_keys_bf16_kernel(const uint16_t* qkv, const float* bias,
                                        const int32_t* cu_seqlens, int32_t B, int32_t N, int32_t H,
                                        int32_t D, const float* lse, const Dropout* dropout,
                                        uint32_t place, const uint16_t* dout, const float2* delta,
                                        const float* factors, uint16_t* dqkv) {
  const WarpTile found = find_tile(cu_seqlens, B, N, global_warp_id());
  const AttentionTile tile = found.rows;
  if (tile.row >= tile.end || found.padding) return;  // the whole warp, and only warps meet here
  const int32_t h = (int32_t)blockIdx.y, C = H * D;
  const int64_t stride = 3 * (int64_t)C;
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  const HeadRows head = head_rows(qkv, stride, bias, H, D, h);
  uint16_t* const k = warp_tiles<kD>(kKeyTiles);
  uint16_t* const v = k + TileShape<kD>::kSize;
  uint16_t* const q = v + TileShape<kD>::kSize;
  uint16_t* const gradient = q + TileShape<kD>::kSize;
  head.fill<kD, true>(1, tile.row, tile.end, k);
  head.fill<kD, true>(2, tile.row, tile.end, v);
  const float scale = 1.0f / sqrtf((float)D);
  const bool drops = dropout->threshold != 0;
  const float factor = drops ? dropout->scale : 1.0f;
  const uint32_t stream = dropout->stream + place + (uint32_t)h;

  float dk[kD / 8][4], dv[kD / 8][4];
  clear_sums(dk);
  clear_sums(dv);
  for (int32_t query = tile.begin; query < tile.end; query += kTileRows) {
    __syncwarp();
    head.fill<kD, true>(0, query, tile.end, q);
    fill_tile<kD, true>(dout + h * D, C, nullptr, query, tile.end, D, gradient);
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
          there ? expf(__fmul_rn(p[n][i], scale) - lse[row * H + h]) * factors[row * H + h] : 0.0f;
      const float2 of_row = there ? delta[row * H + h] : make_float2(0, 0);
      const float dp = kept ? __fmul_rn(ds[n][i] + of_row.y, factor) : 0.0f;
      ds[n][i] = probability * (dp - of_row.x);
      p[n][i] = kept ? probability : 0.0f;
    }
    add_rows<kD>(ds, q, dk);
    add_rows<kD>(p, gradient, dv);
  }
  XSR_UNROLL
  for (int32_t r = 0; r < 2; ++r) {
    const int64_t row = tile.row + g + r * 8;
    if (row >= tile.end) continue;
    uint16_t* const to = dqkv + row * stride + h * D;
    put_row<kD, true>(dk, r, scale, nullptr, 0, D, to + C);
    put_row<kD, true>(dv, r, factor, nullptr, 0, D, to + 2 * C);
  }
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
                                    int32_t D, const float* lse, const Dropout* dropout,
                                    uint32_t place, const uint16_t* dout, uint16_t* dqkv,
                                    float* delta, Stream stream) {
  if (!attention_bf16_takes(D)) return 1;
  return with_head_dim(D, [&](auto rounded) {
    constexpr int32_t kD = decltype(rounded)::value;
    float2* const pairs = reinterpret_cast<float2*>(delta);
    float* const factors = delta + 2 * (int64_t)N * H;
    const Status status =
        launch(attention_backward_queries_bf16_kernel<kD>, grid_of(B, N, H), dim3(kThreads),
               tile_bytes<kD>(kWarps, kQueryTiles), stream, qkv, bias, cu_seqlens, B, N, H, D, lse,
               dropout, place, dout, dqkv, pairs, factors);
    if (status != 0) return status;
    return launch(attention_backward_keys_bf16_kernel<kD>, grid_of(B, N, H), dim3(kThreads),
                  tile_bytes<kD>(kWarps, kKeyTiles), stream, qkv, bias, cu_seqlens, B, N, H, D, lse,
                  dropout, place, dout, pairs, factors, dqkv);
  });
}

}  // namespace xsr::cuda
