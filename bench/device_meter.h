#pragma once
#include <memory>
#include <string>

#include "bench/roofline.h"
#include "bench/workload.h"
#include "runtime/encoder/device_encoder.h"

namespace xsr::bench {

/// What the first of a session's CUDA devices does by itself: with the token ids there beforehand
/// and the embeddings left there. An encoder of its own, beside the session's.
class DeviceMeter {
 public:
  /// Throws Error as make_cuda_encoder does.
  DeviceMeter(const XsrFile& file, xsr_compute compute, bool qkv_table, int32_t batch_tokens,
              const std::string& device);

  /// The most that a large square product of the session's precision comes to, and a large copy on
  /// the device (read and written), the best of all calls. Call it before, between and after the
  /// timings.
  void measure();
  const Roofline& roofline() const { return roofline_; }

  /// Seconds of one sentence of `tokens` random ids, between two events on the device.
  double sentence_seconds(int32_t tokens);
  /// Seconds of one pass over all sentences.
  double corpus_seconds(const IdBatch& batch);

 private:
  double seconds(const IdBatch& batch, int32_t passes);

  const ModelConfig config_;
  std::unique_ptr<DeviceEncoder> encoder_;
  Roofline roofline_;
};

}  // namespace xsr::bench
