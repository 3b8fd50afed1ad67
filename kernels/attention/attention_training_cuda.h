#pragma once
#include <stdint.h>

#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/stream.h"
#include "kernels/dropout/dropout.h"

namespace xsr::cuda {

/// The largest head that the kernels of training take.
static constexpr int32_t kMaxTrainingHeadDim = 128;

// Attention of training, attention_dropout_forward_f32 and attention_backward_f32, in f32 on the
// device. A block owns a (sentence, head) pair and walks its keys 32 at a time, so that a sentence
// may have any length; scores and probabilities stay on the chip.
//
// qkv, dqkv   [N, 3, H, D]  rows next to each other; D ≤ kMaxTrainingHeadDim
// cu_seqlens  [B + 1]       rows from cu_seqlens[B] up to N belong to no sentence
// dropout     on the device; stream dropout->stream + place + h is head h's
// lse         [N, H]

/// out     [N, H·D]  f32; null = not wanted; rows that belong to no sentence become zero, here and
///         below
/// narrow  [N, H·D]  the same in bf16; null = not wanted
Status attention_training_forward_f32_cuda(const float* qkv, const int32_t* cu_seqlens, int32_t B,
                                           int32_t N, int32_t H, int32_t D,
                                           const kernels::Dropout* dropout, uint32_t place,
                                           float* out, uint16_t* narrow, float* lse, Stream stream);

/// lse     of the forward pass
/// dout    [N, H·D]
/// dqkv    [N, 3, H, D]  =; null = not wanted
/// narrow  [N, 3, H, D]  dqkv in bf16; null = not wanted
/// delta   [N, H, 2]  scratch, 8-byte aligned
Status attention_backward_f32_cuda(const float* qkv, const int32_t* cu_seqlens, int32_t B,
                                   int32_t N, int32_t H, int32_t D, const float* lse,
                                   const kernels::Dropout* dropout, uint32_t place,
                                   const float* dout, float* dqkv, uint16_t* narrow, float* delta,
                                   Stream stream);

/// Heads that the two below take.
static constexpr bool attention_bf16_takes(int32_t D) {
  return D % 16 == 0 && 0 < D && D <= kMaxTrainingHeadDim;
}

// The same on the tensor cores, of bf16 and into bf16, sums in f32. A warp owns 16 rows of a
// (sentence, head) pair, of queries and then of keys, and walks the others 16 or 32 at a time;
// nothing is added with atomics, and two runs give the same bits. Where not said otherwise as
// above; status 1 for heads that attention_bf16_takes() does not.
//
// qkv   [N, 3, H, D] bf16, without the bias, as in a product into bf16
// bias  [3, H, D] f32. Q plus its bias is rounded to bf16 again; V's is added behind the
//       probabilities, in f32; K's changes no probability and is not read, so that its gradient,
//       the sum of dK's rows, is 0 up to rounding
// lse   [N, H] f32, of scores without K's bias
//
// Rounded besides are P before it meets V or dO, P ∘ (dP - delta) before it meets K or Q, and the
// results. The error against double is at most 2 (backward 3) times that of plain loops in f32 that
// round there.
//
// qkv, bias, out, dout and dqkv start at multiples of 16 bytes.

/// out  [N, H·D]
Status attention_training_forward_bf16_cuda(const uint16_t* qkv, const float* bias,
                                            const int32_t* cu_seqlens, int32_t B, int32_t N,
                                            int32_t H, int32_t D, const kernels::Dropout* dropout,
                                            uint32_t place, uint16_t* out, float* lse,
                                            Stream stream);

/// The most rows of a chunk, and the longest sentence that the backward pass takes whole.
static constexpr int32_t kChunkRows = 64;

/// Lists the sentences of more than `whole` tokens in chunks of up to kChunkRows rows, in order;
/// chunks [attention_chunk_count(N, B)], or null. Returns how many.
static constexpr int32_t attention_chunk_count(int32_t N, int32_t B) { return N / kChunkRows + B; }
static inline int32_t attention_chunks(const int32_t* cu_seqlens, int32_t B, int32_t whole,
                                       AttentionTile* chunks) {
  int32_t count = 0;
  for (int32_t b = 0; b < B; ++b) {
    const int32_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
    for (int32_t row = begin; row < end && end - begin > whole; row += kChunkRows) {
      if (chunks != nullptr) chunks[count] = {begin, end, row};
      ++count;
    }
  }
  return count;
}

/// A sentence of up to `whole` tokens is read once, by one block; the others, which `chunks` lists
/// for the same `whole`, twice, by a block a chunk and in a second launch, which there is where
/// num_chunks > 0. Their bits do not depend on `whole`.
///
/// chunks  [num_chunks] on the device; chunks with begin = end = row do nothing
/// dout    [N, H·D]
/// dqkv    [N, 3, H, D]  =
/// delta   [N, H, 3]  scratch, 8-byte aligned
/// whole   ≤ kChunkRows, else status 1
Status attention_backward_bf16_cuda(const uint16_t* qkv, const float* bias,
                                    const int32_t* cu_seqlens, int32_t B, int32_t N, int32_t H,
                                    int32_t D, const AttentionTile* chunks, int32_t num_chunks,
                                    const float* lse, const kernels::Dropout* dropout,
                                    uint32_t place, const uint16_t* dout, uint16_t* dqkv,
                                    float* delta, Stream stream, int32_t whole = kChunkRows);

}  // namespace xsr::cuda
