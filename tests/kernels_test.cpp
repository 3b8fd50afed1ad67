// Every row of kernels.inc against its double-precision reference: odd and real shapes, misaligned
// pointers, NaN in padding, guard words, and the promise that a row's bits depend on that row
// alone.
#include <cstring>
#include <functional>
#include <map>

#include "kernels/activation/activation_ref.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/dispatch.h"
#include "kernels/embedding/embedding_ref.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/pooling/pooling_ref.h"
#include "tests/support/kernel_harness.h"

namespace xsr::kernels {
namespace {

using test::ErrorBudget;
using test::Guarded;
using test::Random;

// Designed inputs that magnify rounding: the largest error is one row's, and with it a matter of
// luck for both sides.
constexpr double kIllConditioned = 4;

struct KernelRow {
  const char* op;
  const char* name;
  Isa isa;
  void (*function)();
};

const std::vector<KernelRow>& kernel_rows() {
  static const std::vector<KernelRow> rows = {
#define XSR_KERNEL(op, suffix, level) \
  {#op, #op "_" #suffix, level, reinterpret_cast<void (*)()>(&op##_##suffix)},
#include "kernels/kernels.inc"
  };
  return rows;
}

std::vector<double> widen(Guarded& x) { return std::vector<double>(x.data(), x.data() + x.size()); }

/// A [rows, stride] buffer whose columns from `columns` on stay NaN.
Guarded random_rows(Random& random, int64_t rows, int64_t columns, int64_t stride, int shift,
                    float scale = 1) {
  Guarded x(rows * stride, shift);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) x[r * stride + c] = random.normal(scale);
  }
  return x;
}

/// The padding columns of a result must still be the NaN they were, and the guards whole.
void expect_untouched(Guarded& out, int64_t rows, int64_t columns, int64_t stride,
                      const std::string& what) {
  EXPECT_TRUE(out.intact()) << what << ": wrote outside its output";
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = columns; c < stride; ++c) {
      ASSERT_TRUE(std::isnan(out[r * stride + c]))
          << what << ": wrote padding at row " << r << " col " << c;
    }
  }
}

/// A table in a narrow storage, 64-byte aligned, with one spare vector of 0xff (NaN) behind it.
struct Table {
  Table(Random& random, int64_t elements, Storage storage, float scale = 1) : storage(storage) {
    bytes.resize(elements * storage_size(storage) + 128, 0xff);
    data = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
    for (int64_t i = 0; i < elements; ++i) {
      const float value = random.normal(scale);
      if (storage == Storage::kF32) {
        std::memcpy(data + 4 * i, &value, 4);
      } else {
        const uint16_t narrow =
            storage == Storage::kBF16 ? bf16_from_f32(value) : f16_from_f32(value);
        std::memcpy(data + 2 * i, &narrow, 2);
      }
    }
  }
  std::vector<unsigned char> bytes;
  unsigned char* data;
  Storage storage;
};

const char* storage_name(Storage storage) {
  return storage == Storage::kF32 ? "f32" : storage == Storage::kF16 ? "f16" : "bf16";
}

std::string shape_text(std::initializer_list<std::pair<const char*, int64_t>> values) {
  std::string text;
  for (const auto& [name, value] : values)
    text += std::string("  ") + name + "=" + std::to_string(value);
  return text;
}

const Storage kStorages[] = {Storage::kF32, Storage::kF16, Storage::kBF16};
const Activation kActivations[] = {Activation::kNone,     Activation::kSwish, Activation::kGeluErf,
                                   Activation::kGeluTanh, Activation::kRelu,  Activation::kTanh};

/// 1 … two vectors of 16 and one more, and the real sizes.
std::vector<int32_t> widths() {
  std::vector<int32_t> result;
  for (int32_t c = 1; c <= 33; ++c) result.push_back(c);
  for (int32_t c : {48, 63, 64, 65, 96, 128, 192, 200, 512, 768, 1024}) result.push_back(c);
  return result;
}

void check_embedding(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<embedding_forward_f32_t*>(row.function);
  Random random(1);
  int variant = 0;
  for (int32_t C : widths()) {
    const Storage storage = kStorages[variant % 3];
    const bool typed = variant % 2;
    const int shift = variant++ % 4;
    const int32_t N = 7, V = 11, P = 9, first = 1, last = 6;
    Table token(random, static_cast<int64_t>(V) * C, storage),
        position(random, static_cast<int64_t>(P) * C, storage, 0.5f);
    Guarded type = random_rows(random, 1, C, C, shift), gamma = random_rows(random, 1, C, C, shift),
            beta = random_rows(random, 1, C, C, shift);
    std::vector<int32_t> ids(N), positions(N);
    for (int32_t i = 0; i < N; ++i)
      ids[i] = i == 2 ? V - 1 : random.range(0, V - 1), positions[i] = random.range(0, P - 1);
    const int64_t stride = C + 5;
    Guarded out(N * stride, shift), plain(N * stride);
    Guarded rstd(N, shift), plain_rstd(N);
    std::vector<double> exact(N * stride), exact_rstd(N);
    const float* types = typed ? type.data() : nullptr;
    kernel(ids.data(), positions.data(), first, last, token.data, position.data, storage, types,
           gamma.data(), beta.data(), 1e-12f, C, out.data(), stride, rstd.data());
    embedding_forward_f32_ref(ids.data(), positions.data(), first, last, token.data, position.data,
                              storage, types, gamma.data(), beta.data(), 1e-12f, C, plain.data(),
                              stride, plain_rstd.data());
    embedding_forward_ref<double>(ids.data(), positions.data(), first, last, token.data,
                                  position.data, storage, types, gamma.data(), beta.data(), 1e-12f,
                                  C, exact.data(), stride, exact_rstd.data());
    const std::string what =
        row.name + shape_text({{"C", C}, {"typed", typed}}) + " " + storage_name(storage);
    ErrorBudget budget;
    for (int32_t i = first; i < last; ++i) {
      for (int32_t c = 0; c < C; ++c)
        budget.add(out[i * stride + c], plain[i * stride + c], exact[i * stride + c], i, c);
    }
    if (C > 1) {  // of one column the variance is 0 and the deviation that of eps alone
      ErrorBudget rstd_budget(
          kIllConditioned);  // five values: their largest error is a matter of luck
      for (int32_t i = first; i < last; ++i)
        rstd_budget.add(rstd[i], plain_rstd[i], exact_rstd[i], i, 0);
      EXPECT_TRUE(rstd_budget.check(what + " rstd", filter));
    }
    EXPECT_TRUE(rstd.intact() && std::isnan(rstd[0]) && std::isnan(rstd[6])) << what;
    EXPECT_TRUE(budget.check(what, filter));
    expect_untouched(out, N, C, stride, what);
    for (int32_t c = 0; c < C; ++c)
      EXPECT_TRUE(std::isnan(out[c]) && std::isnan(out[6 * stride + c])) << what;
  }
}

