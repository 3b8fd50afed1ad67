#pragma once
// What tests of every trainer do.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "training/presets.h"
#include "training/step.h"

namespace xsr::test {

/// The preset `release`.
inline training::StepConfig release_step(double dropout, double align_and_sim_weight = 2) {
  training::StepConfig step;
  step.objectives = training::objective_preset(training::Preset::kRelease);
  step.objectives.align_weight = step.objectives.sim_weight = align_and_sim_weight;
  step.optimizer = training::optimizer_preset(training::Preset::kRelease);
  step.dropout = dropout;
  return step;
}

inline bool same_bits(const training::FlatBuffer& a, const training::FlatBuffer& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0;
}

/// Euclidean norms, in double.
struct Norms {
  double difference, exact;
};

/// Of `count` elements of either, `step` apart.
template <typename Found, typename Exact>
Norms norms_of(const Found* found, const Exact* exact, int64_t step, int64_t count) {
  double difference = 0, squares = 0;
  for (int64_t i = 0; i < step * count; i += step) {
    difference += std::pow(double{found[i]} - exact[i], 2);
    squares += std::pow(double{exact[i]}, 2);
  }
  return {std::sqrt(difference), std::sqrt(squares)};
}

/// A trainer of release_step() behind its first step: with a NaN in a bias its second step stops
/// at the first loss and changes nothing, as often as it is tried.
inline void expect_stops_before_a_nan(training::Trainer& trainer, const training::PairBatch& batch,
                                      int tries) {
  trainer.mutable_values().at(trainer.table().at("layer.1.up.bias"))[0] = NAN;
  training::FlatBuffer before(trainer.table().size());
  std::copy_n(trainer.values().data(), before.size(), before.data());
  for (int i = 0; i < tries; ++i) {
    try {
      trainer.step(batch, 1e-3);
      ADD_FAILURE() << "went on with a NaN";
    } catch (const training::NonFiniteError& error) {
      EXPECT_EQ("loss ugt", error.where());
      EXPECT_STREQ("loss ugt of step 2 is not finite", error.what());
    }
    EXPECT_TRUE(same_bits(before, trainer.values()));
    EXPECT_EQ(1, trainer.steps());
  }
}

/// The same where every loss is finite and a gradient is not: embeddings that are all alike have a
/// deviation of √eps, and through weights so large the gradient leaves f32's range.
inline void expect_stops_before_an_infinite_gradient(training::Trainer& trainer,
                                                     const training::PairBatch& batch) {
  const auto fill = [&](const char* name, float value) {
    const training::Parameter& p = trainer.table().at(name);
    std::fill_n(trainer.mutable_values().at(p), p.size, value);
  };
  fill("embedding.token", 0);
  fill("embedding.position", 0);
  fill("embedding.norm.weight", 3e38f);
  training::FlatBuffer before(trainer.table().size());
  std::copy_n(trainer.values().data(), before.size(), before.data());
  const int64_t steps = trainer.steps();
  try {
    trainer.step(batch, 1e-3);
    ADD_FAILURE() << "went on with an infinite gradient";
  } catch (const training::NonFiniteError& error) {
    EXPECT_EQ("gradient embedding.token", error.where());
  }
  EXPECT_TRUE(same_bits(before, trainer.values()));
  EXPECT_EQ(steps, trainer.steps());
}

}  // namespace xsr::test
