#pragma once
#include <cstdint>
#include <functional>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/encoder/qkv_table.h"
#include "runtime/encoder/weights.h"
#include "runtime/encoder/workspace.h"

namespace xsr {

/// What the matrix products compute with; the numbers are those of xsr_compute.
enum class Compute : int32_t { kF32 = 0, kBf16 = 1, kBf16x3 = 2, kInt8 = 3, kTf32 = 4 };

/// What a session has chosen of a model, once; everything outlives the encoder.
struct Encoder {
  const ModelConfig& config;
  const EncoderWeights& weights;
  kernels::KernelTable kernels;
  Compute compute = Compute::kF32;
  bool normalize = false;
  const QkvTable* qkv_table = nullptr;  // null: the first layer multiplies like the others
  // Of encoders that compute in f32: sees the input [num_tokens, K] of each product in a layer.
  std::function<void(const LinearWeights& product, const float* input, int64_t stride,
                     int32_t num_tokens)>
      observer = {};

  /// Attention multiplies in bf16 as well, where the products have no more than 8 bits and the ISA
  /// multiplies bf16.
  bool bf16_attention() const {
    return (compute == Compute::kBf16 || compute == Compute::kInt8) &&
           kernels.attention_forward_bf16_isa != kernels::Isa::kRef;
  }
};

/// Heads whose Q, K and V stand in the workspace at a time: on AMX two, where their panels are
/// whole, since the rows of all would push weights out of L2; elsewhere products take so much
/// longer that it makes no difference.
int32_t heads_at_a_time(kernels::Isa isa, const ModelConfig& config);

/// Runs the encoder over the chunk that stands in the workspace (token_ids, positions, cu_seqlens
/// of num_sentences sentences) and writes one embedding a sentence; a sentence without tokens gives
/// zeros. Behind the last layer's attention only rows that pooling reads go on: with cls the first
/// of each sentence, and cu_seqlens counts those then.
///
/// embeddings [num_sentences, config.embedding_size] f32, rows next to each other
/// pool       null: this thread alone does the work, with attention scratch 0; else every step is
///            shared out over its threads. The bits are the same: no step adds across a seam.
void encode_chunk(const Encoder& encoder, int32_t num_sentences, Workspace& workspace,
                  ThreadPool* pool, float* embeddings);

}  // namespace xsr
