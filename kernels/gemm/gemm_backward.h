#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// Gradient of a weight matrix W [N, K] of gemm_forward, from that of its result:
///
///     dw[n, k] (+)= Σ_m dy[m, n] · x[m, k]      for the rows n in [first, last)
///
/// dy  [M, N]  gradient of gemm_forward's sum, row stride `dy_stride` ≥ N floats; columns outside
///             [first, last) are not read
/// x   [M, K]  gemm_forward's a, row stride `x_stride` ≥ K floats; nothing beyond column K is read
/// dw  [N, K]  row stride `dw_stride` ≥ K floats; += where `accumulate`, else =; must not overlap
///             the others; rows [first, last) are written, nothing else
/// scratch     kGemmBackwardScratchFloats floats, 64-byte aligned, of this call alone
///
/// Accumulates in f32 in the order of m, in blocks of rows that are the same for every call (an
/// element's sum over a block is added to the sum of those before it): an element depends on its
/// columns of dy and x alone, and any split of the rows n gives the same bits. Error against the
/// double reference ≤ 3× that of the f32 reference. M = 0 gives zeros, or leaves dw as it is where
/// it accumulates. Pure: no allocation, no threads, no globals. Row strides that are multiples of
/// 2 KiB make rows fall into the same cache sets: give strides of C + 16 floats.
///
/// The gradient of a, dX = dY · W, is gemm_forward over the panels of Wᵀ
/// (gemm_pack_transposed_panels).
using gemm_backward_weight_f32_t = void(const float* dy, int64_t dy_stride, const float* x,
                                        int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                        int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                        float* scratch);

gemm_backward_weight_f32_t gemm_backward_weight_f32_ref, gemm_backward_weight_f32_avx2,
    gemm_backward_weight_f32_avx512;

/// The same from bf16 dy and x, accumulated in f32; strides in elements, with no demand on their
/// parity. Products of two bf16 are exact in f32; sums round in the order of m, by pairs of rows
/// (2i, 2i + 1) where the ISA adds pairs (avx512_bf16, and amx, which adds the even m of 32 and the
/// odd ones apart; both take subnormals for 0).
using gemm_backward_weight_bf16_t = void(const uint16_t* dy, int64_t dy_stride, const uint16_t* x,
                                         int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                         int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                         float* scratch);

gemm_backward_weight_bf16_t gemm_backward_weight_bf16_ref, gemm_backward_weight_bf16_avx2,
    gemm_backward_weight_bf16_avx512_bf16, gemm_backward_weight_bf16_amx;

/// A block of columns of dy and one panel of x, packed, of the ISA that takes most: 192 rows (or
/// pairs of bf16 rows) of 384 and 32 lanes.
static constexpr int64_t kGemmBackwardScratchFloats = 192 * (384 + 32);

/// Gradient of a bias: sum[n] (+)= Σ_m dy[m, n]      for the columns n in [first, last)
///
/// dy   [M, N]  row stride `dy_stride` ≥ N floats; columns outside [first, last) are not read
/// sum  [N]     += where `accumulate`, else =; must not overlap dy
///
/// Accumulates in f32 in the order of m, then adds to sum: any split of the columns gives the same
/// bits, and every ISA gives those of ref. M = 0 gives zeros, or leaves sum as it is where it
/// accumulates. Pure: no allocation, no threads, no globals.
using column_sum_f32_t = void(const float* dy, int64_t dy_stride, int32_t M, int32_t first,
                              int32_t last, bool accumulate, float* sum);

column_sum_f32_t column_sum_f32_ref, column_sum_f32_avx2, column_sum_f32_avx512;

}  // namespace xsr::kernels
