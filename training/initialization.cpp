#include "training/initialization.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

#include "training/random.h"

namespace xsr::training {
namespace {

// The last word of a counter. Dropout has the step there, which never gets so far.
constexpr uint32_t kInitialization = 0xffffffff;

/// FNV-1a: tells the tensors' places in the stream apart, whatever else the model has.
uint32_t name_hash(std::string_view name) {
  uint32_t hash = 2166136261u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash;
}

/// Calls four(words) for elements 4i … 4i + 3 and stores what it gives.
template <typename Four>
void fill(const Parameter& p, uint64_t seed, float* values, const Four& four) {
  for (int64_t i = 0; i < p.size; i += 4) {
    const RandomWords words =
        random_words(seed, static_cast<uint64_t>(i / 4), name_hash(p.name), kInitialization);
    float out[4];
    four(words.at, out);
    std::copy_n(out, std::min<int64_t>(4, p.size - i), values + i);
  }
}

/// In (0, 1).
double unit(uint32_t word) { return (word + 0.5) * 0x1p-32; }

/// U(−bound, bound)
void fill_uniform(const Parameter& p, uint64_t seed, double bound, float* values) {
  fill(p, seed, values, [&](const uint32_t words[4], float out[4]) {
    for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(bound * (2 * unit(words[i]) - 1));
  });
}

/// N(0, 1): Box & Muller 1958.
void fill_normal(const Parameter& p, uint64_t seed, float* values) {
  fill(p, seed, values, [](const uint32_t words[4], float out[4]) {
    for (int i = 0; i < 4; i += 2) {
      const double radius = std::sqrt(-2 * std::log(unit(words[i])));
      const double angle = 2 * std::numbers::pi * unit(words[i + 1]);
      out[i] = static_cast<float>(radius * std::cos(angle));
      out[i + 1] = static_cast<float>(radius * std::sin(angle));
    }
  });
}

bool ends_with(const Parameter& p, std::string_view end) {
  return std::string_view(p.name).ends_with(end);
}

void initialize(const ModelConfig& config, const ParameterTable& table, uint64_t seed,
                FlatBuffer& values, bool encoder) {
  int64_t inputs = 1;  // of the linear layer whose bias comes next
  for (const Parameter& p : table.parameters()) {
    float* at = values.at(p);
    if (!encoder && !p.name.starts_with("head.")) continue;
    if (p.name.starts_with("embedding.") && p.shape.size() == 2) {
      fill_normal(p, seed, at);
      std::fill_n(at, config.hidden_size, 0.0f);
    } else if (ends_with(p, "norm.weight") || ends_with(p, "norm.gamma")) {
      std::fill_n(at, p.size, 1.0f);
    } else if (ends_with(p, "norm.bias") || ends_with(p, "norm.beta") ||
               p.name == "head.output.bias") {
      std::fill_n(at, p.size, 0.0f);
    } else {
      if (p.shape.size() == 2) inputs = p.shape[1];
      fill_uniform(p, seed, 1 / std::sqrt(static_cast<double>(inputs)), at);
    }
  }
}

}  // namespace

void initialize_parameters(const ModelConfig& config, const ParameterTable& table, uint64_t seed,
                           FlatBuffer& values) {
  initialize(config, table, seed, values, true);
  for (int32_t layer = 1; layer < config.num_layers; ++layer) {
    const std::string prefix = "layer." + std::to_string(layer) + ".";
    for (const Parameter& p : table.parameters()) {
      if (!p.name.starts_with(prefix)) continue;
      std::copy_n(values.at(table.at("layer.0." + p.name.substr(prefix.size()))), p.size,
                  values.at(p));
    }
  }
}

void initialize_head(const ModelConfig& config, const ParameterTable& table, uint64_t seed,
                     FlatBuffer& values) {
  initialize(config, table, seed, values, false);
}

}  // namespace xsr::training
