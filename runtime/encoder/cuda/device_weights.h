#pragma once
#include <cstdint>
#include <vector>

#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "runtime/encoder/device_encoder.h"

namespace xsr::cuda {

/// Row strides that keep every row at a multiple of 16 bytes, in bf16 too.
constexpr int64_t padded(int64_t columns) { return (columns + 7) / 8 * 8; }

struct DeviceLinear {
  int32_t N = 0, K = 0;
  float* wide = nullptr;       // [N, padded(K)]: one of these two
  uint16_t* narrow = nullptr;  // likewise, bf16
  float* bias = nullptr;       // [N]
  Matrix matrix() const {
    return narrow != nullptr ? Matrix{narrow, padded(K), Dtype::kBf16}
                             : Matrix{wide, padded(K), Dtype::kF32};
  }
};

struct DeviceNorm {
  float *gamma = nullptr, *beta = nullptr;  // [C]
};

struct DeviceLayer {
  DeviceLinear qkv, attention_output, up, down;
  DeviceNorm attention_norm, output_norm;
};

/// A model's weights on one device. Immutable.
struct DeviceWeights {
  /// On the device of this thread; has been copied when it returns. Throws as Memory.
  DeviceWeights(const ModelConfig& config, const EncoderWeights& file,
                const CudaEncoderOptions& options, const StreamOwner& stream);
  DeviceWeights(const DeviceWeights&) = delete;

  kernels::Storage table_storage;              // f32, f16 or bf16; i8 tables are widened
  char *token = nullptr, *position = nullptr;  // [V, C], [P, C] in table_storage
  float* token_type = nullptr;                 // [C], or null
  DeviceNorm embedding_norm;
  std::vector<DeviceLayer> layers;  // with a QkvTable the first has no qkv
  DeviceLinear pooler;              // of f32 whatever the layers are
  float *table_token = nullptr, *table_position = nullptr, *table_bias = nullptr;  // of a QkvTable
  Memory memory;
};

}  // namespace xsr::cuda
