#include "kernels/gemm/column_sum_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {
namespace {

constexpr int32_t kBlockRows = 128;
constexpr int32_t kAtOnce = 8;

/// out[block, c] ← the sum of the block's rows.
template <typename T, int32_t kOfLanes>
__global__ void __launch_bounds__(kColumns* kOfLanes)
    sum_rows_kernel(const T* x, int64_t stride, int32_t rows, int32_t C, int32_t block_rows,
                    float* out) {
  const int32_t c = (int32_t)(blockIdx.x * kColumns + threadIdx.x);
  const int32_t first = (int32_t)blockIdx.y * block_rows;
  const int32_t last = first + block_rows < rows ? first + block_rows : rows;
  float sum = 0;
  if (c < C) {
    sum = sum_ahead<kAtOnce>(first + (int32_t)threadIdx.y, last, kOfLanes,
                             [&](int32_t i) { return load(x + i * stride + c); });
  }
  sum = sum_of_lanes<kOfLanes>(sum);
  if (threadIdx.y == 0 && c < C) out[(int64_t)blockIdx.y * C + c] = sum;
}

template <typename T>
Status column_sum(const T* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum, float* parts,
                  Stream stream) {
  const int32_t blocks = blocks_of(M, kBlockRows);
  const Status status =
      launch(sum_rows_kernel<T, kLanes>, dim3(blocks_of(N, kColumns), blocks),
             dim3(kColumns, kLanes), 0, stream, dy, dy_stride, M, N, kBlockRows, parts);
  if (status != 0) return status;
  return add_parts_cuda(parts, blocks, N, sum, stream);
}

}  // namespace

Status add_parts_cuda(const float* parts, int32_t blocks, int32_t N, float* sum, Stream stream) {
  return launch(sum_rows_kernel<float, kManyLanes>, dim3(blocks_of(N, kColumns)),
                dim3(kColumns, kManyLanes), 0, stream, parts, N, blocks, N, blocks, sum);
}

Status column_sum_cuda(const float* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                       float* parts, Stream stream) {
  return column_sum(dy, dy_stride, M, N, sum, parts, stream);
}
Status column_sum_bf16_cuda(const uint16_t* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                            float* parts, Stream stream) {
  return column_sum(dy, dy_stride, M, N, sum, parts, stream);
}

}  // namespace xsr::cuda