void check_qkv_table(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<qkv_table_forward_f32_t*>(row.function);
  Random random(11);
  for (int32_t N : widths()) {
    const int shift = N % 4;
    const int32_t tokens = 6, V = 7, P = 5, first = 1, last = 5;
    const int64_t stride = N + 3;
    Guarded token = random_rows(random, V, N, N, shift),
            position = random_rows(random, P, N, N, shift),
            bias = random_rows(random, 1, N, N, shift),
            rstd = random_rows(random, 1, tokens, tokens, shift);
    std::vector<int32_t> ids = {0, 6, 3, 3, 1, 2}, positions = {4, 0, 1, 2, 3, 4};
    Guarded out(tokens * stride, shift), plain(tokens * stride);
    std::vector<double> exact(tokens * stride),
        wide_token = widen(token), wide_position = widen(position), wide_bias = widen(bias),
        wide_rstd = widen(rstd);
    kernel(ids.data(), positions.data(), first, last, token.data(), position.data(), rstd.data(),
           bias.data(), N, out.data(), stride);
    qkv_table_forward_f32_ref(ids.data(), positions.data(), first, last, token.data(),
                              position.data(), rstd.data(), bias.data(), N, plain.data(), stride);
    qkv_table_forward_ref<double>(ids.data(), positions.data(), first, last, wide_token.data(),
                                  wide_position.data(), wide_rstd.data(), wide_bias.data(), N,
                                  exact.data(), stride);
    const std::string what = row.name + shape_text({{"N", N}});
    ErrorBudget budget;
    for (int32_t i = first; i < last; ++i) {
      for (int32_t n = 0; n < N; ++n)
        budget.add(out[i * stride + n], plain[i * stride + n], exact[i * stride + n], i, n);
    }
    EXPECT_TRUE(budget.check(what, filter));
    expect_untouched(out, tokens, N, stride, what);
    for (int32_t n = 0; n < N; ++n)
      EXPECT_TRUE(std::isnan(out[n]) && std::isnan(out[last * stride + n])) << what;
  }
}

void check_layernorm(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<layernorm_forward_f32_t*>(row.function);
  Random random(2);
  int variant = 0;
  for (int32_t C : widths()) {
    for (float offset : {0.0f, 100.0f}) {  // a mean far from 0 shows a one-pass variance
      const int shift = variant++ % 4;
      const int32_t N = 64;  // rows enough that the plain loop's largest error is no matter of luck
      const int64_t stride = C + 3;
      Guarded x = random_rows(random, N, C, stride, shift, 3),
              gamma = random_rows(random, 1, C, C, shift),
              beta = random_rows(random, 1, C, C, shift);
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < C; ++c) x[i * stride + c] += offset;
      }
      Guarded out(N * stride, shift), plain(N * stride);
      std::vector<double> exact(N * stride), wide = widen(x);
      kernel(x.data(), stride, 0, N, C, gamma.data(), beta.data(), 1e-12f, out.data(), stride);
      layernorm_forward_f32_ref(x.data(), stride, 0, N, C, gamma.data(), beta.data(), 1e-12f,
                                plain.data(), stride);
      layernorm_forward_ref<double>(wide.data(), stride, 0, N, C, gamma.data(), beta.data(),
                                    double(1e-12f), exact.data(), stride);
      const std::string what = row.name + shape_text({{"C", C}, {"offset", int64_t(offset)}});
      ErrorBudget budget(offset == 0 ? 2 : kIllConditioned);
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(out[i * stride + c], plain[i * stride + c], exact[i * stride + c], i, c);
      }
      EXPECT_TRUE(budget.check(what, filter));
      expect_untouched(out, N, C, stride, what);
      kernel(x.data(), stride, 1, 3, C, gamma.data(), beta.data(), 1e-12f, x.data(),
             stride);  // in place, a range
      EXPECT_EQ(0, std::memcmp(&x[stride], &out[stride], 4 * C)) << what << " in place";
      EXPECT_EQ(0, std::memcmp(&x[2 * stride], &out[2 * stride], 4 * C)) << what << " in place";
      expect_untouched(x, N, C, stride, what);
    }
  }
}

struct GemmCase {
  int32_t M, N, K;
  Storage storage;
  Activation activation;
  bool bias, residual;
  int32_t first_panel, last_panel;
};

