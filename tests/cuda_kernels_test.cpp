// Every CUDA kernel against its double-precision reference: odd and real shapes, NaN in padding,
// guard words, and the promise that a row's bits depend on that row alone. The same source is
// linked twice: with the emulated device (cuda_kernels_emulated_test), where threads also run in
// random orders, and with nvcc's kernels (cuda_kernels_test), which is skipped without a device.
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "kernels/activation/activation_cuda.h"
#include "kernels/activation/activation_ref.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/embedding/embedding_ref.h"
#include "kernels/gemm/gemm.h"
#include "kernels/layernorm/layernorm_cuda.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/pooling/pooling_cuda.h"
#include "kernels/pooling/pooling_ref.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "runtime/device/cuda/summation_probe.h"
#include "runtime/error.h"
#include "tests/support/device_buffer.h"
#include "tests/support/kernel_harness.h"

namespace xsr::cuda {
namespace {

using test::DeviceBuffer;
using test::ErrorBudget;
using test::Random;

using CudaKernels = test::DeviceTest;

/// Widths of rows, and how far behind each other they may end: together the ways in which a warp
/// has a row.
struct RowShape {
  int32_t C, gap;
};
const std::vector<RowShape>& row_shapes() {
  static const std::vector<RowShape> result = {
      {1, 0},   {2, 1},   {7, 2},   {20, 0},  {20, 1},  {31, 1},  {32, 0},   {33, 1},   {60, 4},
      {63, 0},  {64, 2},  {65, 0},  {96, 0},  {128, 0}, {128, 1}, {128, 4},  {192, 8},  {256, 0},
      {257, 2}, {384, 4}, {512, 0}, {512, 1}, {512, 4}, {768, 0}, {1000, 4}, {1024, 0}, {1024, 1}};
  return result;
}

std::string shape(std::initializer_list<std::pair<const char*, int64_t>> values) {
  std::string text;
  for (const auto& [name, value] : values)
    text += std::string("  ") + name + "=" + std::to_string(value);
  return text;
}

TEST_F(CudaKernels, LayerNorm) {
  Random random(101);
  ErrorBudget budget, narrow_budget;
  int variant = 0;
  for (const RowShape& row : row_shapes()) {
    const int32_t C = row.C, N = 1 + variant++ % 6;
    const int64_t stride = C + row.gap;
    DeviceBuffer<float> x(N * stride), gamma(C), beta(C), out(N * stride);
    DeviceBuffer<uint16_t> narrow(N * stride);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < C; ++c) x[i * stride + c] = random.normal(2) + 3;
    }
    for (int32_t c = 0; c < C; ++c) gamma[c] = random.normal(), beta[c] = random.normal();
    const float eps = 1e-12f;
    std::vector<float> plain(N * stride);
    std::vector<double> wide(x.begin(), x.end()), exact(N * stride);
    kernels::layernorm_forward_ref<float, float>(x.host(), stride, 0, N, C, gamma.host(),
                                                 beta.host(), eps, plain.data(), stride);
    kernels::layernorm_forward_ref<double, float>(wide.data(), stride, 0, N, C, gamma.host(),
                                                  beta.host(), eps, exact.data(), stride);
    upload({&x, &gamma, &beta, &out, &narrow});
    run([&] {
      return layernorm_forward_cuda(x.device(), stride, N, C, gamma.device(), beta.device(), eps,
                                    out.device(), stride, narrow.device(), stride, stream());
    });
    download({&out, &narrow});
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < stride; ++c) {
        const int64_t at = i * stride + c;
        if (c >= C) {
          ASSERT_TRUE(out.untouched(at) && narrow.untouched(at)) << shape({{"C", C}, {"row", i}});
          continue;
        }
        budget.add(out[at], plain[at], exact[at], i, c);
        ASSERT_EQ(narrow[at], kernels::bf16_from_f32(out[at]));
      }
    }
    EXPECT_TRUE(budget.check("layernorm_forward_cuda" + shape({{"N", N}, {"C", C}}), filter()));
    // A row alone, in place, gives the same bits; so does one that starts between four columns.
    const int32_t last = N - 1;
    DeviceBuffer<float> shifted(C + 1);
    std::copy_n(&x[last * stride], C, &shifted[1]);
    upload({&shifted});
    run([&] {
      return layernorm_forward_cuda(shifted.device() + 1, C, 1, C, gamma.device(), beta.device(),
                                    eps, shifted.device() + 1, C, nullptr, 0, stream());
    });
    download({&shifted});
    ASSERT_EQ(0, std::memcmp(&shifted[1], &out[last * stride], 4 * C));
    run([&] {
      return layernorm_forward_cuda(x.device() + last * stride, stride, 1, C, gamma.device(),
                                    beta.device(), eps, x.device() + last * stride, stride, nullptr,
                                    0, stream());
    });
    download({&x});
    ASSERT_EQ(0, std::memcmp(&x[last * stride], &out[last * stride], 4 * C));
  }
}

