// Kernels of training on the device against double, with the house budgets: 2 times the error of
// plain f32 loops forward, 3 times backward.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/activation/activation_ref.h"
#include "kernels/activation/activation_training_cuda.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/attention/attention_training_cuda.h"
#include "kernels/dropout/dropout_cuda.h"
#include "kernels/dropout/dropout_ref.h"
#include "kernels/embedding/embedding_backward_cuda.h"
#include "kernels/embedding/embedding_ref.h"
#include "kernels/gemm/column_sum_cuda.h"
#include "kernels/gemm/gemm_backward_ref.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/layernorm/layernorm_training_cuda.h"
#include "kernels/loss/loss_cuda.h"
#include "kernels/loss/loss_ref.h"
#include "kernels/optimizer/optimizer_cuda.h"
#include "kernels/optimizer/optimizer_ref.h"
#include "kernels/pooling/pooling_cuda.h"
#include "kernels/pooling/pooling_ref.h"
#include "kernels/pooling/pooling_training_cuda.h"
#include "kernels/storage.h"
#include "tests/support/device_buffer.h"
#include "tests/support/kernel_harness.h"

namespace xsr::cuda {
namespace {

using kernels::Dropout;
using test::ErrorBudget;
using test::Random;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

/// A DeviceBuffer that is on the device from the start, and comes back whole.
template <typename T>
class DeviceArray : public test::DeviceBuffer<T> {
 public:
  explicit DeviceArray(int64_t size) : test::DeviceBuffer<T>(size) { put(); }
  explicit DeviceArray(const std::vector<T>& values) : test::DeviceBuffer<T>(values) { put(); }
  T* data() { return this->device(); }
  std::vector<T> host() {
    StreamOwner stream;
    this->download(stream.get());
    stream.synchronize();
    this->expect_guards();
    return std::vector<T>(this->begin(), this->end());
  }