void check_gemm_case(const KernelRow& row, const std::string& filter, Random& random,
                     const GemmCase& c, int shift) {
  auto* kernel = reinterpret_cast<gemm_forward_f32_t*>(row.function);
  const int64_t a_stride = c.K + 3, out_stride = c.N + 2;
  Guarded a = random_rows(random, c.M, c.K, a_stride, shift),
          bias = random_rows(random, 1, c.N, c.N, shift);
  Guarded residual = random_rows(random, c.M, c.N, out_stride, shift);
  std::vector<float> dense(static_cast<int64_t>(c.N) * c.K);
  for (float& value : dense) value = random.normal(1 / std::sqrt(static_cast<float>(c.K)));
  std::vector<unsigned char> bytes(packed_elements(c.N, c.K, c.storage) * storage_size(c.storage) +
                                   64);
  PackedMatrix w;
  w.data = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
  w.storage = c.storage;
  w.N = c.N;
  w.K = c.K;
  gemm_pack_panels(dense.data(), c.N, c.K, c.storage, const_cast<void*>(w.data));
  Guarded out(c.M * out_stride, shift), plain(c.M * out_stride);
  std::vector<double> exact(c.M * out_stride + 1), wide_a = widen(a), wide_bias = widen(bias),
                                                   wide_residual = widen(residual);
  GemmEpilogue epilogue;
  epilogue.bias = c.bias ? bias.data() : nullptr;
  epilogue.activation = c.activation;
  epilogue.residual = c.residual ? residual.data() : nullptr;
  epilogue.residual_stride = out_stride;
  kernel(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue, out.data(), out_stride);
  gemm_forward_f32_ref(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue,
                       plain.data(), out_stride);
  gemm_forward_ref<double>(wide_a.data(), a_stride, c.M, w, c.first_panel, c.last_panel,
                           c.bias ? wide_bias.data() : nullptr, c.activation,
                           c.residual ? wide_residual.data() : nullptr, out_stride, exact.data(),
                           out_stride);
  const std::string what = row.name +
                           shape_text({{"M", c.M},
                                       {"N", c.N},
                                       {"K", c.K},
                                       {"activation", int64_t(c.activation)},
                                       {"bias", c.bias},
                                       {"residual", c.residual},
                                       {"panels from", c.first_panel},
                                       {"to", c.last_panel}}) +
                           " " + storage_name(c.storage);
  const int32_t first = c.first_panel * kPanelColumns,
                last = std::min(c.N, c.last_panel * kPanelColumns);
  ErrorBudget budget;
  for (int32_t m = 0; m < c.M; ++m) {
    for (int32_t n = 0; n < c.N; ++n) {
      const int64_t i = m * out_stride + n;
      if (n >= first && n < last) {
        budget.add(out[i], plain[i], exact[i], m, n);
      } else {
        ASSERT_TRUE(std::isnan(out[i])) << what << ": wrote column " << n << " outside its panels";
      }
    }
  }
  EXPECT_TRUE(budget.check(what, filter));
  expect_untouched(out, c.M, c.N, out_stride, what);
  if (c.residual && c.M > 0) {  // the residual may be the output itself
    kernel(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel,
           GemmEpilogue{epilogue.bias, c.activation, residual.data(), out_stride}, residual.data(),
           out_stride);
    for (int32_t m = 0; m < c.M; ++m) {
      ASSERT_EQ(0, std::memcmp(&residual[m * out_stride + first], &out[m * out_stride + first],
                               4 * std::max(0, last - first)))
          << what << " in place";
    }
  }
  // Row m alone gives the same bits as row m of the batch.
  for (int32_t m = 0; m < c.M; ++m) {
    Guarded single(out_stride);
    GemmEpilogue of_row = epilogue;
    if (c.residual) continue;  // the residual buffer has been overwritten above
    kernel(a.data() + m * a_stride, a_stride, 1, w, c.first_panel, c.last_panel, of_row,
           single.data(), out_stride);
    ASSERT_EQ(0, std::memcmp(single.data() + first, &out[m * out_stride + first],
                             4 * std::max(0, last - first)))
        << what << ": row " << m << " has other bits alone than in its batch";
  }
}

void check_gemm(const KernelRow& row, const std::string& filter) {
  Random random(3);
  int variant = 0;
  for (int32_t M = 0; M <= 26;
       ++M) {  // every tile height, and every way two or three tiles share the rows
    const int32_t K = 1 + (variant * 7) % 41, N = 1 + (variant * 13) % 97;
    check_gemm_case(row, filter, random,
                    {M, N, K, kStorages[variant % 3], kActivations[variant % 6], variant % 4 != 0,
                     variant % 5 == 0, 0, panel_count(N)},
                    variant % 4);
    ++variant;
  }
  for (int32_t N = 1; N <= 66; ++N) {
    check_gemm_case(row, filter, random,
                    {1 + N % 5, N, 1 + N % 19, kStorages[N % 3], Activation::kNone, true, false, 0,
                     panel_count(N)},
                    N % 4);
  }
  for (int32_t K = 1; K <= 67; ++K) {
    check_gemm_case(row, filter, random,
                    {3, 40, K, kStorages[K % 3], Activation::kNone, false, true, 0, 2}, K % 4);
  }
  for (Activation activation : kActivations) {
    for (Storage storage : kStorages) {
      check_gemm_case(row, filter, random, {5, 70, 33, storage, activation, true, true, 1, 3}, 1);
      check_gemm_case(row, filter, random, {5, 70, 33, storage, activation, true, false, 0, 1}, 2);
    }
  }
  // The real shapes of XSR, LEALLA-small and EMS (papers.md 1a, 4a, 2a).
  const int32_t real[][3] = {{20, 1536, 512}, {3, 512, 512}, {13, 1024, 512},
                             {20, 512, 1024}, {7, 384, 128}, {2, 512, 4096}};
  for (const auto& shape : real) {
    check_gemm_case(row, filter, random,
                    {shape[0], shape[1], shape[2], kStorages[variant++ % 3], Activation::kSwish,
                     true, false, 0, panel_count(shape[1])},
                    0);
  }
}

