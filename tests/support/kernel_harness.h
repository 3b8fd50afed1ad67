#pragma once
// What the kernel tests share: guarded buffers, error budgets and messages that reproduce a
// failure.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>  // program_invocation_short_name
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace xsr::test {

/// The seed of all random inputs; XSR_TEST_SEED overrides it.
inline uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("XSR_TEST_SEED");
    return text != nullptr ? std::strtoull(text, nullptr, 10) : 7ull;
  }();
  return seed;
}

/// A float buffer with guard words on both sides, its start `shift` floats past a 64-byte boundary,
/// filled with NaN so that whatever a kernel reads without having been given it shows in the
/// result.
class Guarded {
 public:
  explicit Guarded(int64_t size, int shift = 0)
      : size_(size), storage_(size + 2 * kGuard + 32, kNan) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(storage_.data() + kGuard);
    const int64_t to_boundary = (64 - address % 64) % 64 / sizeof(float);
    start_ = kGuard + to_boundary + shift;
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      if (i < start_ || i >= start_ + size_) std::memcpy(&storage_[i], &kGuardBits, 4);
    }
  }
  float* data() { return storage_.data() + start_; }
  float& operator[](int64_t i) { return storage_[start_ + i]; }
  int64_t size() const { return size_; }
  /// True when no guard word was written.
  bool intact() const {
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      if ((i < start_ || i >= start_ + size_) && std::memcmp(&storage_[i], &kGuardBits, 4) != 0)
        return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 32;
  static constexpr uint32_t kGuardBits = 0x7fc0dead;  // a NaN with a payload of ours
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  int64_t size_, start_ = 0;
  std::vector<float> storage_;
};

class Random {
 public:
  explicit Random(uint64_t salt) : engine_(test_seed() * 0x9e3779b97f4a7c15ull + salt) {}
  float normal(float scale = 1) {
    return scale * static_cast<float>(std::normal_distribution<double>()(engine_));
  }
  int32_t range(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(engine_);
  }
  uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

/// House rule: the error against the double reference is at most `factor` times that of the plain
/// f32 loop. Rounding the exact result to f32 alone can cost half an ulp of the largest value,
/// which the plain loop may escape by luck on small shapes, so that much is granted to it.
class ErrorBudget {
 public:
  explicit ErrorBudget(double factor = 2) : factor_(factor) {}
  void add(float result, float plain, double exact, int64_t row, int64_t column) {
    if (std::isnan(result) != std::isnan(exact) || (std::isinf(exact) && result != exact)) {
      if (!broken_) worst_ = {row, column, result, exact};
      broken_ = true;
      return;
    }
    if (!std::isfinite(exact)) return;
    largest_ = std::max(largest_, std::fabs(exact));
    if (std::isfinite(plain))  // or the budget would be as large
      plain_error_ = std::max(plain_error_, std::fabs(static_cast<double>(plain) - exact));
    const double error = std::fabs(static_cast<double>(result) - exact);
    if (!(error <= error_)) {
      error_ = error;
      if (!broken_) worst_ = {row, column, result, exact};
    }
  }
  /// What the contract allows beside that.
  void allow(double error) { allowed_ = error; }
  double budget() const {
    return allowed_ + factor_ * (plain_error_ + largest_ * std::ldexp(1.0, -24));
  }
  double share() const { return broken_ ? INFINITY : error_ == 0 ? 0 : error_ / budget(); }
  ::testing::AssertionResult check(const std::string& what, const std::string& filter) const {
    if (!broken_ && error_ <= budget()) return ::testing::AssertionSuccess();
    char text[512];
    std::snprintf(text, sizeof text,
                  "%s: row %lld col %lld is %.9g, reference %.9g\n  error %.3g is %.2f× its budget "
                  "of %.3g; reproduce: "
                  "XSR_TEST_SEED=%llu ./tests/%s --gtest_filter='%s'",
                  what.c_str(), static_cast<long long>(worst_.row),
                  static_cast<long long>(worst_.column), static_cast<double>(worst_.result),
                  worst_.exact, error_, share(), budget(),
                  static_cast<unsigned long long>(test_seed()), program_invocation_short_name,
                  filter.c_str());
    return ::testing::AssertionFailure() << text;
  }

 private:
  struct Worst {
    int64_t row = 0, column = 0;
    float result = 0;
    double exact = 0;
  };
  double factor_, allowed_ = 0, error_ = 0, plain_error_ = 0, largest_ = 0;
  bool broken_ = false;
  Worst worst_;
};

/// The probabilities of a query add up to 1, so that without dropout every column of dV, part 2 of
/// dqkv [N, 3, C], adds up to that of dO [N, C] over a sentence's rows.
template <typename Gradient, typename Result>
void expect_whole_probabilities(const std::string& what, const std::vector<int32_t>& cu, int32_t C,
                                Gradient&& dout, Result&& dqkv, double budget) {
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    for (int32_t x = 0; x < C; ++x) {
      double found = 0, expected = 0, size = 0;
      for (int32_t i = cu[b]; i < cu[b + 1]; ++i) {
        found += dqkv[int64_t{i} * 3 * C + 2 * C + x];
        expected += dout[int64_t{i} * C + x];
        size += std::fabs(dout[int64_t{i} * C + x]);
      }
      EXPECT_NEAR(found, expected, budget * size) << what << ": sentence " << b << " column " << x;
    }
  }
}

/// The gradients of a query's scores add up to 0, so that where all keys have the same in the first
/// column of every head, `key`, that column of dQ, part 0 of dqkv [N, 3, C], is 0. Without dropout;
/// x(row, column) is QKV.
template <typename Values, typename Gradient, typename Result>
void expect_score_gradients_cancel(const std::string& what, const std::vector<int32_t>& cu,
                                   int32_t H, int32_t D, double key, Values&& x, Gradient&& dout,
                                   Result&& dqkv, double budget) {
  const int32_t C = H * D;
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    for (int32_t i = cu[b]; i < cu[b + 1]; ++i) {
      for (int32_t h = 0; h < H; ++h) {
        double size = 0;  // of dP
        for (int32_t j = cu[b]; j < cu[b + 1]; ++j) {
          double dp = 0;
          for (int32_t d = h * D; d < (h + 1) * D; ++d)
            dp += std::fabs(dout[int64_t{i} * C + d] * x(j, 2 * C + d));
          size = std::max(size, dp);
        }
        EXPECT_NEAR(0, dqkv[int64_t{i} * 3 * C + h * D], budget * size * key / std::sqrt(D))
            << what << ": row " << i << " head " << h;
      }
    }
  }
}

}  // namespace xsr::test