using kernels::Activation;
using kernels::bf16_from_f32;
using kernels::f32_from_bf16;
using kernels::Pooling;
using kernels::Storage;

float to_bf16(float value) { return f32_from_bf16(bf16_from_f32(value)); }

TEST_F(CudaKernels, Embedding) {
  Random random(102);
  ErrorBudget budget;
  int variant = 0;
  for (const RowShape& row : row_shapes()) {
    const int32_t C = row.C;
    const Storage storage = static_cast<Storage>(variant % 3);
    const bool typed = variant % 2 != 0, normed = variant % 5 != 0;
    const int64_t stride = C + row.gap;
    const int32_t N = 1 + variant++ % 6, V = 11, P = 9;
    const int64_t width = kernels::storage_size(storage);
    DeviceBuffer<uint8_t> token(V * C * width), position(P * C * width);
    const auto fill = [&](DeviceBuffer<uint8_t>& table, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const float value = random.normal();
        const uint16_t narrow =
            storage == Storage::kBF16 ? bf16_from_f32(value) : kernels::f16_from_f32(value);
        std::memcpy(table.host() + i * width,
                    storage == Storage::kF32 ? static_cast<const void*>(&value) : &narrow,
                    static_cast<size_t>(width));
      }
    };
    fill(token, V * C);
    fill(position, P * C);
    DeviceBuffer<int32_t> ids(N), positions(N);
    DeviceBuffer<float> type(C), gamma(C), beta(C), out(N * stride), rstd(N);
    DeviceBuffer<uint16_t> narrow(N * stride);
    for (int32_t i = 0; i < N; ++i)
      ids[i] = i == 0 ? V - 1 : random.range(0, V - 1), positions[i] = random.range(0, P - 1);
    for (int32_t c = 0; c < C; ++c)
      type[c] = random.normal(), gamma[c] = random.normal(), beta[c] = random.normal();
    const float eps = 1e-12f;
    std::vector<float> plain(N * stride), plain_rstd(N);
    std::vector<double> exact(N * stride), exact_rstd(N);
    kernels::embedding_forward_ref<float>(ids.host(), positions.host(), 0, N, token.host(),
                                          position.host(), storage, typed ? type.host() : nullptr,
                                          normed ? gamma.host() : nullptr, beta.host(), eps, C,
                                          plain.data(), stride, plain_rstd.data());
    kernels::embedding_forward_ref<double>(ids.host(), positions.host(), 0, N, token.host(),
                                           position.host(), storage, typed ? type.host() : nullptr,
                                           normed ? gamma.host() : nullptr, beta.host(), eps, C,
                                           exact.data(), stride, exact_rstd.data());
    upload({&token, &position, &ids, &positions, &type, &gamma, &beta, &out, &narrow, &rstd});
    run([&] {
      return embedding_forward_cuda(
          ids.device(), positions.device(), N, token.device(), position.device(), storage,
          typed ? type.device() : nullptr, normed ? gamma.device() : nullptr, beta.device(), eps, C,
          out.device(), stride, narrow.device(), stride, rstd.device(), stream());
    });
    download({&out, &narrow, &rstd});
    ErrorBudget scales;
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < stride; ++c) {
        const int64_t at = i * stride + c;
        if (c >= C) {
          ASSERT_TRUE(out.untouched(at) && narrow.untouched(at)) << shape({{"C", C}, {"row", i}});
          continue;
        }
        // Of one column nothing is left after the mean: rounding alone decides.
        if (C > 2 || !normed) budget.add(out[at], plain[at], exact[at], i, c);
        ASSERT_EQ(narrow[at], bf16_from_f32(out[at]));
      }
      ASSERT_TRUE(normed || rstd.untouched(i));
      if (normed && C > 2) scales.add(rstd[i], plain_rstd[i], exact_rstd[i], i, 0);
    }
    EXPECT_TRUE(budget.check("embedding_forward_cuda" + shape({{"N", N}, {"C", C}}), filter()));
    EXPECT_TRUE(scales.check("its rstd" + shape({{"N", N}, {"C", C}}), filter()));
  }
}

