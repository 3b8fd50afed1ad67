// What libxsr_cuda.so shows: the encoders of runtime/encoder/device_encoder.h.
#include "runtime/device/cuda_library.h"
#include "runtime/encoder/cuda/cuda_encoder.h"
#include "xsr/xsr.h"

extern "C" XSR_API xsr::DeviceEncoder* xsr_cuda_encoder_create(
    const char* build, const xsr::ModelConfig& config, const xsr::EncoderWeights& weights,
    const xsr::CudaEncoderOptions& options);

xsr::DeviceEncoder* xsr_cuda_encoder_create(const char* build, const xsr::ModelConfig& config,
                                            const xsr::EncoderWeights& weights,
                                            const xsr::CudaEncoderOptions& options) {
  xsr::require_same_build(build, xsr::cuda_encoder_build());
  return xsr::cuda::make_encoder(config, weights, options).release();
}
