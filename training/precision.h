#pragma once

namespace xsr::training {

/// What the large matrix products of a step read: f32, or bf16 copies of weights and activations.
/// Sums, everything between the products, and the parameters themselves are f32 in both.
enum class Precision { kF32, kBF16 };

}  // namespace xsr::training
