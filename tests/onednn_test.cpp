// oneDNN behind the gemm contract: a second opinion on gemm_forward_f32, and the proof that the
// benches' yardstick computes what xsr computes.
#include <gtest/gtest.h>

#ifdef XSR_HAVE_ONEDNN
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/gemm/gemm_onednn.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/shapes.h"

namespace xsr::kernels {
namespace {

constexpr float kUntouched = -77.0f;

std::vector<float> normal_floats(size_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> data(count);
  for (float& value : data) value = normal(random);
  return data;
}

struct Problem {
  int32_t M, N, K;
  Storage storage = Storage::kF32;
  Activation activation = Activation::kNone;
  bool bias = true;
  enum { kNoResidual, kResidual, kInPlace } residual = kNoResidual;
  int32_t first_panel = 0, last_panel = -1;  // -1: all
};

void check(const Problem& p) {
  SCOPED_TRACE(testing::Message() << "M=" << p.M << " N=" << p.N << " K=" << p.K << " storage="
                                  << int(p.storage) << " activation=" << int(p.activation)
                                  << " bias=" << p.bias << " residual=" << int(p.residual)
                                  << " panels [" << p.first_panel << ", " << p.last_panel << ")");
  const int32_t last_panel = p.last_panel < 0 ? panel_count(p.N) : p.last_panel;
  const auto plain = normal_floats(size_t(p.N) * p.K, 1.0f / std::sqrt(float(p.K)), 1);
  const size_t bytes = packed_elements(p.N, p.K, p.storage) * storage_size(p.storage);
  std::vector<char> memory(bytes + 64);
  char* packed = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  gemm_pack_panels(plain.data(), p.N, p.K, p.storage, packed);
  const PackedMatrix w{packed, p.storage, p.N, p.K};

  const int64_t a_stride = padded_stride(p.K), out_stride = padded_stride(p.N);
  const auto a = normal_floats(p.M * a_stride, 1.0f, 2);
  const auto bias = normal_floats(p.N, 1.0f, 3);
  const auto residual = normal_floats(p.M * out_stride, 1.0f, 4);
  std::vector<float> out(p.M * out_stride, kUntouched);
  if (p.residual == Problem::kInPlace) out = residual;
  const std::vector<float> before = out;
  GemmEpilogue epilogue;
  epilogue.bias = p.bias ? bias.data() : nullptr;
  epilogue.activation = p.activation;
  if (p.residual != Problem::kNoResidual) {
    epilogue.residual = p.residual == Problem::kInPlace ? out.data() : residual.data();
    epilogue.residual_stride = out_stride;
  }
  // The reference in double and, for the budget, in f32.
  const std::vector<double> a64(a.begin(), a.end()), bias64(bias.begin(), bias.end()),
      residual64(residual.begin(), residual.end());
  std::vector<double> reference(p.M * out_stride);
  gemm_forward_ref<double>(a64.data(), a_stride, p.M, w, p.first_panel, last_panel,
                           p.bias ? bias64.data() : nullptr, p.activation,
                           p.residual != Problem::kNoResidual ? residual64.data() : nullptr,
                           out_stride, reference.data(), out_stride);
  std::vector<float> ref(p.M * out_stride);
  gemm_forward_ref<float>(a.data(), a_stride, p.M, w, p.first_panel, last_panel,
                          p.bias ? bias.data() : nullptr, p.activation,
                          p.residual != Problem::kNoResidual ? residual.data() : nullptr,
                          out_stride, ref.data(), out_stride);

  OnednnGemm gemm(w);
  gemm.forward(a.data(), a_stride, p.M, p.first_panel, last_panel, epilogue, out.data(),
               out_stride);
  const int32_t first = p.first_panel * kPanelColumns,
                last = std::min(p.N, last_panel * kPanelColumns);
  double error = 0, ref_error = 0;
  for (int32_t m = 0; m < p.M; ++m) {
    for (int64_t n = 0; n < out_stride; ++n) {
      const size_t i = m * out_stride + n;
      if (n < first || n >= last) {
        ASSERT_EQ(out[i], before[i]) << "row " << m << " column " << n << " was written";
        continue;
      }
      error = std::max(error, std::fabs(out[i] - reference[i]));
      ref_error = std::max(ref_error, std::fabs(ref[i] - reference[i]));
      ASSERT_FALSE(std::isnan(out[i])) << "row " << m << " column " << n;
    }
  }
  // oneDNN's sums run in another order and its activations are its own, hence the absolute term:
  // 4 units in the last place of values up to 8.
  EXPECT_LE(error, 2 * ref_error + 4e-6) << gemm.implementation();
}

TEST(Onednn, AgreesWithTheReferenceOnTheXsrShapes) {
  for (const GemmShape& shape : kXsrGemms) {
    for (const int32_t M : {1, 5, 20}) {
      check({.M = M,
             .N = shape.N,
             .K = shape.K,
             .activation = shape.activation,
             .residual = shape.residual ? Problem::kInPlace : Problem::kNoResidual});
    }
  }
}

TEST(Onednn, TakesShapesThatFitNoBlock) {
  for (const int32_t N : {1, 31, 33, 96})
    for (const int32_t K : {1, 15, 17, 64}) check({.M = 3, .N = N, .K = K});
}

TEST(Onednn, TakesEveryPartOfTheEpilogue) {
  for (const Activation activation :
       {Activation::kNone, Activation::kSwish, Activation::kGeluErf, Activation::kGeluTanh,
        Activation::kRelu, Activation::kTanh}) {
    for (const auto residual : {Problem::kNoResidual, Problem::kResidual, Problem::kInPlace}) {
      for (const bool bias : {false, true}) {
        check({.M = 7,
               .N = 64,
               .K = 48,
               .activation = activation,
               .bias = bias,
               .residual = residual});
      }
    }
  }
}

TEST(Onednn, WidensNarrowStoragesExactly) {
  for (const Storage storage : {Storage::kBF16, Storage::kF16}) {
    check({.M = 5, .N = 96, .K = 64, .storage = storage});
    check({.M = 5, .N = 33, .K = 17, .storage = storage});
  }
}

TEST(Onednn, WritesItsPanelsOnly) {
  check({.M = 4, .N = 128, .K = 32, .first_panel = 1, .last_panel = 3});
  check({.M = 4, .N = 100, .K = 32, .first_panel = 3, .last_panel = 4});
  check({.M = 4, .N = 100, .K = 32, .first_panel = 2, .last_panel = 2});
}

}  // namespace
}  // namespace xsr::kernels

#else

TEST(Onednn, NotBuilt) { GTEST_SKIP() << "built without oneDNN (XSR_ONEDNN=OFF or not found)"; }

#endif
