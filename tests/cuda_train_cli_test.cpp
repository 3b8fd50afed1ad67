// xsr-train itself on a device: runs that move between processor and devices, runs that are cut
// short, several devices. With the emulated device and, where nvcc is, with real ones.
#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <thread>

#include "runtime/device/cuda/device.h"
#include "tests/support/environment.h"
#include "tests/support/sanitizers.h"
#include "tests/support/train_cli.h"

namespace xsr::test {
namespace {

namespace fs = std::filesystem;

// Of every step's loss: roundings of f32 in another order, carried on from step to step. Another
// mask of dropout, other negatives or a moment left behind change far more.
constexpr double kBound = 1e-5;

#ifdef XSR_EMULATED
constexpr int kSteps = 10;  // a fifth of a second each
#else
constexpr int kSteps = 600;
#endif

class CudaTrainCli : public TrainCli {
 protected:
  void SetUp() override {
    TrainCli::SetUp();
    std::string why;
    if (cuda::devices(&why).empty()) GTEST_SKIP() << "no CUDA device: " << why;
    if (std::getenv("XSR_TEST_SMALL") != nullptr)
      GTEST_SKIP() << "processes of their own, ended on purpose: not under compute-sanitizer";
    setenv("XSR_TRAIN_CUDA_LIBRARY", XSR_CUDA_MODULE, 1);
  }

  static std::string flags(const std::string& run, int steps, const std::string& more = "") {
    return "--config toy.toml --data.batch_pairs 16 --data.dev_pairs 16 --train.log_every 1 "
           "--train.eval_every " +
           std::to_string(steps / 2) + " --train.steps " + std::to_string(steps) + " --run " + run +
           " " + more;
  }

  int last_step(const std::string& run) const {
    const std::string file = path(run + "/metrics.jsonl");
    if (!fs::exists(file)) return 0;
    int step = 0;
    for (const std::string& line : read_lines(file)) {
      const auto record = nlohmann::json::parse(line, nullptr, false);  // of a line being written
      if (record.is_object() && record["kind"] == "train") step = record["step"];
    }
    return step;
  }

  /// Left as it is for wait_for().
  static bool ended(pid_t child) {
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT);
    return info.si_pid == child;
  }

  /// Starts xsr-train and sends it the signal behind a step. The step of the checkpoint it leaves.
  int cut_short(const std::string& arguments, const std::string& run_name, int step, int signal) {
    const pid_t child = start(arguments);
    while (last_step(run_name) < step && !ended(child))
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    kill(child, signal);
    const Outcome stopped = wait_for(child);
    EXPECT_EQ(signal == SIGKILL ? 128 + SIGKILL : 3, stopped.exit_status) << stopped.err;
    return step_of_checkpoint(run_name);
  }
  int step_of_checkpoint(const std::string& run_name) const {
    const std::string file = path(run_name + "/checkpoint.safetensors");
    if (!fs::exists(file)) return 0;
    const std::string bytes = read_file(file);
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    const auto header = nlohmann::json::parse(bytes.substr(sizeof size, size));
    return std::stoi(header["__metadata__"]["step"].get<std::string>());
  }

