#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"

namespace xsr::cuda {

static constexpr int64_t column_sum_floats_cuda(int32_t M, int32_t N) {
  return (int64_t)((M + 127) / 128) * N;
}

/// Sums over the blocks of a kernel, left to a single launch for many: they are small, and each
/// would wait for the kernel before it.
struct PartSums {
  static constexpr int32_t kMost = 32;
  struct Sum {
    const float* parts = nullptr;  // [blocks, columns], row stride `stride`
    int64_t stride = 0;
    int32_t blocks = 0, columns = 0;
    float* to = nullptr;      // [columns]
    int32_t first_block = 0;  // of the launch
  };
  Sum sums[kMost];
  int32_t count = 0;
};

/// to[n] ← Σ parts[block, n] of every sum, blocks in lanes of 32, then the lanes; sums is then
/// empty.
Status add_parts_cuda(PartSums* sums, Stream stream);
/// Adds one to those that are to be added, after a launch of those that fill it. The order of its
/// additions does not depend on the others.
Status add_parts_later_cuda(PartSums* sums, const float* parts, int64_t stride, int32_t blocks,
                            int32_t columns, float* to, Stream stream);
/// Adds the blocks' parts [blocks, columns] to to[columns], where later is null, or leaves that to
/// it.
Status add_blocks_cuda(const float* parts, int32_t blocks, int32_t columns, float* to,
                       PartSums* later, Stream stream);

/// Gradient of a bias, sum[n] ← Σ_m dy[m, n], added by blocks of 128 rows and then the blocks: an
/// order that M alone fixes, and rows of zeros at the end do not change a bit of.
///
/// dy    [M, N]  row stride dy_stride floats
/// sum   [N]     =
/// parts [column_sum_floats_cuda(M, N)]
/// later null, or what takes the last step, until which parts must stay as they are
///
/// Error against the double reference ≤ 3× that of the f32 reference of column_sum_f32.
Status column_sum_cuda(const float* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                       float* parts, PartSums* later, Stream stream);
/// The same of bf16, added in f32.
Status column_sum_bf16_cuda(const uint16_t* dy, int64_t dy_stride, int32_t M, int32_t N, float* sum,
                            float* parts, PartSums* later, Stream stream);

}  // namespace xsr::cuda
