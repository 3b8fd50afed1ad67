#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"

namespace xsr::cuda {

static constexpr int64_t column_sum_floats_cuda(int32_t M, int32_t N) {
  return (int64_t)((M + 127) / 128) * N;
}

/// Gradient of a bias, sum[n] ← Σ_m dy[m, n], added by blocks of 128 rows and then the blocks: an
/// order that M alone fixes, and rows of zeros at the end do not change a bit of.
///
/// dy    [M, N]  row stride dy_stride floats
/// sum   [N]     =
/// parts [column_sum_floats_cuda(M, N)]
///
/// Error against the double reference ≤ 3× that of the f32 reference of column_sum_f32.
Status column_sum_cuda(const float* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                       float* parts, Stream stream);
/// The last step of such sums: sum[n] ← Σ parts[block, n], blocks in lanes of 32, then the lanes.
///
/// parts [blocks, N]   sum [N]  =
Status add_parts_cuda(const float* parts, int32_t blocks, int32_t N, float* sum, Stream stream);
/// The same as column_sum_cuda of bf16, added in f32.
Status column_sum_bf16_cuda(const uint16_t* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                            float* parts, Stream stream);

}  // namespace xsr::cuda