TEST_F(CudaKernels, QkvTable) {
  Random random(103);
  // Rows that are whole groups of four, and rows that are not.
  for (const auto& sizes :
       {std::pair{1, 2}, {60, 61}, {96, 100}, {257, 260}, {516, 516}, {1536, 1540}}) {
    const int32_t N = sizes.first, stride = sizes.second, rows = 5, V = 7, P = 6;
    DeviceBuffer<float> token(V * N), position(P * N), rstd(rows), bias(N), out(rows * stride);
    DeviceBuffer<int32_t> ids(rows), positions(rows);
    for (float& x : token) x = random.normal();
    for (float& x : position) x = random.normal();
    for (float& x : bias) x = random.normal();
    for (int32_t i = 0; i < rows; ++i)
      ids[i] = random.range(0, V - 1), positions[i] = random.range(0, P - 1),
      rstd[i] = random.normal();
    const std::vector<double> wide_token(token.begin(), token.end()),
        wide_position(position.begin(), position.end()), wide_rstd(rstd.begin(), rstd.end()),
        wide_bias(bias.begin(), bias.end());
    std::vector<float> plain(rows * stride);
    std::vector<double> exact(rows * stride);
    kernels::qkv_table_forward_ref<float>(
        ids.host(), positions.host(), 0, rows, token.host(), position.host(), rstd.host(),
        bias.host(), N, [&](int64_t i, int32_t n, float x) { plain[i * stride + n] = x; });
    kernels::qkv_table_forward_ref<double>(
        ids.host(), positions.host(), 0, rows, wide_token.data(), wide_position.data(),
        wide_rstd.data(), wide_bias.data(), N,
        [&](int64_t i, int32_t n, double x) { exact[i * stride + n] = x; });
    DeviceBuffer<uint16_t> narrow(rows * stride);
    upload({&token, &position, &rstd, &bias, &out, &narrow, &ids, &positions});
    run([&] {
      return qkv_table_forward_cuda(ids.device(), positions.device(), rows, token.device(),
                                    position.device(), rstd.device(), bias.device(), N,
                                    out.device(), narrow.device(), stride, stream());
    });
    download({&out, &narrow});
    ErrorBudget budget;
    for (int32_t i = 0; i < rows; ++i) {
      for (int32_t n = 0; n < N; ++n) {
        const int64_t at = i * stride + n;
        budget.add(out[at], plain[at], exact[at], i, n);
        ASSERT_EQ(narrow[at], bf16_from_f32(out[at]));
      }
      for (int32_t n = N; n < stride; ++n)
        ASSERT_TRUE(out.untouched(i * stride + n) && narrow.untouched(i * stride + n));
    }
    EXPECT_TRUE(budget.check("qkv_table_forward_cuda" + shape({{"N", N}}), filter()));
  }
}

TEST_F(CudaKernels, Activation) {
  Random random(104);
  for (int32_t kind = 0; kind <= 5; ++kind) {
    const Activation activation = static_cast<Activation>(kind);
    for (const int32_t F : {1, 33, 255, 256, 257, 1024}) {
      const int32_t N = 3;
      const int64_t stride = F + 2;
      DeviceBuffer<float> x(N * stride), out(N * stride);
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < F; ++c) x[i * stride + c] = random.normal(3);
      }
      x[0] = -120;  // exp overflows
      upload({&x, &out});
      run([&] {
        return activation_forward_cuda(x.device(), stride, N, F, activation, out.device(), stride,
                                       stream());
      });
      download({&out});
      ErrorBudget budget;
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < stride; ++c) {
          const int64_t at = i * stride + c;
          if (c >= F) {
            ASSERT_TRUE(out.untouched(at));
            continue;
          }
          budget.add(out[at], kernels::activate_ref<float>(x[at], activation),
                     kernels::activate_ref<double>(x[at], activation), i, c);
        }
      }
      EXPECT_TRUE(
          budget.check("activation_forward_cuda" + shape({{"kind", kind}, {"F", F}}), filter()));
    }
  }
}

TEST_F(CudaKernels, ActivationInBf16AddsTheBiasFirst) {
  Random random(114);
  for (int32_t kind = 0; kind <= 5; ++kind) {
    const Activation activation = static_cast<Activation>(kind);
    for (const int32_t F : {1, 7, 30, 33, 256, 1023, 1024, 1032}) {
      for (const bool in_place : {false, true}) {
        const int32_t N = 3;
        const int64_t stride = (F + 7) / 8 * 8 + (F % 2 == 0 ? 8 : 3);
        DeviceBuffer<uint16_t> x(N * stride), out(N * stride);
        DeviceBuffer<float> bias(F);
        for (int32_t i = 0; i < N; ++i) {
          for (int32_t c = 0; c < F; ++c) x[i * stride + c] = bf16_from_f32(random.normal(3));
        }
        for (float& value : bias) value = random.normal();
        x[0] = bf16_from_f32(-120);  // exp overflows
        x[stride] = 0x7fc1;          // NaN
        upload({&x, &out, &bias});
        run([&] {
          return activation_forward_bf16_cuda(x.device(), stride, bias.device(), N, F, activation,
                                              in_place ? x.device() : out.device(), stride,
                                              stream());
        });
        const std::vector<uint16_t> before(x.begin(), x.end());
        DeviceBuffer<uint16_t>& found = in_place ? x : out;
        download({&found});
        ErrorBudget budget;
        for (int32_t i = 0; i < N; ++i) {
          for (int32_t c = 0; c < stride; ++c) {
            const int64_t at = i * stride + c;
            if (c >= F) {
              ASSERT_TRUE(found.untouched(at));
              continue;
            }
            const float sum = f32_from_bf16(before[at]) + bias[c];
            budget.add(f32_from_bf16(found[at]),
                       to_bf16(kernels::activate_ref<float>(sum, activation)),
                       kernels::activate_ref<double>(sum, activation), i, c);
          }
        }
        EXPECT_TRUE(budget.check("activation_forward_bf16_cuda" + shape({{"kind", kind}, {"F", F}}),
                                 filter()));
      }
    }
  }
}

