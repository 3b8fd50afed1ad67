#pragma once
#include <memory>

#include "runtime/device/cpu_threads.h"
#include "runtime/encoder/weights.h"

namespace xsr {

/// A model's weights with the layers' matrices split into two bf16 each, for sessions that compute
/// in bf16x3: 4 bytes a weight beside the file's. Immutable.
class SplitWeights {
 public:
  /// One matrix a task, shared out over the pool. Throws std::bad_alloc.
  SplitWeights(const EncoderWeights& weights, ThreadPool& pool);
  SplitWeights(const SplitWeights&) = delete;
  SplitWeights& operator=(const SplitWeights&) = delete;

  const EncoderWeights& weights() const { return weights_; }
  size_t bytes() const { return bytes_; }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* memory) const;
  };
  EncoderWeights weights_;
  size_t bytes_ = 0;
  std::unique_ptr<void, Unmap> memory_;
};

}  // namespace xsr
