#pragma once
#include <cstdint>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "training/encoder.h"
#include "training/step.h"

namespace xsr::training {

/// Training on the processor.
class CpuTrainer : public Trainer {
 public:
  /// Keeps references to kernels and threads. Throws Error(INVALID_ARGUMENT, UNSUPPORTED).
  CpuTrainer(const ModelConfig& config, const StepConfig& step, const kernels::KernelTable& kernels,
             ThreadPool& threads);

  LossParts evaluate(const PairBatch& batch, bool with_dropout = false) override;
  void embed(const PairBatch& batch) override { embed(batch, 0); }
  const std::vector<float>& embeddings() const override { return embeddings_; }
  std::string device() const override { return "cpu"; }
  int64_t steps() const override { return optimizer_.steps(); }
  void set_steps(int64_t steps) override { optimizer_.set_steps(steps); }
  const FlatBuffer* read(State state) const override;
  FlatBuffer* write(State state) override;
  const FlatBuffer& gradients() const override { return gradients_; }

 protected:
  StepResult take_step(const PairBatch& batch, double learning_rate,
                       const PairBatch* next) override;

 private:
  void embed(const PairBatch& batch, double dropout_rate);
  void clear_gradients();
  /// The parameters in bf16 where the optimiser has written them.
  const uint16_t* narrow() const {
    return narrow_.empty() || !narrow_current_ ? nullptr : narrow_.data();
  }

  ThreadPool& threads_;
  FlatBuffer values_, gradients_;
  Encoder encoder_;
  Objectives objectives_;
  Optimizer optimizer_;
  std::vector<uint16_t> narrow_;  // the parameters in bf16; empty in f32
  bool narrow_current_ = false;   // they are those of values_
  std::vector<float> embeddings_, embedding_gradients_;
};

}  // namespace xsr::training
