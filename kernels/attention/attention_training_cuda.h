#pragma once
#include <stdint.h>

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
/// delta   [N, H]  scratch
Status attention_backward_f32_cuda(const float* qkv, const int32_t* cu_seqlens, int32_t B,
                                   int32_t N, int32_t H, int32_t D, const float* lse,
                                   const kernels::Dropout* dropout, uint32_t place,
                                   const float* dout, float* dqkv, uint16_t* narrow, float* delta,
                                   Stream stream);

}  // namespace xsr::cuda
