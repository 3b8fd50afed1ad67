#pragma once
#include <cstdint>
#include <vector>

namespace xsr::training {

enum class Warmup { kNone, kLinear, kUntunedLinear };
enum class Decay { kConstant, kStep, kCosine };

/// The learning rate of update t = 1, 2, … in epoch e = 0, 1, …:
///
///     lr(t, e) = learning_rate · warmup(t) · decay(t, e)
///
///     warmup   none             1
///              linear           min(1, t / warmup_steps)
///              untuned linear   min(1, t (1 − β2) / 2)          Ma & Yarats 2019
///     decay    constant         1
///              step             step_factor ^ (entries of step_epochs that are ≤ e
///                                              + entries of step_updates that are < t)
///              cosine           f + (1 − f) (1 + cos(π min(1, (t − 1) / total_steps))) / 2,
///                               f = final_fraction             Loshchilov & Hutter 2017, eq. 5
///
/// The first update of an epoch in step_epochs has the lower rate already, as the release has it;
/// after step_updates = {100} update 101 is the first with the lower rate.
struct Schedule {
  double learning_rate = 1e-3;
  Warmup warmup = Warmup::kUntunedLinear;
  int64_t warmup_steps = 0;  // of kLinear
  double beta2 = 0.999;      // of kUntunedLinear: the optimiser's
  Decay decay = Decay::kStep;
  double step_factor = 0.1;
  std::vector<int64_t> step_epochs = {3};
  std::vector<int64_t> step_updates;
  int64_t total_steps = 0;  // of kCosine
  double final_fraction = 0;

  double at(int64_t update, int64_t epoch) const;
};

/// Throws Error(INVALID_ARGUMENT) naming an impossible setting.
void validate(const Schedule& schedule);

}  // namespace xsr::training
