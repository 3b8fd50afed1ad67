#include "kernels/embedding/embedding_backward_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {
namespace {

/// A block a bucket and 128 columns: most buckets have a row or two.
__global__ void embedding_backward_kernel(const float* de, const int32_t* count, const int32_t* ids,
                                          const int32_t* starts, const int32_t* rows, int32_t C,
                                          float* dtable) {
  const int32_t u = (int32_t)blockIdx.x, c = 4 * (int32_t)(blockIdx.y * kColumns + threadIdx.x);
  if (u >= *count) return;  // the whole block
  Quad sum = {};
  for (int32_t r = starts[u] + (int32_t)threadIdx.y; r < starts[u + 1] && c < C; r += kLanes) {
    const Quad row = load_quad(de + (int64_t)rows[r] * C + c);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) sum.value[e] += row.value[e];
  }
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) sum.value[e] = sum_of_lanes(sum.value[e]);
  if (threadIdx.y != 0 || c >= C) return;
  float* to = dtable + (int64_t)ids[u] * C + c;
  Quad four = load_quad(to);
  XSR_UNROLL
  for (int32_t e = 0; e < 4; ++e) four.value[e] += sum.value[e];
  store_quad(to, four);
}

}  // namespace

Status embedding_backward_f32_cuda(const float* de, const int32_t* count, const int32_t* ids,
                                   const int32_t* starts, const int32_t* rows, int32_t most_buckets,
                                   int32_t C, float* dtable, Stream stream) {
  return launch(embedding_backward_kernel, dim3(most_buckets, blocks_of(C, 4 * kColumns)),
                dim3(kColumns, kLanes), 0, stream, de, count, ids, starts, rows, C, dtable);
}

}  // namespace xsr::cuda
