#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/encoder/encoder.h"

namespace xsr {

/// The forward pass on devices other than the processor: what a Session gives its sentences to.
/// One call at a time.
class DeviceEncoder {
 public:
  virtual ~DeviceEncoder() = default;

  /// "NVIDIA H100 80GB HBM3"; of several, with commas between.
  virtual const std::string& name() const = 0;

  /// Row i of embeddings [sentences.size(), embedding_size] is sentence i's; zeros for one without
  /// tokens. Sentences have at most max_seq_len tokens, all in the vocabulary. A row's bits depend
  /// on its sentence alone, whatever the batch, the order, and the number of devices. Throws
  /// Error(CUDA, OUT_OF_MEMORY), with some rows written.
  virtual void embed(std::span<const std::span<const int32_t>> sentences, float* embeddings) = 0;

  // For benches, on the first device:

  /// Seconds of one pass over the sentences, the median of `passes`, with the token ids on the
  /// device beforehand and the embeddings left there.
  virtual double measure_resident(std::span<const std::span<const int32_t>> sentences,
                                  int32_t passes) = 0;
  /// The most multiply-adds a second, twice counted, that a large square product in this encoder's
  /// precision comes to; FLOP/s.
  virtual double measure_peak() = 0;
  /// The most that a large copy on the device comes to, read and written; bytes/s.
  virtual double measure_bandwidth() = 0;
};

/// Tokens of a chunk unless the caller wants others: the activations of the two chunks under way
/// stay in the L2 of a device. Not measured yet.
constexpr int32_t kDeviceChunkTokens = 4096;

struct CudaEncoderOptions {
  Compute compute = Compute::kF32;  // kF32, kTf32, kBf16
  bool normalize = false;
  const QkvTable* qkv_table = nullptr;  // copied to the devices
  std::vector<int32_t> devices = {0};   // several share the chunks of a call
  int32_t chunk_tokens = kDeviceChunkTokens;
};

/// An encoder on CUDA devices, out of libxsr_cuda.so (runtime/device/cuda_library.h), for which
/// XSR_CUDA_LIBRARY names another file. The weights are copied to every device. Throws Error: CUDA
/// saying what is missing (library, driver, device), UNSUPPORTED for a model that the kernels do
/// not take or devices of different kinds, OUT_OF_MEMORY.
std::unique_ptr<DeviceEncoder> make_cuda_encoder(const ModelConfig& config,
                                                 const EncoderWeights& weights,
                                                 const CudaEncoderOptions& options);

/// What the library gives under the name kCudaEncoderEntry. `build` is the caller's
/// cuda_encoder_build().
using cuda_encoder_entry_t = DeviceEncoder*(const char* build, const ModelConfig& config,
                                            const EncoderWeights& weights,
                                            const CudaEncoderOptions& options);
inline constexpr char kCudaEncoderEntry[] = "xsr_cuda_encoder_create";
std::string cuda_encoder_build();

}  // namespace xsr