void check_gemm_bf16_case(const KernelRow& row, const std::string& filter, Random& random,
                          const GemmCase& c) {
  auto* kernel = reinterpret_cast<gemm_forward_bf16_t*>(row.function);
  const int64_t a_stride = (c.K + 1) / 2 * 2 + 4, out_stride = c.N + 3;
  std::vector<uint16_t> a(c.M * a_stride + 1, 0x7fc0);  // NaN in the padding
  std::vector<double> wide_a(c.M * a_stride + 1);
  for (int32_t m = 0; m < c.M; ++m) {
    for (int32_t k = 0; k < c.K; ++k) {
      a[m * a_stride + k] = bf16_from_f32(random.normal());
      wide_a[m * a_stride + k] = f32_from_bf16(a[m * a_stride + k]);
    }
    if (c.K % 2 == 1) a[m * a_stride + c.K] = 0;
  }
  Guarded bias = random_rows(random, 1, c.N, c.N, 1),
          residual = random_rows(random, c.M, c.N, out_stride, 1);
  std::vector<float> dense(static_cast<int64_t>(c.N) * c.K);
  for (float& value : dense) value = random.normal(1 / std::sqrt(static_cast<float>(c.K)));
  std::vector<unsigned char> bytes(packed_elements(c.N, c.K, Storage::kBF16) * 2 + 64);
  PackedMatrix w;
  w.data = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
  w.storage = Storage::kBF16;
  w.N = c.N;
  w.K = c.K;
  gemm_pack_panels(dense.data(), c.N, c.K, Storage::kBF16, const_cast<void*>(w.data));
  GemmEpilogue epilogue{c.bias ? bias.data() : nullptr, c.activation,
                        c.residual ? residual.data() : nullptr, out_stride};
  const int64_t narrow_stride = (c.N + 1) / 2 * 2 + 2;
  Guarded out(c.M * out_stride, 1), plain(c.M * out_stride);
  std::vector<uint16_t> narrow(c.M * narrow_stride + 8, 0xdead), narrow_only = narrow;
  std::vector<double> exact(c.M * out_stride + 1), wide_bias = widen(bias),
                                                   wide_residual = widen(residual);
  kernel(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue, out.data(), out_stride,
         narrow.data(), narrow_stride);
  kernel(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue, nullptr, 0,
         narrow_only.data(), narrow_stride);
  gemm_forward_bf16_ref(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue,
                        plain.data(), out_stride, nullptr, 0);
  gemm_forward_ref<double>(wide_a.data(), a_stride, c.M, w, c.first_panel, c.last_panel,
                           c.bias ? wide_bias.data() : nullptr, c.activation,
                           c.residual ? wide_residual.data() : nullptr, out_stride, exact.data(),
                           out_stride);
  const std::string what =
      row.name +
      shape_text({{"M", c.M}, {"N", c.N}, {"K", c.K}, {"activation", int64_t(c.activation)}});
  const int32_t first = c.first_panel * kPanelColumns,
                last = std::min(c.N, c.last_panel * kPanelColumns);
  ErrorBudget budget;
  for (int32_t m = 0; m < c.M; ++m) {
    for (int32_t n = 0; n < c.N; ++n) {
      const int64_t i = m * out_stride + n;
      if (n >= first && n < last) {
        budget.add(out[i], plain[i], exact[i], m, n);
        ASSERT_EQ(bf16_from_f32(out[i]), narrow[m * narrow_stride + n]) << what;
      } else {
        ASSERT_TRUE(std::isnan(out[i])) << what << ": wrote column " << n << " outside its panels";
        ASSERT_EQ(0xdead, narrow[m * narrow_stride + n]) << what;
      }
    }
    for (int64_t n = c.N; n < narrow_stride; ++n) {
      const bool pad = n == c.N && c.N % 2 == 1 && last == c.N;
      ASSERT_EQ(pad ? 0 : 0xdead, narrow[m * narrow_stride + n]) << what << " narrow column " << n;
    }
  }
  EXPECT_EQ(narrow, narrow_only) << what;
  EXPECT_TRUE(budget.check(what, filter));
  expect_untouched(out, c.M, c.N, out_stride, what);
  for (int32_t m = 0; m < c.M && !c.residual; ++m) {
    Guarded single(out_stride);
    kernel(a.data() + m * a_stride, a_stride, 1, w, c.first_panel, c.last_panel, epilogue,
           single.data(), out_stride, nullptr, 0);
    ASSERT_EQ(0, std::memcmp(single.data() + first, &out[m * out_stride + first],
                             4 * std::max(0, last - first)))
        << what << ": row " << m << " has other bits alone than in its batch";
  }
}

void check_gemm_bf16(const KernelRow& row, const std::string& filter) {
  Random random(9);
  for (int32_t M = 0; M <= 26; ++M) {
    const int32_t K = 20 + (M * 7) % 41, N = 1 + (M * 13) % 97;
    check_gemm_bf16_case(
        row, filter, random,
        {M, N, K, Storage::kBF16, kActivations[M % 6], M % 4 != 0, M % 5 == 0, 0, panel_count(N)});
  }
  for (int32_t M : {31, 32, 33, 48, 49, 64, 81}) {
    check_gemm_bf16_case(row, filter, random,
                         {M, 70, 77, Storage::kBF16, Activation::kSwish, true, true, 0, 3});
  }
  for (int32_t K = 1; K <= 67; ++K) {
    check_gemm_bf16_case(row, filter, random,
                         {8, 40, K, Storage::kBF16, Activation::kNone, true, false, 0, 2});
  }
  for (int32_t N = 1; N <= 66; ++N) {
    check_gemm_bf16_case(
        row, filter, random,
        {4, N, 33, Storage::kBF16, Activation::kNone, true, false, 0, panel_count(N)});
  }
  check_gemm_bf16_case(row, filter, random,
                       {5, 99, 64, Storage::kBF16, Activation::kSwish, true, true, 1, 3});
  check_gemm_bf16_case(row, filter, random,
                       {20, 1536, 512, Storage::kBF16, Activation::kNone, true, false, 0, 48});
  check_gemm_bf16_case(row, filter, random,
                       {13, 512, 1024, Storage::kBF16, Activation::kNone, true, false, 0, 16});
}

