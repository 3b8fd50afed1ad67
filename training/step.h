#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/error.h"
#include "training/batch.h"
#include "training/encoder.h"
#include "training/objectives/objectives.h"
#include "training/optimizer.h"
#include "training/parameters.h"
#include "training/precision.h"

namespace xsr::training {

struct StepConfig {
  ObjectiveConfig objectives;
  OptimizerConfig optimizer;
  Precision precision = Precision::kF32;
  double dropout = 0.1;  // [0, 1); papers.md 1a
  uint64_t seed = 1;     // of dropout
};

struct StepResult {
  LossParts loss;
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
};

/// A loss or a gradient that is not finite. Parameters and optimiser are as they were before the
/// step.
class NonFiniteError : public Error {
 public:
  NonFiniteError(const std::string& where, const std::string& message)
      : Error(XSR_STATUS_INTERNAL, message), where_(where) {}
  /// "loss sim", "gradient layer.0.up.weight", "gradient norm"
  const std::string& where() const noexcept { return where_; }

 private:
  std::string where_;
};

/// A model in training: its parameters, and what one batch does to them.
class Trainer {
 public:
  /// The parameters are zero: set mutable_values() first. Keeps references to kernels and threads.
  /// Throws Error(INVALID_ARGUMENT, UNSUPPORTED).
  Trainer(const ModelConfig& config, const StepConfig& step, const kernels::KernelTable& kernels,
          ThreadPool& threads);

  /// Forward, backward, clipping, update. The dropout masks depend on the seed and the number of
  /// updates so far. Throws NonFiniteError.
  StepResult step(const PairBatch& batch, double learning_rate);

  /// The losses; nothing is learned. with_dropout: under the masks of the last step. Losses that
  /// are not finite are returned as they are.
  LossParts evaluate(const PairBatch& batch, bool with_dropout = false);
  /// The embeddings alone, without dropout.
  void embed(const PairBatch& batch) { embed(batch, 0); }

  /// Of the last step(), evaluate() or embed(): [2B, C], rows next to each other, in the order of
  /// the batch.
  const std::vector<float>& embeddings() const { return embeddings_; }

  const ModelConfig& config() const { return config_; }
  const ParameterTable& table() const { return table_; }
  const FlatBuffer& values() const { return values_; }
  /// To be written by the caller, between steps.
  FlatBuffer& mutable_values() {
    narrow_current_ = false;
    return values_;
  }
  const FlatBuffer& gradients() const { return gradients_; }  // of the last step, before clipping
  Optimizer& optimizer() { return optimizer_; }

 private:
  void embed(const PairBatch& batch, double dropout);
  void clear_gradients();
  /// The parameters in bf16 where the optimiser has written them.
  const uint16_t* narrow() const {
    return narrow_.empty() || !narrow_current_ ? nullptr : narrow_.data();
  }

  const ModelConfig config_;
  const StepConfig step_;
  ThreadPool& threads_;
  ParameterTable table_;
  FlatBuffer values_, gradients_;
  Encoder encoder_;
  Objectives objectives_;
  Optimizer optimizer_;
  std::vector<uint16_t> narrow_;  // the parameters in bf16; empty in f32
  bool narrow_current_ = false;   // they are those of values_
  std::vector<float> embeddings_, embedding_gradients_;
};

}  // namespace xsr::training
