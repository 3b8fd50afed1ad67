#pragma once
// What the kernels of training share: a warp on a row, sums over rows in a fixed order, bf16.
#include <stdint.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/eight.h"
#include "kernels/dropout/dropout.h"

namespace xsr::cuda {

static constexpr int32_t kRowWarps = 8;  // rows of a block

static constexpr int32_t blocks_of(int64_t items, int64_t block) {
  return (int32_t)((items + block - 1) / block);
}

/// The row of this warp; all its lanes have the same.
__device__ inline int32_t warp_row() {
  return (int32_t)(blockIdx.x * kRowWarps + threadIdx.x / kWarp);
}

/// Calls body(first) for the columns [first, first + 4) of this lane; 4 divides C.
template <typename Body>
__device__ inline void for_quads(int32_t C, Body&& body) {
  for (int32_t first = 4 * lane_id(); first < C; first += 4 * kWarp) body(first);
}

// The elements [i, i + 4) of x [n], i a multiple of 4: those behind the end are 0, and not written.
static constexpr int32_t kQuadThreads = 256;
static constexpr int32_t quad_blocks(int64_t n) { return blocks_of(n, 4 * kQuadThreads); }
/// That of this thread in a launch of quad_blocks(n) blocks of kQuadThreads; may be beyond n.
__device__ inline int64_t quad_of_thread() {
  return 4 * ((int64_t)blockIdx.x * kQuadThreads + threadIdx.x);
}
__device__ inline Quad load_quad(const float* x, int64_t i, int64_t n) {
  if (i + 4 <= n) return load_quad(x + i);
  Quad four = {};
  XSR_UNROLL
  for (int32_t e = 0; e < 3; ++e) four.value[e] = i + e < n ? x[i + e] : 0.0f;
  return four;
}
template <typename T>
__device__ inline void store_quad(T* x, int64_t i, int64_t n, const Quad& four) {
  if (i + 4 <= n) return store_quad(x + i, four);
  XSR_UNROLL
  for (int32_t e = 0; e < 3; ++e) {
    if (i + e < n) store(x + i + e, four.value[e]);
  }
}

/// Drops some of columns [first, first + 4) of a row, first a multiple of 4, and multiplies the
/// others by the scale. A dropped element counts as 0 even where it is NaN.
__device__ __forceinline__ void drop(const kernels::Dropout& dropout, uint32_t place, int32_t row,
                                     int32_t first, Quad& x) {
  const uint32_t counter[4] = {(uint32_t)first / 4, (uint32_t)row, dropout.stream + place,
                               dropout.step};
  uint32_t words[4];
  kernels::philox4x32(counter, dropout.key, words);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e)
    x.value[e] = words[e] >= dropout.threshold ? x.value[e] * dropout.scale : 0.0f;
}
/// Whether it drops anything; null does not.
__device__ __forceinline__ bool drops(const kernels::Dropout* dropout) {
  return dropout != nullptr && dropout->threshold != 0;
}

/// As block_sum, the largest; NaNs are passed over.
__device__ inline float block_max(float value, float* scratch) {
  const int32_t warp = (int32_t)threadIdx.x / kWarp, warps = (int32_t)blockDim.x / kWarp;
  value = warp_max(value);
  if (lane_id() == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_max(lane_id() < warps ? scratch[lane_id()] : scratch[0]);
  __syncthreads();
  return value;
}

// Sums over rows: a block of kColumns × kLanes threads adds rows lane, lane + kLanes, … of a chunk,
// then the lanes in order. What the chunks come to is added by more lanes, for there are few
// columns and a lane waits for each of its rows.
static constexpr int32_t kColumns = 32;
static constexpr int32_t kLanes = 8;
static constexpr int32_t kManyLanes = 32;

/// The sums of this thread's four values over the lanes, in lane 0. Once in a kernel.
template <int32_t kOfLanes>
__device__ inline Quad sums_of_lanes(const Quad& values) {
  alignas(16) __shared__ float parts[kOfLanes][kColumns][4];
  store_quad(parts[threadIdx.y][threadIdx.x], values);
  __syncthreads();
  Quad sums = {};
  if (threadIdx.y == 0) {
    XSR_UNROLL
    for (int32_t y = 0; y < kOfLanes; ++y) {
      const Quad more = load_quad(parts[y][threadIdx.x]);
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) sums.value[e] += more.value[e];
    }
  }
  return sums;
}

/// The sum of this thread's `value` over the lanes, in lane 0.
template <int32_t kOfLanes = kLanes>
__device__ inline float sum_of_lanes(float value) {
  __shared__ float parts[kOfLanes][kColumns];
  __syncthreads();
  parts[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  float sum = 0;
  if (threadIdx.y == 0) {
    XSR_UNROLL
    for (int32_t y = 0; y < kOfLanes; ++y) sum += parts[y][threadIdx.x];
  }
  return sum;
}

/// The columns that a block of kRowWarps warps has eight of in each lane.
static constexpr int32_t kWarpColumns = kEight * kWarp;

/// Adds the sums of all warps, in order: to[c] for the block's columns, of which `count` exist.
/// Lane l of `warp` has those of columns 8 · l to 8 · l + 7. Once in a kernel, by all threads.
__device__ inline void add_columns_of_warps(const float (&sums)[kEight], int32_t warp,
                                            int32_t count, float* to) {
  // The first four columns of all lanes, then the others: neighbours write, and later read, what
  // lies in different banks, for which the second half is half a round of banks further on.
  constexpr int32_t kHalf = 4 * kWarp + kWarp / 2;
  alignas(16) __shared__ float of_warps[kRowWarps][2 * kHalf];
  XSR_UNROLL
  for (int32_t h = 0; h < 2; ++h) {
    store_quad(&of_warps[warp][h * kHalf + 4 * lane_id()],
               Quad{{sums[4 * h], sums[4 * h + 1], sums[4 * h + 2], sums[4 * h + 3]}});
  }
  __syncthreads();
  static_assert(kWarpColumns == kRowWarps * kWarp);  // a thread a column
  const int32_t mine = warp * kWarp + lane_id();
  if (mine >= count) return;
  const int32_t place = mine % kEight / 4 * kHalf + mine / kEight * 4 + mine % 4;
  float sum = 0;
  XSR_UNROLL
  for (int32_t w = 0; w < kRowWarps; ++w) sum += of_warps[w][place];
  to[mine] = sum;
}

}  // namespace xsr::cuda
