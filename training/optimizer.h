#pragma once
#include <cstdint>
#include <memory>

#include "kernels/dispatch.h"
#include "kernels/optimizer/optimizer.h"
#include "runtime/device/cpu_threads.h"
#include "training/parameters.h"

namespace xsr::training {

struct OptimizerConfig {
  bool amsgrad = true;
  bool decoupled_decay = false;  // false: Adam with L2 in the gradient; true: AdamW
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-5;  // of every parameter, as PyTorch has it
  double clip_norm = 0;        // largest global norm of the gradient; 0 = no clipping
};

/// Throws Error(INVALID_ARGUMENT) naming an impossible setting.
void validate(const OptimizerConfig& config);

/// What update number `update` (1, 2, …) does to every element, but for the clipping.
kernels::AdamStep adam_step(const OptimizerConfig& config, int64_t update, double learning_rate);

/// Adam, AMSGrad or AdamW over flat buffers. Work is cut into blocks of fixed size: the result does
/// not depend on the number of threads.
class Optimizer {
 public:
  /// Keeps references to kernels and threads. Throws Error(INVALID_ARGUMENT) naming an impossible
  /// setting.
  Optimizer(const OptimizerConfig& config, int64_t size, const kernels::KernelTable& kernels,
            ThreadPool& threads);

  /// One update, and afterwards steps() is one more. Gives the global norm of the gradient before
  /// clipping; where that is not finite nothing is changed, and steps() neither.
  ///
  /// narrow [size] takes the new values in bf16, as the products of Precision::kBF16 read them;
  /// null = not wanted. Clipping as torch.nn.utils.clip_grad_norm_: by clip_norm / (norm + 1e-6)
  /// where that is below 1.
  double step(double learning_rate, FlatBuffer& values, const FlatBuffer& gradients,
              uint16_t* narrow);

  // The state, for checkpoints.
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  FlatBuffer& first_moment() { return first_moment_; }
  FlatBuffer& second_moment() { return second_moment_; }
  const FlatBuffer& first_moment() const { return first_moment_; }
  const FlatBuffer& second_moment() const { return second_moment_; }
  const FlatBuffer* max_second_moment() const { return max_second_moment_.get(); }
  FlatBuffer* max_second_moment() { return max_second_moment_.get(); }  // null without AMSGrad

 private:
  const OptimizerConfig config_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  FlatBuffer first_moment_, second_moment_;
  std::unique_ptr<FlatBuffer> max_second_moment_;
  int64_t steps_ = 0;
};

/// √ Σ x², the squares added in double by blocks of fixed size, in order.
double global_norm(const FlatBuffer& x, const kernels::KernelTable& kernels, ThreadPool& threads);

/// The first parameter with an element that is NaN or infinite; null = there is none.
const Parameter* first_non_finite(const ParameterTable& table, const FlatBuffer& values);

}  // namespace xsr::training
