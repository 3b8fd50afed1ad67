#include "training/step.h"

#include <algorithm>
#include <cmath>

#include "training/workspace.h"

namespace xsr::training {
namespace {

kernels::Dropout make_dropout(double rate, uint64_t seed, int64_t step) {
  kernels::Dropout dropout;
  dropout.threshold = static_cast<uint32_t>(rate * 0x1p32);
  dropout.scale = static_cast<float>(1 / (1 - rate));
  dropout.key[0] = static_cast<uint32_t>(seed);
  dropout.key[1] = static_cast<uint32_t>(seed >> 32);
  dropout.step = static_cast<uint32_t>(step);
  return dropout;
}

[[noreturn]] void not_finite(const std::string& where, int64_t step) {
  throw NonFiniteError(where, where + " of step " + std::to_string(step) + " is not finite");
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, const StepConfig& step,
                 const kernels::KernelTable& kernels, ThreadPool& threads)
    : config_(config),
      step_(step),
      threads_(threads),
      table_(config_),
      values_(table_.size()),
      gradients_(table_.size()),
      encoder_(config_, table_, step.precision, kernels, threads),
      objectives_(step.objectives, config_, table_, step.precision, kernels, threads),
      optimizer_(step.optimizer, table_.size(), kernels, threads) {
  if (!(step.dropout >= 0 && step.dropout < 1)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "dropout is " + std::to_string(step.dropout) + ", expected 0 or more, below 1");
  }
  if (step.precision == Precision::kBF16) narrow_.resize(static_cast<size_t>(table_.size()));
}

StepResult Trainer::step(const PairBatch& batch, double learning_rate) {
  const int64_t C = config_.hidden_size, number = optimizer_.steps() + 1;
  const kernels::Dropout dropout = make_dropout(step_.dropout, step_.seed, number);
  embeddings_.assign(static_cast<size_t>(batch.num_sentences() * C), 0.0f);
  embedding_gradients_.assign(embeddings_.size(), 0.0f);
  clear_gradients();
  StepResult result;
  result.learning_rate = learning_rate;

  encoder_.forward(batch, values_, dropout, embeddings_.data(), C);
  result.loss = objectives_.forward_backward(batch, embeddings_.data(), C, values_, narrow(),
                                             embedding_gradients_.data(), C, &gradients_);
  for (const LossPart& part : result.loss.parts) {
    if (!std::isfinite(part.value)) not_finite("loss " + std::string(part.name), number);
  }
  encoder_.backward(batch, values_, dropout, embedding_gradients_.data(), C, gradients_);
  result.gradient_norm = optimizer_.step(learning_rate, values_, gradients_,
                                         narrow_.empty() ? nullptr : narrow_.data());
  if (!std::isfinite(result.gradient_norm)) {
    const Parameter* first = first_non_finite(table_, gradients_);
    not_finite(first == nullptr ? "gradient norm" : "gradient " + first->name, number);
  }
  narrow_current_ = true;
  return result;
}

void Trainer::embed(const PairBatch& batch, double dropout) {
  const int64_t C = config_.hidden_size;
  embeddings_.assign(static_cast<size_t>(batch.num_sentences() * C), 0.0f);
  encoder_.forward(batch, values_, make_dropout(dropout, step_.seed, optimizer_.steps()),
                   embeddings_.data(), C);
}

LossParts Trainer::evaluate(const PairBatch& batch, bool with_dropout) {
  const int64_t C = config_.hidden_size;
  embed(batch, with_dropout ? step_.dropout : 0);
  return objectives_.forward_backward(batch, embeddings_.data(), C, values_, narrow(), nullptr, 0,
                                      nullptr);
}

void Trainer::clear_gradients() {
  constexpr int64_t kFloats = 1 << 18;
  threads_.for_each(block_count(gradients_.size(), kFloats), [&](int32_t task, int32_t) {
    const int64_t first = task * kFloats;
    std::fill(gradients_.data() + first,
              gradients_.data() + std::min(first + kFloats, gradients_.size()), 0.0f);
  });
}

}  // namespace xsr::training
