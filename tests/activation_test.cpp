// Sweeps float bit patterns through every activation kernel and asserts the largest error in units
// in the last place of the correctly rounded result (with a floor at the smallest normal, below
// which an ulp no longer shrinks).
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/activation/activation_ref.h"
#include "kernels/dispatch.h"
#include "kernels/storage.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/sanitizers.h"

namespace xsr::kernels {
namespace {

struct Bound {
  Activation activation;
  const char* name;
  double low, high;  // the range of the statement
  double ulp;        // largest error there
};

// kernels/README.md states the same numbers.
const Bound kBounds[] = {
    {Activation::kSwish, "swish", -87, 3.4e38, 2.5},
    {Activation::kGeluErf, "gelu_erf", -5.5, 3.4e38, 5.0},
    {Activation::kGeluTanh, "gelu_tanh", -3, 3.4e38, 10.0},
    {Activation::kRelu, "relu", -3.4e38, 3.4e38, 0.0},
    {Activation::kTanh, "tanh", -3.4e38, 3.4e38, 1.5},
};

double ulp_of(double exact) {
  const double magnitude = std::max(std::fabs(exact), 1.17549435e-38);
  int exponent;
  std::frexp(magnitude, &exponent);
  return std::ldexp(1.0, exponent - 24);
}

class ActivationSweep : public ::testing::TestWithParam<Isa> {};

TEST_P(ActivationSweep, LargestErrorInUlp) {
  if (!isa_supported(GetParam())) GTEST_SKIP() << "this CPU has no " << isa_name(GetParam());
  const KernelTable kernels = resolve_kernels(GetParam());
  constexpr int kBlock = 4096;
  std::vector<float> x(kBlock), out(kBlock);
  for (const Bound& bound : kBounds) {
    double worst = 0;
    float worst_x = 0, worst_y = 0;
    // 997 is prime to 2^32, so the mantissas vary within every exponent: 4.3 million patterns.
    for (uint64_t first = 0; first < (1ull << 32); first += 997ull * kBlock) {
      int count = 0;
      for (int i = 0; i < kBlock; ++i) {
        const uint64_t bits = first + 997ull * i;
        if (bits >= (1ull << 32)) break;
        const float value = f32_from_bits(static_cast<uint32_t>(bits));
        if (std::isfinite(value) && value >= bound.low && value <= bound.high) x[count++] = value;
      }
      kernels.activation_forward_f32(x.data(), count, bound.activation, out.data());
      for (int i = 0; i < count; ++i) {
        const double exact = activate_ref<double>(x[i], bound.activation);
        const double error = std::fabs(out[i] - exact) / ulp_of(exact);
        if (!(error <= worst)) worst = error, worst_x = x[i], worst_y = out[i];
      }
    }
    std::printf("  %s %s: %.2f ulp at %.9g\n", isa_name(kernels.isa), bound.name, worst, worst_x);
    EXPECT_LE(worst, bound.ulp) << bound.name << " on " << isa_name(kernels.isa) << " of "
                                << worst_x << " is " << worst_y;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, ActivationSweep, ::testing::Values(Isa::kAvx2, Isa::kAvx512),
                         [](const auto& info) { return isa_name(info.param); });

// kernels/simd/asan_vectors.cpp stands between AddressSanitizer and vectors.
TEST(AddressSanitizer, SeesVectorsThatReachBehindABuffer) {
  if (!test::kAddressSanitizer || !isa_supported(Isa::kAvx2)) GTEST_SKIP();
  const KernelTable kernels = resolve_kernels(Isa::kAvx2);
  constexpr int64_t kEnough = 16;
  std::vector<float> in(kEnough), out(kEnough);
  kernels.activation_forward_f32(in.data(), kEnough, Activation::kRelu, out.data());
  for (const int64_t n : {kEnough - 1, kEnough - 2, kEnough - 8}) {
    std::vector<float> few(n);
    EXPECT_DEATH(kernels.activation_forward_f32(few.data(), kEnough, Activation::kRelu, out.data()),
                 "READ of size 32");
    EXPECT_DEATH(kernels.activation_forward_f32(in.data(), kEnough, Activation::kRelu, few.data()),
                 "WRITE of size 32");
  }
}

}  // namespace
}  // namespace xsr::kernels
