#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"
#include "kernels/gemm/column_sum_cuda.h"

namespace xsr::cuda {

// ---- The loss over a vocabulary, tile by tile: z [S, R] are the logits of S sentences for the
// words [first, first + R), without their bias, in f32; no more of them exists at a time. first and
// row strides are multiples of 4; z and bias start at multiples of 16 bytes, narrow of 8.

/// What the sentences' targets ask of the vocabulary, on the device. Sentence b has the words
/// [offsets[b], offsets[b + 1]), each id once.
struct VocabularyWords {
  const int32_t* offsets = nullptr;     // [S + 1]
  const int32_t* token_ids = nullptr;   // [W]
  const float* coefficients = nullptr;  // [W]  Σ over the targets of weight · mass / pairs
  const float* masses = nullptr;        // [targets, mass_stride]  0 where a target has not the word
  int64_t mass_stride = 0;              // ≥ W
  int32_t num_targets = 0;
  const double* coefficient_sums = nullptr;  // [S]  of the coefficients
  float* logits = nullptr;                   // [W]  written by the forward pass
};

/// max[b], sum[b] of the tile as vocabulary_softmax_forward_f32, and the logits of its words.
///
/// bias  [V]  of the whole vocabulary
Status vocabulary_tile_forward_f32_cuda(const float* z, int64_t z_stride, int32_t S, int32_t first,
                                        int32_t R, const float* bias, const VocabularyWords& words,
                                        float* max, float* sum, Stream stream);

/// lse[b] from the tiles' max and sum [tiles, S], in double, and the losses of each target:
///
///     parts[k, b] = Σ_v p[b, v] (log p[b, v] + lse[b] − z[b, v]) / num_pairs
///
/// NaN where a logit of the sentence is not finite, even where no target looks at it.
Status vocabulary_finish_cuda(const float* max, const float* sum, int32_t tiles, int32_t S,
                              int32_t num_pairs, const VocabularyWords& words, double* lse,
                              double* parts, Stream stream);

/// Sentences that a block of vocabulary_tile_backward_f32_cuda adds up, and floats of its `parts`.
static constexpr int32_t vocabulary_block_rows(int32_t S) {
  constexpr int32_t kMostBlocks = 32, kLeast = 16;
  const int32_t rows = (S + 4 * kMostBlocks - 1) / (4 * kMostBlocks) * 4;
  return rows > kLeast ? rows : kLeast;
}
static constexpr int64_t vocabulary_bias_floats_cuda(int32_t S, int32_t R) {
  const int32_t rows = vocabulary_block_rows(S);
  return (int64_t)((S + rows - 1) / rows) * R;
}

/// dz ← coefficient_sums[b] · softmax − coefficients: over z, or where narrow is given into it,
/// rounded to bf16, and z stays as it is.
///
///     dbias[first + v] = Σ_b dz[b, v]
///
/// of dz before it is rounded, in an order that S alone fixes.
///
/// z, max   of the tile
/// narrow   [S, R]  row stride narrow_stride; null = over z
/// dbias    [V]  =, of the words of the tile
/// parts    [vocabulary_bias_floats_cuda(S, R)]
/// later    as of column_sum_cuda
Status vocabulary_tile_backward_f32_cuda(float* z, int64_t z_stride, int32_t S, int32_t first,
                                         int32_t R, const float* bias, const VocabularyWords& words,
                                         const float* max, const double* lse, uint16_t* narrow,
                                         int64_t narrow_stride, float* dbias, float* parts,
                                         PartSums* later, Stream stream);

// ---- Losses on similarities s [B, B], row stride B

/// The contrastive loss of training/objectives/contrastive.h from raw similarities, and its
/// gradient for them:
///
///     S = (s − margin [i = j]) / temperature
///     parts[i] = share (log Σ_j e^S[i, j] + log Σ_j e^S[j, i] − 2 S[i, i])
///     s ← gain (softmax of rows + softmax of columns − 2 [i = j])
///
/// statistics [4, B] scratch
Status contrastive_forward_backward_f32_cuda(float* s, int32_t B, float inverse_temperature,
                                             float margin, double share, float gain,
                                             float* statistics, double* parts, Stream stream);

/// SIM from the similarities within the two sides, which their gradients overwrite:
/// softmax_forward_f32 and sim_forward_backward_f32. parts [B]: the rows' losses.
Status sim_forward_backward_f32_cuda(float* s1, float* s2, int32_t B, double argument,
                                     double min_cosine, double gain, double* parts, Stream stream);

/// losses[k] ← factor · Σ_i parts[k, i], i < count, in an order that count alone fixes
Status sum_losses_cuda(const double* parts, int32_t count, int32_t num_losses, double factor,
                       double* losses, Stream stream);

}  // namespace xsr::cuda