  /// Every loss of every step, of the dev parts too, within kBound.
  void expect_same_losses(const std::string& expected, const std::string& found) const {
    double worst = 0;
    for (const char* kind : {"train", "dev"}) {
      const auto a = metrics_of(path(expected), kind), b = metrics_of(path(found), kind);
      ASSERT_EQ(a.size(), b.size()) << kind;
      for (size_t i = 0; i < a.size(); ++i) {
        ASSERT_EQ(a[i]["step"], b[i]["step"]);
        for (const auto& [name, loss] : a[i]["loss"].items()) {
          const double difference =
              std::fabs(b[i]["loss"][name].get<double>() / loss.get<double>() - 1);
          ASSERT_LT(difference, kBound) << kind << " " << name << " of step " << a[i]["step"];
          worst = std::max(worst, difference);
        }
      }
    }
    std::printf("  losses of %s and %s differ by %.1e at most, bound %.0e\n", expected.c_str(),
                found.c_str(), worst, kBound);
  }
};

TEST_F(CudaTrainCli, ARunGoesOnOnADeviceAndBack) {
  // The processor is quick: most of its steps are left when it is stopped.
  constexpr int kMixedSteps = 100;
  const std::string often = "--train.checkpoint_every 1";
  ASSERT_EQ(0, run(flags("cpu", kMixedSteps)).exit_status);
  const int first = cut_short(flags("mixed", kMixedSteps, often), "mixed", 5, SIGKILL);
  ASSERT_GE(first, 4);
  ASSERT_LT(first, kMixedSteps - 10);
  const int second = cut_short("--resume mixed --device cuda", "mixed", first + 6, SIGTERM);
  ASSERT_GE(second, first + 6);
  ASSERT_LT(second, kMixedSteps);
  const Outcome o = run("--resume mixed --device cpu");
  ASSERT_EQ(0, o.exit_status) << o.err;
  EXPECT_THAT(o.err, testing::HasSubstr("goes on behind step " + std::to_string(second)));
  expect_same_losses("cpu", "mixed");
}

TEST_F(CudaTrainCli, CutShortAndResumedGivesTheSameBits) {
  for (const std::string precision : {"f32", "bf16"}) {
    if (kSlow && precision == "bf16") continue;
    const std::string more = "--device cuda --train.checkpoint_every 3 --precision " + precision;
    const Outcome whole = run(flags("whole-" + precision, kSteps, more));
    ASSERT_EQ(0, whole.exit_status) << whole.err;
    for (const int signal : {SIGTERM, SIGKILL}) {
      const std::string name = precision + std::to_string(signal);
      const int left = cut_short(flags(name, kSteps, more), name, 5, signal);
      ASSERT_GE(left, 3);
      ASSERT_LT(left, kSteps);
      const Outcome o = run("--resume " + name);
      ASSERT_EQ(0, o.exit_status) << o.err;
      expect_same_results("whole-" + precision, name);
      EXPECT_EQ(static_cast<size_t>(kSteps), metrics_of(path(name), "train").size());
    }
  }
}

#ifdef XSR_EMULATED
TEST_F(CudaTrainCli, WhatIsMissingIsToldBeforeTheDataIsMadeReady) {
  const std::pair<const char*, const char*> kMissing[] = {
      {"XSR_EMULATED_DEVICES=0", "no CUDA device can be used"},
      {"XSR_TRAIN_CUDA_LIBRARY=/no/such/library.so", "needs libxsr_train_cuda.so"}};
  for (const auto& [setting, message] : kMissing) {
    const Outcome o = wait_for(
        start(flags("none", kSteps, "--device cuda"), "export " + std::string(setting) + "; "));
    EXPECT_EQ(1, o.exit_status) << setting;
    EXPECT_THAT(o.err, testing::HasSubstr(message));
    EXPECT_FALSE(fs::exists(path("none/tokenizer.model"))) << setting;
  }
}
#endif

/// Negatives are those of the whole batch, whatever device has them.
TEST_F(CudaTrainCli, TheBatchOfTwoDevicesIsOneBatch) {
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "2");
  std::string why;
  if (cuda::devices(&why).size() < 2) GTEST_SKIP() << "needs two CUDA devices";
  // InfoNCE, ALIGN and SIM compare sentences of the whole batch. Dropout draws other masks on two.
  const std::string more =
      "--model.dropout 0 --objective.align_weight 0.5 --objective.sim_weight 0.5 "
      "--train.checkpoint_every 3 --device ";
  const Outcome one = run(flags("one", kSteps, more + "cuda"));
  ASSERT_EQ(0, one.exit_status) << one.err;
  const Outcome two = run(flags("two", kSteps, more + "cuda:0,1"));
  ASSERT_EQ(0, two.exit_status) << two.err;
  expect_same_losses("one", "two");
  std::printf(
      "  bits of one device and of two are %s\n",
      read_file(path("one/model.xsr")) == read_file(path("two/model.xsr")) ? "equal" : "not equal");
  // Two devices again, cut short; and a run of two that goes on on one.
  const int left = cut_short(flags("cut", kSteps, more + "cuda:0,1"), "cut", 5, SIGKILL);
  ASSERT_GE(left, 3);
  ASSERT_LT(left, kSteps);
  fs::copy(path("cut"), path("fewer"));
  const Outcome again = run("--resume cut");
  ASSERT_EQ(0, again.exit_status) << again.err;
  expect_same_results("two", "cut");
  const Outcome fewer = run("--resume fewer --device cuda");
  ASSERT_EQ(0, fewer.exit_status) << fewer.err;
  expect_same_losses("one", "fewer");
}

}  // namespace
}  // namespace xsr::test
