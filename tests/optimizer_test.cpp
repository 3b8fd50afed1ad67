// Adam, AMSGrad and AdamW over flat buffers, and the schedule of the learning rate.
#include "training/optimizer.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/error.h"
#include "tests/support/kernel_harness.h"
#include "training/schedule.h"

namespace xsr::training {
namespace {

using test::Random;

/// Adam of PyTorch 2, plainly, in double: torch.optim.Adam(amsgrad, weight_decay) and AdamW.
struct PlainAdam {
  OptimizerConfig config;
  std::vector<double> m, v, w;
  int64_t t = 0;

  void step(double lr, std::vector<double>& values, const std::vector<double>& gradients) {
    m.resize(values.size()), v.resize(values.size()), w.resize(values.size());
    ++t;
    double norm = 0;
    for (double g : gradients) norm += g * g;
    norm = std::sqrt(norm);
    const double scale =
        config.clip_norm > 0 ? std::min(1.0, config.clip_norm / (norm + 1e-6)) : 1.0;
    for (size_t i = 0; i < values.size(); ++i) {
      double g = gradients[i] * scale;
      if (config.decoupled_decay) {
        values[i] *= 1 - lr * config.weight_decay;
      } else {
        g += config.weight_decay * values[i];
      }
      m[i] = config.beta1 * m[i] + (1 - config.beta1) * g;
      v[i] = config.beta2 * v[i] + (1 - config.beta2) * g * g;
      w[i] = std::max(w[i], v[i]);
      const double m_hat = m[i] / (1 - std::pow(config.beta1, t));
      const double v_hat = (config.amsgrad ? w[i] : v[i]) / (1 - std::pow(config.beta2, t));
      values[i] -= lr * m_hat / (std::sqrt(v_hat) + config.eps);
    }
  }
};

std::vector<OptimizerConfig> configs() {
  std::vector<OptimizerConfig> all;
  for (bool amsgrad : {false, true}) {
    for (bool decoupled : {false, true}) {
      for (double clip : {0.0, 1.0}) {
        OptimizerConfig config;
        config.amsgrad = amsgrad;
        config.decoupled_decay = decoupled;
        config.weight_decay = 0.01;
        config.clip_norm = clip;
        all.push_back(config);
      }
    }
  }
  return all;
}

constexpr int64_t kSize = (1 << 16) * 2 + 77;  // two blocks and a part of one

/// Gradients that shrink and grow, so that AMSGrad's maximum matters.
float gradient_at(Random& random, int step, int64_t i) {
  return i % 11 == 0 ? 0 : random.normal(step % 3 == 0 ? 1.0f : 0.05f);
}

TEST(Optimizer, FollowsAPlainLoopInDouble) {
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::Isa::kAvx512Bf16);
  for (const OptimizerConfig& config : configs()) {
    Random random(61);
    ThreadPool threads(2);
    FlatBuffer values(kSize), gradients(kSize);
    std::vector<uint16_t> narrow(kSize);
    std::vector<double> exact(kSize), exact_gradients(kSize);
    for (int64_t i = 0; i < kSize; ++i) exact[i] = values.data()[i] = random.normal();
    Optimizer optimizer(config, kSize, kernels, threads);
    EXPECT_EQ(config.amsgrad, optimizer.max_second_moment() != nullptr);
    PlainAdam plain{config, {}, {}, {}};
    for (int step = 0; step < 10; ++step) {
      double norm = 0;
      for (int64_t i = 0; i < kSize; ++i) {
        gradients.data()[i] = gradient_at(random, step, i);
        exact_gradients[i] = gradients.data()[i];
        norm += exact_gradients[i] * exact_gradients[i];
      }
      EXPECT_NEAR(1, optimizer.step(1e-3, values, gradients, narrow.data()) / std::sqrt(norm),
                  1e-12);
      plain.step(1e-3, exact, exact_gradients);
    }
    EXPECT_EQ(10, optimizer.steps());
    double worst = 0;
    for (int64_t i = 0; i < kSize; ++i) {
      worst = std::max(worst, std::fabs(values.data()[i] - exact[i]));
      ASSERT_EQ(kernels::bf16_from_f32(values.data()[i]), narrow[i]);
    }
    // Ten updates of 1e-3 each are rounded to the unit of values up to 4 in size (2⁻²² and its
    // half), and carry the relative error of some ten operations in f32 themselves.
    EXPECT_LE(worst, 10 * (std::ldexp(1, -23) + 1e-3 * 10 * std::ldexp(1, -24)))
        << "amsgrad " << config.amsgrad << " decoupled " << config.decoupled_decay << " clip "
        << config.clip_norm;
  }
}

/// By clip_norm / (norm + 1e-6), as torch.nn.utils.clip_grad_norm_, and never up.
TEST(Optimizer, ClipsWhatIsLargerAlone) {
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::Isa::kAvx512Bf16);
  ThreadPool threads(1);
  for (const auto& [clip_norm, scale] :
       {std::pair(0.0, 1.0), {1.0, 1.0}, {2e-6, 2.0 / 3.0}, {1e-6, 1.0 / 3.0}}) {
    OptimizerConfig config;
    config.clip_norm = clip_norm;
    FlatBuffer values(16), gradients(16);
    gradients.data()[5] = 2e-6f;
    Optimizer optimizer(config, 16, kernels, threads);
    optimizer.step(1e-3, values, gradients, nullptr);
    EXPECT_NEAR(0.1 * scale * 2e-6, optimizer.first_moment().data()[5], 1e-13) << clip_norm;
  }
}

