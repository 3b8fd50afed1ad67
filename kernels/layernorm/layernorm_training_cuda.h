#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"
#include "kernels/dropout/dropout.h"
#include "kernels/gemm/column_sum_cuda.h"

namespace xsr::cuda {

// LayerNorm of training on the device, with what stands beside it there. In all of them:
//
// N          rows, next to each other: every row stride is C, a multiple of 4; f32 matrices and
//            vectors are 16-byte aligned, bf16 ones 8-byte
// dropout    on the device, so that a captured step draws new masks; `place` is added to its stream
// statistics [N, 2]  mean and 1 / sqrt(var + eps) of every row, for the backward pass
// narrow     [N, C]  bf16, to nearest even, of the f32 output beside it; null = not wanted
//
// A warp owns a row: a row's bits depend on that row alone. Errors are within the budgets of
// kernels/layernorm/layernorm.h.

/// sum ← token[token_ids[i]] + position[positions[i]];  out ← dropout(LayerNorm(sum))
///
/// token_ids, positions [N]   token [V, C]   position [P, C]   gamma, beta [C]   sum, out [N, C]
Status embedding_layernorm_dropout_forward_cuda(const int32_t* token_ids, const int32_t* positions,
                                                int32_t N, int32_t C, const float* token,
                                                const float* position, const float* gamma,
                                                const float* beta, float eps,
                                                const kernels::Dropout* dropout, uint32_t place,
                                                float* sum, float* out, uint16_t* narrow,
                                                float* statistics, Stream stream);

/// sum ← residual + dropout(sum);  out ← LayerNorm(sum)
///
/// sum [N, C] read and written   residual, out [N, C]   gamma, beta [C]
/// dropout: null = nothing drops; residual: null = none. With both null sum is not written.
Status dropout_add_layernorm_forward_cuda(float* sum, const float* residual, int32_t N, int32_t C,
                                          const float* gamma, const float* beta, float eps,
                                          const kernels::Dropout* dropout, uint32_t place,
                                          float* out, uint16_t* narrow, float* statistics,
                                          Stream stream);

/// Rows [N, C] in f32: x, or where statistics are given the LayerNorm of x,
/// (x − mean) · rstd · gamma + beta, which then stands nowhere.
struct NormRows {
  const float* x = nullptr;
  const float *statistics = nullptr, *gamma = nullptr, *beta = nullptr;
};

/// sum ← residual + dropout(branch + bias);  out ← LayerNorm(sum)
///
/// branch [N, C]  bf16, without its bias, as in a product into bf16   bias, gamma, beta [C]
/// dropout        on the device; its threshold may be 0
/// sum    [N, C]  =, no row of the residual
/// out, narrow    null = not wanted
Status dropout_add_layernorm_forward_bf16_cuda(const uint16_t* branch, const float* bias,
                                               const NormRows& residual, int32_t N, int32_t C,
                                               const float* gamma, const float* beta, float eps,
                                               const kernels::Dropout* dropout, uint32_t place,
                                               float* sum, float* out, uint16_t* narrow,
                                               float* statistics, Stream stream);

/// The gradient of a LayerNorm's output.
struct NormGradient {
  /// [N, C]; read where sentence_of is null, and overwritten by that of the LayerNorm's input
  float* dx = nullptr;
  /// [N, C] bf16, 8-byte aligned: added to dx first; null = nothing
  const uint16_t* more = nullptr;
  /// [N] a row's sentence, below 0 where it has none, or null. Given, dy [B, C] f32 is that of a
  /// pooling of the output by mean, or of the first rows, and dx is not read. C ≤
  /// kMostRegisterColumns; dy is null where no row has a sentence.
  const int32_t* sentence_of = nullptr;
  const int32_t* cu_seqlens = nullptr;
  const float* dy = nullptr;
  bool mean = false;
};
/// Columns of the rows that a warp keeps in registers: up to these the backward pass is one kernel,
/// and there may be a sentence_of.
static constexpr int32_t kMostRegisterColumns = 1024;

/// Blocks that share the rows of layernorm_backward_cuda, and whose sums are added up at its end:
/// of rows in registers no more than this, whatever the device.
static constexpr int32_t kMostNormBlocks = 264;

/// Floats that layernorm_backward_cuda needs beside its arguments.
static constexpr int64_t layernorm_backward_floats_cuda(int32_t N, int32_t C) {
  const int64_t blocks = C > kMostRegisterColumns        ? (N + 63) / 64
                         : (N + 7) / 8 < kMostNormBlocks ? (N + 7) / 8
                                                         : kMostNormBlocks;
  return 3 * blocks * C;
}

/// Backward of the LayerNorm, and of the dropout before it or behind it:
///
///     dx ← gradient of sum, from that of out        dbranch ← dropout(dx)
///     dgamma ← Σ dy · x̂        dbeta ← Σ dy        dbias ← Σ dbranch
///
/// sum, statistics  of the forward pass
/// dropout null = none
/// behind  dropout stands behind the LayerNorm, as in embedding_layernorm_dropout_forward_cuda:
///         the gradient is given before it, and there is no branch
/// dbranch [N, C]  null = not wanted
/// dgamma, dbeta, dbias [C]  =, rows added in an order that N and C alone fix; dbias null = not
///         wanted, of C > 1024 that of narrow's rows where that is wanted
/// parts   [layernorm_backward_floats_cuda(N, C)]
/// later   as of column_sum_cuda; not used for C > 1024
Status layernorm_backward_cuda(const float* sum, const float* statistics,
                               const NormGradient& of_out, int32_t N, int32_t C, const float* gamma,
                               const kernels::Dropout* dropout, uint32_t place, bool behind,
                               float* dbranch, uint16_t* narrow, float* dgamma, float* dbeta,
                               float* dbias, float* parts, PartSums* later, Stream stream);

}  // namespace xsr::cuda
