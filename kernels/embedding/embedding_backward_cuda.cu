#include "kernels/embedding/embedding_backward_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {
namespace {

__global__ void embedding_backward_kernel(const float* de, const int32_t* count, const int32_t* ids,
                                          const int32_t* starts, const int32_t* rows, int32_t C,
                                          float* dtable) {
  const int32_t u = (int32_t)blockIdx.x, c = (int32_t)(blockIdx.y * kColumns + threadIdx.x);
  if (u >= *count) return;  // the whole block
  float sum = 0;
  for (int32_t r = starts[u] + (int32_t)threadIdx.y; r < starts[u + 1] && c < C; r += kLanes)
    sum += de[(int64_t)rows[r] * C + c];
  sum = sum_of_lanes(sum);
  if (threadIdx.y == 0 && c < C) dtable[(int64_t)ids[u] * C + c] += sum;
}

}  // namespace

Status embedding_backward_f32_cuda(const float* de, const int32_t* count, const int32_t* ids,
                                   const int32_t* starts, const int32_t* rows, int32_t most_buckets,
                                   int32_t C, float* dtable, Stream stream) {
  return launch(embedding_backward_kernel, dim3(most_buckets, blocks_of(C, kColumns)),
                dim3(kColumns, kLanes), 0, stream, de, count, ids, starts, rows, C, dtable);
}

}  // namespace xsr::cuda
