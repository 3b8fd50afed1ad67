#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// LayerNorm over rows:  out[i] = (x[i] - mean) / sqrt(var + eps) · gamma + beta,  var = mean of
/// centred squares.
///
/// x           [N, C]  row stride `x_stride` ≥ C floats
/// gamma, beta [C]
/// out         [N, C]  row stride `out_stride` ≥ C floats; may be x itself; rows [first, last) are
/// written
///
/// Accumulates in f32, two passes. Error against the double reference ≤ 2× that of the f32
/// reference. A row of equal values gives beta when eps > 0. Pure: no allocation, no threads, no
/// globals. Source: Ba et al. 2016, eq. 4; eps inside the root as in papers.md 1a.
using layernorm_forward_f32_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                     int32_t C, const float* gamma, const float* beta, float eps,
                                     float* out, int64_t out_stride);

layernorm_forward_f32_t layernorm_forward_f32_ref, layernorm_forward_f32_avx2,
    layernorm_forward_f32_avx512;

}  // namespace xsr::kernels