TEST(Optimizer, BitsDoNotDependOnThreadsAndStateResumes) {
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::Isa::kAvx512Bf16);
  OptimizerConfig config;
  config.clip_norm = 1;
  std::vector<float> first;
  for (int32_t num_threads : {1, 2, 3}) {
    Random random(62);
    ThreadPool threads(num_threads);
    FlatBuffer values(kSize), gradients(kSize);
    auto optimizer = std::make_unique<Optimizer>(config, kSize, kernels, threads);
    for (int64_t i = 0; i < kSize; ++i) values.data()[i] = random.normal();
    for (int step = 0; step < 4; ++step) {
      for (int64_t i = 0; i < kSize; ++i) gradients.data()[i] = gradient_at(random, step, i);
      optimizer->step(1e-3, values, gradients, nullptr);
      if (step != 1) continue;
      auto resumed = std::make_unique<Optimizer>(config, kSize, kernels, threads);
      const size_t bytes = sizeof(float) * kSize;
      std::memcpy(resumed->first_moment().data(), optimizer->first_moment().data(), bytes);
      std::memcpy(resumed->second_moment().data(), optimizer->second_moment().data(), bytes);
      std::memcpy(resumed->max_second_moment()->data(), optimizer->max_second_moment()->data(),
                  bytes);
      resumed->set_steps(optimizer->steps());
      if (num_threads > 1) optimizer = std::move(resumed);
    }
    if (num_threads == 1) first.assign(values.data(), values.data() + kSize);
    EXPECT_EQ(0, std::memcmp(first.data(), values.data(), sizeof(float) * kSize)) << num_threads;
  }
}

TEST(Optimizer, AGradientThatIsNotFiniteChangesNothing) {
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::Isa::kAvx512Bf16);
  ThreadPool threads(1);
  FlatBuffer values(100), gradients(100);
  Optimizer optimizer({}, 100, kernels, threads);
  std::fill_n(values.data(), 100, 1.0f);
  for (float bad : {NAN, INFINITY}) {
    gradients.data()[99] = bad;
    EXPECT_FALSE(std::isfinite(optimizer.step(1, values, gradients, nullptr)));
  }
  EXPECT_EQ(0, optimizer.steps());
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(1, values.data()[i]);
    EXPECT_EQ(0, optimizer.first_moment().data()[i]);
  }
  gradients.data()[99] = 1e25f;  // its square is beyond f32, its norm is not
  EXPECT_TRUE(std::isfinite(optimizer.step(1, values, gradients, nullptr)));
}

TEST(Optimizer, FindsTheTensorThatIsNotFinite) {
  ModelConfig config;
  config.num_layers = 1;
  config.hidden_size = config.embedding_size = 8;
  config.num_heads = 2;
  config.intermediate_size = 8;
  config.vocab_size = 11;
  config.num_positions = 5;
  config.max_seq_len = 4;
  config.position_offset = 1;
  const ParameterTable table(config);
  FlatBuffer values(table.size());
  EXPECT_EQ(nullptr, first_non_finite(table, values));
  values.at(table.at("head.norm.beta"))[7] = NAN;
  EXPECT_EQ("head.norm.beta", first_non_finite(table, values)->name);
  values.at(table.at("layer.0.up.bias"))[0] = -INFINITY;
  EXPECT_EQ("layer.0.up.bias", first_non_finite(table, values)->name);
}

