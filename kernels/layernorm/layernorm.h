#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// LayerNorm over rows:  out[i] = (x[i] - mean) / sqrt(var + eps) · gamma + beta,  var = mean of
/// centred squares.
///
/// x           [N, C]  row stride `x_stride` ≥ C floats
/// gamma, beta [C]
/// out         [N, C]  row stride `out_stride` ≥ C floats; may be x itself; rows [first, last) are
///                     written
///
/// Accumulates in f32, two passes. Error against the double reference ≤ 2× that of the f32
/// reference. A row of equal values gives beta when eps > 0. Pure: no allocation, no threads, no
/// globals. Source: Ba et al. 2016, eq. 4; eps inside the root as released by Mao et al.
/// 2021.
using layernorm_forward_f32_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                     int32_t C, const float* gamma, const float* beta, float eps,
                                     float* out, int64_t out_stride);

layernorm_forward_f32_t layernorm_forward_f32_ref, layernorm_forward_f32_avx2,
    layernorm_forward_f32_avx512;

/// Rows of one partial sum of dgamma and dbeta. Fixed, so that no split of the work over threads
/// changes a bit of them.
static constexpr int32_t kLayernormBlockRows = 64;
static constexpr int32_t layernorm_block_count(int32_t N) {
  return (N + kLayernormBlockRows - 1) / kLayernormBlockRows;
}

/// Backward of layernorm_forward_f32, from its input: mean and rstd = 1 / sqrt(var + eps) are
/// computed again, with the bits of the forward pass. With x̂ = (x - mean) · rstd, g = dy · gamma:
///
///     dx[i] = rstd · (g - mean(g) - x̂ · mean(g · x̂))
///     dgamma_parts[k] = Σ dy · x̂      dbeta_parts[k] = Σ dy      over the rows of block k
///
/// Block k is the rows [64 k, min(N, 64 k + 64)). dgamma and dbeta are the sums of their parts in
/// the order of k: column_sum_f32.
///
/// x             [N, C]       row stride x_stride ≥ C floats; what layernorm_forward_f32 was given
/// dy            [N, C]       row stride dy_stride ≥ C floats
/// gamma         [C]
/// dx            [N, C]       =, row stride dx_stride ≥ C floats; may be dy itself, not x; the rows
///                            of blocks [first_block, last_block) are written
/// dgamma_parts  [blocks, C]  =, row stride C; rows [first_block, last_block) are written
/// dbeta_parts   [blocks, C]  likewise
///
/// Accumulates in f32. Error against the double reference ≤ 3× that of the f32 reference. Pure: no
/// allocation, no threads, no globals.
using layernorm_backward_f32_t = void(const float* x, int64_t x_stride, const float* dy,
                                      int64_t dy_stride, int32_t N, int32_t first_block,
                                      int32_t last_block, int32_t C, const float* gamma, float eps,
                                      float* dx, int64_t dx_stride, float* dgamma_parts,
                                      float* dbeta_parts);

layernorm_backward_f32_t layernorm_backward_f32_ref, layernorm_backward_f32_avx2,
    layernorm_backward_f32_avx512;

}  // namespace xsr::kernels