/// Against the double reference of the three products, and those against the product that they
/// stand for.
void check_gemm_bf16x3_case(const KernelRow& row, const std::string& filter, Random& random,
                            const GemmCase& c) {
  auto* kernel = reinterpret_cast<gemm_forward_bf16x3_t*>(row.function);
  const int32_t S = split_columns(c.K), S_out = split_columns(c.N);
  const int64_t a_stride = 2 * S + 6, out_stride = c.N + 3, split_stride = 2 * S_out + 2;
  Guarded x = random_rows(random, c.M, c.K, c.K, 1);
  std::vector<uint16_t> a(c.M * a_stride + 1, 0x7fc0);  // NaN in the padding
  split_forward_bf16x3_ref(x.data(), c.K, 0, c.M, c.K, a.data(), a_stride);
  Guarded bias = random_rows(random, 1, c.N, c.N, 1),
          residual = random_rows(random, c.M, c.N, out_stride, 1);
  std::vector<float> dense(static_cast<int64_t>(c.N) * c.K);
  for (float& value : dense) value = random.normal(1 / std::sqrt(static_cast<float>(c.K)));
  std::vector<float> packed(packed_elements(c.N, c.K, Storage::kF32));
  gemm_pack_panels(dense.data(), c.N, c.K, Storage::kF32, packed.data());
  std::vector<uint16_t> panels(split_elements(c.N, c.K) + 32);
  uint16_t* data = panels.data() + (64 - reinterpret_cast<uintptr_t>(panels.data()) % 64) % 64 / 2;
  gemm_split_panels({packed.data(), Storage::kF32, c.N, c.K}, data);
  const SplitMatrix w{data, c.N, c.K};
  const GemmEpilogue epilogue{c.bias ? bias.data() : nullptr, c.activation,
                              c.residual ? residual.data() : nullptr, out_stride};
  Guarded out(c.M * out_stride, 1), plain(c.M * out_stride);
  std::vector<uint16_t> split(c.M * split_stride + 8, 0xdead), split_only = split;
  kernel(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue, out.data(), out_stride,
         split.data(), split_stride);
  kernel(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue, nullptr, 0,
         split_only.data(), split_stride);
  gemm_forward_bf16x3_ref(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue,
                          plain.data(), out_stride, nullptr, 0);
  const std::string what =
      row.name +
      shape_text({{"M", c.M}, {"N", c.N}, {"K", c.K}, {"activation", int64_t(c.activation)}});
  const int32_t first = c.first_panel * kPanelColumns, last = c.last_panel * kPanelColumns;
  ErrorBudget budget;
  for (int32_t m = 0; m < c.M; ++m) {
    for (int32_t n = 0; n < S_out; ++n) {
      const int64_t i = m * out_stride + n, hi = m * split_stride + n;
      if (n < first || n >= last) {
        if (n < c.N) {
          ASSERT_TRUE(std::isnan(out[i]))
              << what << ": wrote column " << n << " outside its panels";
        }
        ASSERT_EQ(0xdead, split[hi]) << what;
        ASSERT_EQ(0xdead, split[hi + S_out]) << what;
        continue;
      }
      uint16_t wanted[2];
      split_bf16(n < c.N ? out[i] : 0.0f, &wanted[0], &wanted[1]);
      ASSERT_EQ(wanted[0], split[hi]) << what << " column " << n;
      ASSERT_EQ(wanted[1], split[hi + S_out]) << what << " column " << n;
      if (n >= c.N) continue;
      double exact = gemm_split_sum_ref<double>(&a[m * a_stride], w, n);
      double product = 0, magnitude = 0;
      for (int32_t k = 0; k < c.K; ++k) {
        const double term = double{x[m * c.K + k]} * dense[static_cast<int64_t>(n) * c.K + k];
        product += term;
        magnitude += std::fabs(term);
      }
      ASSERT_LE(std::fabs(exact - product), 3.1 * std::ldexp(magnitude, -18)) << what;
      if (c.bias) exact += bias[n];
      exact = activate_ref(exact, c.activation);
      if (c.residual) exact += residual[i];
      budget.add(out[i], plain[i], exact, m, n);
    }
    for (int64_t n = 2 * S_out; n < split_stride; ++n) {
      ASSERT_EQ(0xdead, split[m * split_stride + n]) << what << ": wrote the padding";
    }
  }
  EXPECT_EQ(split, split_only) << what;
  EXPECT_TRUE(budget.check(what, filter));
  expect_untouched(out, c.M, c.N, out_stride, what);
  for (int32_t m = 0; m < c.M; ++m) {
    Guarded single(out_stride);
    GemmEpilogue of_row = epilogue;
    if (c.residual) of_row.residual += m * out_stride;
    kernel(a.data() + m * a_stride, a_stride, 1, w, c.first_panel, c.last_panel, of_row,
           single.data(), out_stride, nullptr, 0);
    ASSERT_EQ(0, std::memcmp(single.data() + first, &out[m * out_stride + first],
                             4 * std::max(0, std::min(c.N, last) - first)))
        << what << ": row " << m << " has other bits alone than in its batch";
  }
}

void check_gemm_bf16x3(const KernelRow& row, const std::string& filter) {
  Random random(19);
  const auto check = [&](int32_t M, int32_t N, int32_t K, Activation activation, bool bias,
                         bool residual, int32_t first, int32_t last) {
    check_gemm_bf16x3_case(row, filter, random,
                           {M, N, K, Storage::kF32, activation, bias, residual, first, last});
  };
  for (int32_t M = 0; M <= 26; ++M) {
    const int32_t N = 1 + (M * 13) % 97;
    check(M, N, 20 + (M * 7) % 41, kActivations[M % 6], M % 4 != 0, M % 5 == 0, 0, panel_count(N));
  }
  for (int32_t K = 1; K <= 67; ++K) check(3, 40, K, Activation::kNone, true, false, 0, 2);
  for (int32_t N = 1; N <= 66; ++N)
    check(4, N, 33, Activation::kNone, true, false, 0, panel_count(N));
  for (int32_t M : {31, 32, 33, 48, 49, 64, 81})
    check(M, 70, 96, Activation::kSwish, true, true, 0, 3);
  check(5, 99, 64, Activation::kSwish, true, true, 1, 3);
  check(20, 1536, 512, Activation::kNone, true, false, 0, 48);
  check(70, 512, 1024, Activation::kNone, true, false, 0, 16);
}

