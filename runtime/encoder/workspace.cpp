#include "runtime/encoder/workspace.h"

#include <algorithm>

#include "kernels/attention/attention.h"

namespace xsr {
namespace {

constexpr size_t kLineBytes = 64;

size_t aligned(size_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }
/// In elements: whole lines of 64 bytes, and one more.
template <typename T>
int64_t padded_stride(int64_t columns) {
  constexpr int64_t line = kLineBytes / sizeof(T);
  return (columns + line - 1) / line * line + line;
}

}  // namespace

Workspace::Workspace(const ModelConfig& config, int32_t max_tokens, int32_t max_sentences,
                     int32_t num_threads)
    : max_tokens_(max_tokens), max_sentences_(max_sentences) {
  const int64_t C = config.hidden_size, F = config.intermediate_size, N = max_tokens;
  x_stride = context_stride = pooled_stride = padded_stride<float>(C);
  qkv_stride = padded_stride<float>(3 * C);
  hidden_stride = padded_stride<float>(F);
  narrow_stride = padded_stride<uint16_t>(C);
  narrow_qkv_stride = padded_stride<uint16_t>(3 * C);
  narrow_hidden_stride = padded_stride<uint16_t>(F);  // 2 · this ≤ 4 · hidden_stride, in bytes
  quantized_stride = padded_stride<uint8_t>(C > F ? C : F);
  const int32_t longest = config.max_seq_len < max_tokens ? config.max_seq_len : max_tokens;
  const int32_t D = config.hidden_size / config.num_heads;
  attention_floats_ =
      padded_stride<float>(std::max(kernels::attention_scratch_floats(longest, D),
                                    kernels::attention_bf16_scratch_floats(longest, D)));

  struct Piece {
    void** pointer;
    size_t bytes;
  };
  const Piece pieces[] = {
      {reinterpret_cast<void**>(&x), sizeof(float) * N * x_stride},
      {reinterpret_cast<void**>(&qkv), sizeof(float) * N * qkv_stride},
      {reinterpret_cast<void**>(&context), sizeof(float) * N * context_stride},
      {reinterpret_cast<void**>(&hidden), sizeof(float) * N * hidden_stride},
      {reinterpret_cast<void**>(&narrow), sizeof(uint16_t) * N * 2 * x_stride},
      {reinterpret_cast<void**>(&quantized), sizeof(uint8_t) * N * quantized_stride},
      {reinterpret_cast<void**>(&quantized_rows), sizeof(kernels::QuantizedRow) * N},
      {reinterpret_cast<void**>(&rstd), sizeof(float) * N},
      {reinterpret_cast<void**>(&pooled),
       config.has_pooler ? sizeof(float) * max_sentences * pooled_stride : 0},
      {reinterpret_cast<void**>(&attention_), sizeof(float) * num_threads * attention_floats_},
      {reinterpret_cast<void**>(&token_ids), sizeof(int32_t) * N},
      {reinterpret_cast<void**>(&positions), sizeof(int32_t) * N},
      {reinterpret_cast<void**>(&cu_seqlens),
       sizeof(int32_t) * (static_cast<size_t>(max_sentences) + 1)},
  };
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += aligned(piece.bytes);
  memory_ = PageMemory(bytes);
  char* at = static_cast<char*>(memory_.data());
  for (const Piece& piece : pieces) {
    *piece.pointer = at;
    at += aligned(piece.bytes);
  }
}

}  // namespace xsr