 private:
  void put() {
    StreamOwner stream;
    this->upload(stream.get());
    stream.synchronize();
  }
};

constexpr double kForward = 2, kBackward = 3;

Floats normal(Random& random, int64_t count, float scale = 1) {
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = random.normal(scale);
  return values;
}
Doubles wide(const Floats& values) { return Doubles(values.begin(), values.end()); }

void expect_close(const std::string& what, double factor, const Floats& found, const Floats& plain,
                  const Doubles& exact, int64_t columns) {
  ASSERT_EQ(exact.size(), found.size()) << what;
  ErrorBudget budget(factor);
  for (size_t i = 0; i < exact.size(); ++i) {
    budget.add(found[i], plain[i], exact[i], static_cast<int64_t>(i) / columns,
               static_cast<int64_t>(i) % columns);
  }
  EXPECT_TRUE(budget.check(what, "*"));
}

/// Every element of narrow is that of wide, rounded.
void expect_narrow(const std::string& what, const std::vector<uint16_t>& narrow,
                   const Floats& wide) {
  for (size_t i = 0; i < wide.size(); ++i)
    ASSERT_EQ(kernels::bf16_from_f32(wide[i]), narrow[i]) << what << " element " << i;
}

float to_bf16(float value) { return kernels::f32_from_bf16(kernels::bf16_from_f32(value)); }
Floats bf16_values(Random& random, int64_t count, float scale = 1) {
  Floats values = normal(random, count, scale);
  for (float& value : values) value = to_bf16(value);
  return values;
}
std::vector<uint16_t> narrow(const Floats& values) {
  std::vector<uint16_t> result;
  for (const float value : values) result.push_back(kernels::bf16_from_f32(value));
  return result;
}
Floats widened(const std::vector<uint16_t>& values) {
  Floats result;
  for (const uint16_t value : values) result.push_back(kernels::f32_from_bf16(value));
  return result;
}

std::vector<int32_t> cumulate(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> cu = {0};
  for (const int32_t length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

Dropout half() {
  Dropout dropout;
  dropout.threshold = 1u << 30;  // a quarter
  dropout.scale = 1 / 0.75f;
  dropout.key[0] = 11;
  dropout.key[1] = 3;
  dropout.step = 5;
  return dropout;
}

template <typename T>
void plain_dropout(std::vector<T>& x, int32_t N, int32_t C, Dropout dropout, uint32_t place) {
  dropout.stream += place;
  kernels::dropout_forward_ref<T>(x.data(), C, 0, N, C, dropout, nullptr, 0, x.data(), C);
}

using CudaTraining = test::DeviceTest;

TEST_F(CudaTraining, DropoutHasTheBitsOfThePlainLoop) {
  Random random(1);
  for (const int32_t C : {4, 8, 132, 260}) {
    const int32_t N = 19;
    Floats x = normal(random, N * C);
    x[0] = x[2] = NAN;  // the first is kept, the other dropped
    DeviceArray<float> device(x);
    DeviceArray<Dropout> dropout(std::vector<Dropout>{half()});
    run([&] { return dropout_forward_f32_cuda(device.data(), N, C, dropout.data(), 9, stream()); });
    plain_dropout(x, N, C, half(), 9);
    Floats found = device.host();
    // A product that is NaN has other bits on a GPU (0x7fffffff) than on the processor.
    ASSERT_TRUE(std::isnan(x[0]) && std::isnan(found[0])) << C;
    found[0] = x[0];
    EXPECT_EQ(0, found[2]);
    EXPECT_EQ(0, std::memcmp(x.data(), found.data(), sizeof(float) * x.size())) << C;
  }
}

/// x̂ · gamma + beta and the backward pass, both behind dropout, in T.
template <typename T>
struct NormReference {
  std::vector<T> sum, out, dx, dbranch, dgamma, dbeta, dbias;
  NormReference(std::vector<T> x, const std::vector<T>& residual, const std::vector<T>& gamma,
                const std::vector<T>& beta, const std::vector<T>& dy, int32_t N, int32_t C,
                const Dropout& dropout, uint32_t place) {
    plain_dropout(x, N, C, dropout, place);
    for (size_t i = 0; i < x.size(); ++i) x[i] += residual[i];
    sum = x;
    out.resize(x.size());
    kernels::layernorm_forward_ref<T, T>(x.data(), C, 0, N, C, gamma.data(), beta.data(), T(1e-5),
                                         out.data(), C);
    const int32_t blocks = kernels::layernorm_block_count(N);
    std::vector<T> gamma_parts(blocks * C), beta_parts(blocks * C);
    dx.resize(x.size());
    kernels::layernorm_backward_ref<T>(x.data(), C, dy.data(), C, N, 0, blocks, C, gamma.data(),
                                       T(1e-5), dx.data(), C, gamma_parts.data(),
                                       beta_parts.data());
    dgamma.assign(C, 0);
    dbeta.assign(C, 0);
    for (int32_t i = 0; i < blocks * C; ++i) {
      dgamma[i % C] += gamma_parts[i];
      dbeta[i % C] += beta_parts[i];
    }
    dbranch = dx;
    plain_dropout(dbranch, N, C, dropout, place);
    dbias.assign(C, 0);
    for (int32_t i = 0; i < N * C; ++i) dbias[i % C] += dbranch[i];
  }
};

TEST_F(CudaTraining, LayerNormForwardAndBackward) {
  Random random(2);
  // Rows of one lane and of many; more than one for a warp; more columns than a warp keeps.
  for (const auto& shape : {std::pair{1, 4},
                            {65, 20},
                            {2300, 60},
                            {12, 128},
                            {6, 256},
                            {9, 384},
                            {9, 512},
                            {3, 132},
                            {11, 640},
                            {5, 768},
                            {10, 1024},
                            {70, 1028}}) {
    const int32_t N = shape.first, C = shape.second;
    const Floats x = normal(random, N * C), residual = normal(random, N * C, 3),
                 gamma = normal(random, C), beta = normal(random, C), dy = normal(random, N * C);
    const NormReference<float> plain(x, residual, gamma, beta, dy, N, C, half(), 4);
    const NormReference<double> exact(wide(x), wide(residual), wide(gamma), wide(beta), wide(dy), N,
                                      C, half(), 4);
    DeviceArray<float> sum(x), other(residual), scale(gamma), shift(beta), out(x.size()),
        statistics(2 * N), dx(dy), dbranch(x.size()), dgamma(C), dbeta(C), dbias(C),
        parts(layernorm_backward_floats_cuda(N, C));
    DeviceArray<uint16_t> narrow(x.size()), branch_narrow(x.size());
    DeviceArray<Dropout> dropout(std::vector<Dropout>{half()});
    run([&] {
      return dropout_add_layernorm_forward_cuda(sum.data(), other.data(), N, C, scale.data(),
                                                shift.data(), 1e-5f, dropout.data(), 4, out.data(),
                                                narrow.data(), statistics.data(), stream());
    });
    run([&] {
      return layernorm_backward_cuda(sum.data(), statistics.data(), {dx.data()}, N, C, scale.data(),
                                     dropout.data(), 4, false, dbranch.data(), branch_narrow.data(),
                                     dgamma.data(), dbeta.data(), dbias.data(), parts.data(),
                                     nullptr, stream());
    });
    const std::string what = "layer norm of " + std::to_string(N) + " × " + std::to_string(C);
    expect_close(what, kForward, out.host(), plain.out, exact.out, C);
    expect_close(what + " dx", kBackward, dx.host(), plain.dx, exact.dx, C);
    expect_close(what + " dbranch", kBackward, dbranch.host(), plain.dbranch, exact.dbranch, C);
    expect_close(what + " dgamma", kBackward, dgamma.host(), plain.dgamma, exact.dgamma, C);
    expect_close(what + " dbeta", kBackward, dbeta.host(), plain.dbeta, exact.dbeta, C);
    if (C <= 1024) {
      expect_close(what + " dbias", kBackward, dbias.host(), plain.dbias, exact.dbias, C);
    } else {  // of what stands in narrow
      const Floats rounded = widened(branch_narrow.host());
      Doubles sums(C), sizes(C);
      for (int32_t i = 0; i < N * C; ++i)
        sums[i % C] += rounded[i], sizes[i % C] += std::fabs(rounded[i]);
      const Floats found = dbias.host();
      for (int32_t c = 0; c < C; ++c) EXPECT_NEAR(sums[c], found[c], 1e-6 * sizes[c]) << c;
    }
    expect_narrow(what, narrow.host(), out.host());
    expect_narrow(what + " dbranch", branch_narrow.host(), dbranch.host());
  }
}

/// The gradient is dropped first, and there is no branch.
TEST_F(CudaTraining, LayerNormBackwardBehindDropout) {
  Random random(26);
  for (const auto& shape : {std::pair{7, 20}, {70, 260}, {18, 512}, {5, 1032}}) {
    const int32_t N = shape.first, C = shape.second;
    const Floats x = normal(random, N * C), none(N * C), gamma = normal(random, C),
                 beta = normal(random, C);
    Floats dy = normal(random, N * C);
    const Floats given = dy;
    plain_dropout(dy, N, C, half(), 4);
    const NormReference<float> plain(x, none, gamma, beta, dy, N, C, Dropout(), 0);
    const NormReference<double> exact(wide(x), wide(none), wide(gamma), wide(beta), wide(dy), N, C,
                                      Dropout(), 0);
    DeviceArray<float> sum(x), scale(gamma), shift(beta), out(x.size()), statistics(2 * N),
        dx(given), dgamma(C), dbeta(C), parts(layernorm_backward_floats_cuda(N, C));
    DeviceArray<Dropout> dropout(std::vector<Dropout>{half()});
    run([&] {
      return dropout_add_layernorm_forward_cuda(sum.data(), nullptr, N, C, scale.data(),
                                                shift.data(), 1e-5f, nullptr, 0, out.data(),
                                                nullptr, statistics.data(), stream());
    });
    run([&] {
      return layernorm_backward_cuda(sum.data(), statistics.data(), {dx.data()}, N, C, scale.data(),
                                     dropout.data(), 4, true, nullptr, nullptr, dgamma.data(),
                                     dbeta.data(), nullptr, parts.data(), nullptr, stream());
    });
    const std::string what = "layer norm behind dropout, C=" + std::to_string(C);
    expect_close(what + " dx", kBackward, dx.host(), plain.dx, exact.dx, C);
    expect_close(what + " dgamma", kBackward, dgamma.host(), plain.dgamma, exact.dgamma, C);
    expect_close(what + " dbeta", kBackward, dbeta.host(), plain.dbeta, exact.dbeta, C);
  }
}

/// A branch in bf16 on a residual that stands there, within the budget of all in double, and on one
/// that is made of its sum.
TEST_F(CudaTraining, LayerNormOfABranchInBf16) {
  Random random(27);
  for (const auto& shape : {std::pair{1, 4},
                            {65, 20},
                            {9, 128},
                            {3, 132},
                            {10, 256},
                            {4, 384},
                            {9, 512},
                            {11, 640},
                            {3, 768},
                            {10, 1024},
                            {7, 1028}}) {
    const int32_t N = shape.first, C = shape.second;
    const std::string what =
        "layer norm of a branch, " + std::to_string(N) + " × " + std::to_string(C);
    const Floats branch = bf16_values(random, N * C), bias = normal(random, C),
                 before = normal(random, N * C, 3), gamma = normal(random, C),
                 beta = normal(random, C), dy = normal(random, N * C);
    DeviceArray<uint16_t> device_branch(narrow(branch)), out_narrow(N * C), other_narrow(N * C);
    DeviceArray<float> shift(bias), earlier(before), scale(gamma), offset(beta), residual(N * C),
        earlier_statistics(2 * N), sum(N * C), out(N * C), statistics(2 * N), other_sum(N * C),
        other_statistics(2 * N);
    DeviceArray<Dropout> dropout(std::vector<Dropout>{half()});
    run([&] {
      return dropout_add_layernorm_forward_cuda(earlier.data(), nullptr, N, C, scale.data(),
                                                offset.data(), 1e-5f, nullptr, 0, residual.data(),
                                                nullptr, earlier_statistics.data(), stream());
    });
    run([&] {
      return dropout_add_layernorm_forward_bf16_cuda(
          device_branch.data(), shift.data(), {residual.data()}, N, C, scale.data(), offset.data(),
          1e-5f, dropout.data(), 4, sum.data(), out.data(), out_narrow.data(), statistics.data(),
          stream());
    });
    run([&] {
      return dropout_add_layernorm_forward_bf16_cuda(
          device_branch.data(), shift.data(),
          {earlier.data(), earlier_statistics.data(), scale.data(), offset.data()}, N, C,
          scale.data(), offset.data(), 1e-5f, dropout.data(), 4, other_sum.data(), nullptr,
          other_narrow.data(), other_statistics.data(), stream());
    });
    Floats x(N * C);
    Doubles wide_x(N * C);
    for (int32_t i = 0; i < N * C; ++i) {
      x[i] = branch[i] + bias[i % C];
      wide_x[i] = double{branch[i]} + bias[i % C];
    }
    const Floats found_residual = residual.host();
    const NormReference<float> plain(x, found_residual, gamma, beta, dy, N, C, half(), 4);
    const NormReference<double> exact(wide_x, wide(found_residual), wide(gamma), wide(beta),
                                      wide(dy), N, C, half(), 4);
    expect_close(what, kForward, out.host(), plain.out, exact.out, C);
    expect_close(what + " sum", kForward, sum.host(), plain.sum, exact.sum, C);
    expect_narrow(what, out_narrow.host(), out.host());
    // nvcc may round elsewhere in another kernel.
    const Floats from_residual = sum.host(), from_sum = other_sum.host();
    for (int32_t i = 0; i < N * C; ++i)
      ASSERT_NEAR(from_residual[i], from_sum[i], 1e-6 * (10 + std::fabs(from_residual[i]))) << what;
    const Floats of_sum = widened(other_narrow.host()), of_residual = out.host();
    for (int32_t i = 0; i < N * C; ++i)
      ASSERT_NEAR(of_residual[i], of_sum[i], 0.01 * (0.01 + std::fabs(of_residual[i]))) << what;
  }
}

/// A gradient in two parts, and that of a pooling (of lengths that divide exactly), give the bits
/// of the whole that they make.
TEST_F(CudaTraining, LayerNormBackwardOfPartsAndOfPooling) {
  Random random(28);
  const std::vector<int32_t> cu = cumulate({4, 0, 1, 16, 32});
  const int32_t B = 5, N = cu[B] + 5;
  for (const int32_t C : {20, 260, 512, 900, 1028}) {
    const Floats x = normal(random, N * C), gamma = normal(random, C), beta = normal(random, C),
                 rows = normal(random, N * C), more = bf16_values(random, N * C),
                 du = normal(random, B * C);
    DeviceArray<float> sum(x), scale(gamma), shift(beta), out(N * C), statistics(2 * N), pooled(du),
        parts(layernorm_backward_floats_cuda(N, C)), u(B * C), plain_u(B * C);
    DeviceArray<uint16_t> device_more(narrow(more));
    DeviceArray<int32_t> device_cu(cu), sentence_of(N);
    DeviceArray<Dropout> dropout(std::vector<Dropout>{half()});
    run([&] {
      return dropout_add_layernorm_forward_cuda(sum.data(), nullptr, N, C, scale.data(),
                                                shift.data(), 1e-5f, nullptr, 0, out.data(),
                                                nullptr, statistics.data(), stream());
    });
    const auto backward = [&](NormGradient of_out, bool behind) {
      DeviceArray<float> dgamma(C), dbeta(C), dbias(C);
      DeviceArray<uint16_t> branch(N * C);
      run([&] {
        return layernorm_backward_cuda(
            sum.data(), statistics.data(), of_out, N, C, scale.data(), dropout.data(), 4, behind,
            nullptr, behind ? nullptr : branch.data(), dgamma.data(), dbeta.data(),
            behind ? nullptr : dbias.data(), parts.data(), nullptr, stream());
      });
      Floats all = dgamma.host();
      for (const Floats& other : {dbeta.host(), behind ? Floats() : dbias.host(),
                                  behind ? Floats() : widened(branch.host())})
        all.insert(all.end(), other.begin(), other.end());
      return all;
    };
    const std::string what = "C=" + std::to_string(C);
    for (const bool behind : {false, true}) {
      Floats both = rows;
      for (int32_t i = 0; i < N * C; ++i) both[i] += more[i];
      DeviceArray<float> whole(both), first(rows);
      EXPECT_EQ(backward({whole.data()}, behind),
                backward({first.data(), device_more.data()}, behind))
          << what;
      EXPECT_EQ(whole.host(), first.host()) << what;
    }
    for (const auto pooling : {kernels::Pooling::kMean, kernels::Pooling::kCls}) {
      run([&] {
        return norm_pooling_forward_cuda(sum.data(), statistics.data(), scale.data(), shift.data(),
                                         device_cu.data(), B, N, C, pooling, u.data(),
                                         sentence_of.data(), stream());
      });
      run([&] {
        return pooling_forward_cuda(out.data(), C, device_cu.data(), B, C, pooling, plain_u.data(),
                                    C, stream());
      });
      const Floats found = u.host(), expected = plain_u.host();
      for (int32_t i = 0; i < B * C; ++i)
        ASSERT_NEAR(expected[i], found[i], 1e-5 * (1 + std::fabs(expected[i]))) << what;
      NormGradient of_out;
      DeviceArray<float> whole(N * C), dx(N * C);
      of_out.dx = dx.data();
      of_out.dy = pooled.data();
      of_out.sentence_of = sentence_of.data();
      of_out.cu_seqlens = device_cu.data();
      of_out.mean = pooling == kernels::Pooling::kMean;
      if (C > kMostRegisterColumns) {
        EXPECT_NE(
            0, layernorm_backward_cuda(sum.data(), statistics.data(), of_out, N, C, scale.data(),
                                       dropout.data(), 4, false, nullptr, nullptr, nullptr, nullptr,
                                       nullptr, parts.data(), nullptr, stream()));
        continue;
      }
      run([&] {
        return pooling_backward_f32_cuda(out.data(), pooled.data(), device_cu.data(), B, N, C,
                                         pooling, whole.data(), stream());
      });
      EXPECT_EQ(backward({whole.data()}, false), backward(of_out, false)) << what;
      EXPECT_EQ(whole.host(), dx.host()) << what;
    }
    EXPECT_NE(0, norm_pooling_forward_cuda(
                     sum.data(), statistics.data(), scale.data(), shift.data(), device_cu.data(), B,
                     N, C, kernels::Pooling::kMax, u.data(), sentence_of.data(), stream()));
  }
}

TEST_F(CudaTraining, EmbeddingForwardIsTheSumThenNormThenDropout) {
  Random random(3);
  const int32_t N = 37, V = 11, P = 5;
  for (const int32_t C : {60, 128, 384, 500, 512, 1024, 1028}) {
    const Floats token = normal(random, V * C), position = normal(random, P * C),
                 gamma = normal(random, C), beta = normal(random, C);
    std::vector<int32_t> ids(N), positions(N);
    for (int32_t i = 0; i < N; ++i) ids[i] = random.range(0, V - 1), positions[i] = i % P;
    Floats plain(N * C), sums(N * C);
    Doubles exact(N * C);
    for (int32_t i = 0; i < N * C; ++i)
      sums[i] = token[ids[i / C] * C + i % C] + position[positions[i / C] * C + i % C];
    const Doubles wide_sums = wide(sums);  // a sum of two is rounded once, in every precision
    kernels::layernorm_forward_ref<float, float>(sums.data(), C, 0, N, C, gamma.data(), beta.data(),
                                                 1e-5f, plain.data(), C);
    kernels::layernorm_forward_ref<double, float>(wide_sums.data(), C, 0, N, C, gamma.data(),
                                                  beta.data(), 1e-5, exact.data(), C);
    plain_dropout(plain, N, C, half(), 0);
    plain_dropout(exact, N, C, half(), 0);
    DeviceArray<int32_t> device_ids(ids), device_positions(positions);
    DeviceArray<float> t(token), p(position), g(gamma), b(beta), sum(N * C), out(N * C),
        statistics(2 * N);
    DeviceArray<uint16_t> narrow(N * C);
    DeviceArray<Dropout> dropout(std::vector<Dropout>{half()});
    run([&] {
      return embedding_layernorm_dropout_forward_cuda(
          device_ids.data(), device_positions.data(), N, C, t.data(), p.data(), g.data(), b.data(),
          1e-5f, dropout.data(), 0, sum.data(), out.data(), narrow.data(), statistics.data(),
          stream());
    });
    EXPECT_EQ(sums, sum.host());
    expect_close("embedding", kForward, out.host(), plain, exact, C);
    expect_narrow("embedding", narrow.host(), out.host());
  }
}

TEST_F(CudaTraining, EmbeddingBackwardAddsBuckets) {
  Random random(4);
  // Few buckets, which many lanes share, and many; one of each has more rows than they take at
  // once.
  for (const int32_t V : {23, 600}) {
    const int32_t N = 400, C = 140;
    std::vector<int32_t> ids(N);
    for (int32_t& id : ids) id = random.range(0, 5) == 0 ? random.range(0, V - 1) : 7;
    ids[0] = 0;  // skipped
    std::vector<int32_t> memory(kernels::bucket_rows_memory(N, V));
    const kernels::RowBuckets buckets = kernels::bucket_rows(ids.data(), N, V, 0, memory.data());
    const Floats de = normal(random, N * C), before = normal(random, V * C);
    Floats plain = before;
    Doubles exact = wide(before);
    const Doubles wide_de = wide(de);
    kernels::embedding_backward_ref<float>(de.data(), C, buckets, 0, buckets.count, C,
                                           plain.data());
    kernels::embedding_backward_ref<double>(wide_de.data(), C, buckets, 0, buckets.count, C,
                                            exact.data());
    // Behind the buckets stands what a batch before had there.
    std::vector<int32_t> bucket_ids_of(buckets.ids, buckets.ids + buckets.count),
        starts_of(buckets.starts, buckets.starts + buckets.count + 1),
        rows_of(buckets.rows, buckets.rows + buckets.starts[buckets.count]);
    ASSERT_LT(buckets.count, V);
    ASSERT_LT(starts_of.back(), N);
    bucket_ids_of.resize(V, 7);
    starts_of.resize(V + 1, N);
    rows_of.resize(N, 1);
    DeviceArray<float> gradient(de), table(before);
    DeviceArray<int32_t> count(std::vector<int32_t>{buckets.count}), bucket_ids(bucket_ids_of),
        starts(starts_of), rows(rows_of);
    run([&] {
      return embedding_backward_f32_cuda(gradient.data(), count.data(), bucket_ids.data(),
                                         starts.data(), rows.data(), V, C, table.data(), stream());
    });
    const Floats found = table.host();
    expect_close("embedding backward", kBackward, found, plain, exact, C);
    for (int32_t c = 0; c < C; ++c) EXPECT_EQ(before[c], found[c]) << "the skipped id's row";
  }
}

TEST_F(CudaTraining, ColumnSums) {
  Random random(5);
  for (const auto& shape :
       {std::pair{1, 1}, {127, 33}, {129, 60}, {700, 5}, {130, 264}, {300, 520}, {3, 269}}) {
    const int32_t M = shape.first, N = shape.second;
    const int32_t stride = N % 8 == 0 ? N + 8 : N + 3;
    Floats dy(M * stride, NAN);
    for (int32_t m = 0; m < M; ++m) {
      for (int32_t n = 0; n < N; ++n) dy[m * stride + n] = random.normal();
    }
    Floats plain(N);
    Doubles exact(N);
    const Doubles wide_dy = wide(dy);
    kernels::column_sum_ref<float>(dy.data(), stride, M, 0, N, false, plain.data());
    kernels::column_sum_ref<double>(wide_dy.data(), stride, M, 0, N, false, exact.data());
    DeviceArray<float> device(dy), sum(N), parts(column_sum_floats_cuda(M, N));
    run([&] {
      return column_sum_cuda(device.data(), stride, M, N, sum.data(), parts.data(), nullptr,
                             stream());
    });
    expect_close("column sum", kBackward, sum.host(), plain, exact, N);

    // Of bf16: the same additions as of the same values in f32.
    for (float& value : dy) value = to_bf16(value);
    DeviceArray<float> rounded(dy), wanted(N);
    DeviceArray<uint16_t> device_narrow(narrow(dy));
    run([&] {
      return column_sum_cuda(rounded.data(), stride, M, N, wanted.data(), parts.data(), nullptr,
                             stream());
    });
    run([&] {
      return column_sum_bf16_cuda(device_narrow.data(), stride, M, N, sum.data(), parts.data(),
                                  nullptr, stream());
    });
    EXPECT_EQ(wanted.host(), sum.host());
  }
}

/// Sums that were left to one launch, more than it takes, have the bits of those that were not.
TEST_F(CudaTraining, PartSumsAddedLater) {
  Random random(29);
  PartSums sums;
  std::vector<std::unique_ptr<DeviceArray<float>>> kept, now, later;
  const auto keep = [](auto& list, auto&& values) -> DeviceArray<float>& {
    list.push_back(std::make_unique<DeviceArray<float>>(values));
    return *list.back();
  };
  for (int32_t k = 0; k < PartSums::kMost + 3; ++k) {
    const int32_t M = random.range(1, 9000), N = random.range(1, 70);
    DeviceArray<float>& dy = keep(kept, normal(random, int64_t{M} * N));
    DeviceArray<float>& parts = keep(kept, Floats(column_sum_floats_cuda(M, N)));
    DeviceArray<float>&sum = keep(now, Floats(N)), &later_sum = keep(later, Floats(N));
    run([&] {
      return column_sum_cuda(dy.data(), N, M, N, sum.data(), parts.data(), nullptr, stream());
    });
    run([&] {
      return column_sum_cuda(dy.data(), N, M, N, later_sum.data(), parts.data(), &sums, stream());
    });
    EXPECT_EQ(k % PartSums::kMost + 1, sums.count);
  }
  EXPECT_EQ(Floats(later.back()->size()), later.back()->host()) << "not yet";
  run([&] { return add_parts_cuda(&sums, stream()); });
  EXPECT_EQ(0, sums.count);
  for (size_t k = 0; k < now.size(); ++k) EXPECT_EQ(now[k]->host(), later[k]->host()) << k;
}

TEST_F(CudaTraining, Activations) {
  Random random(6);
  const int32_t n = 703;
  Floats x = normal(random, n, 4), dy = normal(random, n);
  x[0] = -80, x[1] = 80, x[2] = 0;
  for (const auto activation :
       {kernels::Activation::kNone, kernels::Activation::kSwish, kernels::Activation::kGeluErf,
        kernels::Activation::kGeluTanh, kernels::Activation::kRelu, kernels::Activation::kTanh}) {
    Floats plain(n), plain_dx(n);
    Doubles exact(n), exact_dx(n);
    const Doubles wide_x = wide(x), wide_dy = wide(dy);
    kernels::activation_forward_ref<float>(x.data(), n, activation, plain.data());
    kernels::activation_forward_ref<double>(wide_x.data(), n, activation, exact.data());
    kernels::activation_backward_ref<float>(x.data(), dy.data(), n, activation, plain_dx.data());
    kernels::activation_backward_ref<double>(wide_x.data(), wide_dy.data(), n, activation,
                                             exact_dx.data());
    DeviceArray<float> in(x), out(n), d(dy);
    run([&] {
      return activation_forward_f32_cuda(in.data(), n, activation, out.data(), stream());
    });
    run([&] { return activation_backward_f32_cuda(in.data(), n, activation, d.data(), stream()); });
    const std::string what = "activation " + std::to_string(static_cast<int>(activation));
    expect_close(what, kForward, out.host(), plain, exact, n);
    expect_close(what + " backward", kBackward, d.host(), plain_dx, exact_dx, n);
  }
}

/// In bf16: what plain loops in f32 give, rounded once.
TEST_F(CudaTraining, ActivationBackwardInBf16) {
  Random random(16);
  // The last have more rows than blocks have warps.
  for (const auto& [rows, columns] :
       {std::pair{3, 700}, {5, 1}, {40, 64}, {2, 1028}, {7, 13}, {1100, 24}}) {
    const int32_t N = rows, F = columns;
    Floats x = bf16_values(random, N * F, 4), dy = bf16_values(random, N * F),
           bias = normal(random, F);
    x[0] = -80, bias[0] = -3;
    if (F > 9) x[9] = NAN;
    for (const auto activation : {kernels::Activation::kSwish, kernels::Activation::kGeluErf}) {
      Floats sums = x;
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += bias[i % F];
      Floats plain(N * F), plain_narrow(N * F);
      Doubles exact(N * F);
      const Doubles wide_sums = wide(sums), wide_dy = wide(dy);
      kernels::activation_backward_ref<float>(sums.data(), dy.data(), N * F, activation,
                                              plain.data());
      kernels::activation_backward_ref<double>(wide_sums.data(), wide_dy.data(), N * F, activation,
                                               exact.data());
      for (int32_t i = 0; i < N * F; ++i) plain_narrow[i] = to_bf16(plain[i]);
      Floats plain_dbias(F);
      Doubles exact_dbias(F);
      for (int32_t i = 0; i < N * F; ++i)
        plain_dbias[i % F] += plain[i], exact_dbias[i % F] += exact[i];
      DeviceArray<uint16_t> in(narrow(x)), d(narrow(dy));
      DeviceArray<float> device_bias(bias), dbias(F), parts(activation_backward_floats_cuda(N, F));
      run([&] {
        return activation_backward_bf16_cuda(in.data(), device_bias.data(), N, F, activation,
                                             d.data(), dbias.data(), parts.data(), nullptr,
                                             stream());
      });
      expect_close("its bias' gradient, F=" + std::to_string(F), kBackward, dbias.host(),
                   plain_dbias, exact_dbias, F);
      expect_close("activation backward in bf16, F=" + std::to_string(F), kBackward,
                   widened(d.host()), plain_narrow, exact, F);
    }
  }
}

TEST_F(CudaTraining, Pooling) {
  Random random(7);
  const std::vector<int32_t> cu = cumulate({3, 0, 1, 17});
  const int32_t B = 4, N = cu[B], padded = N + 5, C = 131;
  Floats x = normal(random, N * C);
  std::copy_n(x.begin(), C, x.begin() + C);  // ties for the maximum
  const Floats dy = normal(random, B * C);
  const Doubles wide_x = wide(x), wide_dy = wide(dy);
  Floats padded_x = x;
  padded_x.resize(padded * C, NAN);
  for (const auto pooling :
       {kernels::Pooling::kMean, kernels::Pooling::kMax, kernels::Pooling::kCls}) {
    Floats plain(B * C), plain_dx(N * C);
    Doubles exact(B * C), exact_dx(N * C);
    kernels::pooling_forward_ref<float>(x.data(), C, cu.data(), 0, B, C, pooling, plain.data(), C);
    kernels::pooling_forward_ref<double>(wide_x.data(), C, cu.data(), 0, B, C, pooling,
                                         exact.data(), C);
    kernels::pooling_backward_ref<float>(x.data(), C, dy.data(), C, cu.data(), 0, B, C, pooling,
                                         plain_dx.data(), C);
    kernels::pooling_backward_ref<double>(wide_x.data(), C, wide_dy.data(), C, cu.data(), 0, B, C,
                                          pooling, exact_dx.data(), C);
    DeviceArray<float> in(padded_x), out(B * C), gradient(dy), dx(padded * C);
    DeviceArray<int32_t> device_cu(cu);
    run([&] {
      return pooling_forward_cuda(in.data(), C, device_cu.data(), B, C, pooling, out.data(), C,
                                  stream());
    });
    run([&] {
      return pooling_backward_f32_cuda(in.data(), gradient.data(), device_cu.data(), B, padded, C,
                                       pooling, dx.data(), stream());
    });
    const std::string what = "pooling " + std::to_string(static_cast<int>(pooling));
    expect_close(what, kForward, out.host(), plain, exact, C);
    Floats found = dx.host();
    EXPECT_EQ(Floats(5 * C, 0.0f), Floats(found.begin() + N * C, found.end())) << what;
    found.resize(N * C);
    expect_close(what + " backward", kBackward, found, plain_dx, exact_dx, C);
  }
}

TEST_F(CudaTraining, UnitVectors) {
  Random random(8);
  const int32_t B = 11, C = 45;
  Floats x = normal(random, B * C);
  std::fill_n(x.begin(), C, 0.0f);
  for (int32_t c = 0; c < C; ++c) x[C + c] *= 1e30f;
  const Floats dy = normal(random, B * C), before = normal(random, B * C);
  Floats plain = x, plain_dx(B * C);
  Doubles exact = wide(x), exact_dx(B * C);
  const Doubles wide_x = wide(x), wide_dy = wide(dy);
  kernels::l2_normalize_forward_ref<float>(plain.data(), C, 0, B, C);
  kernels::l2_normalize_forward_ref<double>(exact.data(), C, 0, B, C);
  kernels::l2_normalize_backward_ref<float>(x.data(), C, dy.data(), C, 0, B, C, plain_dx.data(), C);
  kernels::l2_normalize_backward_ref<double>(wide_x.data(), C, wide_dy.data(), C, 0, B, C,
                                             exact_dx.data(), C);
  for (int32_t i = 0; i < B * C; ++i) plain_dx[i] += before[i], exact_dx[i] += before[i];
  DeviceArray<float> in(x), out(B * C), gradient(dy), dx(before);
  run([&] { return l2_unit_forward_f32_cuda(in.data(), B, C, out.data(), stream()); });
  run([&] {
    return l2_unit_backward_f32_cuda(in.data(), gradient.data(), B, C, dx.data(), stream());
  });
  expect_close("unit vectors", kForward, out.host(), plain, exact, C);
  expect_close("unit vectors backward", kBackward, dx.host(), plain_dx, exact_dx, C);
}

template <typename T>
struct AttentionReference {
  std::vector<T> out, lse, dqkv;
  AttentionReference(const std::vector<T>& qkv, const std::vector<T>& dout,
                     const std::vector<int32_t>& cu, int32_t H, int32_t D, Dropout dropout,
                     uint32_t place)
      : out(dout.size()), lse(dout.size() / D), dqkv(qkv.size()) {
    dropout.stream += place;
    const int32_t B = static_cast<int32_t>(cu.size()) - 1;
    std::vector<T> scratch(3 * cu.back() + 1);
    kernels::attention_forward_ref<T>(qkv.data(), 3 * H * D, cu.data(), 0, B, 0, H, H, D,
                                      out.data(), H * D, lse.data(), scratch.data(), dropout);
    kernels::attention_backward_ref<T>(qkv.data(), 3 * H * D, cu.data(), 0, B, 0, H, H, D,
                                       lse.data(), dropout, dout.data(), H * D, dqkv.data(),
                                       3 * H * D, scratch.data());
  }
};

struct AttentionCase {
  std::vector<int32_t> lengths;
  int32_t H, D;
  bool drops;
  float scale;  // of Q, K and V
};

TEST_F(CudaTraining, AttentionForwardAndBackward) {
  Random random(9);
  const AttentionCase cases[] = {{{1, 17, 0, 32, 5}, 3, 20, true, 1},
                                 {{33, 70, 2}, 2, 64, false, 1},
                                 {{31, 0, 40}, 1, 128, true, 1},
                                 {{130}, 1, 33, true, 1},
                                 {{6, 6}, 2, 8, false, 30}};  // scores far beyond what exp takes
  for (const AttentionCase& c : cases) {
    const std::vector<int32_t> cu = cumulate(c.lengths);
    const int32_t B = static_cast<int32_t>(c.lengths.size()), N = cu[B], H = c.H, D = c.D,
                  padded = N + 3, C = H * D;
    const Dropout masks = c.drops ? half() : Dropout();
    const Floats qkv = normal(random, N * 3 * C, c.scale), dout = normal(random, N * C);
    const AttentionReference<float> plain(qkv, dout, cu, H, D, masks, 7);
    const AttentionReference<double> exact(wide(qkv), wide(dout), cu, H, D, masks, 7);
    Floats padded_qkv = qkv, padded_dout = dout;
    padded_qkv.resize(padded * 3 * C, NAN);
    padded_dout.resize(padded * C, NAN);
    DeviceArray<float> in(padded_qkv), gradient(padded_dout), out(padded * C), lse(padded * H),
        dqkv(padded * 3 * C), delta(2 * padded * H);
    DeviceArray<uint16_t> narrow(padded * C), dqkv_narrow(padded * 3 * C);
    DeviceArray<int32_t> device_cu(cu);
    DeviceArray<Dropout> dropout(std::vector<Dropout>{masks});
    run([&] {
      return attention_training_forward_f32_cuda(in.data(), device_cu.data(), B, padded, H, D,
                                                 dropout.data(), 7, out.data(), narrow.data(),
                                                 lse.data(), stream());
    });
    run([&] {
      return attention_backward_f32_cuda(in.data(), device_cu.data(), B, padded, H, D, lse.data(),
                                         dropout.data(), 7, gradient.data(), dqkv.data(),
                                         dqkv_narrow.data(), delta.data(), stream());
    });
    const std::string what =
        "attention H=" + std::to_string(H) + " D=" + std::to_string(D) + " N=" + std::to_string(N);
    Floats found = out.host(), found_lse = lse.host(), found_dqkv = dqkv.host();
    expect_narrow(what, narrow.host(), found);
    expect_narrow(what + " backward", dqkv_narrow.host(), found_dqkv);
    EXPECT_EQ(Floats(3 * C, 0.0f), Floats(found.begin() + N * C, found.end())) << what;
    EXPECT_EQ(Floats(9 * C, 0.0f), Floats(found_dqkv.begin() + N * 3 * C, found_dqkv.end()))
        << what;
    found.resize(N * C);
    found_lse.resize(N * H);
    found_dqkv.resize(N * 3 * C);
    expect_close(what, kForward, found, plain.out, exact.out, C);
    expect_close(what + " lse", kForward, found_lse, plain.lse, exact.lse, H);
    expect_close(what + " backward", kBackward, found_dqkv, plain.dqkv, exact.dqkv, 3 * C);
  }
}

/// Attention by plain loops in f32 that round where the kernels of bf16 do; x and dout are bf16
/// already.
struct Bf16Attention {
  Floats out, lse, dqkv;
  Bf16Attention(const Floats& x, const Floats& bias, const Floats& dout,
                const std::vector<int32_t>& cu, int32_t H, int32_t D, Dropout dropout,
                uint32_t place)
      : out(dout.size()), lse(dout.size() / D), dqkv(x.size()) {
    dropout.stream += place;
    const float factor = dropout.threshold == 0 ? 1 : dropout.scale;
    const int64_t C = H * D;
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      for (int32_t h = 0; h < H; ++h) {
        const float* value_bias = &bias[2 * C + h * D];
        for (int32_t i = cu[b]; i < cu[b + 1]; ++i) {
          const int32_t length = cu[b + 1] - cu[b];
          const auto at = [&](int32_t row, int32_t which) {
            return row * 3 * C + which * C + h * D;
          };
          Floats q(D), scores(length), kept(length), dp(length);
          for (int32_t d = 0; d < D; ++d) q[d] = to_bf16(x[at(i, 0) + d] + bias[h * D + d]);
          const float* gradient = &dout[i * C + h * D];
          float largest = -INFINITY, sum = 0, share = 0, delta = 0, shift = 0;
          for (int32_t j = 0; j < length; ++j) {
            for (int32_t d = 0; d < D; ++d) scores[j] += q[d] * x[at(cu[b] + j, 1) + d];
            scores[j] *= scale;
            largest = std::max(largest, scores[j]);
            kept[j] = kernels::attention_multiplier_ref(dropout, h, i, j) != 0;
          }
          for (const float score : scores) sum += std::exp(score - largest);
          for (int32_t j = 0; j < length; ++j)
            share += kept[j] * std::exp(scores[j] - largest) / sum * factor;
          lse[i * H + h] = largest + std::log(sum);
          for (int32_t d = 0; d < D; ++d) {
            float value = 0;
            for (int32_t j = 0; j < length; ++j)
              value += kept[j] * to_bf16(std::exp(scores[j] - largest)) * x[at(cu[b] + j, 2) + d];
            out[i * C + h * D + d] = to_bf16(value * factor / sum + value_bias[d] * share);
            shift += gradient[d] * value_bias[d];
          }
          if (dropout.threshold == 0) shift = 0;
          for (int32_t j = 0; j < length; ++j) {
            scores[j] = std::exp(scores[j] - lse[i * H + h]);
            for (int32_t d = 0; d < D; ++d) dp[j] += gradient[d] * x[at(cu[b] + j, 2) + d];
            dp[j] = kept[j] * (dp[j] + shift) * factor;
            delta += scores[j] * dp[j];
          }
          for (int32_t j = 0; j < length; ++j) {
            const float ds = to_bf16(scores[j] * (dp[j] - delta));
            for (int32_t d = 0; d < D; ++d) {
              dqkv[at(i, 0) + d] += ds * x[at(cu[b] + j, 1) + d] * scale;
              dqkv[at(cu[b] + j, 1) + d] += ds * q[d] * scale;
              dqkv[at(cu[b] + j, 2) + d] += kept[j] * to_bf16(scores[j]) * gradient[d] * factor;
            }
          }
        }
      }
    }
    for (float& value : dqkv) value = to_bf16(value);
  }
};

TEST_F(CudaTraining, AttentionForwardAndBackwardInBf16) {
  Random random(19);
  const std::vector<int32_t> edges = {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65};
  std::vector<int32_t> to_65(65);
  std::iota(to_65.begin(), to_65.end(), 1);
  const AttentionCase cases[] = {{{1, 17, 0, 32, 5, 16}, 3, 16, true, 1},
                                 {{33, 70, 2}, 2, 64, false, 1},
                                 {{31, 0, 0, 40, 1}, 1, 128, true, 1},
                                 {{15, 1, 1, 1, 1, 1, 1, 1, 64}, 2, 48, true, 1},
                                 {{200}, 1, 32, true, 1},
                                 {{0, 0}, 2, 16, true, 1},
                                 {{9}, 1, 112, false, 1},
                                 {edges, 1, 80, true, 1},
                                 {edges, 2, 64, false, 1},
                                 {to_65, 1, 16, true, 1},
                                 {{65, 12, 64}, 1, 128, true, 1},
                                 {{6, 6}, 2, 16, false, 30}};  // scores far beyond what exp takes
  for (const AttentionCase& c : cases) {
    const std::vector<int32_t> cu = cumulate(c.lengths);
    const int32_t B = static_cast<int32_t>(c.lengths.size()), N = cu[B], H = c.H, D = c.D,
                  padded = N + 19, C = H * D;
    const Dropout masks = c.drops ? half() : Dropout();
    const Floats x = bf16_values(random, N * 3 * C, c.scale), dout = bf16_values(random, N * C),
                 bias = normal(random, 3 * C);
    const Bf16Attention plain(x, bias, dout, cu, H, D, masks, 7);
    Doubles qkv = wide(x), without_key_bias = qkv;
    for (int64_t i = 0; i < N * 3 * C; ++i) {
      const int64_t column = i % (3 * C);
      qkv[i] += bias[column];
      if (column / C != 1) without_key_bias[i] += bias[column];
    }
    const AttentionReference<double> exact(qkv, wide(dout), cu, H, D, masks, 7),
        exact_lse(without_key_bias, wide(dout), cu, H, D, masks, 7);
    Floats padded_x = x, padded_dout = dout;
    padded_x.resize(padded * 3 * C, NAN);
    padded_dout.resize(padded * C, NAN);
    DeviceArray<uint16_t> in(narrow(padded_x)), gradient(narrow(padded_dout)), out(padded * C);
    DeviceArray<float> device_bias(bias), lse(padded * H), delta(3 * padded * H);
    DeviceArray<int32_t> device_cu(cu);
    DeviceArray<Dropout> dropout(std::vector<Dropout>{masks});
    const auto forward = [&] {
      run([&] {
        return attention_training_forward_bf16_cuda(in.data(), device_bias.data(), device_cu.data(),
                                                    B, padded, H, D, dropout.data(), 7, out.data(),
                                                    lse.data(), stream());
      });
    };
    // Sentences of up to `whole` tokens by a block each, the others by chunks.
    const auto backward = [&](int32_t whole) {
      constexpr int32_t kEmpty = 3;
      std::vector<AttentionTile> list(attention_chunk_count(N, B) + kEmpty);
      const int32_t count = attention_chunks(cu.data(), B, whole, list.data());
      DeviceArray<AttentionTile> chunks(list);
      DeviceArray<uint16_t> dqkv(padded * 3 * C);
#ifdef XSR_EMULATED
      const uint64_t before = emulated::launches();
#endif
      run([&] {
        return attention_backward_bf16_cuda(
            in.data(), device_bias.data(), device_cu.data(), B, padded, H, D, chunks.data(),
            count == 0 ? 0 : count + kEmpty, lse.data(), dropout.data(), 7, gradient.data(),
            dqkv.data(), delta.data(), stream(), whole);
      });
#ifdef XSR_EMULATED
      EXPECT_EQ(count == 0 ? 1u : 2u, emulated::launches() - before);
#endif
      return dqkv.host();
    };
    forward();
    const std::string what = "attention in bf16, H=" + std::to_string(H) +
                             " D=" + std::to_string(D) + " N=" + std::to_string(N);
    const std::vector<uint16_t> first = out.host(), first_dqkv = backward(kChunkRows);
    Floats found = widened(first), found_lse = lse.host(), found_dqkv = widened(first_dqkv);
    for (size_t i = N * C; i < found.size(); ++i) ASSERT_EQ(0, first[i]) << what;
    for (size_t i = N * 3 * C; i < found_dqkv.size(); ++i) ASSERT_EQ(0, first_dqkv[i]) << what;
    found.resize(N * C);
    found_lse.resize(N * H);
    found_dqkv.resize(N * 3 * C);
    expect_close(what, kForward, found, plain.out, exact.out, C);
    expect_close(what + " lse", kForward, found_lse, plain.lse, exact_lse.lse, H);
    expect_close(what + " backward", kBackward, found_dqkv, plain.dqkv, exact.dqkv, 3 * C);
    forward();  // threads in another order
    EXPECT_EQ(first, out.host()) << what;
    for (const int32_t whole : {kChunkRows, 0})
      EXPECT_EQ(first_dqkv, backward(whole)) << what << " whole up to " << whole;
  }
  for (const int32_t D : {0, 8, 20, 144}) EXPECT_FALSE(attention_bf16_takes(D));
}

TEST_F(CudaTraining, AttentionBackwardAtLargeScores) {
  Random random(25);
  const std::vector<int32_t> cu = cumulate({20, 1, 33, 70});
  const int32_t B = 4, N = cu[B], H = 2, D = 32, C = H * D;
  DeviceArray<int32_t> device_cu(cu);
  DeviceArray<Dropout> dropout(std::vector<Dropout>{Dropout()});
  const auto enlarge = [&](Floats qkv, float factor) {
    for (int64_t i = 0; i < N * 3 * C; ++i) {
      const int64_t column = i % (3 * C);
      if (column / C == 1 && column % D == 0) qkv[i] = 1;
      if (column < 2 * C) qkv[i] *= factor;
    }
    return qkv;
  };
  const auto expect_exact_sums = [&](const std::string& what, double key, const Floats& qkv,
                                     const Floats& dout, const Floats& dqkv, double budget) {
    test::expect_whole_probabilities(what, cu, C, dout, dqkv, budget);
    const auto x = [&](int32_t i, int32_t column) { return qkv[int64_t{i} * 3 * C + column]; };
    test::expect_score_gradients_cancel(what, cu, H, D, key, x, dout, dqkv, budget);
  };
  // Of the double reference, rounded: the forward pass on the device may happen to round as the
  // scores of its backward pass do.
  const auto exact_lse = [&](const Floats& qkv, const Floats& dout) {
    const AttentionReference<double> exact(wide(qkv), wide(dout), cu, H, D, Dropout(), 0);
    return Floats(exact.lse.begin(), exact.lse.end());
  };
  {
    const Floats qkv = enlarge(normal(random, N * 3 * C), 60), dout = normal(random, N * C);
    DeviceArray<float> in(qkv), gradient(dout), lse(exact_lse(qkv, dout)), dqkv(N * 3 * C),
        delta(2 * N * H);
    run([&] {
      return attention_backward_f32_cuda(in.data(), device_cu.data(), B, N, H, D, lse.data(),
                                         dropout.data(), 0, gradient.data(), dqkv.data(), nullptr,
                                         delta.data(), stream());
    });
    expect_exact_sums("f32", 60, qkv, dout, dqkv.host(), 1e-6);
  }
  // Larger still, since a probability is rounded to bf16, by up to 0.004 of it, before it meets dO.
  const Floats qkv = enlarge(bf16_values(random, N * 3 * C), 1024),
               dout = bf16_values(random, N * C);
  DeviceArray<uint16_t> in(narrow(qkv)), gradient(narrow(dout)), dqkv(N * 3 * C);
  DeviceArray<float> bias(Floats(3 * C, 0.0f)), lse(exact_lse(qkv, dout)), delta(3 * N * H);
  std::vector<AttentionTile> list(attention_chunk_count(N, B));
  list.resize(attention_chunks(cu.data(), B, kChunkRows, list.data()));
  DeviceArray<AttentionTile> chunks(list);
  run([&] {
    return attention_backward_bf16_cuda(in.data(), bias.data(), device_cu.data(), B, N, H, D,
                                        chunks.data(), 2, lse.data(), dropout.data(), 0,
                                        gradient.data(), dqkv.data(), delta.data(), stream());
  });
  expect_exact_sums("bf16", 1024, qkv, dout, widened(dqkv.host()), 4e-3);
}

/// The loss over a vocabulary in T, from logits without their bias.
template <typename T>
struct VocabularyReference {
  std::vector<T> dz;
  std::vector<double> losses;
  VocabularyReference(std::vector<T> z, const std::vector<T>& bias, int32_t S, int32_t V,
                      int32_t pairs, const std::vector<int32_t>& offsets,
                      const std::vector<int32_t>& ids, const std::vector<Floats>& masses,
                      const Doubles& weights)
      : losses(masses.size(), 0) {
    for (int32_t b = 0; b < S; ++b) {
      T* row = z.data() + b * V;
      T peak = -INFINITY, sum = 0, mass = 0;
      for (int32_t v = 0; v < V; ++v) row[v] += bias[v], peak = std::max(peak, row[v]);
      for (int32_t v = 0; v < V; ++v) sum += std::exp(row[v] - peak);
      const T lse = peak + std::log(sum);
      std::vector<T> target(V, T(0));
      for (int32_t w = offsets[b]; w < offsets[b + 1]; ++w) {
        for (size_t k = 0; k < masses.size(); ++k) {
          const T p = masses[k][w];
          if (p == 0) continue;
          losses[k] += static_cast<double>(p * (std::log(p) + lse - row[ids[w]]) / pairs);
          target[ids[w]] += T(weights[k]) * p / pairs;
        }
      }
      for (const T p : target) mass += p;
      for (int32_t v = 0; v < V; ++v) row[v] = mass * std::exp(row[v] - lse) - target[v];
    }
    dz = std::move(z);
  }
};

template <typename T>
std::vector<T> column_sums(const std::vector<T>& rows, int32_t columns) {
  std::vector<T> sums(columns, T(0));
  for (size_t i = 0; i < rows.size(); ++i) sums[i % columns] += rows[i];
  return sums;
}

TEST_F(CudaTraining, VocabularyLossOverTiles) {
  Random random(10);
  const int32_t S = 6, pairs = 3;
  std::vector<int32_t> offsets = {0, 3, 3, 4, 8, 9};
  std::vector<int32_t> ids = {0, 255, 256, 511, 1, 300, 512, 699, 5};
  std::vector<Floats> masses = {{0.5f, 0.25f, 0.25f, 1, 0, 0.5f, 0.25f, 0, 0},
                                {0, 0, 0, 0, 0.5f, 0, 0.25f, 0.25f, 1}};
  for (int32_t w = 0; w < 70; ++w) {  // of the last sentence, more than a warp takes at once
    ids.push_back(10 * w + 7);
    masses[0].push_back(w < 60 ? 1 / 64.0f : 0.0f);
    masses[1].push_back(w % 2 == 0 ? 1 / 35.0f : 0.0f);
  }
  offsets.push_back(static_cast<int32_t>(ids.size()));
  const Doubles weights = {1, 0.5};
  // Of the larger, threads load several quads at once; in its first tile some have more behind
  // these, in its second some have too few.
  for (const auto& shape : {std::pair{700, 256}, {16997, 9008}}) {
    const int32_t V = shape.first, tile = shape.second, tiles = (V + tile - 1) / tile;
    for (const float scale : {1.0f, 60.0f}) {
      const Floats z = normal(random, S * V, scale), bias = normal(random, V);
      const VocabularyReference<float> plain(z, bias, S, V, pairs, offsets, ids, masses, weights);
      const VocabularyReference<double> exact(wide(z), wide(bias), S, V, pairs, offsets, ids,
                                              masses, weights);
      const size_t W = ids.size();
      Floats flat(2 * W), coefficients(W);
      Doubles sums(S, 0.0);
      for (int32_t b = 0; b < S; ++b) {
        for (int32_t w = offsets[b]; w < offsets[b + 1]; ++w) {
          double coefficient = 0;
          for (size_t k = 0; k < 2; ++k) {
            flat[k * W + w] = masses[k][w];
            coefficient += weights[k] * masses[k][w] / pairs;
          }
          coefficients[w] = static_cast<float>(coefficient);
          sums[b] += coefficient;
        }
      }
      DeviceArray<int32_t> device_offsets(offsets), device_ids(ids);
      DeviceArray<float> device_coefficients(coefficients), device_masses(flat), logits(W),
          device_bias(bias), max(tiles * S), sum(tiles * S), tile_z(S * tile);
      DeviceArray<double> device_sums(sums), lse(S), parts(2 * S), losses(2);
      DeviceArray<uint16_t> narrow(S * tile);
      VocabularyWords words;
      words.offsets = device_offsets.data();
      words.token_ids = device_ids.data();
      words.coefficients = device_coefficients.data();
      words.masses = device_masses.data();
      words.mass_stride = static_cast<int64_t>(W);
      words.num_targets = 2;
      words.coefficient_sums = device_sums.data();
      words.logits = logits.data();
      const auto load_tile = [&](int32_t k) {
        const int32_t R = std::min(tile, V - k * tile);
        tile_z.fill();
        for (int32_t b = 0; b < S; ++b)
          std::copy_n(z.begin() + b * V + k * tile, R, tile_z.begin() + b * tile);
        upload({&tile_z});
        return R;
      };
      for (int32_t k = 0; k < tiles; ++k) {
        const int32_t R = load_tile(k);
        run([&] {
          return vocabulary_tile_forward_f32_cuda(tile_z.data(), tile, S, k * tile, R,
                                                  device_bias.data(), words, max.data() + k * S,
                                                  sum.data() + k * S, stream());
        });
      }
      run([&] {
        return vocabulary_finish_cuda(max.data(), sum.data(), tiles, S, pairs, words, lse.data(),
                                      parts.data(), stream());
      });
      run([&] { return sum_losses_cuda(parts.data(), S, 2, 1, losses.data(), stream()); });
      const Doubles found_losses = losses.host();
      ErrorBudget loss_budget(kForward);
      for (int32_t k = 0; k < 2; ++k) {
        loss_budget.add(static_cast<float>(found_losses[k]), static_cast<float>(plain.losses[k]),
                        exact.losses[k], k, 0);
      }
      EXPECT_TRUE(loss_budget.check("vocabulary loss", "*"));
      Floats dz(S * V);
      DeviceArray<float> dbias(V), bias_parts(vocabulary_bias_floats_cuda(S, tile));
      for (int32_t k = 0; k < tiles; ++k) {
        const int32_t R = load_tile(k);
        const auto backward = [&](uint16_t* into) {
          run([&] {
            return vocabulary_tile_backward_f32_cuda(
                tile_z.data(), tile, S, k * tile, R, device_bias.data(), words, max.data() + k * S,
                lse.data(), into, tile, dbias.data(), bias_parts.data(), nullptr, stream());
          });
        };
        narrow.fill();
        upload({&narrow});
        backward(narrow.data());
        const std::vector<uint16_t> rounded = narrow.host();
        const Floats logits_still = tile_z.host();
        for (int32_t b = 0; b < S; ++b) {
          ASSERT_EQ(0,
                    std::memcmp(&z[b * V + k * tile], &logits_still[b * tile], sizeof(float) * R))
              << "z was written beside narrow";
          for (int32_t v = R; v < tile; ++v) ASSERT_TRUE(narrow.untouched(b * tile + v));
        }
        backward(nullptr);
        const Floats found = tile_z.host();
        for (int32_t b = 0; b < S; ++b) {
          for (int32_t v = 0; v < tile; ++v) {
            const float value = found[b * tile + v];
            if (v >= R) {
              EXPECT_TRUE(std::isnan(value)) << "written behind the tile";
            } else {
              dz[b * V + k * tile + v] = value;
              EXPECT_EQ(kernels::bf16_from_f32(value), rounded[b * tile + v]);
            }
          }
        }
      }
      expect_close("vocabulary gradient", kBackward, dz, plain.dz, exact.dz, V);
      expect_close("vocabulary bias gradient", kBackward, dbias.host(), column_sums(plain.dz, V),
                   column_sums(exact.dz, V), V);
    }
  }
}

/// Blocks of sentences, whole and not; words that a block's threads share, that are next to each
/// other, and that no other sentence has.
TEST_F(CudaTraining, VocabularyGradientOfManySentences) {
  Random random(14);
  const int32_t V = 1061, stride = 1072;
  for (const int32_t S : {1, 16, 19, 70, 530}) {
    std::vector<int32_t> offsets = {0}, ids;
    for (int32_t b = 0; b < S; ++b) {
      const int32_t count = b % 5 == 1 ? 0 : b % 5 == 2 ? 90 : random.range(1, 6);
      const int32_t from = b % 3 == 0 ? 0 : random.range(0, 530 - count);
      for (int32_t w = 0; w < count; ++w) ids.push_back(w + 1 == count ? V - 1 - b : from + w);
      offsets.push_back(static_cast<int32_t>(ids.size()));
    }
    const int64_t W = static_cast<int64_t>(ids.size());
    std::vector<Floats> masses(1);
    Floats coefficients;
    Doubles sums(S, 0.0);
    for (int32_t b = 0; b < S; ++b) {
      for (int32_t w = offsets[b]; w < offsets[b + 1]; ++w) {
        masses[0].push_back(static_cast<float>(random.range(1, 9)) / 64);
        coefficients.push_back(masses[0].back() / static_cast<float>(S));
        sums[b] += static_cast<double>(masses[0].back()) / S;
      }
    }
    const Floats z = normal(random, S * V, 3), bias = normal(random, V);
    const VocabularyReference<float> plain(z, bias, S, V, S, offsets, ids, masses, {1});
    const VocabularyReference<double> exact(wide(z), wide(bias), S, V, S, offsets, ids, masses,
                                            {1});
    Floats max;
    Doubles lse;
    for (int32_t b = 0; b < S; ++b) {
      double peak = -INFINITY, sum = 0;
      const auto logit = [&](int32_t v) { return static_cast<double>(z[b * V + v]) + bias[v]; };
      for (int32_t v = 0; v < V; ++v) peak = std::max(peak, logit(v));
      for (int32_t v = 0; v < V; ++v) sum += std::exp(logit(v) - peak);
      max.push_back(static_cast<float>(peak));
      lse.push_back(peak + std::log(sum));
    }
    DeviceArray<int32_t> device_offsets(offsets), device_ids(ids);
    DeviceArray<float> device_coefficients(coefficients), device_bias(bias), device_max(max),
        dbias(V), parts(vocabulary_bias_floats_cuda(S, V));
    DeviceArray<double> device_sums(sums), device_lse(lse);
    VocabularyWords words;
    words.offsets = device_offsets.data();
    words.token_ids = device_ids.data();
    words.coefficients = device_coefficients.data();
    words.mass_stride = W;
    words.coefficient_sums = device_sums.data();
    Floats first;
    for (int call = 0; call < 3; ++call) {  // in three orders of threads and blocks
      DeviceArray<float> dz(S * stride);
      DeviceArray<uint16_t> narrow(S * stride);
      for (int32_t b = 0; b < S; ++b) std::copy_n(&z[b * V], V, dz.begin() + b * stride);
      upload({&dz});
      PartSums later;
      run([&] {
        const Status status = vocabulary_tile_backward_f32_cuda(
            dz.data(), stride, S, 0, V, device_bias.data(), words, device_max.data(),
            device_lse.data(), call == 1 ? narrow.data() : nullptr, stride, dbias.data(),
            parts.data(), call == 2 ? &later : nullptr, stream());
        return status != 0 || call != 2 ? status : add_parts_cuda(&later, stream());
      });
      const Floats found = dbias.host();
      if (call == 0) {
        Floats rows;
        const Floats all = dz.host();
        for (int32_t b = 0; b < S; ++b)
          rows.insert(rows.end(), all.begin() + b * stride, all.begin() + b * stride + V);
        expect_close("gradient", kBackward, rows, plain.dz, exact.dz, V);
        expect_close("bias gradient", kBackward, found, column_sums(plain.dz, V),
                     column_sums(exact.dz, V), V);
        first = found;
      }
      EXPECT_EQ(0, std::memcmp(first.data(), found.data(), sizeof(float) * V)) << S << ' ' << call;
    }
  }
}

template <typename T>
struct ContrastiveReference {
  std::vector<T> ds;
  double loss = 0;
  ContrastiveReference(std::vector<T> s, int32_t B, T temperature, T margin, T share, T weight)
      : ds(B * B, T(0)) {
    for (int32_t i = 0; i < B * B; ++i) {
      if (i / B == i % B) s[i] -= margin;
      s[i] /= temperature;
    }
    T total = 0;
    for (int transposed = 0; transposed < 2; ++transposed) {
      for (int32_t i = 0; i < B; ++i) {
        const auto at = [&](int32_t j) { return transposed != 0 ? j * B + i : i * B + j; };
        T peak = -INFINITY, sum = 0;
        for (int32_t j = 0; j < B; ++j) peak = std::max(peak, s[at(j)]);
        for (int32_t j = 0; j < B; ++j) sum += std::exp(s[at(j)] - peak);
        total += share * (std::log(sum) + (peak - s[at(i)]));
        for (int32_t j = 0; j < B; ++j)
          ds[at(j)] += weight * share / temperature * (std::exp(s[at(j)] - peak) / sum - T(i == j));
      }
    }
    loss = static_cast<double>(total);
  }
};

TEST_F(CudaTraining, ContrastiveLoss) {
  Random random(11);
  for (const int32_t B : {1, 7, 33, 300}) {
    const Floats s = normal(random, B * B, 3);
    const float share = 1.0f / static_cast<float>(B);
    const ContrastiveReference<float> plain(s, B, 0.5f, 0.25f, share, 2);
    const ContrastiveReference<double> exact(wide(s), B, 0.5, 0.25, 1.0 / B, 2);
    DeviceArray<float> device(s), statistics(4 * B);
    DeviceArray<double> parts(B), loss(1);
    run([&] {
      return contrastive_forward_backward_f32_cuda(device.data(), B, 2, 0.25f, 1.0 / B,
                                                   static_cast<float>(2.0 / B / 0.5),
                                                   statistics.data(), parts.data(), stream());
    });
    run([&] { return sum_losses_cuda(parts.data(), B, 1, 1, loss.data(), stream()); });
    expect_close("contrastive gradient", kBackward, device.host(), plain.ds, exact.ds, B);
    expect_close("contrastive loss", kForward, {static_cast<float>(loss.host()[0])},
                 {static_cast<float>(plain.loss)}, {exact.loss}, 1);
  }
}

/// What is not finite must show in the losses of its sentence, or of its row and column, wherever
/// it stands, and in no other: the update goes by the losses.
TEST_F(CudaTraining, LossesOfWhatIsNotFiniteAreNaN) {
  Random random(26);
  const auto expect_nan_at = [](const Doubles& parts, const std::vector<size_t>& where,
                                const std::string& what) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool wanted = std::find(where.begin(), where.end(), i) != where.end();
      EXPECT_EQ(wanted, std::isnan(parts[i])) << what << " part " << i;
    }
  };
  const int32_t B = 5;
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const size_t at : {0, 3, 7, 12, 24}) {  // of a row and a column each; some are of a pair
      const size_t row = at / B, column = at % B;
      const std::string what = std::to_string(bad) + " at " + std::to_string(at);
      Floats s = normal(random, B * B);
      const Floats other = s;
      s[at] = bad;
      DeviceArray<float> contrasted(s), statistics(4 * B), similar(s), dissimilar(other);
      DeviceArray<double> parts(B), sim_parts(B);
      run([&] {
        return contrastive_forward_backward_f32_cuda(contrasted.data(), B, 2, 0, 1, 1,
                                                     statistics.data(), parts.data(), stream());
      });
      expect_nan_at(parts.host(), {row, column}, "contrastive " + what);
      run([&] {
        return sim_forward_backward_f32_cuda(similar.data(), dissimilar.data(), B, 1.5, 0, 1,
                                             sim_parts.data(), stream());
      });
      expect_nan_at(sim_parts.host(), {row}, "SIM " + what);
    }
    // In the first and the last of the words that a thread has at once, and in what is behind them.
    // The sentence has no word that a target asks for.
    const int32_t S = 2, tile = 8208, V = tile + 5;
    for (const int32_t v : {0, 3, 6147, tile - 1, tile, V - 1}) {
      Floats z = normal(random, S * V);
      z[V + v] = bad;
      DeviceArray<int32_t> offsets(std::vector<int32_t>{0, 1, 1}), ids(std::vector<int32_t>{5});
      DeviceArray<float> masses(Floats{1}), logits(1), bias(Floats(V, 0.0f)), max(2 * S),
          sum(2 * S);
      DeviceArray<double> lse(S), parts(S);
      VocabularyWords words;
      words.offsets = offsets.data();
      words.token_ids = ids.data();
      words.masses = masses.data();
      words.mass_stride = 1;
      words.num_targets = 1;
      words.logits = logits.data();
      for (int32_t k = 0; k < 2; ++k) {
        const int32_t first = k * tile, R = std::min(tile, V - first);
        DeviceArray<float> of_tile(S * tile);
        for (int32_t b = 0; b < S; ++b)
          std::copy_n(z.begin() + b * V + first, R, of_tile.begin() + b * tile);
        upload({&of_tile});
        run([&] {
          return vocabulary_tile_forward_f32_cuda(of_tile.data(), tile, S, first, R, bias.data(),
                                                  words, max.data() + k * S, sum.data() + k * S,
                                                  stream());
        });
      }
      run([&] {
        return vocabulary_finish_cuda(max.data(), sum.data(), 2, S, 1, words, lse.data(),
                                      parts.data(), stream());
      });
      expect_nan_at(parts.host(), {1},
                    "vocabulary, " + std::to_string(bad) + " at " + std::to_string(v));
    }
  }
}