void check_split_bf16x3(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<split_forward_bf16x3_t*>(row.function);
  Random random(21);
  for (int32_t C : widths()) {
    const int32_t N = 4, first = 1, last = 3, S = split_columns(C);
    const int64_t stride = C + 3, out_stride = 2 * S + 4;
    Guarded x = random_rows(random, N, C, stride, C % 4);
    x[stride] = INFINITY;
    if (C > 1) x[stride + 1] = -3.4e38f;  // rounds up to infinity in bf16
    if (C > 2) x[stride + 2] = NAN;
    if (C > 3) x[stride + 3] = 1.0f + 1.0f / 256;  // a tie
    std::vector<uint16_t> out(N * out_stride, 0xdead);
    kernel(x.data(), stride, first, last, C, out.data(), out_stride);
    for (int32_t i = 0; i < N; ++i) {
      for (int64_t c = 0; c < out_stride; ++c) {
        uint16_t wanted = 0xdead;
        if (i >= first && i < last && c < 2 * S) {
          uint16_t parts[2] = {0, 0};
          if (c % S < C) split_bf16(x[i * stride + c % S], &parts[0], &parts[1]);
          wanted = parts[c / S];
        }
        const uint16_t found = out[i * out_stride + c];
        if (std::isnan(f32_from_bf16(wanted))) {
          ASSERT_TRUE(std::isnan(f32_from_bf16(found))) << row.name << " C=" << C << " col " << c;
        } else {
          ASSERT_EQ(wanted, found) << row.name << " C=" << C << " row " << i << " col " << c;
        }
      }
    }
  }
}

void check_narrow_bf16(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<narrow_forward_bf16_t*>(row.function);
  Random random(10);
  for (int32_t C : widths()) {
    const int64_t stride = C + 3, out_stride = (C + 1) / 2 * 2 + 2;
    Guarded x = random_rows(random, 4, C, stride, C % 4);
    x[2 * stride] = NAN;
    if (C > 1) x[2 * stride + 1] = 3.4e38f;
    std::vector<uint16_t> out(4 * out_stride, 0xdead);
    kernel(x.data(), stride, 1, 3, C, out.data(), out_stride);
    for (int32_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < out_stride; ++c) {
        const bool inside = i >= 1 && i < 3;
        const uint16_t found = out[i * out_stride + c];
        if (inside && c < C && std::isnan(x[i * stride + c])) {
          EXPECT_TRUE(std::isnan(f32_from_bf16(found)));
        } else {
          const uint16_t expected = inside && c < C             ? bf16_from_f32(x[i * stride + c])
                                    : inside && c == C && C % 2 ? 0
                                                                : 0xdead;
          ASSERT_EQ(expected, found) << row.name << " C=" << C << " row " << i << " col " << c;
        }
      }
    }
  }
}

/// 1 … 33 tokens and longer, plain or designed inputs.
void check_attention(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<attention_forward_f32_t*>(row.function);
  Random random(4);
  struct Shape {
    int32_t H, D;
    std::vector<int32_t> lengths;
    float scale;
  };
  std::vector<Shape> shapes = {
      {8, 64, {20, 1, 0, 5}, 1},
      {3, 20, {1, 17, 0}, 1},
      {4, 8, {9, 33, 64, 65}, 1},
      {2, 64, {200}, 1},
      {2, 80, {31, 48}, 1},
      {1, 128, {16, 15}, 1},
      {8, 16, {100, 2}, 1},
      {3, 1, {7, 8, 9}, 1},
      {4,
       64,
       {24, 3, 40, 31, 24, 24},
       30},                   // scores of hundreds: e^s overflows unless the maximum is taken off
      {2, 64, {40}, 1e-20f},  // scores of 0: every probability is 1/T
  };
  for (int32_t T = 1; T <= 33; ++T) shapes.push_back({1 + T % 3, 1 + (T * 5) % 67, {T, T / 2}, 1});
  int variant = 0;
  for (const Shape& shape : shapes) {
    const int32_t H = shape.H, D = shape.D, B = static_cast<int32_t>(shape.lengths.size());
    std::vector<int32_t> cu = {0};
    int32_t longest = 0;
    for (int32_t length : shape.lengths)
      cu.push_back(cu.back() + length), longest = std::max(longest, length);
    const int32_t N = cu.back();
    const int shift = variant++ % 4;
    const int64_t stride = 3 * H * D + 5, out_stride = H * D + 3;
    Guarded qkv = random_rows(random, N, 3 * H * D, stride, shift, shape.scale);
    Guarded out(N * out_stride, shift), plain(N * out_stride), lse(N * H), plain_lse(N * H);
    Guarded scratch(attention_scratch_floats(longest, D));
    std::vector<double> exact(N * out_stride + 1), exact_lse(N * H + 1), wide = widen(qkv),
                                                                         wide_scratch(longest + 1);
    kernel(qkv.data(), stride, cu.data(), 0, B, 0, H, H, D, out.data(), out_stride, lse.data(),
           scratch.data());
    std::vector<float> plain_scratch(longest + 1);
    attention_forward_f32_ref(qkv.data(), stride, cu.data(), 0, B, 0, H, H, D, plain.data(),
                              out_stride, plain_lse.data(), plain_scratch.data());
    attention_forward_ref<double>(wide.data(), stride, cu.data(), 0, B, 0, H, H, D, exact.data(),
                                  out_stride, exact_lse.data(), wide_scratch.data());
    std::string what = row.name + shape_text({{"B", B}, {"H", H}, {"D", D}}) + "  lengths";
    for (int32_t length : shape.lengths) what += " " + std::to_string(length);
    ErrorBudget budget(shape.scale > 1 ? kIllConditioned : 2);
    ErrorBudget lse_budget(3);  // lse serves the backward pass alone, hence the factor of gradients
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < H * D; ++c) {
        budget.add(out[i * out_stride + c], plain[i * out_stride + c], exact[i * out_stride + c], i,
                   c);
      }
      for (int32_t h = 0; h < H; ++h)
        lse_budget.add(lse[i * H + h], plain_lse[i * H + h], exact_lse[i * H + h], i, h);
    }
    EXPECT_TRUE(budget.check(what, filter));
    EXPECT_TRUE(lse_budget.check(what + " lse", filter));
    expect_untouched(out, N, H * D, out_stride, what);
    EXPECT_TRUE(scratch.intact()) << what << ": wrote outside its scratch";
    // One sentence, one head at a time, without lse: the same bits.
    Guarded split(N * out_stride, shift);
    for (int32_t b = 0; b < B; ++b) {
      for (int32_t h = 0; h < H; ++h) {
        kernel(qkv.data(), stride, cu.data(), b, b + 1, h, h + 1, H, D, split.data(), out_stride,
               nullptr, scratch.data());
      }
    }
    for (int32_t i = 0; i < N; ++i) {
      ASSERT_EQ(0, std::memcmp(&split[i * out_stride], &out[i * out_stride], 4 * H * D))
          << what << " split, row " << i;
    }
  }
}

