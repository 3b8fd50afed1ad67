// The double-precision reference of every backward kernel against central differences of the
// forward one.
#include "kernels/activation/activation_ref.h"
#include "kernels/dropout/dropout_ref.h"
#include "kernels/embedding/embedding_ref.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/pooling/pooling_ref.h"
#include "tests/support/gradient_check.h"

namespace xsr::kernels {
namespace {

using test::gradient_agrees;
using test::normal_doubles;
using test::Random;
using test::weighted_sum;

TEST(GradientCheck, FindsAWrongGradient) {
  Random random(1);
  std::vector<double> x = normal_doubles(random, 20), cubes(20), gradient(20);
  for (int i = 0; i < 20; ++i) gradient[i] = 3 * x[i] * x[i];
  const auto loss = [&] {
    double sum = 0;
    for (double value : x) sum += value * value * value;
    return sum;
  };
  EXPECT_TRUE(gradient_agrees("cubes", x, gradient, loss));
  const double largest = *std::max_element(gradient.begin(), gradient.end());
  gradient[7] += 1e-5 * (largest + std::fabs(loss()));
  EXPECT_FALSE(gradient_agrees("cubes", x, gradient, loss));
  gradient[7] = NAN;
  EXPECT_FALSE(gradient_agrees("cubes", x, gradient, loss));
}

TEST(Gradients, Layernorm) {
  Random random(2);
  const int32_t N = kLayernormBlockRows + 6, blocks = layernorm_block_count(N);
  for (int32_t C : {2, 3, 7, 16}) {
    const double eps = 1e-2;  // large enough to be seen
    std::vector<double> x = normal_doubles(random, N * C, 3), gamma = normal_doubles(random, C),
                        beta = normal_doubles(random, C), dy = normal_doubles(random, N * C),
                        out(N * C), dx(N * C), dgamma_parts(blocks * C), dbeta_parts(blocks * C),
                        dgamma(C), dbeta(C);
    layernorm_backward_ref(x.data(), C, dy.data(), C, N, 0, blocks, C, gamma.data(), eps, dx.data(),
                           C, dgamma_parts.data(), dbeta_parts.data());
    for (int32_t k = 0; k < blocks; ++k) {
      for (int32_t c = 0; c < C; ++c) {
        dgamma[c] += dgamma_parts[k * C + c];
        dbeta[c] += dbeta_parts[k * C + c];
      }
    }
    const auto loss = [&] {
      layernorm_forward_ref(x.data(), C, 0, N, C, gamma.data(), beta.data(), eps, out.data(), C);
      return weighted_sum(dy, out);
    };
    const std::string what = "layernorm C=" + std::to_string(C);
    EXPECT_TRUE(gradient_agrees(what + " dx", x, dx, loss));
    EXPECT_TRUE(gradient_agrees(what + " dgamma", gamma, dgamma, loss));
    EXPECT_TRUE(gradient_agrees(what + " dbeta", beta, dbeta, loss));
  }
}

TEST(Gradients, Activation) {
  Random random(3);
  for (Activation activation : {Activation::kNone, Activation::kSwish, Activation::kGeluErf,
                                Activation::kGeluTanh, Activation::kRelu, Activation::kTanh}) {
    std::vector<double> x;
    for (double value = -25; value <= 25; value += 0.37) x.push_back(value);  // not 0, relu's kink
    const int64_t n = static_cast<int64_t>(x.size());
    const std::vector<double> dy = normal_doubles(random, n);
    std::vector<double> out(n), dx(n);
    activation_backward_ref(x.data(), dy.data(), n, activation, dx.data());
    EXPECT_TRUE(gradient_agrees("activation " + std::to_string(int(activation)), x, dx, [&] {
      activation_forward_ref(x.data(), n, activation, out.data());
      return weighted_sum(dy, out);
    }));
  }
}

TEST(Gradients, Pooling) {
  Random random(4);
  const std::vector<int32_t> cu = {0, 3, 3, 4, 12};
  const int32_t B = 4, N = 12, C = 5;
  for (Pooling pooling : {Pooling::kMean, Pooling::kMax, Pooling::kCls}) {
    std::vector<double> x = normal_doubles(random, N * C), dy = normal_doubles(random, B * C),
                        out(B * C), dx(N * C);
    pooling_backward_ref(x.data(), C, dy.data(), C, cu.data(), 0, B, C, pooling, dx.data(), C);
    EXPECT_TRUE(gradient_agrees("pooling " + std::to_string(int(pooling)), x, dx, [&] {
      pooling_forward_ref(x.data(), C, cu.data(), 0, B, C, pooling, out.data(), C);
      return weighted_sum(dy, out);
    }));
  }
}

TEST(Gradients, L2Normalize) {
  Random random(5);
  const int32_t B = 4, C = 9;
  std::vector<double> x = normal_doubles(random, B * C), dy = normal_doubles(random, B * C),
                      dx(B * C);
  l2_normalize_backward_ref(x.data(), C, dy.data(), C, 0, B, C, dx.data(), C);
  EXPECT_TRUE(gradient_agrees("l2_normalize", x, dx, [&] {
    std::vector<double> out = x;
    l2_normalize_forward_ref(out.data(), C, 0, B, C);
    return weighted_sum(dy, out);
  }));
}

TEST(Gradients, Embedding) {
  Random random(6);
  const int32_t V = 6, N = 20, C = 4;
  std::vector<int32_t> ids(N);
  for (int32_t& id : ids) id = random.range(0, V - 2);  // V - 1 is never looked up
  std::vector<double> table = normal_doubles(random, V * C), de = normal_doubles(random, N * C),
                      dtable(V * C);
  std::vector<int32_t> memory(bucket_rows_memory(N, V));
  const RowBuckets buckets = bucket_rows(ids.data(), N, V, -1, memory.data());
  embedding_backward_ref(de.data(), C, buckets, 0, buckets.count, C, dtable.data());
  EXPECT_TRUE(gradient_agrees("embedding", table, dtable, [&] {
    double loss = 0;
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < C; ++c) loss += table[ids[i] * C + c] * de[i * C + c];
    }
    return loss;
  }));
}

TEST(Gradients, Dropout) {
  Random random(7);
  const int32_t N = 9, C = 11;
  Dropout dropout;
  dropout.threshold = 0x60000000u;
  dropout.scale = 1.6f;
  dropout.key[0] = 5;
  std::vector<double> x = normal_doubles(random, N * C), residual = normal_doubles(random, N * C),
                      dy = normal_doubles(random, N * C), out(N * C), dx(N * C);
  dropout_forward_ref<double>(dy.data(), C, 0, N, C, dropout, nullptr, 0, dx.data(), C);
  const auto loss = [&] {
    dropout_forward_ref(x.data(), C, 0, N, C, dropout, residual.data(), C, out.data(), C);
    return weighted_sum(dy, out);
  };
  EXPECT_TRUE(gradient_agrees("dropout dx", x, dx, loss));
  EXPECT_TRUE(gradient_agrees("dropout dresidual", residual, dy, loss));
}

}  // namespace
}  // namespace xsr::kernels
