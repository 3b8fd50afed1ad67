#pragma once
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/checkpoint_builder.h"

namespace xsr::test {

/// Sizes of a small model.
struct Shape {
  uint64_t V = 40, P = 9, C = 24, F = 40, L = 2;
};

/// A safetensors checkpoint of family xsr with random weights, as tensors that a test may change
/// before it is written.
inline std::vector<NamedTensor> xsr_tensors(const Shape& s = {}, const std::string& dtype = "F32") {
  std::vector<NamedTensor> out;
  std::mt19937 random(11);
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    uint64_t n = 1;
    for (const uint64_t d : shape) n *= d;
    std::vector<float> f32(n);
    for (float& v : f32) v = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
    std::string data = bytes_of(f32);
    if (dtype == "F64") data = bytes_of(std::vector<double>(f32.begin(), f32.end()));
    out.push_back({name, dtype, std::move(shape), data});
  };
  const std::string e = "model.bert.embedding.";
  add(e + "word_embedding.embedding.weight", {s.V, s.C});
  add(e + "position_embedding.position_embeddings.weight", {s.P, s.C});
  add(e + "layer_norm.weight", {s.C});
  add(e + "layer_norm.bias", {s.C});
  for (uint64_t i = 0; i < s.L; ++i) {
    const std::string at = "model.bert.encoder.layer." + std::to_string(i) + ".";
    const auto dense = [&](const std::string& name, uint64_t rows, uint64_t columns) {
      add(at + name + ".weight", {rows, columns});
      add(at + name + ".bias", {rows});
    };
    for (const char* name : {"query", "key", "value"})
      dense(std::string("attention.self_attention.") + name, s.C, s.C);
    dense("attention.output.dense", s.C, s.C);
    add(at + "attention.output.LayerNorm.weight", {s.C});
    add(at + "attention.output.LayerNorm.bias", {s.C});
    dense("intermediate.dense", s.F, s.C);
    dense("output.dense", s.C, s.F);
    add(at + "output.LayerNorm.weight", {s.C});
    add(at + "output.LayerNorm.bias", {s.C});
  }
  add("model.transform.dense.weight", {s.C, s.C});
  add("model.transform.dense.bias", {s.C});
  add("model.transform.LayerNorm.weight", {s.C});
  add("model.transform.LayerNorm.bias", {s.C});
  add("model.decoder.bias", {s.V});
  NamedTensor tied = out[0];
  tied.name = "model.target_embedding.weight";
  out.push_back(tied);
  tied.name = "model.decoder.decoder.weight";
  out.push_back(tied);
  return out;
}

inline NamedTensor& named(std::vector<NamedTensor>& tensors, const std::string& name) {
  for (auto& t : tensors) {
    if (t.name == name) return t;
  }
  throw std::runtime_error("the test has no tensor " + name);
}

}  // namespace xsr::test