/// Lengths of sentences, and their cu_seqlens.
std::vector<int32_t> ragged(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> result = {0};
  for (const int32_t length : lengths) result.push_back(result.back() + length);
  return result;
}

TEST_F(CudaKernels, FirstRows) {
  const std::vector<int32_t> bounds = ragged({3, 0, 1, 17, 0});
  const int32_t B = static_cast<int32_t>(bounds.size()) - 1, N = bounds.back();
  const auto check = [&](auto zero, int32_t C) {
    using T = decltype(zero);
    const int64_t stride = C + 3, out_stride = C + 1;
    DeviceBuffer<T> x(N * stride), out(B * out_stride);
    DeviceBuffer<int32_t> cu_seqlens(bounds);
    for (int64_t i = 0; i < N * stride; ++i) x[i] = static_cast<T>(1 + i);
    upload({&x, &out, &cu_seqlens});
    run([&] {
      if constexpr (std::is_same_v<T, float>) {
        return pooling_forward_cuda(x.device(), stride, cu_seqlens.device(), B, C, Pooling::kCls,
                                    out.device(), out_stride, stream());
      } else {
        return first_rows_bf16_cuda(x.device(), stride, cu_seqlens.device(), B, C, out.device(),
                                    out_stride, stream());
      }
    });
    download({&out});
    for (int32_t b = 0; b < B; ++b) {
      const bool empty = bounds[b] == bounds[b + 1];
      for (int32_t c = 0; c < C; ++c)
        ASSERT_EQ(out[b * out_stride + c], empty ? zero : x[bounds[b] * stride + c]) << b;
      ASSERT_TRUE(out.untouched(b * out_stride + C));
    }
  };
  for (const int32_t C : {1, 127, 128, 300}) {
    check(0.0f, C);
    check(uint16_t{0}, C);
  }
}

TEST_F(CudaKernels, PoolingAndNormalize) {
  Random random(105);
  const std::vector<int32_t> bounds = ragged({3, 0, 1, 17, 0, 40});
  const int32_t B = static_cast<int32_t>(bounds.size()) - 1, N = bounds.back();
  for (const RowShape& row :
       {RowShape{1, 1}, {33, 1}, {127, 1}, {128, 1}, {128, 4}, {129, 3}, {512, 4}, {516, 4}}) {
    for (const Pooling pooling : {Pooling::kMean, Pooling::kMax, Pooling::kCls}) {
      const int32_t C = row.C;
      const int64_t stride = C + row.gap;
      DeviceBuffer<float> x(N * stride), out(B * stride);
      DeviceBuffer<int32_t> cu_seqlens(bounds);
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < C; ++c) x[i * stride + c] = random.normal();
      }
      std::vector<float> plain(B * stride);
      std::vector<double> wide(x.begin(), x.end()), exact(B * stride);
      kernels::pooling_forward_ref<float>(x.host(), stride, bounds.data(), 0, B, C, pooling,
                                          plain.data(), stride);
      kernels::pooling_forward_ref<double>(wide.data(), stride, bounds.data(), 0, B, C, pooling,
                                           exact.data(), stride);
      upload({&x, &out, &cu_seqlens});
      run([&] {
        return pooling_forward_cuda(x.device(), stride, cu_seqlens.device(), B, C, pooling,
                                    out.device(), stride, stream());
      });
      download({&out});
      ErrorBudget budget;
      for (int32_t b = 0; b < B; ++b) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(out[b * stride + c], plain[b * stride + c], exact[b * stride + c], b, c);
        ASSERT_TRUE(out.untouched(b * stride + C));
      }
      EXPECT_TRUE(budget.check("pooling_forward_cuda" + shape({{"C", C}}), filter()));

      kernels::l2_normalize_forward_ref<float>(plain.data(), stride, 0, B, C);
      kernels::l2_normalize_forward_ref<double>(exact.data(), stride, 0, B, C);
      run([&] { return l2_normalize_forward_cuda(out.device(), stride, B, C, stream()); });
      download({&out});
      ErrorBudget normalized;
      for (int32_t b = 0; b < B; ++b) {
        for (int32_t c = 0; c < C; ++c)
          normalized.add(out[b * stride + c], plain[b * stride + c], exact[b * stride + c], b, c);
      }
      EXPECT_TRUE(normalized.check("l2_normalize_forward_cuda" + shape({{"C", C}}), filter()));
    }
  }
}

