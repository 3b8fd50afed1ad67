#include "training/optimizer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "training/workspace.h"

namespace xsr::training {
namespace {

constexpr int64_t kBlock = 1 << 16;  // floats; fixed, whatever the number of threads

void require(bool holds, const char* name, double value, const char* expected) {
  if (!holds) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT, std::string("optimizer: ") + name + " is " +
                                                 std::to_string(value) + ", expected " + expected);
  }
}

}  // namespace

void validate(const OptimizerConfig& config) {
  require(config.beta1 >= 0 && config.beta1 < 1, "beta1", config.beta1, "[0, 1)");
  require(config.beta2 >= 0 && config.beta2 < 1, "beta2", config.beta2, "[0, 1)");
  require(config.eps > 0 && std::isfinite(config.eps), "eps", config.eps, "a number above 0");
  require(config.weight_decay >= 0 && std::isfinite(config.weight_decay), "weight_decay",
          config.weight_decay, "0 or more");
  require(config.clip_norm >= 0 && std::isfinite(config.clip_norm), "clip_norm", config.clip_norm,
          "0 (no clipping) or more");
}

kernels::AdamStep adam_step(const OptimizerConfig& config, int64_t update, double learning_rate) {
  const double t = static_cast<double>(update);
  kernels::AdamStep s;
  s.l2 = config.decoupled_decay ? 0 : static_cast<float>(config.weight_decay);
  s.shrink = config.decoupled_decay ? static_cast<float>(learning_rate * config.weight_decay) : 0;
  s.beta1 = static_cast<float>(config.beta1);
  s.one_minus_beta1 = static_cast<float>(1 - config.beta1);
  s.beta2 = static_cast<float>(config.beta2);
  s.one_minus_beta2 = static_cast<float>(1 - config.beta2);
  s.step_size = static_cast<float>(learning_rate / (1 - std::pow(config.beta1, t)));
  s.inverse_correction2 = static_cast<float>(1 / std::sqrt(1 - std::pow(config.beta2, t)));
  s.eps = static_cast<float>(config.eps);
  return s;
}

Optimizer::Optimizer(const OptimizerConfig& config, int64_t size,
                     const kernels::KernelTable& kernels, ThreadPool& threads)
    : config_(config),
      kernels_(kernels),
      threads_(threads),
      first_moment_(size),
      second_moment_(size),
      max_second_moment_(config.amsgrad ? std::make_unique<FlatBuffer>(size) : nullptr) {
  validate(config);
}

double Optimizer::step(double learning_rate, FlatBuffer& values, const FlatBuffer& gradients,
                       uint16_t* narrow) {
  const double norm = global_norm(gradients, kernels_, threads_);
  if (!std::isfinite(norm)) return norm;
  kernels::AdamStep s = adam_step(config_, ++steps_, learning_rate);
  if (config_.clip_norm > 0)
    s.gradient_scale = static_cast<float>(std::min(1.0, config_.clip_norm / (norm + 1e-6)));
  threads_.for_each(block_count(values.size(), kBlock), [&](int32_t block, int32_t) {
    kernels_.adam_update_f32(
        values.data(), gradients.data(), first_moment_.data(), second_moment_.data(),
        max_second_moment_ == nullptr ? nullptr : max_second_moment_->data(), narrow,
        block * kBlock, std::min(values.size(), (block + 1) * kBlock), s);
  });
  return norm;
}

double global_norm(const FlatBuffer& x, const kernels::KernelTable& kernels, ThreadPool& threads) {
  std::vector<double> squares(block_count(x.size(), kBlock));
  threads.for_each(static_cast<int32_t>(squares.size()), [&](int32_t block, int32_t) {
    const int64_t first = block * kBlock;
    squares[block] =
        kernels.sum_of_squares_f32(x.data() + first, std::min(kBlock, x.size() - first));
  });
  double sum = 0;
  for (double square : squares) sum += square;
  return std::sqrt(sum);
}

const Parameter* first_non_finite(const ParameterTable& table, const FlatBuffer& values) {
  for (const Parameter& p : table.parameters()) {
    const float* x = values.at(p);
    for (int64_t i = 0; i < p.size; ++i) {
      if (!std::isfinite(x[i])) return &p;
    }
  }
  return nullptr;
}

}  // namespace xsr::training
