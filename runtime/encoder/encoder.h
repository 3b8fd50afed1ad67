#pragma once
#include <cstdint>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/encoder/weights.h"
#include "runtime/encoder/workspace.h"

namespace xsr {

/// What the matrix products compute with; the numbers are those of xsr_compute.
enum class Compute : int32_t { kF32 = 0, kBf16 = 1 };

/// Runs the encoder over the chunk that stands in the workspace (token_ids, positions, cu_seqlens
/// of num_sentences sentences) and writes one embedding a sentence; a sentence without tokens gives
/// zeros.
///
/// embeddings [num_sentences, config.embedding_size] f32, rows next to each other
/// pool       null: this thread alone does the work, with attention scratch 0; else every step is
/// shared out over its
///            threads. The bits are the same: no step adds across a seam.
void encode_chunk(const ModelConfig& config, const EncoderWeights& weights,
                  const kernels::KernelTable& kernels, Compute compute, int32_t num_sentences,
                  bool normalize, Workspace& workspace, ThreadPool* pool, float* embeddings);

}  // namespace xsr