template <typename T>
struct SimReference {
  std::vector<T> s1, s2;
  Doubles losses;
  SimReference(std::vector<T> a, std::vector<T> b, int32_t B, double argument, double min_cosine)
      : s1(std::move(a)), s2(std::move(b)), losses(B) {
    std::vector<T> unused(2 * B);
    for (std::vector<T>* s : {&s1, &s2})
      kernels::softmax_forward_ref<T>(s->data(), B, 0, B, B, 1, s->data(), B, unused.data(),
                                      unused.data() + B);
    kernels::sim_forward_backward_ref<T>(s1.data(), s2.data(), B, 0, B, B, argument, min_cosine, 2,
                                         losses.data());
  }
};

TEST_F(CudaTraining, Sim) {
  Random random(12);
  for (const auto& settings : {std::pair{1.5707963267948966, 0.0}, {3.141592653589793, 0.01}}) {
    const double argument = settings.first, min_cosine = settings.second;
    for (const int32_t B : {1, 5, 40, 270}) {
      const Floats a = normal(random, B * B), b = normal(random, B * B);
      const SimReference<float> plain(a, b, B, argument, min_cosine);
      const SimReference<double> exact(wide(a), wide(b), B, argument, min_cosine);
      DeviceArray<float> s1(a), s2(b);
      DeviceArray<double> parts(B), loss(1);
      run([&] {
        return sim_forward_backward_f32_cuda(s1.data(), s2.data(), B, argument, min_cosine, 2,
                                             parts.data(), stream());
      });
      run([&] { return sum_losses_cuda(parts.data(), B, 1, 1, loss.data(), stream()); });
      expect_close("sim ds1", kBackward, s1.host(), plain.s1, exact.s1, B);
      expect_close("sim ds2", kBackward, s2.host(), plain.s2, exact.s2, B);
      const auto sum = [](const Doubles& x) { return std::accumulate(x.begin(), x.end(), 0.0); };
      expect_close("sim loss", kForward, {static_cast<float>(loss.host()[0])},
                   {static_cast<float>(sum(plain.losses))}, {sum(exact.losses)}, 1);
    }
  }
}

