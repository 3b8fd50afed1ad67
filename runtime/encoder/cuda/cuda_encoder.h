#pragma once
#include <memory>

#include "runtime/encoder/device_encoder.h"

namespace xsr::cuda {

/// One of runtime/encoder/device_encoder.h, on the CUDA devices or on the emulated one.
std::unique_ptr<DeviceEncoder> make_encoder(const ModelConfig& config,
                                            const EncoderWeights& weights,
                                            const CudaEncoderOptions& options);

}  // namespace xsr::cuda