/// Attention by plain loops that round where the bf16 kernel rounds: the probabilities before V,
/// and the result.
void attention_plain_bf16(const float* qkv, int64_t stride, const std::vector<int32_t>& bounds,
                          int32_t H, int32_t D, float* out, float* lse) {
  for (size_t b = 0; b + 1 < bounds.size(); ++b) {
    for (int32_t h = 0; h < H; ++h) {
      for (int32_t i = bounds[b]; i < bounds[b + 1]; ++i) {
        std::vector<float> p;
        float largest = -INFINITY, sum = 0;
        for (int32_t j = bounds[b]; j < bounds[b + 1]; ++j) {
          float dot = 0;
          for (int32_t d = 0; d < D; ++d)
            dot += qkv[i * stride + h * D + d] * qkv[j * stride + (H + h) * D + d];
          p.push_back(dot / std::sqrt(static_cast<float>(D)));
          largest = std::max(largest, p.back());
        }
        for (float& x : p) x = std::exp(x - largest), sum += x;
        for (int32_t d = 0; d < D; ++d) {
          float value = 0;
          for (size_t j = 0; j < p.size(); ++j)
            value += to_bf16(p[j]) *
                     qkv[(bounds[b] + static_cast<int64_t>(j)) * stride + (2 * H + h) * D + d];
          out[static_cast<int64_t>(i) * H * D + h * D + d] = to_bf16(value / sum);
        }
        lse[static_cast<int64_t>(i) * H + h] = largest + std::log(sum);
      }
    }
  }
}

