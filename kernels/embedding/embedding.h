#pragma once
#include <stdint.h>

#include "kernels/types.h"

namespace xsr::kernels {

/// Token and position look-up, their sum, and the LayerNorm over it, one row a token:
///
///     e = token[token_ids[i]] + position[positions[i]] (+ token_type)
///     out[i] = (e - mean(e)) / sqrt(var(e) + eps) · gamma + beta
///
/// token_ids   [N]      in [0, V); only rows [first, last) are read
/// positions   [N]      in [0, P)
/// token       [V, C]   row-major in `storage`; widened to f32 exactly
/// position    [P, C]   row-major in `storage`
/// token_type  [C]      added to every row; null when the model has none
/// gamma, beta [C]      both null: out[i] = e, without the LayerNorm, whose backward pass needs e
/// out         [N, C]   row stride `out_stride` ≥ C floats; rows [first, last) are written, nothing
///                      else
/// rstd        [N]      1 / sqrt(var(e) + eps) of the same rows; null = not wanted; without gamma
///                      it is null
///
/// Accumulates in f32, two passes (mean, then centred squares). Error against the double reference
/// ≤ 2× that of the f32 reference. Pure: no allocation, no threads, no globals. Alignment: none
/// needed, 64 bytes is faster. Source: Mao et al. 2021, as released; LayerNorm: Ba et al. 2016,
/// eq. 4.
using embedding_forward_f32_t = void(const int32_t* token_ids, const int32_t* positions,
                                     int32_t first, int32_t last, const void* token,
                                     const void* position, Storage storage, const float* token_type,
                                     const float* gamma, const float* beta, float eps, int32_t C,
                                     float* out, int64_t out_stride, float* rstd);

embedding_forward_f32_t embedding_forward_f32_ref, embedding_forward_f32_avx2,
    embedding_forward_f32_avx512;

/// The same from int8 tables with a scale a row: e = token_scales[t] · token[t] +
/// position_scales[p] · position[p] (+ token_type), each product rounded to f32 before the sum.
///
/// token [V, C], position [P, C]  s8, row-major      token_scales [V], position_scales [P]
using embedding_forward_i8_t = void(const int32_t* token_ids, const int32_t* positions,
                                    int32_t first, int32_t last, const int8_t* token,
                                    const float* token_scales, const int8_t* position,
                                    const float* position_scales, const float* token_type,
                                    const float* gamma, const float* beta, float eps, int32_t C,
                                    float* out, int64_t out_stride, float* rstd);

embedding_forward_i8_t embedding_forward_i8_ref, embedding_forward_i8_avx2,
    embedding_forward_i8_avx512;

/// The rows that look up the same id, listed together: with it a scatter-add needs no atomics and
/// has one order.
struct RowBuckets {
  int32_t count = 0;                // U distinct ids
  const int32_t* ids = nullptr;     // [U], rising
  const int32_t* starts = nullptr;  // [U + 1], into rows
  const int32_t* rows = nullptr;  // the rows of ids[u], rising, are rows[starts[u], starts[u + 1])
};

/// Integers that bucket_rows needs.
static constexpr int64_t bucket_rows_memory(int32_t N, int32_t V) {
  return 2 * (int64_t)(N < V ? N : V) + 1 + N + V;
}

/// Sorts the rows [0, N) by their ids in [0, V), by counting. Rows of `skipped_id` are left out:
/// the padding token, whose look-up gives no gradient (docs/methods.md, Generative head); -1 =
/// none. The result points into `memory` [bucket_rows_memory(N, V)].
RowBuckets bucket_rows(const int32_t* ids, int32_t N, int32_t V, int32_t skipped_id,
                       int32_t* memory);

/// Backward of a table look-up, for the buckets [first, last):
///
///     dtable[buckets.ids[u]] += Σ de[i] over the rows i of bucket u
///
/// de      [N, C]  gradient of e, before the LayerNorm; row stride de_stride ≥ C floats
/// dtable  [V, C]  +=, row stride C; rows of other ids are not touched; must not overlap de
///
/// A bucket's rows are summed in f32, in their order, and then added: buckets may be split over
/// threads anyhow. The token table takes buckets of token_ids, the position table buckets of
/// positions; the gradient of token_type is the column sum of de. Error against the double
/// reference ≤ 3× that of the f32 reference. Pure: no allocation, no threads, no globals.
using embedding_backward_f32_t = void(const float* de, int64_t de_stride, const RowBuckets& buckets,
                                      int32_t first, int32_t last, int32_t C, float* dtable);

embedding_backward_f32_t embedding_backward_f32_ref, embedding_backward_f32_avx2,
    embedding_backward_f32_avx512;

/// The first layer's Q, K and V from tables, where only a LayerNorm stands between the embedding
/// and that product. With token and position rows centred beforehand and gamma taken into W, the
/// product is linear in both rows:
///
///     out[i] = (token_table[token_ids[i]] + position_table[positions[i]]) · rstd[i] + bias
///     token_table = centred(token) · (W ∘ gamma)ᵀ     position_table likewise
///     bias = W beta + b
///
/// token_table    [V, N]  f32, row-major      position_table [P, N]  likewise      bias [N]
/// token_ids, positions, rstd  [tokens]     as embedding_forward_f32 takes and gives them; rows
///                                          [first, last) are read
/// out                         [tokens, N]  f32, row stride `out_stride` ≥ N; null = not wanted
/// narrow                      [tokens, N]  the same values rounded to bf16, row stride
///                                          `narrow_stride` ≥ N; null = not wanted; avx512_bf16
///                                          turns subnormals into 0
///
/// Of out and narrow rows [first, last) are written.
///
/// Pure: no allocation, no threads, no globals.
using qkv_table_forward_f32_t = void(const int32_t* token_ids, const int32_t* positions,
                                     int32_t first, int32_t last, const float* token_table,
                                     const float* position_table, const float* rstd,
                                     const float* bias, int32_t N, float* out, int64_t out_stride,
                                     uint16_t* narrow, int64_t narrow_stride);

qkv_table_forward_f32_t qkv_table_forward_f32_ref, qkv_table_forward_f32_avx2,
    qkv_table_forward_f32_avx512, qkv_table_forward_f32_avx512_bf16;

}  // namespace xsr::kernels
