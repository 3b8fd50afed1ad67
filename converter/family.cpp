#include "converter/family.h"

namespace xsr {

const char* to_string(Size size) {
  switch (size) {
    case Size::kOne:
      return "1";
    case Size::kVocab:
      return "vocab_size";
    case Size::kPositions:
      return "num_positions";
    case Size::kHidden:
      return "hidden_size";
    case Size::kIntermediate:
      return "intermediate_size";
  }
  return "unknown";
}

namespace {

std::string in_layer(std::string name, int64_t layer) {
  const size_t at = name.find("{}");
  if (at != std::string::npos) name.replace(at, 2, std::to_string(layer));
  return name;
}

}  // namespace

std::vector<TensorRule> encoder_rules(const FamilyTable& table, int64_t num_layers) {
  std::vector<TensorRule> rules = table.model;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    for (TensorRule rule : table.layer) {
      rule.target = in_layer(rule.target, layer);
      for (auto& source : rule.sources) source = in_layer(source, layer);
      rules.push_back(std::move(rule));
    }
  }
  return rules;
}

int64_t value_of(Size size, const ModelConfig& config) {
  switch (size) {
    case Size::kOne:
      return 1;
    case Size::kVocab:
      return config.vocab_size;
    case Size::kPositions:
      return config.num_positions;
    case Size::kHidden:
      return config.hidden_size;
    case Size::kIntermediate:
      return config.intermediate_size;
  }
  return 0;
}

}  // namespace xsr
