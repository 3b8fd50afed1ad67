#include "kernels/cuda/device.h"
#include "kernels/cuda/row.h"
#include "kernels/layernorm/layernorm_cuda.h"

namespace xsr::cuda {
namespace {

template <typename OfRow>
__global__ void __launch_bounds__(kRowThreads)
    layernorm_forward_kernel(const float* x, int64_t x_stride, int32_t N, int32_t C,
                             const float* gamma, const float* beta, float eps, float* out,
                             int64_t out_stride, uint16_t* narrow, int64_t narrow_stride) {
  const int32_t i = global_warp_id();
  if (i >= N) return;
  OfRow row;
  const float* from = x + i * x_stride;
  row.fill(C, [&](int32_t c) {
    if constexpr (OfRow::kWhole) {
      return load_quad(from + c);
    } else {
      return from[c];
    }
  });
  float mean;
  const float rstd = row.statistics(C, eps, &mean);
  row.put(C, mean, rstd, gamma, beta, out == nullptr ? nullptr : out + i * out_stride,
          narrow == nullptr ? nullptr : narrow + i * narrow_stride);
}

}  // namespace

Status layernorm_forward_cuda(const float* x, int64_t x_stride, int32_t N, int32_t C,
                              const float* gamma, const float* beta, float eps, float* out,
                              int64_t out_stride, uint16_t* narrow, int64_t narrow_stride,
                              Stream stream) {
  const bool whole = C % 4 == 0 && starts_whole(x, x_stride) && starts_whole(out, out_stride) &&
                     starts_whole(narrow, narrow_stride) && starts_whole(gamma, 0) &&
                     starts_whole(beta, 0);
  return with_row(C, whole, [&](auto row) {
    return launch(layernorm_forward_kernel<decltype(row)>, row_blocks(N), dim3(kRowThreads), 0,
                  stream, x, x_stride, N, C, gamma, beta, eps, out, out_stride, narrow,
                  narrow_stride);
  });
}

}  // namespace xsr::cuda
