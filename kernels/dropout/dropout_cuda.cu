#include "kernels/dropout/dropout_cuda.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/training.h"

namespace xsr::cuda {
namespace {

__global__ void dropout_forward_kernel(float* x, int32_t N, int32_t C,
                                       const kernels::Dropout* dropout, uint32_t place) {
  const int32_t i = warp_row();
  if (i >= N || !drops(dropout)) return;
  for_quads(C, [&](int32_t first) {
    float* at = x + (int64_t)i * C + first;
    Quad four = load_quad(at);
    drop(*dropout, place, i, first, four);
    store_quad(at, four);
  });
}

}  // namespace

Status dropout_forward_f32_cuda(float* x, int32_t N, int32_t C, const kernels::Dropout* dropout,
                                uint32_t place, Stream stream) {
  return launch(dropout_forward_kernel, blocks_of(N, kRowWarps), kRowWarps * kWarp, 0, stream, x, N,
                C, dropout, place);
}

}  // namespace xsr::cuda
