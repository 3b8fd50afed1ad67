#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dropout/dropout.h"
#include "runtime/error.h"
#include "training/batch.h"
#include "training/objectives/objectives.h"
#include "training/optimizer.h"
#include "training/parameters.h"
#include "training/precision.h"

namespace xsr::training {

struct StepConfig {
  ObjectiveConfig objectives;
  OptimizerConfig optimizer;
  Precision precision = Precision::kF32;
  double dropout = 0.1;  // [0, 1)
  uint64_t seed = 1;     // of dropout
};

/// Wall-clock seconds of a step's parts; zero where they are not told apart (on a device).
struct StepSeconds {
  double forward = 0;     // the encoder's
  double objectives = 0;  // forward and backward
  double backward = 0;    // the encoder's
  double update = 0;      // norm, clipping, optimiser
};

struct StepResult {
  LossParts loss;
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
  bool prepared = false;  // what a device needs of the batch was made during an earlier step
  StepSeconds seconds;
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

/// What a trainer keeps from step to step, one number a parameter each.
enum class State { kValue, kFirstMoment, kSecondMoment, kMaxSecondMoment };

/// A model in training: its parameters, and what one batch does to them. The parameters are zero at
/// first: write them before the first step.
class Trainer {
 public:
  virtual ~Trainer() = default;

  /// Forward, backward, clipping, update. The dropout masks depend on the seed and the number of
  /// updates so far. Throws NonFiniteError.
  ///
  /// next, when given, is the batch that will probably come in the next step: a device's trainer
  /// makes it ready while the device works on this one. Results are the same without it, and
  /// whatever comes instead.
  StepResult step(const PairBatch& batch, double learning_rate, const PairBatch* next = nullptr) {
    return take_step(batch, learning_rate, next);
  }
  /// The losses; nothing is learned. with_dropout: under the masks of the last step. Losses that
  /// are not finite are returned as they are.
  virtual LossParts evaluate(const PairBatch& batch, bool with_dropout = false) = 0;
  /// The embeddings alone, without dropout.
  virtual void embed(const PairBatch& batch) = 0;
  /// Of the last step(), evaluate() or embed(): [2B, C], rows next to each other, in the order of
  /// the batch.
  virtual const std::vector<float>& embeddings() const = 0;

  const ModelConfig& config() const { return config_; }
  const ParameterTable& table() const { return table_; }
  /// What computes: "cpu", or a device's name.
  virtual std::string device() const = 0;
  /// Updates so far.
  virtual int64_t steps() const = 0;
  virtual void set_steps(int64_t steps) = 0;

  /// Null where the optimiser has no such state. Valid until the next step or write.
  virtual const FlatBuffer* read(State state) const = 0;
  /// The same, to be written by the caller before the next step.
  virtual FlatBuffer* write(State state) = 0;
  const FlatBuffer& values() const { return *read(State::kValue); }
  FlatBuffer& mutable_values() { return *write(State::kValue); }
  /// Of the last step, before clipping.
  virtual const FlatBuffer& gradients() const = 0;

 protected:
  /// Throws Error(INVALID_ARGUMENT, UNSUPPORTED).
  Trainer(const ModelConfig& config, const StepConfig& step);
  /// The masks of update number `update`, in stream 0; rate 0 drops nothing.
  kernels::Dropout dropout(double rate, int64_t update) const;
  virtual StepResult take_step(const PairBatch& batch, double learning_rate,
                               const PairBatch* next) = 0;
  [[noreturn]] static void not_finite(const std::string& where, int64_t update);

  const ModelConfig config_;
  const StepConfig step_;
  const ParameterTable table_;
};

}  // namespace xsr::training
