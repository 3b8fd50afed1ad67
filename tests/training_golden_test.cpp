// Whole models in training against golden losses, gradients and optimiser steps made with PyTorch
// in double precision, at every ISA. The folder is XSR_GOLDEN, so that goldens made with another
// seed run unchanged.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/support/golden_model.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/paths.h"
#include "tests/support/plain_model.h"
#include "tests/support/training_isas.h"
#include "training/cpu_trainer.h"
#include "training/presets.h"
#include "training/schedule.h"

namespace xsr::training {
namespace {

using test::ErrorBudget;
using test::Golden;
using test::PlainLosses;
using test::PlainModel;

constexpr double kGradientFactor = 3;  // of the plain f32 loops' error (house rule)

class TrainingGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto path = test::golden_folder() / (std::string(GetParam()) + ".safetensors");
    if (!std::filesystem::exists(path))
      GTEST_SKIP() << path << " is not there; set XSR_GOLDEN to the golden folder";
    golden_ = std::make_unique<Golden>(path.string());
  }

  std::unique_ptr<Golden> golden_;
};

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
  const ParameterTable table(golden_->config());
  int compared = 0;
  for (const std::string name : {"ugt", "total"}) {
    if (!golden_->has_gradient(name)) continue;
    const double weight = name == "total" ? 2 : 0;
    const test::PlainBudget budget(golden_->config(), golden_->flat("parameter."), golden_->batch(),
                                   weight, weight);
    PlainLosses exact;
    exact.ugt = golden_->loss("ugt");
    exact.align = weight == 0 ? 0 : golden_->loss("align");
    exact.sim = weight == 0 ? 0 : golden_->loss("sim");
    exact.total = golden_->loss(name);
    const std::vector<double> gradients = golden_->flat("gradient." + name + ".");
    double squares = 0;
    for (const double g : gradients) squares += g * g;
    for (const kernels::Isa isa : test::training_isas()) {
      const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
      ThreadPool threads(1);
      StepConfig step;
      step.objectives = objective_preset(Preset::kRelease);
      step.objectives.align_weight = step.objectives.sim_weight = weight;
      step.optimizer = optimizer_preset(Preset::kRelease);
      step.dropout = 0;
      CpuTrainer trainer(golden_->config(), step, kernels, threads);
      std::copy_n(golden_->model().values->data(), table.size(), trainer.mutable_values().data());
      const LossParts evaluated = trainer.evaluate(golden_->batch());
      const StepResult result = trainer.step(golden_->batch(), 0);
      EXPECT_EQ(evaluated.total, result.loss.total);
      const std::string what = std::string(GetParam()) + " " + name + " " + isa_name(isa);
      const double share =
          budget.check(result.loss, trainer.gradients(), exact, table, gradients, what);
      EXPECT_NEAR(1, result.gradient_norm / std::sqrt(squares), 1e-5) << what;
      std::printf("  %s: gradients at most %.0f %% of their budget\n", what.c_str(), 100 * share);
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
}

TEST_P(TrainingGolden, TenStepsOfAmsgradFollow) {
  const std::vector<double> trajectory = golden_->trajectory();
  if (trajectory.empty()) GTEST_SKIP() << "the file has no trajectory";
  const Schedule schedule;  // papers.md 1d
  PlainModel<float> plain(golden_->config());
  golden_->fill(plain);
  std::vector<double> plain_losses;
  for (size_t t = 1; t <= trajectory.size(); ++t) {
    plain_losses.push_back(plain.forward_backward(golden_->batch(), 2, 2).total);
    plain.amsgrad(static_cast<int>(t), schedule.at(static_cast<int64_t>(t), 0));
  }
  for (const kernels::Isa isa : test::training_isas()) {
    const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
    ThreadPool threads(1);
    StepConfig step;
    step.objectives = objective_preset(Preset::kRelease);
    step.optimizer = optimizer_preset(Preset::kRelease);
    step.dropout = 0;
    CpuTrainer trainer(golden_->config(), step, kernels, threads);
    std::copy_n(golden_->model().values->data(), trainer.table().size(),
                trainer.mutable_values().data());
    const std::string what = std::string(GetParam()) + " ten steps " + isa_name(isa);
    ErrorBudget losses;
    for (size_t t = 1; t <= trajectory.size(); ++t) {
      const StepResult result =
          trainer.step(golden_->batch(), schedule.at(static_cast<int64_t>(t), 0));
      losses.add(static_cast<float>(result.loss.total), static_cast<float>(plain_losses[t - 1]),
                 trajectory[t - 1], static_cast<int64_t>(t), 0);
    }
    EXPECT_TRUE(losses.check(what + " losses", "*"));
    double worst = 0, moved = 0;
    for (const Parameter& p : trainer.table().parameters()) {
      const std::vector<double> exact = golden_->tensor("after.", p);
      const std::vector<double> before = golden_->tensor("parameter.", p);
      ErrorBudget budget(kGradientFactor);
      for (int64_t i = 0; i < p.size; ++i) {
        budget.add(trainer.values().at(p)[i], plain.values[p.offset + i], exact[i],
                   i / p.shape.back(), i % p.shape.back());
        moved = std::max(moved, std::fabs(exact[i] - before[i]));
      }
      EXPECT_TRUE(budget.check(what + " after " + p.name, "*"));
      worst = std::max(worst, budget.share());
    }
    EXPECT_GT(moved, 1e-5) << "nothing was learned, so nothing was compared";
    std::printf("  %s: losses %.0f %%, parameters at most %.0f %% of their budget\n", what.c_str(),
                100 * losses.share(), 100 * worst);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, TrainingGolden,
                         ::testing::Values("xsr-tiny", "xsr-odd", "xsr-256"), [](const auto& info) {
                           std::string name = info.param;
                           name[3] = '_';
                           return name;
                         });

}  // namespace
}  // namespace xsr::training