TEST_F(CudaTraining, AdamAndItsNorm) {
  Random random(13);
  const int64_t n = 3 * kNormBlock / 2 + 77;
  const Floats value = normal(random, n), gradient = normal(random, n, 0.1f),
               first = normal(random, n, 0.1f);
  Floats second(n), largest(n);
  for (int64_t i = 0; i < n; ++i) {
    second[i] = std::fabs(random.normal(0.01f));
    largest[i] = std::fabs(random.normal(0.01f));
  }
  for (const bool amsgrad : {false, true}) {
    for (const bool decoupled : {false, true}) {
      for (const double clip : {0.0, 1.0, 1e9}) {
        double squares = 0;
        for (const float g : gradient) squares += double{g} * g;
        kernels::AdamStep step;
        (decoupled ? step.shrink : step.l2) = 1e-3f;
        step.step_size = 1e-2f;
        step.inverse_correction2 = 1.5f;
        kernels::AdamStep scaled = step;
        if (clip > 0)
          scaled.gradient_scale =
              static_cast<float>(std::min(1.0, clip / (std::sqrt(squares) + 1e-6)));
        Floats v = value, m = first, s = second, w = largest;
        Doubles exact = wide(value), em = wide(first), es = wide(second), ew = wide(largest);
        const Doubles eg = wide(gradient);
        kernels::adam_update_ref<float>(v.data(), gradient.data(), m.data(), s.data(),
                                        amsgrad ? w.data() : nullptr, nullptr, 0, n, scaled);
        kernels::adam_update_ref<double>(exact.data(), eg.data(), em.data(), es.data(),
                                         amsgrad ? ew.data() : nullptr, nullptr, 0, n, scaled);
        DeviceArray<float> dv(value), dg(gradient), dm(first), ds(second), dw(largest);
        DeviceArray<uint16_t> narrow(n);
        DeviceArray<double> parts(norm_parts_cuda(n));
        DeviceArray<kernels::AdamStep> device_step(std::vector<kernels::AdamStep>{step});
        DeviceArray<StepOutcome> outcome(std::vector<StepOutcome>(1));
        const auto update = [&] {
          run([&] {
            return gradient_norm_cuda(dg.data(), n, clip, 2, parts.data(), outcome.data(),
                                      stream());
          });
          run([&] {
            return adam_update_f32_cuda(dv.data(), dg.data(), dm.data(), ds.data(),
                                        amsgrad ? dw.data() : nullptr, narrow.data(), n,
                                        device_step.data(), outcome.data(), stream());
          });
        };
        update();
        EXPECT_NEAR(std::sqrt(squares), outcome.host()[0].gradient_norm,
                    1e-12 * std::sqrt(squares));
        expect_close("adam value", kForward, dv.host(), v, exact, n);
        expect_close("adam m", kForward, dm.host(), m, em, n);
        expect_close("adam v", kForward, ds.host(), s, es, n);
        if (amsgrad) expect_close("adam w", kForward, dw.host(), w, ew, n);
        expect_narrow("adam", narrow.host(), dv.host());

        // A loss that is not finite: nothing is changed.
        const Floats before = dv.host(), before_m = dm.host();
        StepOutcome bad;
        bad.losses[1] = INFINITY;
        copy_to_device(outcome.data(), &bad, sizeof bad, stream());
        update();
        EXPECT_EQ(0, outcome.host()[0].finite);
        EXPECT_EQ(before, dv.host());
        EXPECT_EQ(before_m, dm.host());
        // losses[2] is none of the two that there are
        bad = {};
        bad.losses[2] = INFINITY;
        copy_to_device(outcome.data(), &bad, sizeof bad, stream());
        update();
        EXPECT_EQ(1, outcome.host()[0].finite);
        EXPECT_NE(before, dv.host());
      }
    }
  }
}

}  // namespace
}  // namespace xsr::cuda
