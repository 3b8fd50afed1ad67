#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// The pieces of a softmax over a vocabulary whose logits stand transposed, one tile of words after
/// another: z [R, N] has a word a row and a sentence a column. For the columns [first, last):
///
///     max[b] = max_v (z[v, b] + bias[v])     sum[b] = Σ_v e[v, b]
///     e[v, b] = exp(z[v, b] + bias[v] − max[b])
///
/// z         [R, N]  row stride z_stride ≥ N floats
/// bias      [R]     null = none
/// max, sum  [N]     f32; the sum is that of the f32 exponentials
/// e         [R, N]  f32, row stride e_stride; may be z itself; null = not wanted
/// narrow    [R, N]  the same rounded to bf16, row stride narrow_stride; null = not wanted
///
/// Sums in f32 in the order of the rows: a column's bits depend on that column alone. A NaN or an
/// infinite logit gives a column whose sum is NaN. Error against the double reference ≤ 2× that of
/// the plain f32 loop. R = 0 gives −inf and 0. Pure: no allocation, no threads, no globals.
using vocabulary_softmax_forward_f32_t = void(const float* z, int64_t z_stride, int32_t R,
                                              const float* bias, int32_t first, int32_t last,
                                              float* max, float* sum, float* e, int64_t e_stride,
                                              uint16_t* narrow, int64_t narrow_stride);

vocabulary_softmax_forward_f32_t vocabulary_softmax_forward_f32_ref,
    vocabulary_softmax_forward_f32_avx2, vocabulary_softmax_forward_f32_avx512;

/// The gradient for the logits, before the target is taken away, from what the forward pass stored:
///
///     dz[v, b] = e[v, b] · factor[b]         dbias[v] += Σ_b dz[v, b]
///
/// e       [R, N]  row stride e_stride
/// factor  [N]     mass of the target · exp(max[b] − lse[b]) and what the loss is weighted with
/// dz      [R, N]  row stride dz_stride; may be e itself
/// dbias   [R]     null = not wanted; the f32 products, added in an order that N alone fixes
///
/// Error ≤ 3× that of the plain f32 loop. Pure: no allocation, no threads, no globals.
using vocabulary_softmax_backward_f32_t = void(const float* e, int64_t e_stride, int32_t R,
                                               int32_t N, const float* factor, float* dz,
                                               int64_t dz_stride, float* dbias);

vocabulary_softmax_backward_f32_t vocabulary_softmax_backward_f32_ref,
    vocabulary_softmax_backward_f32_avx2, vocabulary_softmax_backward_f32_avx512;

/// The same from and to bf16. The product is taken in f32 and rounded once, to nearest even; dbias
/// adds it before that.
using vocabulary_softmax_backward_bf16_t = void(const uint16_t* e, int64_t e_stride, int32_t R,
                                                int32_t N, const float* factor, uint16_t* dz,
                                                int64_t dz_stride, float* dbias);

vocabulary_softmax_backward_bf16_t vocabulary_softmax_backward_bf16_ref,
    vocabulary_softmax_backward_bf16_avx2, vocabulary_softmax_backward_bf16_avx512;

/// Row softmax of a similarity matrix, for the rows [first, last):
///
///     max[i] = max_j s[i, j]         sum[i] = Σ_j exp(s[i, j] − max[i])
///     p[i, j] = gain · exp(s[i, j] − max[i]) / sum[i]
///
/// s         [rows, N]  row stride s_stride ≥ N floats
/// p         [rows, N]  row stride p_stride; may be s itself
/// max, sum  [rows]
///
/// A NaN or an infinite similarity gives a row of NaN and the sum NaN. Error against the double
/// reference ≤ 2× that of the plain f32 loop. Pure: no allocation, no threads, no globals.
using softmax_forward_f32_t = void(const float* s, int64_t s_stride, int32_t first, int32_t last,
                                   int32_t N, float gain, float* p, int64_t p_stride, float* max,
                                   float* sum);

softmax_forward_f32_t softmax_forward_f32_ref, softmax_forward_f32_avx2, softmax_forward_f32_avx512;

/// SIM (docs/methods.md, SIM) on rows [first, last) of two row softmaxes, with its gradient for the
/// similarities below them. With x = argument · (p1[i, j] − p2[i, j]):
///
///     loss[i] = − Σ_j log max(cos x, min_cosine)
///     g_j = gain · argument · tan x   where cos x ≥ min_cosine, else 0
///     ds1[i, j] = p1[i, j] · (g_j − Σ_k p1[i, k] g_k)
///     ds2[i, j] = p2[i, j] · (Σ_k p2[i, k] g_k − g_j)
///
/// p1, p2    [rows, N]  row stride `stride` ≥ N floats; overwritten by ds1 and ds2
/// argument             π/2, or π as EMS has it, where cos x ≤ 0 gives a NaN without a min_cosine
/// min_cosine           0 = no bound: |x| = π/2 gives a loss that is infinite, or as large as the
///                      rounding of π/2 lets it be
/// loss      [rows]     accumulated in double
///
/// A NaN anywhere in a row gives NaN for its loss. Everything is computed in double and rounded at
/// the end: only the exponentials above it cost enough to be worth vectors. Pure: no allocation, no
/// threads, no globals.
using sim_forward_backward_f32_t = void(float* p1, float* p2, int64_t stride, int32_t first,
                                        int32_t last, int32_t N, double argument, double min_cosine,
                                        double gain, double* loss);

sim_forward_backward_f32_t sim_forward_backward_f32_ref;

}  // namespace xsr::kernels
