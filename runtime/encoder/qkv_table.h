#pragma once
#include <cstdint>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/device/page_memory.h"
#include "runtime/encoder/weights.h"

namespace xsr {

/// The first layer's Q, K and V of every token and position before the LayerNorm's scale
/// (kernels/embedding/embedding.h, qkv_table_forward_f32). A function of the model and the ISA
/// alone. Immutable.
class QkvTable {
 public:
  /// One product of the whole vocabulary, shared out over the pool. Throws std::bad_alloc.
  QkvTable(const ModelConfig& config, const EncoderWeights& weights,
           const kernels::KernelTable& kernels, ThreadPool& pool);
  QkvTable(const QkvTable&) = delete;
  QkvTable& operator=(const QkvTable&) = delete;

  const float* token() const { return token_; }        // [V, 3C]
  const float* position() const { return position_; }  // [P, 3C]
  const float* bias() const { return bias_; }          // [3C]

 private:
  float* token_ = nullptr;
  float* position_ = nullptr;
  float* bias_ = nullptr;
  PageMemory memory_;
};

}  // namespace xsr
