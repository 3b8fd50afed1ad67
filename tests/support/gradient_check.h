#pragma once
// Gradients of the double-precision references against central differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/kernel_harness.h"

namespace xsr::test {

inline std::vector<double> normal_doubles(Random& random, int64_t count, double scale = 1) {
  std::vector<double> values(count);
  for (double& value : values) value = random.normal(static_cast<float>(scale));
  return values;
}

/// Σ weights · values: a loss whose gradient for `values` is `weights`.
inline double weighted_sum(const std::vector<double>& weights, const std::vector<double>& values) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) sum += weights[i] * values[i];
  return sum;
}

/// Moves every element of x, which `loss` reads, and compares the slope of `loss` with `gradient`.
///
/// With the step ε^(1/3), central differences in double are right to about ε^(2/3) = 4e-11 of the
/// loss; 1e-7 of the largest gradient (and of the loss) leaves room for third derivatives and for
/// sums of thousands, and is far below a forgotten term or a step in f32.
inline ::testing::AssertionResult gradient_agrees(const std::string& what, std::vector<double>& x,
                                                  const std::vector<double>& gradient,
                                                  const std::function<double()>& loss) {
  if (x.size() != gradient.size())
    return ::testing::AssertionFailure()
           << what << ": sizes " << x.size() << " and " << gradient.size();
  double largest = std::fabs(loss());
  for (double g : gradient) largest = std::max(largest, std::fabs(g));
  const double bound = 1e-7 * largest;
  const double step = std::cbrt(std::numeric_limits<double>::epsilon());
  double worst = -1, found = 0;
  size_t at = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i], h = step * std::max(1.0, std::fabs(before));
    const double above = before + h, below = before - h;
    x[i] = above;
    const double upper = loss();
    x[i] = below;
    const double slope = (upper - loss()) / (above - below);
    x[i] = before;
    const double error = std::fabs(slope - gradient[i]);
    if (!(error <= worst)) worst = error, found = slope, at = i;  // keeps a NaN
    if (std::isnan(error)) break;
  }
  if (worst <= bound) return ::testing::AssertionSuccess();
  char text[256];
  std::snprintf(text, sizeof text,
                ": gradient %zu of %zu is %.12g, central differences give %.12g; error %.3g, bound "
                "%.3g, seed %llu",
                at, x.size(), gradient[at], found, worst, bound,
                static_cast<unsigned long long>(test_seed()));
  return ::testing::AssertionFailure() << what << text;
}

}  // namespace xsr::test