TEST_F(CudaKernels, Attention) {
  Random random(106);
  struct Shape {
    std::vector<int32_t> lengths;
    int32_t H, D;
  };
  std::vector<Shape> shapes = {{{20, 7, 1}, 8, 64}, {{1, 17, 0, 5}, 3, 20}, {{65, 2}, 2, 128},
                               {{200}, 1, 64},      {{16, 32, 33}, 2, 32},  {{3, 4}, 1, 1},
                               {{5, 64}, 2, 7},     {{130}, 1, 96}};
  int variant = 0;
  for (const Shape& s : shapes) {
    const std::vector<int32_t> bounds = ragged(s.lengths);
    const int32_t B = static_cast<int32_t>(s.lengths.size()), N = bounds.back(), H = s.H, D = s.D;
    // Rows that are whole groups of eight, and rows that are not; with a bias and without one.
    const bool has_bias = ++variant % 2 == 0;
    const int64_t extra = variant % 4 < 2 ? 8 : 3, stride = 3 * H * D + extra,
                  out_stride = H * D + extra;
    DeviceBuffer<float> qkv(N * stride), out(N * out_stride), lse(N * H), lse_narrow(N * H),
        bias(3 * H * D);
    // The rows behind the last sentence hold NaN.
    DeviceBuffer<uint16_t> narrow(N * out_stride), narrow_qkv((N + 16) * stride);
    for (float& value : bias) value = has_bias ? random.normal() : 0;
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < 3 * H * D; ++c) {
        const int64_t at = i * stride + c;
        narrow_qkv[at] = bf16_from_f32(random.normal(c < H * D ? 2.0f : 1.0f));
        // K's bias changes nothing but lse, which is without it.
        const float value = f32_from_bf16(narrow_qkv[at]);
        const int32_t which = c / (H * D);
        qkv[at] = which == 0 ? to_bf16(value + bias[c]) : which == 1 ? value : value + bias[c];
      }
    }
    std::vector<AttentionTile> list(attention_tile_count(N, B) + 1);
    const int32_t count = attention_tiles(bounds.data(), B, list.data());
    ASSERT_LE(count, attention_tile_count(N, B));
    list[count] = {0, 0, 0};  // one that does nothing
    list.resize(count + 1);
    DeviceBuffer<AttentionTile> tiles(list);

    std::vector<double> wide(qkv.begin(), qkv.end()), exact(N * H * D), exact_lse(N * H),
        scratch(N);
    std::vector<float> plain(N * H * D), plain_lse(N * H), scores(N), plain_narrow(N * H * D),
        plain_lse_narrow(N * H);
    kernels::attention_forward_ref<double>(wide.data(), stride, bounds.data(), 0, B, 0, H, H, D,
                                           exact.data(), H * D, exact_lse.data(), scratch.data());
    kernels::attention_forward_ref<float>(qkv.host(), stride, bounds.data(), 0, B, 0, H, H, D,
                                          plain.data(), H * D, plain_lse.data(), scores.data());
    attention_plain_bf16(qkv.host(), stride, bounds, H, D, plain_narrow.data(),
                         plain_lse_narrow.data());
    upload({&qkv, &narrow_qkv, &bias, &out, &lse, &lse_narrow, &narrow, &tiles});
    const float* const added = has_bias ? bias.device() : nullptr;
    run([&] {
      return attention_forward_f32_cuda(qkv.device(), stride, tiles.device(), count + 1, H, D,
                                        out.device(), out_stride, lse.device(), stream());
    });
    run([&] {
      return attention_forward_bf16_cuda(narrow_qkv.device(), stride, added, tiles.device(),
                                         count + 1, H, D, narrow.device(), out_stride,
                                         lse_narrow.device(), stream());
    });
    download({&out, &lse, &lse_narrow, &narrow});
    ErrorBudget budget, logs, narrow_budget, narrow_logs;
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < H * D; ++c) {
        const int64_t at = static_cast<int64_t>(i) * H * D + c;
        budget.add(out[i * out_stride + c], plain[at], exact[at], i, c);
        narrow_budget.add(f32_from_bf16(narrow[i * out_stride + c]), plain_narrow[at], exact[at], i,
                          c);
      }
      for (int64_t c = H * D; c < out_stride; ++c)
        ASSERT_TRUE(out.untouched(i * out_stride + c) && narrow.untouched(i * out_stride + c));
      for (int32_t h = 0; h < H; ++h) {
        logs.add(lse[i * H + h], plain_lse[i * H + h], exact_lse[i * H + h], i, h);
        narrow_logs.add(lse_narrow[i * H + h], plain_lse_narrow[i * H + h], exact_lse[i * H + h], i,
                        h);
      }
    }
    const std::string what = shape({{"N", N}, {"H", H}, {"D", D}});
    EXPECT_TRUE(budget.check("attention_forward_f32_cuda" + what, filter()));
    EXPECT_TRUE(logs.check("its lse" + what, filter()));
    EXPECT_TRUE(narrow_budget.check("attention_forward_bf16_cuda" + what, filter()));
    EXPECT_TRUE(narrow_logs.check("its lse" + what, filter()));

    // The last sentence alone: the same bits.
    const int32_t begin = bounds[B - 1], length = s.lengths[B - 1];
    std::vector<AttentionTile> alone(attention_tile_count(length, 1));
    const int32_t bounds_alone[] = {0, length};
    alone.resize(attention_tiles(bounds_alone, 1, alone.data()));
    DeviceBuffer<AttentionTile> tiles_alone(alone);
    DeviceBuffer<float> out_alone(length * out_stride);
    DeviceBuffer<uint16_t> narrow_alone(length * out_stride);
    // From a row of its own: a row within a buffer need not start at a multiple of 16 bytes.
    DeviceBuffer<uint16_t> aligned((length + 16) * stride);
    std::copy_n(narrow_qkv.begin() + begin * stride, length * stride, aligned.begin());
    upload({&tiles_alone, &out_alone, &narrow_alone, &aligned});
    const int32_t count_alone = static_cast<int32_t>(alone.size());
    run([&] {
      return attention_forward_f32_cuda(qkv.device() + begin * stride, stride, tiles_alone.device(),
                                        count_alone, H, D, out_alone.device(), out_stride, nullptr,
                                        stream());
    });
    run([&] {
      return attention_forward_bf16_cuda(aligned.device(), stride, added, tiles_alone.device(),
                                         count_alone, H, D, narrow_alone.device(), out_stride,
                                         nullptr, stream());
    });
    download({&out_alone, &narrow_alone});
    for (int32_t i = 0; i < length; ++i) {
      ASSERT_EQ(0,
                std::memcmp(&out_alone[i * out_stride], &out[(begin + i) * out_stride], 4 * H * D));
      ASSERT_EQ(0, std::memcmp(&narrow_alone[i * out_stride], &narrow[(begin + i) * out_stride],
                               2 * H * D));
    }
  }
}

