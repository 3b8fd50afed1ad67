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

/// Rows that gemm_backward_weight_i8 sums at a time: exact in every ISA.
static constexpr int32_t kMaxRowsI8 = 256;
/// Of which one lane of 32 bits holds so many.
static constexpr int32_t kStepRowsI8 = 4;

/// Rounds x [M, C] (row stride x_stride floats) to s8, each column with its own scale, and puts
/// four rows of a column into a lane of 32 bits:
///
///     scales[c] = max_m |x[m, c]| / 127        q[m, c] = round(x[m, c] · (1 / scales[c]))
///     byte m % 4 of lanes[m / 4, c] = q[m, c] + zero
///
/// M       rows beyond it up to a multiple of four have q = 0
/// zero    0 or 128: what stands for 0.0, of s8 or of u8
/// lanes   [⌈M/4⌉, C]  stride `lane_stride` ≥ C lanes
/// scales  [C]         0 where it would be below kLeastScaleI8, NaN where the column holds a NaN
///                     or an infinity; q = 0 in both
/// sums    [C]         Σ_m q[m, c]; null = not wanted
///
/// Rounds to nearest even; |x - scales[c] · q| ≤ scales[c] / 2 up to f32 rounding. All ISAs give
/// the same bits. Of 32 columns of a weight matrix W [M, C], with zero 0 and lane_stride 32, lanes,
/// scales and sums are a panel of Wᵀ for gemm_forward_i8. Pure: no allocation, no threads, no
/// globals.
using quantize_columns_i8_t = void(const float* x, int64_t x_stride, int32_t M, int32_t C,
                                   int32_t zero, uint32_t* lanes, int64_t lane_stride,
                                   float* scales, int32_t* sums);

quantize_columns_i8_t quantize_columns_i8_ref, quantize_columns_i8_avx2, quantize_columns_i8_avx512;

/// gemm_backward_weight of a block of rows in 8 bits, as quantize_columns_i8 leaves them:
///
///     dw[n, k] (+)= Σ_m dy[m, n] · x[m, k] · dy_scales[n] · x_scales[k]
///
/// dy, dy_scales        of zero 128: [⌈M/4⌉, N] lanes, stride dy_stride; [N]
/// x, x_scales, x_sums  of zero 0: [⌈M/4⌉, K] lanes, stride x_stride; [K]; [K]
/// M                    ≤ kMaxRowsI8
///
/// The sum is exact, and as a float multiplied by dy_scales[n]; times x_scales[k] it is added to dw
/// (or 0) with one rounding: all ISAs give the same bits. A scale of NaN gives NaN. The rest is as
/// above.
using gemm_backward_weight_i8_t = void(const uint32_t* dy, int64_t dy_stride,
                                       const float* dy_scales, const uint32_t* x, int64_t x_stride,
                                       const float* x_scales, const int32_t* x_sums, int32_t M,
                                       int32_t first, int32_t last, int32_t K, bool accumulate,
                                       float* dw, int64_t dw_stride, float* scratch);

gemm_backward_weight_i8_t gemm_backward_weight_i8_ref, gemm_backward_weight_i8_avx2,
    gemm_backward_weight_i8_avx2_vnni, gemm_backward_weight_i8_avx512_vnni,
    gemm_backward_weight_i8_amx;

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
