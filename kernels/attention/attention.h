#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// Multi-head self-attention over ragged sentences; no padding token is read or written.
///
///     S = Q Kᵀ / √D      P = softmax(S)      O = P V        for each sentence b and head h
///
/// qkv         [N, 3, H, D]  one row a token, row stride `qkv_stride` ≥ 3·H·D floats
/// cu_seqlens  [B + 1]       never falling; sentence b has rows [cu_seqlens[b], cu_seqlens[b + 1])
/// out         [N, H·D]      row stride `out_stride` ≥ H·D floats; must not overlap qkv; heads
/// [first_head, last_head)
///                           of sentences [first, last) are written, nothing else
/// lse         [N, H]        log Σ exp S per query row, for the backward pass; null when not
/// training scratch     attention_scratch_floats(longest sentence of the range, D) floats, 64-byte
/// aligned, of this call alone
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

/// Keys transposed to [D][T rounded up to 32], and the scores of eight query rows.
static constexpr int64_t attention_scratch_floats(int32_t T, int32_t D) {
  return ((int64_t)(T + 31) / 32 * 32) * (D + 8);
}

}  // namespace xsr::kernels