TEST_F(CudaKernels, Product) {
  Random random(107);
  Gemm gemm;
  struct Shape {
    int32_t M, N, K;
    bool a_transposed, b_transposed, bias, c;
  };
  for (const Shape& s :
       {Shape{20, 96, 64, false, false, true, false}, Shape{1, 64, 128, false, false, true, true},
        Shape{33, 40, 24, false, true, false, false}, Shape{40, 24, 56, true, true, false, true},
        Shape{0, 64, 64, false, false, true, false}}) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
      const int64_t a_stride = (s.a_transposed ? s.M : s.K) + 8,
                    b_stride = (s.b_transposed ? s.N : s.K) + 8, out_stride = s.N + 4;
      const int64_t a_size = (s.a_transposed ? s.K : s.M) * a_stride,
                    b_size = (s.b_transposed ? s.K : s.N) * b_stride;
      DeviceBuffer<float> a(a_size), b(b_size), bias(s.N), c(s.M * out_stride),
          out(s.M * out_stride);
      DeviceBuffer<uint16_t> narrow_a(a_size), narrow_b(b_size);
      for (int64_t i = 0; i < a_size; ++i)
        a[i] = to_bf16(random.normal()), narrow_a[i] = bf16_from_f32(a[i]);
      for (int64_t i = 0; i < b_size; ++i)
        b[i] = to_bf16(random.normal()), narrow_b[i] = bf16_from_f32(b[i]);
      for (float& x : bias) x = random.normal();
      for (float& x : c) x = random.normal();
      upload({&a, &b, &bias, &c, &out, &narrow_a, &narrow_b});
      const bool f32 = dtype == Dtype::kF32;
      Product product;
      product.M = s.M, product.N = s.N, product.K = s.K;
      product.a = {f32 ? static_cast<void*>(a.device()) : narrow_a.device(), a_stride, dtype,
                   s.a_transposed};
      product.b = {f32 ? static_cast<void*>(b.device()) : narrow_b.device(), b_stride, dtype,
                   s.b_transposed};
      if (s.bias) product.bias = bias.device();
      if (s.c) product.c = c.device(), product.c_stride = out_stride;
      product.out = out.device(), product.out_stride = out_stride;
      gemm.run(product, stream());
      download({&out});
      ErrorBudget budget;
      for (int32_t m = 0; m < s.M; ++m) {
        for (int32_t n = 0; n < s.N; ++n) {
          float plain = 0;
          double exact = 0;
          for (int32_t k = 0; k < s.K; ++k) {
            const float x = a[s.a_transposed ? k * a_stride + m : m * a_stride + k];
            const float w = b[s.b_transposed ? k * b_stride + n : n * b_stride + k];
            plain += x * w, exact += static_cast<double>(x) * w;
          }
          if (s.bias) plain += bias[n], exact += bias[n];
          if (s.c) plain += c[m * out_stride + n], exact += c[m * out_stride + n];
          budget.add(out[m * out_stride + n], plain, exact, m, n);
        }
        for (int64_t n = s.N; n < out_stride; ++n) ASSERT_TRUE(out.untouched(m * out_stride + n));
      }
      EXPECT_TRUE(budget.check("Gemm" + shape({{"M", s.M}, {"N", s.N}, {"K", s.K}}), filter()));
    }
  }
}

TEST_F(CudaKernels, ProductIntoBf16) {
  Random random(115);
  Gemm gemm;
  for (const auto& [M, N, K, transposed] :
       {std::tuple(20, 96, 64, false), {1, 64, 128, true}, {33, 40, 24, false}}) {
    const int64_t out_stride = N + 8;
    DeviceBuffer<uint16_t> a(M * K), b(N * K), out(M * out_stride);
    for (uint16_t& x : a) x = bf16_from_f32(random.normal());
    for (uint16_t& x : b) x = bf16_from_f32(random.normal());
    upload({&a, &b, &out});
    Product product;
    product.M = M, product.N = N, product.K = K;
    product.a = {a.device(), K, Dtype::kBf16};
    product.b = {b.device(), transposed ? N : K, Dtype::kBf16, transposed};
    product.out = out.device(), product.out_stride = out_stride;
    product.out_dtype = Dtype::kBf16;
    gemm.run(product, stream());
    download({&out});
    ErrorBudget budget;
    for (int32_t m = 0; m < M; ++m) {
      for (int32_t n = 0; n < N; ++n) {
        float plain = 0;
        double exact = 0;
        for (int32_t k = 0; k < K; ++k) {
          const float x = f32_from_bf16(a[m * K + k]),
                      w = f32_from_bf16(b[transposed ? k * N + n : n * K + k]);
          plain += x * w, exact += static_cast<double>(x) * w;
        }
        budget.add(f32_from_bf16(out[m * out_stride + n]), to_bf16(plain), exact, m, n);
      }
      for (int64_t n = N; n < out_stride; ++n) ASSERT_TRUE(out.untouched(m * out_stride + n));
    }
    EXPECT_TRUE(budget.check("Gemm into bf16" + shape({{"M", M}, {"N", N}, {"K", K}}), filter()));
#ifdef XSR_EMULATED
    const float bias[1] = {};
    product.bias = bias;  // would have to be bf16
    EXPECT_THROW(gemm.run(product, stream()), Error);
#endif
  }
}

