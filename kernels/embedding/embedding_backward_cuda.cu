#include "kernels/embedding/embedding_backward_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {
namespace {

/// A block a bucket and 128 columns: most buckets of words have a row or two, those of positions
/// have a row of most sentences, and many lanes. A lane has several rows under way.
template <int32_t kOfLanes>
__global__ void __launch_bounds__(kColumns* kOfLanes)
    embedding_backward_kernel(const float* de, const int32_t* count, const int32_t* ids,
                              const int32_t* starts, const int32_t* rows, int32_t C,
                              float* dtable) {
  constexpr int32_t kAtOnce = 4;
  const int32_t u = (int32_t)blockIdx.x, c = 4 * (int32_t)(blockIdx.y * kColumns + threadIdx.x);
  if (u >= *count) return;  // the whole block
  const int32_t last = c < C ? starts[u + 1] : 0;
  Quad sum = {};
  for (int32_t r = starts[u] + (int32_t)threadIdx.y; r < last; r += kAtOnce * kOfLanes) {
    int32_t row[kAtOnce];
    Quad four[kAtOnce];
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k)
      row[k] = r + k * kOfLanes < last ? rows[r + k * kOfLanes] : -1;
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k)
      four[k] = row[k] < 0 ? Quad{} : load_quad(de + (int64_t)row[k] * C + c);
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k) {
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) sum.value[e] += four[k].value[e];
    }
  }
  sum = sums_of_lanes<kOfLanes>(sum);
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
  // Few buckets have many rows each.
  constexpr int32_t kFewBuckets = 512;
  const bool few = most_buckets <= kFewBuckets;
  const auto kernel =
      few ? embedding_backward_kernel<kManyLanes> : embedding_backward_kernel<kLanes>;
  return launch(kernel, dim3(most_buckets, blocks_of(C, 4 * kColumns)),
                dim3(kColumns, few ? kManyLanes : kLanes), 0, stream, de, count, ids, starts, rows,
                C, dtable);
}

}  // namespace xsr::cuda
