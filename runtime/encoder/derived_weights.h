#pragma once
#include <memory>
#include <vector>

#include "runtime/encoder/weights.h"

namespace xsr {

/// The weight matrices of a model in another storage than its file's, made once and shared by the
/// model's sessions: kI8 for products in int8 (from f32, f16 or bf16 rounded to 8 bits as
/// xsr-convert does; from i8 only the sums of the channels are added), kF32 for products in f32 of
/// an i8 file (widened and multiplied by their scales). Everything else stays in the file.
/// Immutable.
class DerivedWeights {
 public:
  /// Reads every matrix. Throws std::bad_alloc; Error(UNSUPPORTED) where a matrix has more inputs
  /// than gemm_forward_i8 takes.
  DerivedWeights(const EncoderWeights& file, kernels::Storage storage);

  const EncoderWeights& weights() const { return weights_; }
  size_t bytes() const { return bytes_; }

 private:
  void derive(LinearWeights& linear, kernels::Storage storage);
  template <typename T>
  T* allocate(int64_t count);

  struct Free {
    void operator()(void* memory) const;
  };
  EncoderWeights weights_;
  std::vector<std::unique_ptr<void, Free>> memory_;
  size_t bytes_ = 0;
};

}  // namespace xsr
