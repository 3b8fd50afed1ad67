#pragma once
#include <cstdint>
#include <memory>

#include "bench/huge_buffer.h"
#include "runtime/format/model_config.h"
#include "runtime/format/xsr_file.h"

namespace xsr::bench {

/// What --random takes: layers, hidden, heads, intermediate, vocabulary; --activation, --pooling.
struct RandomShape {
  int32_t num_layers = 0;
  int32_t hidden_size = 0;
  int32_t num_heads = 0;
  int32_t intermediate_size = 0;
  int32_t vocab_size = 0;
  Activation activation = Activation::kSwish;
  Pooling pooling = Pooling::kMean;
};

/// A model of family xsr (200 tokens at most, post-norm, no tokenizer) as the bytes of a .xsr
/// file, on 2 MiB pages, so that a shape can be timed before its weights exist.
/// Weights are N(0, 1/K), LayerNorm weights N(1, 0.1²), biases N(0, 0.1²): activations keep the
/// size they have in a trained model. A function of the arguments alone.
class RandomModel {
 public:
  /// storage: of the matrices and tables. Throws Error for impossible shapes.
  RandomModel(const RandomShape& shape, DType storage, uint32_t seed);

  const void* data() const { return buffer_->data(); }
  size_t size() const { return size_; }

 private:
  std::unique_ptr<HugeBuffer> buffer_;
  size_t size_ = 0;
};

}  // namespace xsr::bench