void check_activation(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<activation_forward_f32_t*>(row.function);
  Random random(5);
  for (Activation activation : kActivations) {
    ErrorBudget
        budget;  // over all lengths: a vector of one element says nothing about an error's size
    for (int32_t n = 0; n <= 33; ++n) {
      Guarded x = random_rows(random, 1, n, n, n % 4, 4), out(n, (n + 1) % 4);
      kernel(x.data(), n, activation, out.data());
      for (int32_t i = 0; i < n; ++i) {
        budget.add(out[i], activate_ref(x[i], activation), activate_ref(double(x[i]), activation),
                   n, i);
      }
      EXPECT_TRUE(out.intact());
      kernel(x.data(), n, activation, x.data());
      EXPECT_EQ(0, std::memcmp(x.data(), out.data(), 4 * n)) << "in place";
    }
    EXPECT_TRUE(budget.check(row.name + shape_text({{"activation", int64_t(activation)}}), filter));
    const float infinity = std::numeric_limits<float>::infinity();
    const float specials[] = {NAN,    infinity, -1e30f, 1e30f,  0.0f,   -0.0f,
                              1e-40f, -1e-40f,  88.8f,  -88.8f, -104.0f};
    float out[11];
    kernel(specials, 11, activation, out);
    EXPECT_TRUE(std::isnan(out[0])) << row.name << int(activation) << ": NaN must stay NaN";
    const bool bounded = activation == Activation::kTanh;
    EXPECT_EQ(bounded ? 1.0f : infinity, out[1]) << row.name << int(activation);
    EXPECT_EQ(bounded ? 1.0f : 1e30f, out[3]) << row.name << int(activation);
    EXPECT_EQ(0.0f, out[4]);
    for (int i = 2; i < 11; ++i)
      EXPECT_FALSE(std::isnan(out[i])) << row.name << int(activation) << " of " << specials[i];
  }
}

void check_pooling(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<pooling_forward_f32_t*>(row.function);
  Random random(6);
  int variant = 0;
  for (int32_t C : widths()) {
    for (Pooling pooling : {Pooling::kMean, Pooling::kMax, Pooling::kCls}) {
      const int shift = variant++ % 4;
      const std::vector<int32_t> cu = {0, 3, 3, 4, 24, 24};
      const int32_t B = 5, N = 24, first = 0, last = 5;
      const int64_t stride = C + 3, out_stride = C + 1;
      Guarded x = random_rows(random, N, C, stride, shift), out(B * out_stride, shift),
              plain(B * out_stride);
      std::vector<double> exact(B * out_stride), wide = widen(x);
      kernel(x.data(), stride, cu.data(), first, last, C, pooling, out.data(), out_stride);
      pooling_forward_f32_ref(x.data(), stride, cu.data(), first, last, C, pooling, plain.data(),
                              out_stride);
      pooling_forward_ref<double>(wide.data(), stride, cu.data(), first, last, C, pooling,
                                  exact.data(), out_stride);
      const std::string what = row.name + shape_text({{"C", C}, {"pooling", int64_t(pooling)}});
      ErrorBudget budget;
      for (int32_t b = 0; b < B; ++b) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(out[b * out_stride + c], plain[b * out_stride + c], exact[b * out_stride + c],
                     b, c);
      }
      EXPECT_TRUE(budget.check(what, filter));
      expect_untouched(out, B, C, out_stride, what);
      for (int32_t c = 0; c < C; ++c)
        EXPECT_EQ(0.0f, out[out_stride + c]) << what << ": an empty sentence gives zeros";
    }
  }
}

void check_l2_normalize(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<l2_normalize_forward_f32_t*>(row.function);
  Random random(8);
  for (int32_t C : widths()) {
    for (float scale : {1.0f, 1e30f, 1e-30f}) {  // squares beyond the range of f32
      const int32_t B = 4;
      const int64_t stride = C + 2;
      Guarded x = random_rows(random, B, C, stride, C % 4, scale);
      for (int32_t c = 0; c < C; ++c) x[2 * stride + c] = 0;
      std::vector<double> exact = widen(x);
      Guarded plain(B * stride);
      for (int64_t i = 0; i < B * stride; ++i) plain[i] = x[i];
      kernel(x.data(), stride, 0, B, C);
      l2_normalize_forward_f32_ref(plain.data(), stride, 0, B, C);
      l2_normalize_forward_ref<double>(exact.data(), stride, 0, B, C);
      const std::string what =
          row.name + shape_text({{"C", C}}) + " scale " + std::to_string(scale);
      ErrorBudget budget;
      for (int32_t b = 0; b < B; ++b) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(x[b * stride + c], plain[b * stride + c], exact[b * stride + c], b, c);
      }
      EXPECT_TRUE(budget.check(what, filter));
      expect_untouched(x, B, C, stride, what);
    }
  }
}

