#include "training/encoder_parameters.h"

namespace xsr::training {
namespace {

NormParameters find_norm(const ParameterTable& table, const std::string& name) {
  return {table.at(name + ".weight").offset, table.at(name + ".bias").offset};
}

}  // namespace

LinearParameters find_linear(const ParameterTable& table, const std::string& name) {
  const Parameter& weight = table.at(name + ".weight");
  return {weight.offset, table.at(name + ".bias").offset, static_cast<int32_t>(weight.shape[0]),
          static_cast<int32_t>(weight.shape[1])};
}

EncoderParameters::EncoderParameters(const ParameterTable& table, int32_t num_layers)
    : token(table.at("embedding.token").offset),
      position(table.at("embedding.position").offset),
      embedding_norm(find_norm(table, "embedding.norm")) {
  for (int32_t i = 0; i < num_layers; ++i) {
    const std::string at = "layer." + std::to_string(i) + ".";
    layers.push_back({find_linear(table, at + "qkv"), find_linear(table, at + "attention_output"),
                      find_linear(table, at + "up"), find_linear(table, at + "down"),
                      find_norm(table, at + "attention_norm"),
                      find_norm(table, at + "output_norm")});
  }
}

}  // namespace xsr::training
