#pragma once
#include <stdint.h>

#include "kernels/dropout/dropout.h"

namespace xsr::kernels {

/// Multi-head self-attention over ragged sentences; no padding token is read or written.
///
///     S = Q Kᵀ / √D      P = softmax(S)      O = P V        for each sentence b and head h
///
/// qkv         [N, 3, H, D]  one row a token, row stride `qkv_stride` ≥ 3·H·D floats
/// cu_seqlens  [B + 1]       never falling; sentence b has rows [cu_seqlens[b], cu_seqlens[b + 1])
/// out         [N, H·D]      row stride `out_stride` ≥ H·D floats; must not overlap qkv; heads
///                           [first_head, last_head) of sentences [first, last) are written,
///                           nothing else
/// lse         [N, H]        log Σ exp S per query row, for the backward pass; null when not
///                           training
/// scratch                   attention_scratch_floats(longest sentence of the range, D) floats,
///                           64-byte aligned, of this call alone
///
/// Accumulates in f32. Error against the double reference ≤ 2× that of the f32 reference. A
/// sentence without tokens writes nothing. A (sentence, head) pair depends on its own rows alone:
/// any range gives the same bits. Pure: no allocation, no threads, no globals. Source: Vaswani et
/// al. 2017, §3.2.1.
using attention_forward_f32_t = void(const float* qkv, int64_t qkv_stride,
                                     const int32_t* cu_seqlens, int32_t first, int32_t last,
                                     int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                     float* out, int64_t out_stride, float* lse, float* scratch);

attention_forward_f32_t attention_forward_f32_ref, attention_forward_f32_avx2,
    attention_forward_f32_avx512;

/// The same in products of bf16, accumulated in f32, for sessions that multiply in bf16 or int8:
///
///     S = Q Kᵀ / √D      E = e^(S - c)      O = bf16(E) V / Σ_j bf16(E)
///
/// c is the largest score of the row.
///
/// qkv      [N, 3, H, D]  bf16, row stride `qkv_stride` ≥ 3·H·D elements
/// out      [N, H·D]  f32, row stride `out_stride`; null = not wanted
/// narrow   [N, H·D]  the same values rounded to bf16, row stride `narrow_stride`; null = not
///                    wanted; where H·D is odd, column H·D is set to 0 with the last head
/// scratch  attention_bf16_scratch_floats(longest sentence of the range, D) floats, 64-byte aligned
///
/// The rest is as above. Error against the double reference of the same Q, K and V ≤ 2× that
/// of the plain f32 loop, which rounds E as well. avx512_bf16 and amx take subnormals for 0.
using attention_forward_bf16_t = void(const uint16_t* qkv, int64_t qkv_stride,
                                      const int32_t* cu_seqlens, int32_t first, int32_t last,
                                      int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                      float* out, int64_t out_stride, uint16_t* narrow,
                                      int64_t narrow_stride, float* scratch);

attention_forward_bf16_t attention_forward_bf16_ref, attention_forward_bf16_avx512_bf16,
    attention_forward_bf16_amx;

/// The same for training, with dropout on the probabilities: O = dropout(P) V.
///
/// Probability (i, j) of head h, i the query's packed row and j the key's place in the sentence, is
/// element (row i, column j) of stream dropout.stream + h. lse is that of the undropped scores.
/// threshold 0 gives the bits of attention_forward_f32. Source: Vaswani et al. 2017, §5.4.
using attention_dropout_forward_f32_t = void(const float* qkv, int64_t qkv_stride,
                                             const int32_t* cu_seqlens, int32_t first, int32_t last,
                                             int32_t first_head, int32_t last_head, int32_t H,
                                             int32_t D, const Dropout& dropout, float* out,
                                             int64_t out_stride, float* lse, float* scratch);

attention_dropout_forward_f32_t attention_dropout_forward_f32_ref,
    attention_dropout_forward_f32_avx2, attention_dropout_forward_f32_avx512;

/// Its gradient, from the probabilities recomputed out of Q, K and lse. With R the multipliers that
/// dropout draws (0 or scale; 1 at threshold 0) and ∘ the product element by element:
///
///     E = e^(S - lse)    P = E / Σ_j E       dP = (dO Vᵀ) ∘ R    dS = P ∘ (dP - Σ_j P ∘ dP) / √D
///     dQ = dS K          dK = dSᵀ Q          dV = (P ∘ R)ᵀ dO
///
/// Σ_j E is 1 but for the rounding of lse to f32, which at large scores (|lse| of 1,000: 3e-5)
/// would leave every P of a row as far off.
///
/// qkv, lse  of the forward pass; qkv_stride, cu_seqlens, ranges and H, D as there
/// dropout   of the forward pass
/// dout      [N, H·D]      row stride `dout_stride` ≥ H·D floats
/// dqkv      [N, 3, H, D]  row stride `dqkv_stride` ≥ 3·H·D floats; = (not +=); must not overlap
///                         the others; heads [first_head, last_head) of sentences [first, last)
///                         are written, nothing else
/// scratch   attention_backward_scratch_floats(longest sentence of the range, D) floats, 64-byte
///           aligned, of this call alone
///
/// Accumulates in f32. Error against the double reference ≤ 3× that of the f32 reference. A
/// sentence without tokens writes nothing. A (sentence, head) pair depends on its own rows alone
/// and is the only one to write its rows: any range gives the same bits. Pure: no allocation, no
/// threads, no globals. Source: Dao et al. 2022, "FlashAttention", appendix B.4 (the recomputed
/// probabilities).
using attention_backward_f32_t = void(const float* qkv, int64_t qkv_stride,
                                      const int32_t* cu_seqlens, int32_t first, int32_t last,
                                      int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                      const float* lse, const Dropout& dropout, const float* dout,
                                      int64_t dout_stride, float* dqkv, int64_t dqkv_stride,
                                      float* scratch);

attention_backward_f32_t attention_backward_f32_ref, attention_backward_f32_avx2,
    attention_backward_f32_avx512;

/// Keys transposed to [D][T rounded up to 16], and the scores of eight query rows.
static constexpr int64_t attention_scratch_floats(int32_t T, int32_t D) {
  return ((int64_t)(T + 15) / 16 * 16) * (D + 8);
}

/// Queries, keys and values in pairs of bf16, then scores, probabilities and results of up to 32
/// query rows; T and D rounded up to whole tiles.
static constexpr int64_t attention_bf16_scratch_floats(int32_t T, int32_t D) {
  const int64_t rows = (T + 31) / 32 * 32, columns = (D + 31) / 32 * 32;
  return rows * columns / 2 * 3 + 48 * rows + 32 * columns;
}

/// Keys and values transposed to [D][T rounded up to 16], the dropped probabilities and the
/// gradients of the scores in [T][T rounded up to 16], and the multipliers of one row.
static constexpr int64_t attention_backward_scratch_floats(int32_t T, int32_t D) {
  return ((int64_t)(T + 15) / 16 * 16) * (2 * D + 2 * T + 1);
}

}  // namespace xsr::kernels
