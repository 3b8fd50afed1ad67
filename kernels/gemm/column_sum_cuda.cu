#include "kernels/gemm/column_sum_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/eight.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {
namespace {

constexpr int32_t kBlockRows = 128;
constexpr int32_t kAtOnce = 8;

/// out[block, c] ← the sum of the block's rows.
template <typename T>
__global__ void __launch_bounds__(kColumns* kLanes)
    sum_rows_kernel(const T* x, int64_t stride, int32_t rows, int32_t C, float* out) {
  const int32_t c = (int32_t)(blockIdx.x * kColumns + threadIdx.x);
  const int32_t first = (int32_t)blockIdx.y * kBlockRows;
  const int32_t last = first + kBlockRows < rows ? first + kBlockRows : rows;
  float sum = 0;
  if (c < C) {
    sum = sum_ahead<kAtOnce>(first + (int32_t)threadIdx.y, last, kLanes,
                             [&](int32_t i) { return load(x + i * stride + c); });
  }
  sum = sum_of_lanes(sum);
  if (threadIdx.y == 0 && c < C) out[(int64_t)blockIdx.y * C + c] = sum;
}

/// The same additions, eight columns a thread. x and its rows start and end at multiples of 16
/// bytes: a question before a load would be one before the next.
__global__ void __launch_bounds__(kColumns* kLanes)
    sum_rows_by_eight_kernel(const uint16_t* x, int64_t stride, int32_t rows, int32_t C,
                             float* out) {
  constexpr int32_t kRowsAtOnce = 4;
  static_assert(kColumns == kWarp && kLanes == kRowWarps);
  const int32_t begin = (int32_t)blockIdx.x * kWarpColumns;
  const int32_t c = begin + kEight * (int32_t)threadIdx.x;
  const int32_t first = (int32_t)blockIdx.y * kBlockRows;
  const int32_t last = first + kBlockRows < rows ? first + kBlockRows : rows;
  float sums[kEight] = {};
  for (int32_t i = first + (int32_t)threadIdx.y; i < last && c < C; i += kRowsAtOnce * kLanes) {
    float values[kRowsAtOnce][kEight];
    XSR_UNROLL
    for (int32_t k = 0; k < kRowsAtOnce; ++k) {
      const int32_t row = i + k * kLanes < last ? i + k * kLanes : last - 1;
      load_eight(x + row * stride + c, true, kEight, values[k]);
    }
    XSR_UNROLL
    for (int32_t k = 0; k < kRowsAtOnce; ++k) {
      XSR_UNROLL
      for (int32_t e = 0; e < kEight; ++e) sums[e] += i + k * kLanes < last ? values[k][e] : 0.0f;
    }
  }
  add_columns_of_warps(sums, (int32_t)threadIdx.y, C - begin,
                       out + (int64_t)blockIdx.y * C + begin);
}

__global__ void __launch_bounds__(kColumns* kManyLanes) add_parts_kernel(PartSums all) {
  int32_t k = 0;  // the sum of this block
  while (k + 1 < all.count && all.sums[k + 1].first_block <= (int32_t)blockIdx.x) ++k;
  const PartSums::Sum& s = all.sums[k];
  const int32_t c = ((int32_t)blockIdx.x - s.first_block) * kColumns + (int32_t)threadIdx.x;
  float sum = 0;
  if (c < s.columns) {
    sum = sum_ahead<kAtOnce>((int32_t)threadIdx.y, s.blocks, kManyLanes,
                             [&](int32_t i) { return s.parts[i * s.stride + c]; });
  }
  sum = sum_of_lanes<kManyLanes>(sum);
  if (threadIdx.y == 0 && c < s.columns) s.to[c] = sum;
}

}  // namespace

Status add_parts_cuda(PartSums* sums, Stream stream) {
  if (sums->count == 0) return 0;
  int32_t blocks = 0;
  for (int32_t k = 0; k < sums->count; ++k) {
    sums->sums[k].first_block = blocks;
    blocks += blocks_of(sums->sums[k].columns, kColumns);
  }
  const Status status =
      launch(add_parts_kernel, blocks, dim3(kColumns, kManyLanes), 0, stream, *sums);
  sums->count = 0;
  return status;
}

Status add_parts_later_cuda(PartSums* sums, const float* parts, int64_t stride, int32_t blocks,
                            int32_t columns, float* to, Stream stream) {
  if (sums->count == PartSums::kMost) {
    const Status status = add_parts_cuda(sums, stream);
    if (status != 0) return status;
  }
  sums->sums[sums->count++] = {parts, stride, blocks, columns, to, 0};
  return 0;
}

Status add_blocks_cuda(const float* parts, int32_t blocks, int32_t columns, float* to,
                       PartSums* later, Stream stream) {
  PartSums one;
  const Status status = add_parts_later_cuda(later != nullptr ? later : &one, parts, columns,
                                             blocks, columns, to, stream);
  return status != 0 || later != nullptr ? status : add_parts_cuda(&one, stream);
}

Status column_sum_cuda(const float* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                       float* parts, PartSums* later, Stream stream) {
  const int32_t blocks = blocks_of(M, kBlockRows);
  const Status status = launch(sum_rows_kernel<float>, dim3(blocks_of(N, kColumns), blocks),
                               dim3(kColumns, kLanes), 0, stream, dy, dy_stride, M, N, parts);
  return status != 0 ? status : add_blocks_cuda(parts, blocks, N, sum, later, stream);
}

Status column_sum_bf16_cuda(const uint16_t* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                            float* parts, PartSums* later, Stream stream) {
  const bool by_eight =
      reinterpret_cast<uintptr_t>(dy) % 16 == 0 && dy_stride % kEight == 0 && N % kEight == 0;
  const int32_t blocks = blocks_of(M, kBlockRows);
  const Status status = launch(by_eight ? sum_rows_by_eight_kernel : sum_rows_kernel<uint16_t>,
                               dim3(blocks_of(N, by_eight ? kWarpColumns : kColumns), blocks),
                               dim3(kColumns, kLanes), 0, stream, dy, dy_stride, M, N, parts);
  return status != 0 ? status : add_blocks_cuda(parts, blocks, N, sum, later, stream);
}

}  // namespace xsr::cuda
