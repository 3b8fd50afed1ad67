#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// The numbers are those of the .xsr file.
enum class Pooling : uint32_t { kMean = 0, kMax = 1, kCls = 2 };

/// One vector a sentence from its token rows: their mean, their element-wise maximum, or the first
/// of them.
///
/// x          [N, C]   row stride `x_stride` ≥ C floats
/// cu_seqlens [B + 1]  rows of sentence b are [cu_seqlens[b], cu_seqlens[b + 1])
/// out        [B, C]   row stride `out_stride` ≥ C floats; rows [first, last) are written; must not
///                     overlap x
///
/// Accumulates in f32, in row order. A sentence without tokens gives zeros. A NaN among the rows
/// gives NaN (mean) or may be passed over (max). Pure: no allocation, no threads, no globals.
/// Source: Mao et al. 2021 (mean), Feng et al. 2022 (cls).
using pooling_forward_f32_t = void(const float* x, int64_t x_stride, const int32_t* cu_seqlens,
                                   int32_t first, int32_t last, int32_t C, Pooling pooling,
                                   float* out, int64_t out_stride);

pooling_forward_f32_t pooling_forward_f32_ref, pooling_forward_f32_avx2, pooling_forward_f32_avx512;

/// Backward of pooling_forward_f32: dx of every token row from the gradient of its sentence. The
/// mean gives each row dy / length; the maximum gives dy to the first row that attains it, and 0
/// to the others; cls gives dy to the first row, and 0 to the others.
///
/// x          [N, C]   row stride x_stride ≥ C floats; read for the maximum alone, else may be null
/// dy         [B, C]   row stride dy_stride ≥ C floats
/// cu_seqlens [B + 1]  as in the forward pass
/// dx         [N, C]   =, row stride dx_stride ≥ C floats; the rows of sentences [first, last) are
///                     written; must not overlap x or dy
///
/// A sentence without tokens writes nothing. Pure: no allocation, no threads, no globals.
using pooling_backward_f32_t = void(const float* x, int64_t x_stride, const float* dy,
                                    int64_t dy_stride, const int32_t* cu_seqlens, int32_t first,
                                    int32_t last, int32_t C, Pooling pooling, float* dx,
                                    int64_t dx_stride);

pooling_backward_f32_t pooling_backward_f32_ref, pooling_backward_f32_avx2,
    pooling_backward_f32_avx512;

/// Scales rows to unit length in place:  x[i] ← x[i] / √Σ x[i]²;  a zero row stays zero.
///
/// x [B, C]  row stride `stride` ≥ C floats; rows [first, last) are written
///
/// The squares are summed in f64, so that no finite row overflows or vanishes. Pure: no allocation,
/// no threads, no globals.
using l2_normalize_forward_f32_t = void(float* x, int64_t stride, int32_t first, int32_t last,
                                        int32_t C);

l2_normalize_forward_f32_t l2_normalize_forward_f32_ref, l2_normalize_forward_f32_avx2,
    l2_normalize_forward_f32_avx512;

/// Backward of l2_normalize_forward_f32, from the row before it was normalised:
///
///     dx[i] = (dy[i] - x[i] · (x[i]·dy[i]) / |x[i]|²) / |x[i]|;  0 for a zero row
///
/// x, dy [B, C]  row strides x_stride, dy_stride ≥ C floats
/// dx    [B, C]  =, row stride dx_stride ≥ C floats; may be dy itself; rows [first, last) are
///               written
///
/// Computed in f64 and rounded once. Pure: no allocation, no threads, no globals.
using l2_normalize_backward_f32_t = void(const float* x, int64_t x_stride, const float* dy,
                                         int64_t dy_stride, int32_t first, int32_t last, int32_t C,
                                         float* dx, int64_t dx_stride);

l2_normalize_backward_f32_t l2_normalize_backward_f32_ref, l2_normalize_backward_f32_avx2,
    l2_normalize_backward_f32_avx512;

}  // namespace xsr::kernels
