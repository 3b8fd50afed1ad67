// Whole models in training against golden losses, gradients and optimiser steps made with PyTorch
// in double precision, at every ISA. The folder is XSR_GOLDEN, so that goldens made with another
// seed run unchanged.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "converter/checkpoint.h"
#include "converter/convert.h"
#include "converter/family.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/paths.h"
#include "tests/support/plain_model.h"
#include "tests/support/training_isas.h"
#include "training/model_file.h"
#include "training/presets.h"
#include "training/schedule.h"
#include "training/step.h"

namespace xsr::training {
namespace {

using nlohmann::json;
using test::ErrorBudget;
using test::PlainLosses;
using test::PlainModel;

constexpr double kGradientFactor = 3;  // of the plain f32 loops' error (house rule)

/// A golden file: its model, its batch, and what both give.
class Golden {
 public:
  explicit Golden(const std::string& path) : file_(Checkpoint::open(path)) {
    const json metadata = json::parse(file_->metadata().at("config"));
    ConvertOptions options;
    options.prefix = "parameter.";
    options.num_heads = metadata.at("num_heads").get<int32_t>();
    model_ = read_initial_model(path, options, 1);
    for (const TensorRule& rule : encoder_rules(family_xsr(), config().num_layers))
      rules_.push_back(rule);
    for (const TensorRule& rule : family_xsr().head) rules_.push_back(rule);
    read_batch();
  }

  const ModelConfig& config() const { return model_.config; }
  const InitialModel& model() const { return model_; }
  const PairBatch& batch() const { return batch_; }
  double loss(const std::string& name) const {
    return json::parse(file_->metadata().at("losses")).at(name).get<double>();
  }
  std::vector<double> trajectory() const {
    const auto found = file_->metadata().find("adam_amsgrad_losses");
    return found == file_->metadata().end() ? std::vector<double>()
                                            : json::parse(found->second).get<std::vector<double>>();
  }
  bool has_gradient(const std::string& loss) const {
    return file_->find("gradient." + loss + "." + rules_[0].sources[0]) != nullptr;
  }
  bool is_double() const {
    return file_->find("parameter." + rules_[0].sources[0])->dtype == ScalarType::kF64;
  }
  /// "parameter.", "gradient.total.", "after.": of one parameter, stacked as the .xsr file has it.
  std::vector<double> tensor(const std::string& prefix, const Parameter& p) const {
    for (const TensorRule& rule : rules_) {
      if (rule.target != p.name) continue;
      std::vector<double> all;
      for (const std::string& source : rule.sources) {
        const CheckpointTensor* found = file_->find(prefix + source);
        if (found == nullptr) throw Error(XSR_STATUS_BAD_FILE, "no tensor " + prefix + source);
        const std::vector<double> part = found->to_f64();
        all.insert(all.end(), part.begin(), part.end());
      }
      EXPECT_EQ(static_cast<size_t>(p.size), all.size()) << p.name;
      return all;
    }
    throw Error(XSR_STATUS_BAD_FILE, "no rule for " + p.name);
  }
  /// All of them, as a FlatBuffer has them.
  std::vector<double> flat(const std::string& prefix) const {
    const ParameterTable table(config());
    std::vector<double> all(table.size());
    for (const Parameter& p : table.parameters()) {
      const std::vector<double> part = tensor(prefix, p);
      std::copy(part.begin(), part.end(), all.begin() + p.offset);
    }
    return all;
  }
  template <typename T>
  void fill(PlainModel<T>& plain) const {
    const std::vector<double> from = flat("parameter.");
    for (size_t i = 0; i < from.size(); ++i) plain.values[i] = static_cast<T>(from[i]);
  }

 private:
  void read_batch() {
    const auto integers = [&](const char* name) { return file_->find(name)->to_i64(); };
    const std::vector<int64_t> masked_side = integers("masked_side"),
                               masked = integers("masked_id");
    const int32_t B = static_cast<int32_t>(masked.size());
    batch_.num_pairs = B;
    batch_.cu_seqlens = {0};
    for (const char* side : {"1", "2"}) {
      const CheckpointTensor& ids = *file_->find(std::string("ids") + side);
      const std::vector<int64_t> padded = ids.to_i64();
      const std::vector<int64_t> lens = file_->find(std::string("len") + side)->to_i64();
      for (int32_t b = 0; b < B; ++b) {
        for (int64_t t = 0; t < lens[b]; ++t)
          batch_.token_ids.push_back(static_cast<int32_t>(padded[b * ids.shape[1] + t]));
        batch_.cu_seqlens.push_back(static_cast<int32_t>(batch_.token_ids.size()));
      }
    }
    for (int32_t b = 0; b < B; ++b) {
      const uint8_t side = static_cast<uint8_t>(masked_side[b] - 1);
      const int32_t sentence = side * B + b;
      const auto first = batch_.token_ids.begin() + batch_.cu_seqlens[sentence];
      const auto last = batch_.token_ids.begin() + batch_.cu_seqlens[sentence + 1];
      const auto mask = std::find(first, last, 2);
      EXPECT_TRUE(mask != last) << "pair " << b << " has no <MASK>";
      batch_.masked_side.push_back(side);
      batch_.masked_id.push_back(static_cast<int32_t>(masked[b]));
      batch_.masked_row.push_back(static_cast<int32_t>(mask - batch_.token_ids.begin()));
      batch_.pair_numbers.push_back(b);
    }
  }

  std::unique_ptr<Checkpoint> file_;
  InitialModel model_;
  std::vector<TensorRule> rules_;
  PairBatch batch_;
};

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
      Trainer trainer(golden_->config(), step, kernels, threads);
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
    Trainer trainer(golden_->config(), step, kernels, threads);
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
