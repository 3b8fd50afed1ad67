#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "training/cuda_library.h"
#include "training/step.h"

namespace xsr::training {

/// Training on a CUDA device (or on the emulated one): the steps of training/encoder.cpp and
/// training/objectives/ on memory that stays there. Precision::kBF16 means what it means on the
/// processor: the operands of linear layers and of the vocabulary's products are bf16, and
/// everything else is f32.
///
/// A step is one upload (tokens, targets and coefficients, made on the host), the kernels, and one
/// download of the losses; from its second use a shape of batch (pairs, tokens rounded up) is a
/// captured graph. The host makes the upload of the next step while the device works, unless that
/// is larger than all before. Tokens that fill a batch up belong to no sentence and take part in
/// nothing.
///
/// Several devices train together: each has the model, a share of every batch and a thread, and
/// they exchange sentence embeddings (so that negatives are those of the whole batch), losses and
/// gradients. The masks of dropout are then others than those of one device, which without dropout
/// gives the same step up to rounding.
///
/// Two runs give the same bits, and a checkpoint of one device goes on on another; the bits are not
/// those of the processor.
class CudaTrainer : public Trainer {
 public:
  /// Throws Error(INVALID_ARGUMENT; UNSUPPORTED: a model that the kernels do not take;
  /// OUT_OF_MEMORY; CUDA: no such device, and what else goes wrong there).
  CudaTrainer(const ModelConfig& config, const StepConfig& step,
              const CudaTrainerOptions& options = {});
  ~CudaTrainer() override;

  LossParts evaluate(const PairBatch& batch, bool with_dropout = false) override;
  void embed(const PairBatch& batch) override;
  const std::vector<float>& embeddings() const override;
  int64_t steps() const override { return steps_; }
  void set_steps(int64_t steps) override { steps_ = steps; }
  std::string device() const override;
  const FlatBuffer* read(State state) const override;
  FlatBuffer* write(State state) override;
  const FlatBuffer& gradients() const override;

 protected:
  StepResult take_step(const PairBatch& batch, double learning_rate,
                       const PairBatch* next) override;

 private:
  class Crew;
  int64_t steps_ = 0;
  std::string device_;
  std::unique_ptr<Crew> crew_;
};

}  // namespace xsr::training