const std::map<std::string, std::function<void(const KernelRow&, const std::string&)>> kChecks = {
    {"embedding_forward_f32", check_embedding}, {"qkv_table_forward_f32", check_qkv_table},
    {"layernorm_forward_f32", check_layernorm}, {"gemm_forward_f32", check_gemm},
    {"attention_forward_f32", check_attention}, {"gemm_forward_bf16", check_gemm_bf16},
    {"gemm_forward_bf16x3", check_gemm_bf16x3}, {"split_forward_bf16x3", check_split_bf16x3},
    {"narrow_forward_bf16", check_narrow_bf16}, {"activation_forward_f32", check_activation},
    {"pooling_forward_f32", check_pooling},     {"l2_normalize_forward_f32", check_l2_normalize}};

class KernelTest : public ::testing::TestWithParam<KernelRow> {};

TEST_P(KernelTest, MatchesDoubleReference) {
  const KernelRow& row = GetParam();
  const auto check = kChecks.find(row.op);
  ASSERT_NE(check, kChecks.end()) << row.op << " has no check: add one to kChecks";
  if (!isa_supported(row.isa)) GTEST_SKIP() << "this CPU has no " << isa_name(row.isa);
  check->second(row, "Kernels/KernelTest.MatchesDoubleReference/" + std::string(row.name));
}

INSTANTIATE_TEST_SUITE_P(Kernels, KernelTest, ::testing::ValuesIn(kernel_rows()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Dispatch, TakesTheFastestKernelUnderTheCap) {
  for (Isa cap :
       {Isa::kRef, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx}) {
    const KernelTable table = resolve_kernels(cap);
    Isa expected = Isa::kRef;  // the fastest of this CPU under the cap
    for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx}) {
      if (isa <= cap && isa_supported(isa)) expected = isa;
    }
    EXPECT_EQ(expected, table.isa);
#define XSR_OP(op)                     \
  ASSERT_NE(nullptr, table.op) << #op; \
  EXPECT_LE(table.op##_isa, cap) << #op;
#include "kernels/kernels.inc"
  }
  EXPECT_EQ(&gemm_forward_f32_ref, resolve_kernels(Isa::kRef).gemm_forward_f32);
  if (isa_supported(Isa::kAvx512)) {
    EXPECT_EQ(&gemm_forward_f32_avx512, resolve_kernels(Isa::kAvx512).gemm_forward_f32);
  }
}

TEST(Dispatch, NamesRoundTrip) {
  for (Isa isa :
       {Isa::kRef, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx}) {
    Isa parsed;
    ASSERT_TRUE(parse_isa(isa_name(isa), &parsed));
    EXPECT_EQ(isa, parsed);
  }
  Isa parsed;
  EXPECT_FALSE(parse_isa("AVX512", &parsed));
  EXPECT_FALSE(parse_isa("", &parsed));
}

TEST(Pack, PlacesEveryElementAndZeroesThePadding) {
  for (Storage storage : kStorages) {
    const int32_t N = 37, K = 5;
    std::vector<float> dense(N * K);
    for (int i = 0; i < N * K; ++i) dense[i] = static_cast<float>(i + 1);  // exact in every storage
    std::vector<uint32_t> packed(packed_elements(N, K, storage) + 16, 0xffffffffu);
    gemm_pack_panels(dense.data(), N, K, storage, packed.data());
    PackedMatrix w{packed.data(), storage, N, K};
    for (int32_t n = 0; n < N; ++n) {
      for (int32_t k = 0; k < K; ++k) EXPECT_EQ(dense[n * K + k], gemm_packed_element(w, n, k));
    }
    int64_t zeros = 0;
    const int64_t elements = packed_elements(N, K, storage);
    for (int64_t i = 0; i < elements; ++i) zeros += load_storage(packed.data(), storage, i) == 0;
    EXPECT_EQ(elements - N * K, zeros);
  }
}

TEST(Pack, NarrowingRoundsToNearestEven) {
  EXPECT_EQ(0x3f80, bf16_from_f32(1.0f));
  EXPECT_EQ(0x3f80, bf16_from_f32(1.0f + 1.0f / 256));  // a tie goes to the even neighbour below
  EXPECT_EQ(0x3f82, bf16_from_f32(1.0f + 3.0f / 256));  // and above
  EXPECT_EQ(0x7f80, bf16_from_f32(3.4e38f));            // rounds up to infinity
  EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_from_f32(NAN))));
  EXPECT_EQ(0x3c00, f16_from_f32(1.0f));
  EXPECT_EQ(0x7bff, f16_from_f32(65504.0f));
  EXPECT_EQ(0x7bff, f16_from_f32(65519.0f));
  EXPECT_EQ(0x7c00, f16_from_f32(65520.0f));
  EXPECT_EQ(0x0001, f16_from_f32(5.9604645e-8f));
  EXPECT_EQ(0x0000, f16_from_f32(2.9802322e-8f));  // half of the smallest: a tie to zero
  EXPECT_EQ(0x0400, f16_from_f32(6.1035156e-5f));
  EXPECT_TRUE(std::isnan(f32_from_f16(f16_from_f32(NAN))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float half = f32_from_f16(static_cast<uint16_t>(bits));
    if (!std::isnan(half)) {
      EXPECT_EQ(bits, f16_from_f32(half));
    }
    const float brain = f32_from_bf16(static_cast<uint16_t>(bits));
    if (!std::isnan(brain)) {
      EXPECT_EQ(bits, bf16_from_f32(brain));
    }
  }
}

}  // namespace
}  // namespace xsr::kernels
