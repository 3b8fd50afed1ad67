#include "kernels/cuda/device.h"
#include "kernels/cuda/row.h"
#include "kernels/layernorm/layernorm_cuda.h"

namespace xsr::cuda {
namespace {

template <int32_t kColumns>
__global__ void __launch_bounds__(kRowThreads)
    layernorm_forward_kernel(const float* x, int64_t x_stride, int32_t N, int32_t C,
                             const float* gamma, const float* beta, float eps, float* out,
                             int64_t out_stride, uint16_t* narrow, int64_t narrow_stride) {
  const int32_t i = global_warp_id();
  if (i >= N) return;
  Row<kColumns> row;
  row.fill(C, [&](int32_t c) { return x[i * x_stride + c]; });
  float mean;
  const float rstd = row.statistics(C, eps, &mean);
  row.each(C, [&](int32_t c, float value) {
    const float y = (value - mean) * rstd * gamma[c] + beta[c];
    if (out != nullptr) out[i * out_stride + c] = y;
    if (narrow != nullptr) narrow[i * narrow_stride + c] = f32_to_bf16(y);
  });
}

}  // namespace

Status layernorm_forward_cuda(const float* x, int64_t x_stride, int32_t N, int32_t C,
                              const float* gamma, const float* beta, float eps, float* out,
                              int64_t out_stride, uint16_t* narrow, int64_t narrow_stride,
                              Stream stream) {
  return with_columns(C, [&](auto columns) {
    return launch(layernorm_forward_kernel<decltype(columns)::value>, row_blocks(N),
                  dim3(kRowThreads), 0, stream, x, x_stride, N, C, gamma, beta, eps, out,
                  out_stride, narrow, narrow_stride);
  });
}

}  // namespace xsr::cuda
