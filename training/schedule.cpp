#include "training/schedule.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "runtime/error.h"

namespace xsr::training {
namespace {

double warmup_factor(const Schedule& s, double update) {
  switch (s.warmup) {
    case Warmup::kNone:
      return 1;
    case Warmup::kLinear:
      return std::min(1.0, update / static_cast<double>(s.warmup_steps));
    case Warmup::kUntunedLinear:
      return std::min(1.0, update * (1 - s.beta2) / 2);
  }
  return 1;
}

double decay_factor(const Schedule& s, int64_t update, int64_t epoch) {
  switch (s.decay) {
    case Decay::kConstant:
      return 1;
    case Decay::kStep: {
      const auto passed = std::count_if(s.step_epochs.begin(), s.step_epochs.end(),
                                        [&](int64_t at) { return at <= epoch; }) +
                          std::count_if(s.step_updates.begin(), s.step_updates.end(),
                                        [&](int64_t at) { return at < update; });
      return std::pow(s.step_factor, static_cast<double>(passed));
    }
    case Decay::kCosine: {
      const double progress =
          std::min(1.0, static_cast<double>(update - 1) / static_cast<double>(s.total_steps));
      return s.final_fraction + (1 - s.final_fraction) * (1 + std::cos(M_PI * progress)) / 2;
    }
  }
  return 1;
}

void require(bool holds, const std::string& message) {
  if (!holds) throw Error(XSR_STATUS_INVALID_ARGUMENT, "schedule: " + message);
}

}  // namespace

double Schedule::at(int64_t update, int64_t epoch) const {
  return learning_rate * warmup_factor(*this, static_cast<double>(update)) *
         decay_factor(*this, update, epoch);
}

void validate(const Schedule& s) {
  require(s.learning_rate > 0 && std::isfinite(s.learning_rate),
          "learning_rate is " + std::to_string(s.learning_rate) + ", expected a number above 0");
  require(s.warmup != Warmup::kLinear || s.warmup_steps > 0,
          "linear warm-up needs warmup_steps above 0");
  require(s.warmup != Warmup::kUntunedLinear || (s.beta2 >= 0 && s.beta2 < 1),
          "beta2 is " + std::to_string(s.beta2) + ", expected [0, 1)");
  require(s.step_factor > 0 && std::isfinite(s.step_factor),
          "step_factor is " + std::to_string(s.step_factor) + ", expected a number above 0");
  require(s.decay != Decay::kCosine || s.total_steps > 0, "cosine decay needs total_steps above 0");
  require(s.final_fraction >= 0 && s.final_fraction <= 1,
          "final_fraction is " + std::to_string(s.final_fraction) + ", expected [0, 1]");
}

}  // namespace xsr::training
