#include "training/cpu_trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "training/workspace.h"

namespace xsr::training {
namespace {

/// Time between one lap and the next.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

CpuTrainer::CpuTrainer(const ModelConfig& config, const StepConfig& step,
                       const kernels::KernelTable& kernels, ThreadPool& threads)
    : Trainer(config, step),
      threads_(threads),
      values_(table_.size()),
      gradients_(table_.size()),
      encoder_(config_, table_, step.precision, kernels, threads),
      objectives_(step.objectives, config_, table_, step.precision, kernels, threads),
      optimizer_(step.optimizer, table_.size(), kernels, threads) {
  if (reads_bf16(step.precision)) narrow_.resize(static_cast<size_t>(table_.size()));
}

StepResult CpuTrainer::take_step(const PairBatch& batch, double learning_rate,
                                 const PairBatch* /*next*/) {
  const int64_t C = config_.hidden_size, number = steps() + 1;
  const kernels::Dropout masks = dropout(step_.dropout, number);
  embeddings_.assign(static_cast<size_t>(batch.num_sentences() * C), 0.0f);
  embedding_gradients_.assign(embeddings_.size(), 0.0f);
  clear_gradients();
  StepResult result;
  result.learning_rate = learning_rate;

  Stopwatch watch;
  encoder_.forward(batch, values_, narrow(), masks, embeddings_.data(), C);
  result.seconds.forward = watch.lap();
  result.loss = objectives_.forward_backward(batch, embeddings_.data(), C, values_, narrow(),
                                             embedding_gradients_.data(), C, &gradients_);
  for (const LossPart& part : result.loss.parts) {
    if (!std::isfinite(part.value)) not_finite("loss " + std::string(part.name), number);
  }
  result.seconds.objectives = watch.lap();
  encoder_.backward(batch, values_, narrow(), masks, embedding_gradients_.data(), C, gradients_);
  result.seconds.backward = watch.lap();
  result.gradient_norm = optimizer_.step(learning_rate, values_, gradients_,
                                         narrow_.empty() ? nullptr : narrow_.data());
  result.seconds.update = watch.lap();
  if (!std::isfinite(result.gradient_norm)) {
    const Parameter* first = first_non_finite(table_, gradients_);
    not_finite(first == nullptr ? "gradient norm" : "gradient " + first->name, number);
  }
  narrow_current_ = true;
  return result;
}

void CpuTrainer::embed(const PairBatch& batch, double dropout_rate) {
  const int64_t C = config_.hidden_size;
  embeddings_.assign(static_cast<size_t>(batch.num_sentences() * C), 0.0f);
  encoder_.forward(batch, values_, narrow(), dropout(dropout_rate, steps()), embeddings_.data(), C);
}

LossParts CpuTrainer::evaluate(const PairBatch& batch, bool with_dropout) {
  const int64_t C = config_.hidden_size;
  embed(batch, with_dropout ? step_.dropout : 0);
  return objectives_.forward_backward(batch, embeddings_.data(), C, values_, narrow(), nullptr, 0,
                                      nullptr);
}

const FlatBuffer* CpuTrainer::read(State state) const {
  switch (state) {
    case State::kValue:
      return &values_;
    case State::kFirstMoment:
      return &optimizer_.first_moment();
    case State::kSecondMoment:
      return &optimizer_.second_moment();
    case State::kMaxSecondMoment:
      return optimizer_.max_second_moment();
  }
  return nullptr;
}

FlatBuffer* CpuTrainer::write(State state) {
  if (state == State::kValue) narrow_current_ = false;
  return const_cast<FlatBuffer*>(read(state));  // of this object, which is not const
}

void CpuTrainer::clear_gradients() {
  constexpr int64_t kFloats = 1 << 18;
  threads_.for_each(block_count(gradients_.size(), kFloats), [&](int32_t task, int32_t) {
    const int64_t first = task * kFloats;
    std::fill(gradients_.data() + first,
              gradients_.data() + std::min(first + kFloats, gradients_.size()), 0.0f);
  });
}

}  // namespace xsr::training
