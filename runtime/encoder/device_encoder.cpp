#include "runtime/encoder/device_encoder.h"

#include "runtime/device/cuda_library.h"

namespace xsr {

std::string cuda_encoder_build() {
  return cuda_library_build({sizeof(ModelConfig), sizeof(EncoderWeights), sizeof(LayerWeights),
                             sizeof(CudaEncoderOptions), sizeof(QkvTable), sizeof(DeviceEncoder)});
}

std::unique_ptr<DeviceEncoder> make_cuda_encoder(const ModelConfig& config,
                                                 const EncoderWeights& weights,
                                                 const CudaEncoderOptions& options) {
  constexpr CudaLibrary kLibrary = {"libxsr_cuda.so", "XSR_CUDA_LIBRARY", "a CUDA session"};
  auto* const create =
      reinterpret_cast<cuda_encoder_entry_t*>(cuda_library_entry(kLibrary, kCudaEncoderEntry));
  return std::unique_ptr<DeviceEncoder>(
      create(cuda_encoder_build().c_str(), config, weights, options));
}

}  // namespace xsr