TEST(Optimizer, ImpossibleSettingsAreNamed) {
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::Isa::kRef);
  ThreadPool threads(1);
  const auto message = [&](auto&& change) -> std::string {
    OptimizerConfig config;
    change(config);
    try {
      Optimizer(config, 16, kernels, threads);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ("", message([](auto&) {}));
  EXPECT_THAT(message([](auto& c) { c.beta1 = 1; }), testing::HasSubstr("beta1"));
  EXPECT_THAT(message([](auto& c) { c.beta2 = -0.1; }), testing::HasSubstr("beta2"));
  EXPECT_THAT(message([](auto& c) { c.beta2 = 1; }), testing::HasSubstr("beta2"));
  EXPECT_THAT(message([](auto& c) { c.eps = 0; }), testing::HasSubstr("eps"));
  EXPECT_THAT(message([](auto& c) { c.weight_decay = NAN; }), testing::HasSubstr("weight_decay"));
  EXPECT_THAT(message([](auto& c) { c.clip_norm = -1; }), testing::HasSubstr("clip_norm"));
}

TEST(Schedule, TheReleaseWarmsUpFor2000UpdatesAndDropsAtEpoch3) {
  const Schedule release;
  EXPECT_NO_THROW(validate(release));
  EXPECT_NEAR(1e-3 * 0.0005, release.at(1, 0), 1e-20);
  EXPECT_NEAR(1e-3 * 0.5, release.at(1000, 0), 1e-17);
  EXPECT_DOUBLE_EQ(1e-3, release.at(2000, 0));
  EXPECT_DOUBLE_EQ(1e-3, release.at(500000, 2));
  EXPECT_DOUBLE_EQ(1e-4, release.at(500001, 3));
  EXPECT_DOUBLE_EQ(1e-4, release.at(900000, 11));
}

TEST(Schedule, WarmupAndDecayAreAsDefined) {
  Schedule s;
  s.warmup = Warmup::kNone;
  s.decay = Decay::kConstant;
  EXPECT_DOUBLE_EQ(1e-3, s.at(1, 0));
  s.warmup = Warmup::kLinear;
  s.warmup_steps = 4;
  EXPECT_DOUBLE_EQ(0.25e-3, s.at(1, 0));
  EXPECT_DOUBLE_EQ(1e-3, s.at(4, 0));
  EXPECT_DOUBLE_EQ(1e-3, s.at(5, 9));

  s.warmup = Warmup::kNone;
  s.decay = Decay::kStep;
  s.step_epochs = {2, 4};
  s.step_updates = {100};
  s.step_factor = 0.5;
  EXPECT_DOUBLE_EQ(1e-3, s.at(100, 1));
  EXPECT_DOUBLE_EQ(0.5e-3, s.at(101, 1));
  EXPECT_DOUBLE_EQ(0.25e-3, s.at(101, 2));
  EXPECT_DOUBLE_EQ(0.125e-3, s.at(101, 4));

  s.decay = Decay::kCosine;
  s.total_steps = 100;
  EXPECT_DOUBLE_EQ(1e-3, s.at(1, 0));
  EXPECT_DOUBLE_EQ(0.5e-3, s.at(51, 0));
  EXPECT_NEAR(0, s.at(101, 0), 1e-18);
  EXPECT_NEAR(0, s.at(1000, 0), 1e-18);
  s.final_fraction = 0.1;
  EXPECT_DOUBLE_EQ(0.55e-3, s.at(51, 0));
  EXPECT_DOUBLE_EQ(0.1e-3, s.at(200, 0));
}

TEST(Schedule, ImpossibleSettingsAreNamed) {
  const auto message = [](auto&& change) -> std::string {
    Schedule schedule;
    change(schedule);
    try {
      validate(schedule);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THAT(message([](auto& s) { s.learning_rate = 0; }), testing::HasSubstr("learning_rate"));
  EXPECT_THAT(message([](auto& s) { s.warmup = Warmup::kLinear; }),
              testing::HasSubstr("warmup_steps"));
  EXPECT_THAT(message([](auto& s) { s.decay = Decay::kCosine; }),
              testing::HasSubstr("total_steps"));
  EXPECT_THAT(message([](auto& s) { s.beta2 = 1; }), testing::HasSubstr("beta2"));
  EXPECT_THAT(message([](auto& s) { s.step_factor = -1; }), testing::HasSubstr("step_factor"));
  EXPECT_THAT(message([](auto& s) { s.final_fraction = 2; }), testing::HasSubstr("final_fraction"));
}

}  // namespace
}  // namespace xsr::training
