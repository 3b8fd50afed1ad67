#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "training/parameters.h"

namespace xsr::training {

/// A linear layer's parameters: offsets into every FlatBuffer, and sizes.
struct LinearParameters {
  int64_t weight = 0, bias = 0;
  int32_t outputs = 0, inputs = 0;
};
struct NormParameters {
  int64_t gamma = 0, beta = 0;  // likewise
};

/// Of NAME.weight and NAME.bias.
LinearParameters find_linear(const ParameterTable& table, const std::string& name);

/// Where the encoder's parameters stand; what every device's encoder starts from.
struct EncoderParameters {
  struct Layer {
    LinearParameters qkv, attention_output, up, down;
    NormParameters attention_norm, output_norm;
  };
  int64_t token = 0, position = 0;
  NormParameters embedding_norm;
  std::vector<Layer> layers;

  EncoderParameters(const ParameterTable& table, int32_t num_layers);
};

// The places that drop out (docs/methods.md), and their streams, the same on every device.
// Attention takes one a head.
inline uint32_t embedding_stream() { return 0; }
inline uint32_t probabilities_stream(int32_t layer, int32_t H) { return 1 + layer * (H + 2); }
inline uint32_t attention_output_stream(int32_t layer, int32_t H) {
  return probabilities_stream(layer, H) + H;
}
inline uint32_t output_stream(int32_t layer, int32_t H) {
  return probabilities_stream(layer, H) + H + 1;
}

}  // namespace xsr::training
