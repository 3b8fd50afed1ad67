#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/gemm/gemm.h"
#include "runtime/device/page_memory.h"
#include "runtime/format/model_config.h"

namespace xsr {

/// Every buffer of a forward pass, laid out from the configuration in one allocation. Row strides
/// are 64 bytes longer than a row, so that rows do not fall into the same cache sets. Rows that a
/// product reads begin at multiples of 64 bytes: a tile of AMX loads 64 bytes a row, and those of a
/// row that begins elsewhere would lie in two cache lines.
class Workspace {
 public:
  /// For chunks of up to max_tokens tokens and max_sentences sentences, the longest of max_seq_len
  /// tokens, worked on by num_threads threads. Throws std::bad_alloc.
  Workspace(const ModelConfig& config, int32_t max_tokens, int32_t max_sentences,
            int32_t num_threads);
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  int32_t max_tokens() const { return max_tokens_; }
  int32_t max_sentences() const { return max_sentences_; }

  // Activations, [max_tokens, stride]
  float* x = nullptr;          // [N, C]
  float* qkv = nullptr;        // [N, 3C], or the same in bf16 at narrow_qkv_stride
  float* context = nullptr;    // [N, C]
  float* hidden = nullptr;     // [N, F]
  uint16_t* narrow = nullptr;  // [N, C] bf16 at narrow_stride, or [N, 2S] split at 2 x_stride: the
                               // next product's input
  uint8_t* quantized = nullptr;                     // [N, max(C, F)]: the same in int8
  kernels::QuantizedRow* quantized_rows = nullptr;  // [N]: of them
  float* rstd = nullptr;                            // [N]: of the embedding's LayerNorm
  float* pooled = nullptr;                          // [B, C]; only with a pooler
  int64_t x_stride = 0, qkv_stride = 0, context_stride = 0, hidden_stride = 0, narrow_stride = 0,
          quantized_stride = 0, pooled_stride = 0;
  int64_t narrow_qkv_stride = 0;
  int64_t narrow_hidden_stride = 0;  // where hidden holds bf16; split rows: 2 hidden_stride
  /// Scratch of the attention kernel, one piece a thread.
  float* attention_scratch(int32_t thread) const { return attention_ + thread * attention_floats_; }

  // The chunk itself
  int32_t* token_ids = nullptr;   // [max_tokens]
  int32_t* positions = nullptr;   // [max_tokens]
  int32_t* cu_seqlens = nullptr;  // [max_sentences + 1]

 private:
  int32_t max_tokens_, max_sentences_;
  float* attention_ = nullptr;
  int64_t attention_floats_ = 0;
  PageMemory memory_;
};

}  // namespace xsr
