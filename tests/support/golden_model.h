#pragma once
// Golden losses, gradients and optimiser steps of a small model, made with PyTorch in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "converter/checkpoint.h"
#include "converter/convert.h"
#include "converter/family.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/paths.h"
#include "tests/support/plain_model.h"
#include "training/model_file.h"
#include "training/step.h"

namespace xsr::test {

using training::InitialModel;
using training::PairBatch;
using training::Parameter;
using training::ParameterTable;
using training::read_initial_model;

/// A golden file: its model, its batch, and what both give.
class Golden {
 public:
  explicit Golden(const std::string& path) : file_(Checkpoint::open(path)) {
    const nlohmann::json metadata = nlohmann::json::parse(file_->metadata().at("config"));
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
    return nlohmann::json::parse(file_->metadata().at("losses")).at(name).get<double>();
  }
  std::vector<double> trajectory() const {
    const auto found = file_->metadata().find("adam_amsgrad_losses");
    return found == file_->metadata().end()
               ? std::vector<double>()
               : nlohmann::json::parse(found->second).get<std::vector<double>>();
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

/// The fixture of tests that take a golden file's name; skips where the file is not.
template <typename Base>
class GoldenFixture : public Base, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    Base::SetUp();
    if (Base::IsSkipped()) return;
    const auto path = golden_folder() / (std::string(GetParam()) + ".safetensors");
    if (!std::filesystem::exists(path))
      GTEST_SKIP() << path << " is not there; set XSR_GOLDEN to the golden folder";
    golden_ = std::make_unique<Golden>(path.string());
  }
  /// The trainer's parameters ← the file's.
  void load(training::Trainer& trainer) const {
    std::copy_n(golden_->model().values->data(), trainer.table().size(),
                trainer.mutable_values().data());
  }

  std::unique_ptr<Golden> golden_;
};
inline std::string golden_test_name(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  name[3] = '_';
  return name;
}

/// One loss of a golden file with its gradients, and what plain f32 loops make of them.
class GoldenLoss {
 public:
  GoldenLoss(const Golden& golden, const std::string& name)
      : weight_(name == "total" ? 2 : 0),
        table_(golden.config()),
        budget_(golden.config(), golden.flat("parameter."), golden.batch(), weight_, weight_),
        gradients_(golden.flat("gradient." + name + ".")) {
    exact_.ugt = golden.loss("ugt");
    exact_.align = weight_ == 0 ? 0 : golden.loss("align");
    exact_.sim = weight_ == 0 ? 0 : golden.loss("sim");
    exact_.total = golden.loss(name);
    for (const double g : gradients_) squares_ += g * g;
  }

  double weight() const { return weight_; }  // of ALIGN and SIM

  /// Holds a step's result, and the gradients it left, against the file.
  void expect(const training::StepResult& result, const training::FlatBuffer& gradients,
              const std::string& what) const {
    const double share = budget_.check(result.loss, gradients, exact_, table_, gradients_, what);
    EXPECT_NEAR(1, result.gradient_norm / std::sqrt(squares_), 1e-5) << what;
    std::printf("  %s: gradients at most %.0f %% of their budget\n", what.c_str(), 100 * share);
  }

 private:
  double weight_, squares_ = 0;
  ParameterTable table_;
  PlainBudget budget_;
  PlainLosses exact_;
  std::vector<double> gradients_;
};

/// The golden file's steps of AMSGrad by plain f32 loops, and what trainers are held against.
class GoldenTrajectory {
 public:
  /// rate(t): of step t, from 1.
  template <typename Rate>
  GoldenTrajectory(const Golden& golden, const Rate& rate)
      : golden_(golden), exact_(golden.trajectory()), plain_(golden.config()) {
    golden.fill(plain_);
    for (size_t t = 1; t <= exact_.size(); ++t) {
      rates_.push_back(rate(static_cast<int64_t>(t)));
      losses_.push_back(plain_.forward_backward(golden.batch(), 2, 2).total);
      plain_.amsgrad(static_cast<int>(t), rates_.back());
    }
  }

  /// The trainer has the file's parameters; makes its steps.
  void expect_followed(training::Trainer& trainer, const std::string& what) const {
    constexpr double kGradientFactor = 3;  // of the plain f32 loops' error (house rule)
    ErrorBudget losses;
    for (size_t t = 0; t < exact_.size(); ++t) {
      losses.add(static_cast<float>(trainer.step(golden_.batch(), rates_[t]).loss.total),
                 static_cast<float>(losses_[t]), exact_[t], static_cast<int64_t>(t + 1), 0);
    }
    EXPECT_TRUE(losses.check(what + " losses", "*"));
    double worst = 0, moved = 0;
    for (const Parameter& p : trainer.table().parameters()) {
      const std::vector<double> exact = golden_.tensor("after.", p);
      const std::vector<double> before = golden_.tensor("parameter.", p);
      ErrorBudget budget(kGradientFactor);
      for (int64_t i = 0; i < p.size; ++i) {
        budget.add(trainer.values().at(p)[i], plain_.values[p.offset + i], exact[i],
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

 private:
  const Golden& golden_;
  std::vector<double> exact_, rates_, losses_;
  PlainModel<float> plain_;
};

}  // namespace xsr::test
