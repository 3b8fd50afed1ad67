#pragma once
// The shapes that tests and benches share: those of the encoder that Mao et al. 2021 released.
#include <stdint.h>

#include "kernels/activation/activation.h"

namespace xsr::kernels {

static constexpr int32_t kXsrLayers = 2;
static constexpr int32_t kXsrHiddenSize = 512;
static constexpr int32_t kXsrHeads = 8;
static constexpr int32_t kXsrHeadDim = 64;
static constexpr int32_t kXsrIntermediateSize = 1024;
static constexpr int32_t kXsrVocabSize = 50000;
static constexpr int32_t kXsrMaxSeqLen = 200;

/// One matrix product of an encoder layer: out [M, N] = a [M, K] · Wᵀ.
struct GemmShape {
  const char* name;
  int32_t N;
  int32_t K;
  Activation activation;
  bool residual;
};
static constexpr GemmShape kXsrGemms[] = {
    {"qkv", 3 * kXsrHiddenSize, kXsrHiddenSize, Activation::kNone, false},
    {"attention_output", kXsrHiddenSize, kXsrHiddenSize, Activation::kNone, true},
    {"up", kXsrIntermediateSize, kXsrHiddenSize, Activation::kSwish, false},
    {"down", kXsrHiddenSize, kXsrIntermediateSize, Activation::kNone, true},
};

/// Rows of a: single sentences of these many tokens, then chunks of a packed corpus.
static constexpr int32_t kXsrTokenCounts[] = {1, 5, 10, 20, 50, 96, 128};

/// Row strides that are multiples of 2 KiB make rows fall into the same cache sets.
static constexpr int64_t padded_stride(int32_t columns) { return columns + 16; }

}  // namespace xsr::kernels
