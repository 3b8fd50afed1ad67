#pragma once
#include <memory>
#include <vector>

#include "runtime/device/page_memory.h"
#include "runtime/encoder/encoder.h"
#include "runtime/encoder/weights.h"

namespace xsr {

/// The weight matrices of a model as a session computes with them where the file's own do not do,
/// made once and shared by the model's sessions. int8: 8 bits (from f32, f16 or bf16 rounded as
/// xsr-convert does; to i8 only the sums of the outputs are added), or the steps that AVX2 reads
/// instead, 1 to 3 bytes a weight. bf16x3: split in two bf16, 4 bytes a weight. f32 of an i8 file:
/// widened and multiplied by their scales. Everything else stays in the file. What is beyond the
/// caches stands on pages of 2 MiB, where the system grants them. Immutable.
class DerivedWeights {
 public:
  /// Reads every matrix. Throws std::bad_alloc; Error(UNSUPPORTED) where a matrix has more inputs
  /// than gemm_forward_i8 takes. in_steps: of kInt8, for gemm_forward_i8_avx2, which the CPU runs.
  DerivedWeights(const EncoderWeights& file, Compute compute, bool in_steps);

  const EncoderWeights& weights() const { return weights_; }

 private:
  void widen(LinearWeights& linear);  // i8 alone
  void quantize(LinearWeights& linear, bool in_steps);
  void split(LinearWeights& linear);
  template <typename T>
  T* allocate(int64_t count);

  struct Free {
    void operator()(void* memory) const;
  };
  EncoderWeights weights_;
  bool many_ = false;
  std::vector<std::unique_ptr<void, Free>> memory_;  // of few weights
  std::vector<PageMemory> blocks_;                   // of many
  char* next_ = nullptr;                             // what is free of the last block
  size_t left_ = 0;
};

}  // namespace xsr
