#include "training/step.h"

namespace xsr::training {

Trainer::Trainer(const ModelConfig& config, const StepConfig& step)
    : config_(config), step_(step), table_(config_) {
  if (!(step.dropout >= 0 && step.dropout < 1)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "dropout is " + std::to_string(step.dropout) + ", expected 0 or more, below 1");
  }
  validate(step.objectives);
  validate(step.optimizer);
}

kernels::Dropout Trainer::dropout(double rate, int64_t update) const {
  kernels::Dropout dropout;
  dropout.threshold = static_cast<uint32_t>(rate * 0x1p32);
  dropout.scale = static_cast<float>(1 / (1 - rate));
  dropout.key[0] = static_cast<uint32_t>(step_.seed);
  dropout.key[1] = static_cast<uint32_t>(step_.seed >> 32);
  dropout.step = static_cast<uint32_t>(update);
  return dropout;
}

void Trainer::not_finite(const std::string& where, int64_t update) {
  throw NonFiniteError(where, where + " of step " + std::to_string(update) + " is not finite");
}

}  // namespace xsr::training