/// Products of up to 64 and 512 rows may have algorithms of their own, and must not show it: once
/// with common operands, once with those whose result is the rounding of the order of summation.
TEST_F(CudaKernels, ProductOfARowDoesNotDependOnTheOthers) {
  Random random(108);
  Gemm gemm, tf32(true);
  struct Shape {
    int32_t N, K;
  };
#ifdef XSR_EMULATED
  const std::vector<Shape> shapes = {{16, 24}};
#else
  const std::vector<Shape> shapes = {{96, 64},    {1536, 512}, {512, 512},  {1024, 512},
                                     {512, 1024}, {1152, 384}, {2304, 768}, {768, 3072}};
#endif
  const int32_t M = 600;
  for (const Shape& size : shapes) {
    const int32_t N = size.N, K = size.K;
    const SummationProbe probe(K, 24), narrow_probe(K, 8);
    DeviceBuffer<float> a(M * K), b(N * K), bias(N), c(M * N), out(M * N), part(M * N);
    DeviceBuffer<uint16_t> narrow_a(M * K), narrow_b(N * K), narrow(M * N), narrow_part(M * N);
    for (const bool probed : {false, true}) {
      for (int64_t i = 0; i < a.size(); ++i) {
        const int32_t m = static_cast<int32_t>(i / K), k = static_cast<int32_t>(i % K);
        a[i] = probed ? probe.a(m, k) : random.normal();
        narrow_a[i] = bf16_from_f32(probed ? narrow_probe.a(m, k) : a[i]);
      }
      for (int64_t i = 0; i < b.size(); ++i) {
        const int32_t n = static_cast<int32_t>(i / K), k = static_cast<int32_t>(i % K);
        b[i] = probed ? probe.b(n, k) : random.normal();
        narrow_b[i] = bf16_from_f32(probed ? narrow_probe.b(n, k) : b[i]);
      }
      for (float& x : bias) x = random.normal();
      for (float& x : c) x = random.normal();
      upload({&a, &b, &bias, &c, &narrow_a, &narrow_b});
      for (const char* kind : {"f32", "tf32", "bf16"}) {
        const bool bf16 = kind[0] == 'b';
        Gemm& own = kind[0] == 't' ? tf32 : gemm;
        Product product{M, N, K, {}, {}, out.device(), N};
        const Dtype dtype = bf16 ? Dtype::kBf16 : Dtype::kF32;
        product.a = {bf16 ? static_cast<void*>(narrow_a.device()) : a.device(), K, dtype};
        product.b = {bf16 ? static_cast<void*>(narrow_b.device()) : b.device(), K, dtype};
        Product into_bf16 = product;
        into_bf16.out = narrow.device(), into_bf16.out_dtype = Dtype::kBf16;
        if (!probed) product.bias = bias.device(), product.c = c.device(), product.c_stride = N;
        own.run(product, stream());
        if (bf16) own.run(into_bf16, stream());
        download({&out, &narrow});
        for (const int32_t rows : {1, 7, 20, 64, 65, 129, 512, 513}) {
          product.M = into_bf16.M = rows;
          product.out = part.device();
          into_bf16.out = narrow_part.device();
          own.run(product, stream());
          if (bf16) own.run(into_bf16, stream());
          download({&part, &narrow_part});
          const auto same = [&](const auto& x, const auto& y) {
            return std::memcmp(x, y, sizeof(*x) * static_cast<size_t>(rows * N)) == 0;
          };
          ASSERT_TRUE(same(part.host(), out.host()))
              << rows << " rows, N " << N << ", K " << K << ", " << kind;
          if (!bf16) continue;
          ASSERT_TRUE(same(narrow_part.host(), narrow.host()))
              << rows << " rows into bf16, N " << N << ", K " << K;
        }
      }
    }
  }
  const Gemm::FewRows few = gemm.few_rows();
  std::printf("%d of %d products of few rows have an algorithm of their own\n", few.own, few.kinds);
}

/// Ones, whose sum is exact in any order: none of K is left out where it is summed in parts, nor
/// where it is no multiple of an algorithm's step.
TEST_F(CudaKernels, AProductSumsAllOfK) {
  Gemm gemm;
  for (const int32_t K : {8, 24, 64, 100, 128, 192, 200, 320, 1000, 1024, 4160, 4224}) {
    for (const bool split : {false, true}) {
      for (const bool transposed : {false, true}) {
        constexpr int32_t M = 16, N = 24;
        DeviceBuffer<uint16_t> a(M * K), b(N * K);
        DeviceBuffer<float> out(M * N);
        for (uint16_t& x : a) x = bf16_from_f32(1);
        for (uint16_t& x : b) x = bf16_from_f32(1);
        upload({&a, &b});
        Product product{M, N, K, {}, {}, out.device(), N};
        product.a = {a.device(), transposed ? M : K, Dtype::kBf16, transposed};
        product.b = {b.device(), transposed ? N : K, Dtype::kBf16, transposed};
        product.split_k = split;
        gemm.run(product, stream());
        download({&out});
        for (const float x : out)
          ASSERT_EQ(static_cast<float>(K), x) << (split ? "in parts, " : "") << transposed;
      }
    }
  }
}

}  // namespace
}  // namespace xsr::cuda
