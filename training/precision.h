#pragma once
#include <cstdint>

namespace xsr::training {

/// What the large matrix products of a step read: f32; bf16 copies of weights, activations and
/// gradients; or 8 bits of them in the encoder and bf16 in the objectives (docs/methods.md,
/// Evaluation and numbers). Sums of bf16, everything between the products, and the parameters
/// themselves are f32 in all.
enum class Precision : int32_t { kF32, kBF16, kInt8 };

/// Some products read bf16 copies.
constexpr bool reads_bf16(Precision precision) { return precision != Precision::kF32; }

constexpr const char* precision_name(Precision precision) {
  return precision == Precision::kInt8 ? "int8" : precision == Precision::kBF16 ? "bf16" : "f32";
}

}  // namespace xsr::training
