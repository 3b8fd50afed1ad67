// Whole models in training against golden losses, gradients and optimiser steps made with PyTorch
// in double precision, at every ISA. The folder is XSR_GOLDEN, so that goldens made with another
// seed run unchanged.
#include <algorithm>
#include <cmath>

#include "tests/support/golden_model.h"
#include "tests/support/plain_model.h"
#include "tests/support/trainer_support.h"
#include "tests/support/training_isas.h"
#include "training/cpu_trainer.h"
#include "training/schedule.h"

namespace xsr::training {
namespace {

using test::PlainLosses;
using test::PlainModel;

using TrainingGolden = test::GoldenFixture<::testing::Test>;

TEST_P(TrainingGolden, PlainLoopsInDoubleGiveLossesAndGradients) {
  if (!golden_->is_double()) GTEST_SKIP() << "the file's parameters are rounded to f32";
  PlainModel<double> plain(golden_->config());
  golden_->fill(plain);
  for (const std::string name : {"ugt", "total"}) {
    const double weight = name == "total" ? 2 : 0;
    const PlainLosses losses = plain.forward_backward(golden_->batch(), weight, weight);
    // Double rounding, through some thousand operations; the masses of targets are f32.
    EXPECT_NEAR(golden_->loss(name), losses.total, 1e-6 * losses.total) << name;
    for (const Parameter& p : plain.table.parameters()) {
      const std::vector<double> exact = golden_->tensor("gradient." + name + ".", p);
      double largest = 0, error = 0;
      for (int64_t i = 0; i < p.size; ++i) {
        largest = std::max(largest, std::fabs(exact[i]));
        error = std::max(error, std::fabs(exact[i] - plain.gradients[p.offset + i]));
      }
      EXPECT_LE(error, 1e-6 * std::max(largest, 1e-3)) << name << " " << p.name;
    }
  }
}

TEST_P(TrainingGolden, LossesAndEveryGradientMatch) {
  int compared = 0;
  for (const std::string name : {"ugt", "total"}) {
    if (!golden_->has_gradient(name)) continue;
    const test::GoldenLoss exact(*golden_, name);
    for (const kernels::Isa isa : test::training_isas()) {
      const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
      ThreadPool threads(1);
      CpuTrainer trainer(golden_->config(), test::release_step(0, exact.weight()), kernels,
                         threads);
      load(trainer);
      const LossParts evaluated = trainer.evaluate(golden_->batch());
      const StepResult result = trainer.step(golden_->batch(), 0);
      EXPECT_EQ(evaluated.total, result.loss.total);
      exact.expect(result, trainer.gradients(),
                   std::string(GetParam()) + " " + name + " " + isa_name(isa));
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
}

TEST_P(TrainingGolden, TenStepsOfAmsgradFollow) {
  if (golden_->trajectory().empty()) GTEST_SKIP() << "the file has no trajectory";
  const Schedule schedule;  // as released
  const test::GoldenTrajectory trajectory(*golden_, [&](int64_t t) { return schedule.at(t, 0); });
  for (const kernels::Isa isa : test::training_isas()) {
    const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
    ThreadPool threads(1);
    CpuTrainer trainer(golden_->config(), test::release_step(0), kernels, threads);
    load(trainer);
    trajectory.expect_followed(trainer, std::string(GetParam()) + " ten steps " + isa_name(isa));
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, TrainingGolden,
                         ::testing::Values("xsr-tiny", "xsr-odd", "xsr-256"),
                         test::golden_test_name);

}  // namespace
}  // namespace xsr::training
