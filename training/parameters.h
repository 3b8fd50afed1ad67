#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/device/page_memory.h"
#include "runtime/format/model_config.h"

namespace xsr::training {

/// One trained tensor, row-major f32 (a linear layer's weight is [N outputs, K inputs]).
struct Parameter {
  std::string name;            // as in the .xsr file; the head's begin with "head."
  std::vector<int64_t> shape;  // 1 or 2 dimensions
  int64_t offset = 0;          // floats, into every flat buffer; a multiple of 16
  int64_t size = 0;            // floats
};

/// The one list of a model's trained tensors, which initialisation, gradients, optimiser moments,
/// checkpoints, the .xsr writer and the tests all walk. The token table stands once: its gradient
/// is the sum of its two uses (docs/methods.md, Generative head).
class ParameterTable {
 public:
  /// Encoder tensors in the order of the .xsr file, then the generative head:
  /// head.transform.weight [C, C], head.transform.bias [C], head.norm.gamma [C], head.norm.beta
  /// [C], head.output.bias [V]. Throws Error(UNSUPPORTED) for a model that cannot be trained:
  /// another family than xsr, pre layer norm, a pooler, token types.
  explicit ParameterTable(const ModelConfig& config);

  std::span<const Parameter> parameters() const { return parameters_; }
  /// Throws std::out_of_range.
  const Parameter& at(std::string_view name) const;
  /// Floats of one flat buffer, the gaps (zeros) included.
  int64_t size() const { return size_; }

 private:
  std::vector<Parameter> parameters_;
  int64_t size_ = 0;
};

/// A flat buffer over a ParameterTable: values, gradients, or one of the optimiser's moments.
/// 64-byte aligned, zero at first.
class FlatBuffer {
 public:
  explicit FlatBuffer(int64_t size);
  FlatBuffer(const FlatBuffer&) = delete;
  FlatBuffer& operator=(const FlatBuffer&) = delete;
  float* data() { return memory_.floats(); }
  const float* data() const { return memory_.floats(); }
  float* at(const Parameter& p) { return data() + p.offset; }
  const float* at(const Parameter& p) const { return data() + p.offset; }
  int64_t size() const { return size_; }

 private:
  PageMemory memory_;
  int64_t size_ = 0;
};

}  // namespace xsr::training
