// Every row of kernels.inc against its double-precision reference: odd and real shapes, misaligned
// pointers, NaN in padding, guard words, and the promise that a row's bits depend on that row
// alone.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>

#include "kernels/activation/activation_ref.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/dispatch.h"
#include "kernels/dropout/dropout_ref.h"
#include "kernels/embedding/embedding_ref.h"
#include "kernels/gemm/gemm_backward_ref.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/kernels.inc"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/loss/loss_ref.h"
#include "kernels/optimizer/optimizer_ref.h"
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
void PrintTo(const KernelRow& row, std::ostream* out) { *out << row.name; }

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

/// E: float, or uint16_t for bf16 operands, which are rounded. `shift` elements stand before them,
/// so that they are misaligned.
template <typename E>
std::vector<E> operand(const float* x, int64_t count, int shift = 0) {
  std::vector<E> values(shift, E(0));
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<E, float>) {
      values.push_back(x[i]);
    } else {
      values.push_back(bf16_from_f32(x[i]));
    }
  }
  return values;
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

/// Rows of `columns` floats, `stride` apart, that must have the same bits.
void expect_same_rows(Guarded& a, Guarded& b, int64_t rows, int64_t columns, int64_t stride,
                      const std::string& what) {
  for (int64_t r = 0; r < rows; ++r) {
    ASSERT_EQ(0, std::memcmp(&a[r * stride], &b[r * stride], 4 * columns)) << what << ", row " << r;
  }
}

/// The first multiple of 64 bytes in memory that has 63 to spare.
unsigned char* aligned64(std::vector<unsigned char>& bytes) {
  return bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
}

/// A table in a narrow storage, 64-byte aligned, with one spare vector of 0xff (NaN) behind it.
struct Table {
  Table(Random& random, int64_t elements, Storage storage, float scale = 1) : storage(storage) {
    bytes.resize(elements * storage_size(storage) + 128, 0xff);
    data = aligned64(bytes);
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

/// What products of bf16 and int8 may add to swish and GELU of x.
double allowed_of_pieces(const KernelRow& row, Activation activation, double x) {
  const bool by_pieces = activation == Activation::kSwish || activation == Activation::kGeluErf ||
                         activation == Activation::kGeluTanh;
  const bool exact = row.isa < Isa::kAvx512;
  return by_pieces && !exact ? std::ldexp(std::min(1.0, std::fabs(x)), -16) : 0;
}

/// y, computed as the activation of x, which is exact.
void expect_activation_of(const KernelRow& row, Activation activation, float x, float y) {
  const double exact = activate_ref<double>(x, activation);
  // Beside the pieces: f32, and bf16's subnormals, which some take for 0.
  const double f32 = std::ldexp(std::min(1.0, std::fabs(double{x})), -23) +
                     std::ldexp(std::fabs(exact), -22) + std::ldexp(1.0, -126);
  ASSERT_LE(std::fabs(y - exact), allowed_of_pieces(row, activation, x) + f32)
      << row.name << " of " << x << " is " << y << ", reference " << exact
      << shape_text({{"activation", int64_t(activation)}});
}

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
    // Without gamma: the sum itself.
    kernel(ids.data(), positions.data(), first, last, token.data, position.data, storage, types,
           nullptr, nullptr, 1e-12f, C, plain.data(), stride, nullptr);
    for (int32_t i = first; i < last; ++i) {
      for (int32_t c = 0; c < C; ++c) {
        float sum =
            load_storage(token.data, storage, static_cast<int64_t>(ids[i]) * C + c) +
            load_storage(position.data, storage, static_cast<int64_t>(positions[i]) * C + c);
        if (typed) sum += type[c];
        ASSERT_EQ(sum, plain[i * stride + c]) << what << " without LayerNorm";
      }
    }
  }
}

void check_embedding_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<embedding_backward_f32_t*>(row.function);
  Random random(12);
  for (int32_t C : widths()) {
    const int shift = C % 4;
    const int32_t N = 90, V = 12, padding = 0, unused = 7;
    const int64_t stride = C + 3;
    std::vector<int32_t> ids(N), memory(bucket_rows_memory(N, V));
    for (int32_t& id : ids) {
      id = random.range(0, 3) == 0 ? 5 : random.range(0, V - 1);  // one that is looked up often
      if (id == unused) id = 6;
    }
    ids[11] = padding;
    const RowBuckets buckets = bucket_rows(ids.data(), N, V, padding, memory.data());
    Guarded de = random_rows(random, N, C, stride, shift),
            table = random_rows(random, V, C, C, shift), plain(V * C);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; ids[i] == padding && c < C; ++c) de[i * stride + c] = NAN;
    }
    for (int64_t i = 0; i < V * C; ++i) plain[i] = table[i];
    std::vector<double> exact = widen(table), wide = widen(de);
    const std::vector<float> before(table.data(), table.data() + table.size());
    kernel(de.data(), stride, buckets, 0, buckets.count, C, table.data());
    embedding_backward_f32_ref(de.data(), stride, buckets, 0, buckets.count, C, plain.data());
    embedding_backward_ref<double>(wide.data(), stride, buckets, 0, buckets.count, C, exact.data());
    const std::string what = row.name + shape_text({{"C", C}});
    ErrorBudget budget(3);
    for (int32_t v = 0; v < V; ++v) {
      for (int32_t c = 0; c < C; ++c)
        budget.add(table[v * C + c], plain[v * C + c], exact[v * C + c], v, c);
    }
    EXPECT_TRUE(budget.check(what, filter));
    EXPECT_TRUE(table.intact()) << what;
    for (int32_t v : {padding, unused})
      EXPECT_EQ(0, std::memcmp(&table[v * C], &before[v * C], 4 * C)) << what << " row " << v;
    // One bucket at a time, the last one first: the same bits.
    Guarded split(V * C, shift);
    for (int64_t i = 0; i < V * C; ++i) split[i] = before[i];
    for (int32_t u = buckets.count - 1; u >= 0; --u)
      kernel(de.data(), stride, buckets, u, u + 1, C, split.data());
    EXPECT_EQ(0, std::memcmp(split.data(), table.data(), 4 * V * C)) << what << " split";
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
    const int64_t narrow_stride = N + 2;
    std::vector<uint16_t> narrow(tokens * narrow_stride, 0xdead), narrow_only = narrow;
    const auto call = [&](float* to, uint16_t* to_narrow) {
      kernel(ids.data(), positions.data(), first, last, token.data(), position.data(), rstd.data(),
             bias.data(), N, to, stride, to_narrow, narrow_stride);
    };
    call(out.data(), narrow.data());
    call(nullptr, narrow_only.data());
    qkv_table_forward_f32_ref(ids.data(), positions.data(), first, last, token.data(),
                              position.data(), rstd.data(), bias.data(), N, plain.data(), stride,
                              nullptr, 0);
    qkv_table_forward_ref<double>(
        ids.data(), positions.data(), first, last, wide_token.data(), wide_position.data(),
        wide_rstd.data(), wide_bias.data(), N,
        [&](int64_t i, int32_t n, double value) { exact[i * stride + n] = value; });
    const std::string what = row.name + shape_text({{"N", N}});
    ErrorBudget budget;
    for (int32_t i = 0; i < tokens; ++i) {
      const bool written = i >= first && i < last;
      for (int32_t n = 0; n < N && written; ++n)
        budget.add(out[i * stride + n], plain[i * stride + n], exact[i * stride + n], i, n);
      for (int64_t n = 0; n < narrow_stride; ++n) {
        ASSERT_EQ(written && n < N ? bf16_from_f32(out[i * stride + n]) : 0xdead,
                  narrow[i * narrow_stride + n])
            << what << " row " << i << " col " << n;
      }
    }
    EXPECT_TRUE(budget.check(what, filter));
    EXPECT_EQ(narrow, narrow_only) << what;
    Guarded only(tokens * stride, shift);
    call(only.data(), nullptr);
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(only, out, tokens, N, stride, what + " f32 only"));
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

std::string gemm_case_text(const KernelRow& row, const GemmCase& c) {
  return row.name +
         shape_text({{"M", c.M}, {"N", c.N}, {"K", c.K}, {"activation", int64_t(c.activation)}});
}

/// Row m alone gives the same bits as row m of the batch. alone(m, epilogue, out) computes it.
template <typename Alone>
void expect_rows_stand_alone(const GemmCase& c, const GemmEpilogue& epilogue, Guarded& out,
                             int64_t out_stride, const std::string& what, const Alone& alone) {
  const int32_t first = c.first_panel * kPanelColumns,
                last = std::min(c.N, c.last_panel * kPanelColumns);
  for (int32_t m = 0; m < c.M; ++m) {
    Guarded single(out_stride);
    GemmEpilogue of_row = epilogue;
    if (c.residual) of_row.residual += m * out_stride;
    alone(m, of_row, single.data());
    ASSERT_EQ(0, std::memcmp(single.data() + first, &out[m * out_stride + first],
                             4 * std::max(0, last - first)))
        << what << ": row " << m << " has other bits alone than in its batch";
  }
}

/// The same matrix as if it stood in no cache, which must not change a bit.
PackedMatrix from_memory(PackedMatrix w) {
  w.streamed = true;
  return w;
}

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
  w.data = aligned64(bytes);
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
  Guarded streamed(c.M * out_stride, shift);
  kernel(a.data(), a_stride, c.M, from_memory(w), c.first_panel, c.last_panel, epilogue,
         streamed.data(), out_stride);
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
  EXPECT_EQ(0, std::memcmp(streamed.data(), out.data(), sizeof(float) * c.M * out_stride)) << what;
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
  if (c.residual) return;  // the residual buffer has been overwritten above
  expect_rows_stand_alone(c, epilogue, out, out_stride, what,
                          [&](int32_t m, const GemmEpilogue& of_row, float* to) {
                            kernel(a.data() + m * a_stride, a_stride, 1, w, c.first_panel,
                                   c.last_panel, of_row, to, out_stride);
                          });
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
  // The real shapes of XSR, LEALLA-small and EMS.
  const int32_t real[][3] = {{20, 1536, 512}, {3, 512, 512}, {13, 1024, 512},
                             {20, 512, 1024}, {7, 384, 128}, {2, 512, 4096}};
  for (const auto& shape : real) {
    check_gemm_case(row, filter, random,
                    {shape[0], shape[1], shape[2], kStorages[variant++ % 3], Activation::kSwish,
                     true, false, 0, panel_count(shape[1])},
                    0);
  }
}

/// `narrow` is what a product of the case has to make of its f32 results: 0xdead elsewhere.
void expect_narrow_rows(const GemmCase& c, Guarded& out, int64_t out_stride,
                        const std::vector<uint16_t>& narrow, int64_t narrow_stride,
                        const std::string& what) {
  const int32_t first = c.first_panel * kPanelColumns,
                last = std::min(c.N, c.last_panel * kPanelColumns);
  for (int32_t m = 0; m < c.M; ++m) {
    for (int32_t n = 0; n < c.N; ++n) {
      const int expected = n < first || n >= last ? 0xdead : bf16_from_f32(out[m * out_stride + n]);
      ASSERT_EQ(expected, narrow[m * narrow_stride + n]) << what << " row " << m << " col " << n;
    }
    for (int64_t n = c.N; n < narrow_stride; ++n) {
      const bool pad = n == c.N && c.N % 2 == 1 && last == c.N;
      ASSERT_EQ(pad ? 0 : 0xdead, narrow[m * narrow_stride + n]) << what << " narrow column " << n;
    }
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
  w.data = aligned64(bytes);
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
  kernel(a.data(), a_stride, c.M, from_memory(w), c.first_panel, c.last_panel, epilogue, nullptr, 0,
         narrow_only.data(), narrow_stride);
  gemm_forward_bf16_ref(a.data(), a_stride, c.M, w, c.first_panel, c.last_panel, epilogue,
                        plain.data(), out_stride, nullptr, 0);
  gemm_forward_ref<double>(wide_a.data(), a_stride, c.M, w, c.first_panel, c.last_panel,
                           c.bias ? wide_bias.data() : nullptr, c.activation,
                           c.residual ? wide_residual.data() : nullptr, out_stride, exact.data(),
                           out_stride);
  const std::string what = gemm_case_text(row, c);
  const int32_t first = c.first_panel * kPanelColumns,
                last = std::min(c.N, c.last_panel * kPanelColumns);
  ErrorBudget budget;
  budget.allow(allowed_of_pieces(row, c.activation, 1));
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
  ASSERT_NO_FATAL_FAILURE(expect_narrow_rows(c, out, out_stride, narrow, narrow_stride, what));
  EXPECT_EQ(narrow, narrow_only) << what;
  EXPECT_TRUE(budget.check(what, filter));
  expect_untouched(out, c.M, c.N, out_stride, what);
  expect_rows_stand_alone(c, epilogue, out, out_stride, what,
                          [&](int32_t m, const GemmEpilogue& of_row, float* to) {
                            kernel(a.data() + m * a_stride, a_stride, 1, w, c.first_panel,
                                   c.last_panel, of_row, to, out_stride, nullptr, 0);
                          });
}

/// Every activation of every bf16 number, by a product with 1.
void check_gemm_bf16_activations(const KernelRow& row) {
  auto* kernel = reinterpret_cast<gemm_forward_bf16_t*>(row.function);
  constexpr int32_t kNumbers = 1 << 16;
  std::vector<uint16_t> a(2 * kNumbers);  // K is odd: a zero behind each
  for (int32_t i = 0; i < kNumbers; ++i) a[2 * i] = static_cast<uint16_t>(i);
  std::vector<unsigned char> bytes(packed_elements(1, 1, Storage::kBF16) * 2 + 64);
  const float one = 1;
  gemm_pack_panels(&one, 1, 1, Storage::kBF16, aligned64(bytes));
  const PackedMatrix w{aligned64(bytes), Storage::kBF16, 1, 1};
  std::vector<float> out(kNumbers);
  for (const Activation activation : kActivations) {
    kernel(a.data(), 2, kNumbers, w, 0, 1, {nullptr, activation}, out.data(), 1, nullptr, 0);
    for (int32_t i = 0; i < kNumbers; ++i) {
      const float x = f32_from_bf16(a[2 * i]);
      if (std::isfinite(x)) expect_activation_of(row, activation, x, out[i]);
      if (std::isnan(x)) {
        ASSERT_TRUE(std::isnan(out[i])) << row.name << ": NaN must stay NaN";
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
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
  // More panels than stay in L2 for the rows left over.
  check_gemm_bf16_case(row, filter, random,
                       {37, 300, 1030, Storage::kBF16, Activation::kSwish, true, true, 1, 10});
  check_gemm_bf16_activations(row);
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
  const std::string what = gemm_case_text(row, c);
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
      ASSERT_LE(std::fabs(exact - product), 2.1 * std::ldexp(magnitude, -16)) << what;
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
  expect_rows_stand_alone(c, epilogue, out, out_stride, what,
                          [&](int32_t m, const GemmEpilogue& of_row, float* to) {
                            kernel(a.data() + m * a_stride, a_stride, 1, w, c.first_panel,
                                   c.last_panel, of_row, to, out_stride, nullptr, 0);
                          });
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
  // More panels than stay in L2 for the rows left over.
  check(37, 300, 1030, Activation::kSwish, true, true, 1, 10);
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

/// Memory of its own for the steps of a kI8 matrix, where this CPU has a kernel that reads them.
class Steps {
 public:
  void pack(PackedMatrix& w) {
    if (!isa_supported(Isa::kAvx2)) return;
    const int64_t bytes = gemm_pack_steps_i8_avx2(w, nullptr);
    memory_.assign(bytes + 128, 0xa5);
    unsigned char* steps = aligned64(memory_);
    EXPECT_EQ(bytes, gemm_pack_steps_i8_avx2(w, steps));
    for (unsigned char* guard = steps + bytes; guard < steps + bytes + 64; ++guard)
      EXPECT_EQ(0xa5, *guard) << "wrote beyond the steps";
    w.steps = steps;
  }

 private:
  std::vector<unsigned char> memory_;
};

/// A kI8 matrix of random integers, both ends of their range among them (or, at the limits, nothing
/// else), with scales and sums.
struct MatrixI8 {
  MatrixI8(Random& random, int32_t N, int32_t K, bool limits)
      : bytes(packed_elements(N, K, Storage::kI8) + 64), scales(N), sums(N) {
    int8_t* data = reinterpret_cast<int8_t*>(aligned64(bytes));
    for (int32_t n = 0; n < N; ++n) {
      scales[n] = std::fabs(random.normal(0.01f));
      for (int32_t k = 0; k < K; ++k) {
        const int32_t kind = random.range(0, limits ? 2 : 9);
        data[packed_index(n, k, K, 4)] = static_cast<int8_t>(kind == 0   ? -128
                                                             : kind == 1 ? 127
                                                             : limits    ? -127
                                                                         : random.range(-128, 127));
      }
    }
    w = {data, Storage::kI8, N, K, scales.data(), sums.data()};
    gemm_sum_panels(w, sums.data());
    steps.pack(w);
  }
  std::vector<unsigned char> bytes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  Steps steps;
  PackedMatrix w;
};

void check_gemm_i8_case(const KernelRow& row, const std::string& filter, Random& random,
                        const GemmCase& c, int shift, bool limits = false) {
  auto* kernel = reinterpret_cast<gemm_forward_i8_t*>(row.function);
  const int64_t a_stride = (c.K + 3) / 4 * 4 + 4, out_stride = c.N + 2;
  const MatrixI8 matrix(random, c.N, c.K, limits);
  std::vector<uint8_t> a(c.M * a_stride + 64);  // anything in the padding
  for (uint8_t& q : a) {
    const bool full = random.range(0, limits ? 1 : 3) == 0;
    q = static_cast<uint8_t>(full ? 255 : limits ? 0 : random.range(0, 255));
  }
  std::vector<QuantizedRow> rows(c.M + 1);
  for (QuantizedRow& r : rows) r = {std::fabs(random.normal(0.02f)), random.range(0, 255)};
  Guarded bias = random_rows(random, 1, c.N, c.N, shift),
          residual = random_rows(random, c.M, c.N, out_stride, shift);
  const GemmEpilogue epilogue{c.bias ? bias.data() : nullptr, c.activation,
                              c.residual ? residual.data() : nullptr, out_stride};
  Guarded out(c.M * out_stride, shift), plain(c.M * out_stride);
  std::vector<double> exact(c.M * out_stride + 1), wide_bias = widen(bias),
                                                   wide_residual = widen(residual);
  const int64_t narrow_stride = c.N + 3;
  std::vector<uint16_t> narrow(c.M * narrow_stride + 8, 0xdead), narrow_only = narrow;
  kernel(a.data(), a_stride, c.M, rows.data(), matrix.w, c.first_panel, c.last_panel, epilogue,
         out.data(), out_stride, narrow.data(), narrow_stride);
  kernel(a.data(), a_stride, c.M, rows.data(), from_memory(matrix.w), c.first_panel, c.last_panel,
         epilogue, nullptr, 0, narrow_only.data(), narrow_stride);
  gemm_forward_i8_ref(a.data(), a_stride, c.M, rows.data(), matrix.w, c.first_panel, c.last_panel,
                      epilogue, plain.data(), out_stride, nullptr, 0);
  gemm_quantized_ref<double>(
      a.data(), a_stride, c.M, rows.data(), matrix.w, c.first_panel, c.last_panel,
      c.bias ? wide_bias.data() : nullptr, c.activation,
      c.residual ? wide_residual.data() : nullptr, out_stride,
      [&](int64_t m, int32_t n, double value) { exact[m * out_stride + n] = value; });
  const std::string what = gemm_case_text(row, c);
  const int32_t first = c.first_panel * kPanelColumns,
                last = std::min(c.N, c.last_panel * kPanelColumns);
  ErrorBudget budget;
  budget.allow(allowed_of_pieces(row, c.activation, 1));
  for (int32_t m = 0; m < c.M; ++m) {
    for (int32_t n = 0; n < c.N; ++n) {
      const int64_t i = m * out_stride + n;
      if (n >= first && n < last) {
        budget.add(out[i], plain[i], exact[i], m, n);
        // Exact sums and one order of roundings: the ISAs differ as their activations do only.
        if (c.activation == Activation::kNone) {
          ASSERT_EQ(0, std::memcmp(&out[i], &plain[i], 4))
              << what << " row " << m << " col " << n << " is " << out[i] << ", ref " << plain[i];
        }
      } else {
        ASSERT_TRUE(std::isnan(out[i])) << what << ": wrote column " << n << " outside its panels";
      }
    }
  }
  EXPECT_TRUE(budget.check(what, filter));
  ASSERT_NO_FATAL_FAILURE(expect_narrow_rows(c, out, out_stride, narrow, narrow_stride, what));
  EXPECT_EQ(narrow, narrow_only) << what;
  expect_untouched(out, c.M, c.N, out_stride, what);
  expect_rows_stand_alone(c, epilogue, out, out_stride, what,
                          [&](int32_t m, const GemmEpilogue& of_row, float* to) {
                            kernel(a.data() + m * a_stride, a_stride, 1, &rows[m], matrix.w,
                                   c.first_panel, c.last_panel, of_row, to, out_stride, nullptr, 0);
                          });
}

/// Every pair of neighbouring weights with the least and the largest codes, whose products are sums
/// that no other codes go beyond.
void check_gemm_i8_pairs(const KernelRow& row) {
  auto* kernel = reinterpret_cast<gemm_forward_i8_t*>(row.function);
  constexpr int32_t kOutputs = 256, kCodes = 4;
  constexpr uint8_t kRows[kCodes][4] = {{0, 0, 0, 0}, {255, 0, 0, 0}, {0, 255, 0, 0}, {255, 255}};
  const std::vector<float> scales(kOutputs, 1);
  const std::vector<QuantizedRow> quantized(kCodes, {1, 0});
  std::vector<int32_t> sums(kOutputs);
  std::vector<unsigned char> bytes(packed_elements(kOutputs, 4, Storage::kI8) + 64);
  std::vector<float> out(kCodes * kOutputs);
  int8_t* data = reinterpret_cast<int8_t*>(aligned64(bytes));
  for (int32_t first = -128; first < 128; ++first) {
    for (int32_t n = 0; n < kOutputs; ++n) {
      data[packed_index(n, 0, 4, 4)] = static_cast<int8_t>(first);
      data[packed_index(n, 1, 4, 4)] = static_cast<int8_t>(n - 128);
    }
    PackedMatrix w{data, Storage::kI8, kOutputs, 4, scales.data(), sums.data()};
    gemm_sum_panels(w, sums.data());
    Steps steps;
    steps.pack(w);
    kernel(kRows[0], 4, kCodes, quantized.data(), w, 0, panel_count(kOutputs), {}, out.data(),
           kOutputs, nullptr, 0);
    for (int32_t m = 0; m < kCodes; ++m) {
      for (int32_t n = 0; n < kOutputs; ++n) {
        ASSERT_EQ(static_cast<float>(kRows[m][0] * first + kRows[m][1] * (n - 128)),
                  out[m * kOutputs + n])
            << row.name << ": weights " << first << " and " << n - 128 << ", codes " << m;
      }
    }
  }
}

/// Every activation of numbers of both signs, by a product of 1 and 1 or -1.
void check_gemm_i8_activations(const KernelRow& row) {
  auto* kernel = reinterpret_cast<gemm_forward_i8_t*>(row.function);
  constexpr int32_t kNumbers = 1 << 14;
  std::vector<QuantizedRow> rows(kNumbers);
  for (int32_t i = 0; i < kNumbers; ++i) {
    // Every 2^-10 up to 8, then by powers.
    const double x = i < kNumbers / 2 ? i / 1024.0 : std::exp2(60.0 * i / kNumbers - 30);
    rows[i] = {static_cast<float>(x), 0};
  }
  std::vector<unsigned char> bytes(packed_elements(2, 1, Storage::kI8) + 64);
  int8_t* data = reinterpret_cast<int8_t*>(aligned64(bytes));
  data[packed_index(0, 0, 1, 4)] = 1;
  data[packed_index(1, 0, 1, 4)] = -1;
  const float scales[2] = {1, 1};
  const int32_t sums[2] = {1, -1};
  PackedMatrix w{data, Storage::kI8, 2, 1, scales, sums};
  Steps steps;
  steps.pack(w);
  std::vector<uint8_t> a(4 * kNumbers);
  for (int32_t i = 0; i < kNumbers; ++i) a[4 * i] = 1;
  std::vector<float> out(2 * kNumbers);
  for (const Activation activation : kActivations) {
    kernel(a.data(), 4, kNumbers, rows.data(), w, 0, 1, {nullptr, activation}, out.data(), 2,
           nullptr, 0);
    for (int32_t i = 0; i < kNumbers; ++i) {
      expect_activation_of(row, activation, rows[i].scale, out[2 * i]);
      expect_activation_of(row, activation, -rows[i].scale, out[2 * i + 1]);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

void check_gemm_i8(const KernelRow& row, const std::string& filter) {
  Random random(12);
  for (int32_t M = 0; M <= 26; ++M) {
    const int32_t K = 1 + (M * 7) % 41, N = 1 + (M * 13) % 97;
    check_gemm_i8_case(
        row, filter, random,
        {M, N, K, Storage::kI8, kActivations[M % 6], M % 4 != 0, M % 5 == 0, 0, panel_count(N)},
        M % 4);
  }
  for (int32_t K = 1; K <= 67; ++K) {
    check_gemm_i8_case(row, filter, random,
                       {5, 40, K, Storage::kI8, Activation::kNone, true, false, 0, 2}, K % 4);
  }
  for (int32_t N = 1; N <= 66; ++N) {
    check_gemm_i8_case(row, filter, random,
                       {3, N, 33, Storage::kI8, Activation::kNone, true, true, 0, panel_count(N)},
                       N % 4);
  }
  check_gemm_i8_case(row, filter, random,
                     {5, 99, 64, Storage::kI8, Activation::kSwish, true, true, 1, 3}, 1);
  check_gemm_i8_case(row, filter, random,
                     {20, 1536, 512, Storage::kI8, Activation::kNone, true, false, 0, 48}, 0);
  // More panels than stay in L2 for the rows left over.
  check_gemm_i8_case(row, filter, random,
                     {37, 300, 1030, Storage::kI8, Activation::kSwish, true, true, 1, 10}, 0);
  check_gemm_i8_case(row, filter, random,
                     {13, 512, 1024, Storage::kI8, Activation::kNone, true, true, 0, 16}, 0);

  for (int32_t K = 1; K <= 67; K += 3) {
    check_gemm_i8_case(row, filter, random,
                       {7, 70, K, Storage::kI8, Activation::kNone, true, false, 0, 3}, K % 4, true);
  }
  check_gemm_i8_pairs(row);
  check_gemm_i8_activations(row);

  // The largest sums there are: one more input of this kind and 32 bits would not hold them.
  auto* kernel = reinterpret_cast<gemm_forward_i8_t*>(row.function);
  const int32_t K = kMaxInputsI8;
  std::vector<unsigned char> bytes(packed_elements(1, K, Storage::kI8) + 64);
  int8_t* data = reinterpret_cast<int8_t*>(aligned64(bytes));
  const std::vector<uint8_t> a(K, 255);
  for (const int8_t weight : {int8_t{-128}, int8_t{127}}) {
    for (int32_t k = 0; k < K; ++k) data[packed_index(0, k, K, 4)] = weight;
    const float scale = 1, nan = NAN;
    int32_t sum = 0;
    PackedMatrix w{data, Storage::kI8, 1, K, &scale, &sum};
    gemm_sum_panels(w, &sum);
    Steps steps;
    steps.pack(w);
    EXPECT_EQ(weight * K, sum);
    for (const QuantizedRow& quantized : {QuantizedRow{1, 0}, QuantizedRow{1, 255}}) {
      float out = NAN;
      kernel(a.data(), K, 1, &quantized, w, 0, 1, {}, &out, 1, nullptr, 0);
      EXPECT_EQ(static_cast<float>((255 - quantized.zero) * int64_t{weight} * K), out) << row.name;
    }
    const QuantizedRow poisoned{nan, 0};
    float out = 0;
    kernel(a.data(), K, 1, &poisoned, w, 0, 1, {}, &out, 1, nullptr, 0);
    EXPECT_TRUE(std::isnan(out)) << row.name << ": a row that was not finite must stay so";
  }
}

void check_quantize_u8(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<quantize_forward_u8_t*>(row.function);
  Random random(13);
  const float infinity = std::numeric_limits<float>::infinity();
  constexpr int32_t kRows = 16, kFirst = 1, kLast = 15;
  const InputRange ranges[] = {{-1.5f, 2.25f}, {0, 0}, {0, 1e-3f}, {-3e38f, 3e38f}};
  for (int32_t K : widths()) {
    const int64_t stride = K + 3, out_stride = (K + 3) / 4 * 4 + 8;
    Guarded x = random_rows(random, kRows, K, stride, K % 4);
    const auto fill = [&](int32_t i, auto value) {
      for (int32_t k = 0; k < K; ++k) x[i * stride + k] = value(k);
    };
    fill(1, [](int32_t) { return 0.0f; });
    fill(2, [](int32_t k) { return k % 2 ? -0.0f : 0.0f; });
    fill(3, [](int32_t) { return 0.75f; });                         // all equal, above 0
    fill(4, [](int32_t) { return -1e20f; });                        // and below
    fill(5, [](int32_t k) { return k % 2 ? 3.4e38f : -3.4e38f; });  // whose difference overflows
    fill(6, [](int32_t) { return 1e-40f; });                        // a scale below the least
    fill(7, [](int32_t k) { return 1e-38f * static_cast<float>(k % 256); });
    fill(8, [](int32_t k) { return static_cast<float>(k % 256) - 127.5f; });  // ties
    fill(9, [](int32_t k) { return k == 0 ? 1e30f : 1.0f; });  // one value drowns the rest
    x[10 * stride + K - 1] = NAN;
    x[11 * stride] = infinity;
    x[12 * stride + K / 2] = -infinity;
    for (int variant = 0; variant < 5; ++variant) {
      const InputRange* range = variant == 0 ? nullptr : &ranges[variant - 1];
      std::vector<uint8_t> out(kRows * out_stride + 64, 0xdd), plain = out;
      std::vector<QuantizedRow> rows(kRows, {-1, -1}), plain_rows = rows;
      kernel(x.data(), stride, kFirst, kLast, K, range, out.data(), out_stride, rows.data());
      quantize_forward_u8_ref(x.data(), stride, kFirst, kLast, K, range, plain.data(), out_stride,
                              plain_rows.data());
      const std::string what = row.name + shape_text({{"K", K}, {"range", variant - 1}});
      ASSERT_EQ(plain, out) << what;
      for (int32_t i = 0; i < kRows; ++i) {
        const std::string where = what + " row " + std::to_string(i);
        if (i < kFirst || i >= kLast) {
          EXPECT_TRUE(rows[i].scale == -1 && out[i * out_stride] == 0xdd) << where;
          continue;
        }
        ASSERT_EQ(plain_rows[i].zero, rows[i].zero) << where;
        ASSERT_TRUE(plain_rows[i].scale == rows[i].scale || std::isnan(rows[i].scale)) << where;
        const uint8_t* codes = &out[i * out_stride];
        for (int64_t k = K; k < out_stride; ++k)
          EXPECT_EQ(k < (K + 3) / 4 * 4 ? 0 : 0xdd, codes[k]) << where << " col " << k;
        EXPECT_EQ(i >= 10 && i <= 12, std::isnan(rows[i].scale)) << where;
        const double scale = rows[i].scale;
        if (!(scale > 0)) {
          for (int32_t k = 0; k < K; ++k) ASSERT_EQ(0, codes[k]) << where;
          if (range == nullptr && !std::isnan(scale)) {
            EXPECT_TRUE(i == 1 || i == 2 || i == 6 || i == 7) << where;
          }
          continue;
        }
        double low = range != nullptr ? range->low : 0, high = range != nullptr ? range->high : 0;
        for (int32_t k = 0; k < K && range == nullptr; ++k) {
          low = std::min<double>(low, x[i * stride + k]);
          high = std::max<double>(high, x[i * stride + k]);
        }
        EXPECT_NEAR((high - low) / 255, scale, 1e-6 * scale) << where;
        for (int32_t k = 0; k < K; ++k) {
          const double value = std::clamp<double>(x[i * stride + k], low, high);
          // Half a step, and the f32 rounding of the step times up to 255 of them.
          ASSERT_LE(std::fabs(scale * (codes[k] - rows[i].zero) - value), 0.5001 * scale)
              << where << " col " << k << " of " << x[i * stride + k];
        }
      }
    }
  }
}

void check_quantize_columns_i8(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<quantize_columns_i8_t*>(row.function);
  Random random(31);
  const float infinity = std::numeric_limits<float>::infinity();
  for (int32_t C : widths()) {
    for (int32_t M : {0, 1, 3, 4, 6, 133, kMaxRowsI8}) {
      const int64_t stride = C + 3, lane_stride = C + 5;
      const int32_t zero = (C + M) % 2 * 128, steps = (M + 3) / 4;
      Guarded x = random_rows(random, M, C, stride, C % 4);
      const auto fill = [&](int32_t c, auto value) {
        for (int32_t m = 0; c < C && m < M; ++m) x[m * stride + c] = value(m);
      };
      fill(1, [](int32_t m) { return m % 2 ? -0.0f : 0.0f; });
      fill(2, [](int32_t) { return 1e-40f; });                         // a scale below the least
      fill(3, [](int32_t m) { return m % 2 ? 3.4e38f : -3.4e38f; });   // of both signs, and huge
      fill(4, [](int32_t m) { return float(m % 255) - 127 + 0.5f; });  // ties
      fill(5, [](int32_t m) { return m == 0 ? 1e30f : 1.0f; });        // one drowns the rest
      fill(6, [M](int32_t m) { return m + 1 == M ? NAN : 1.0f; });
      fill(7, [=](int32_t m) { return m == 0 ? infinity : 1.0f; });
      fill(8, [=](int32_t m) { return m == M / 2 ? -infinity : 1.0f; });
      std::vector<uint32_t> lanes(steps * lane_stride + 8, 0xddddddddu), plain = lanes;
      std::vector<float> scales(C + 1, -1), plain_scales = scales;
      std::vector<int32_t> sums(C + 1, -7), plain_sums = sums;
      kernel(x.data(), stride, M, C, zero, lanes.data(), lane_stride, scales.data(), sums.data());
      quantize_columns_i8_ref(x.data(), stride, M, C, zero, plain.data(), lane_stride,
                              plain_scales.data(), plain_sums.data());
      const std::string what = row.name + shape_text({{"M", M}, {"C", C}, {"zero", zero}});
      ASSERT_EQ(plain, lanes) << what;
      ASSERT_EQ(plain_sums, sums) << what;
      EXPECT_EQ(-1, scales[C]) << what;
      for (int32_t c = 0; c < C; ++c) {
        const std::string where = what + " column " + std::to_string(c);
        ASSERT_TRUE(plain_scales[c] == scales[c] || (c >= 6 && c <= 8 && std::isnan(scales[c])))
            << where << ": " << scales[c];
        EXPECT_EQ(M > 0 && c >= 6 && c <= 8, std::isnan(scales[c])) << where;
        double largest = 0;
        for (int32_t m = 0; m < M; ++m)
          largest = std::max<double>(largest, std::fabs(x[m * stride + c]));
        if (scales[c] > 0) {
          EXPECT_NEAR(largest / 127, scales[c], 1e-6 * scales[c]) << where;
        } else if (!std::isnan(scales[c])) {
          EXPECT_LE(largest, 127 * kLeastScaleI8) << where;
        }
        int32_t sum = 0;
        for (int32_t m = 0; m < 4 * steps; ++m) {
          const uint32_t byte = lanes[m / 4 * lane_stride + c] >> m % 4 * 8 & 0xff;
          const int32_t q = zero == 0 ? int8_t(byte) : int32_t(byte) - 128;
          sum += q;
          if (m >= M || !(scales[c] > 0)) {
            ASSERT_EQ(0, q) << where << " row " << m;
          } else {
            ASSERT_LE(std::fabs(double(scales[c]) * q - x[m * stride + c]), 0.5001 * scales[c])
                << where << " row " << m << " of " << x[m * stride + c];
          }
        }
        ASSERT_EQ(sum, sums[c]) << where;
      }
      std::fill(lanes.begin(), lanes.end(), 0);
      kernel(x.data(), stride, M, C, zero, lanes.data(), lane_stride, scales.data(), nullptr);
      for (int32_t i = 0; i < steps * C; ++i) {
        const int64_t at = i / C * lane_stride + i % C;
        ASSERT_EQ(plain[at], lanes[at]) << what << " without sums";
      }
    }
  }
}

/// Bits are ref's; ref is what it says to be, in double, from the numbers that the codes stand for.
void check_gemm_backward_weight_i8(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<gemm_backward_weight_i8_t*>(row.function);
  Random random(32);
  struct Case {
    int32_t M, N, K, first, last;
  };
  std::vector<Case> cases = {{0, 20, 20, 3, 17},      {1, 1, 1, 0, 1},        {3, 13, 31, 0, 13},
                             {4, 12, 32, 0, 12},      {130, 37, 65, 5, 30},   {133, 64, 100, 0, 64},
                             {256, 400, 33, 1, 400},  {255, 20, 512, 0, 20},  {140, 96, 16, 10, 10},
                             {129, 800, 48, 11, 797}, {131, 31, 1040, 0, 31}, {250, 47, 47, 0, 47}};
  for (const Case& c : cases) {
    for (const bool accumulate : {false, true}) {
      const std::string what =
          row.name + shape_text({{"M", c.M}, {"N", c.N}, {"K", c.K}, {"accumulate", accumulate}});
      const int32_t steps = (c.M + 3) / 4;
      Guarded dy = random_rows(random, c.M, c.N, c.N, 0), x = random_rows(random, c.M, c.K, c.K, 0);
      const int64_t dy_stride = c.N + 2, x_stride = c.K + 7, dw_stride = c.K + 3;
      // Exactly as large as what may be read.
      std::vector<uint32_t> dy_lanes(std::max<int64_t>(0, steps - 1) * dy_stride + c.N),
          x_lanes(std::max<int64_t>(0, steps - 1) * x_stride + c.K);
      std::vector<float> dy_scales(c.N), x_scales(c.K);
      std::vector<int32_t> x_sums(c.K);
      quantize_columns_i8_ref(dy.data(), c.N, c.M, c.N, 128, dy_lanes.data(), dy_stride,
                              dy_scales.data(), nullptr);
      quantize_columns_i8_ref(x.data(), c.K, c.M, c.K, 0, x_lanes.data(), x_stride, x_scales.data(),
                              x_sums.data());
      if (c.N > 2 && c.first == 0) dy_scales[1] = NAN;
      Guarded scratch(kGemmBackwardScratchFloats);
      Guarded dw(c.N * dw_stride, 1), plain(c.N * dw_stride, 1), split(c.N * dw_stride, 1);
      for (int32_t n = c.first; n < c.last; ++n) {
        for (int32_t k = 0; k < c.K && accumulate; ++k)
          dw[n * dw_stride + k] = plain[n * dw_stride + k] = split[n * dw_stride + k] =
              random.normal();
      }
      std::vector<double> before(c.N * dw_stride);
      for (size_t i = 0; i < before.size(); ++i) before[i] = dw[i];
      const auto call = [&](gemm_backward_weight_i8_t* f, int32_t first, int32_t last, float* to) {
        f(dy_lanes.data(), dy_stride, dy_scales.data(), x_lanes.data(), x_stride, x_scales.data(),
          x_sums.data(), c.M, first, last, c.K, accumulate, to, dw_stride, scratch.data());
      };
      call(kernel, c.first, c.last, dw.data());
      call(gemm_backward_weight_i8_ref, c.first, c.last, plain.data());
      const int32_t middle = c.first + (c.last - c.first) / 3;
      call(kernel, c.first, middle, split.data());
      call(kernel, middle, c.last, split.data());
      for (int32_t n = 0; n < c.N; ++n) {
        for (int64_t k = 0; k < dw_stride; ++k) {
          const int64_t i = n * dw_stride + k;
          const std::string where = what + " at " + std::to_string(n) + ", " + std::to_string(k);
          if (n < c.first || n >= c.last || k >= c.K) {
            ASSERT_TRUE(std::isnan(dw[i])) << where << ": written";
            continue;
          }
          if (std::isnan(dy_scales[n])) {
            ASSERT_TRUE(c.M == 0 || std::isnan(dw[i])) << where;
            continue;
          }
          ASSERT_EQ(plain[i], dw[i]) << where << ": other bits than ref's";
          ASSERT_EQ(split[i], dw[i]) << where << ": other bits when split";
          int64_t codes = 0;
          for (int32_t m = 0; m < c.M; ++m) {
            const int shift = m % 4 * 8;
            codes += (int64_t(dy_lanes[m / 4 * dy_stride + n] >> shift & 0xff) - 128) *
                     int8_t(x_lanes[m / 4 * x_stride + k] >> shift);
          }
          const double sum = double(codes) * dy_scales[n] * x_scales[k],
                       exact = sum + (accumulate ? before[i] : 0);
          ASSERT_NEAR(exact, dw[i], 2e-7 * (std::fabs(sum) + std::fabs(exact))) << where;
        }
      }
      EXPECT_TRUE(dw.intact()) << what;
    }
  }
}

void check_embedding_i8(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<embedding_forward_i8_t*>(row.function);
  Random random(14);
  for (int32_t C : widths()) {
    const bool typed = C % 2;
    const int shift = C % 4;
    const int32_t N = 7, V = 11, P = 9, first = 1, last = 6;
    std::vector<int8_t> token(static_cast<size_t>(V) * C), position(static_cast<size_t>(P) * C);
    for (int8_t& q : token) q = static_cast<int8_t>(random.range(-127, 127));
    for (int8_t& q : position) q = static_cast<int8_t>(random.range(-127, 127));
    // Exactly as long as they are, so that AddressSanitizer sees a read beyond.
    Guarded token_scales(V, shift), position_scales(P, shift),
        type = random_rows(random, 1, C, C, shift), gamma = random_rows(random, 1, C, C, shift),
        beta = random_rows(random, 1, C, C, shift);
    for (int32_t i = 0; i < V; ++i) token_scales[i] = 0.01f + std::fabs(random.normal(0.01f));
    for (int32_t i = 0; i < P; ++i) position_scales[i] = 0.01f + std::fabs(random.normal(0.01f));
    std::vector<int32_t> ids(N), positions(N);
    for (int32_t i = 0; i < N; ++i)
      ids[i] = i == 2 ? V - 1 : random.range(0, V - 1), positions[i] = random.range(0, P - 1);
    const int64_t stride = C + 5;
    Guarded out(N * stride, shift), plain(N * stride), rstd(N, shift);
    std::vector<double> exact(N * stride), exact_rstd(N);
    const float* types = typed ? type.data() : nullptr;
    kernel(ids.data(), positions.data(), first, last, token.data(), token_scales.data(),
           position.data(), position_scales.data(), types, gamma.data(), beta.data(), 1e-12f, C,
           out.data(), stride, rstd.data());
    embedding_forward_i8_ref(ids.data(), positions.data(), first, last, token.data(),
                             token_scales.data(), position.data(), position_scales.data(), types,
                             gamma.data(), beta.data(), 1e-12f, C, plain.data(), stride, nullptr);
    embedding_quantized_ref<double>(ids.data(), positions.data(), first, last, token.data(),
                                    token_scales.data(), position.data(), position_scales.data(),
                                    types, gamma.data(), beta.data(), 1e-12f, C, exact.data(),
                                    stride, exact_rstd.data());
    const std::string what = row.name + shape_text({{"C", C}, {"typed", typed}});
    ErrorBudget budget(C <= 2 ? kIllConditioned : 2);  // the variance of two values may cancel
    for (int32_t i = first; i < last; ++i) {
      for (int32_t c = 0; c < C; ++c)
        budget.add(out[i * stride + c], plain[i * stride + c], exact[i * stride + c], i, c);
      if (C > 2) {
        EXPECT_NEAR(exact_rstd[i], rstd[i], 1e-5 * exact_rstd[i]) << what;
      }
    }
    EXPECT_TRUE(budget.check(what, filter));
    EXPECT_TRUE(rstd.intact() && std::isnan(rstd[0]) && std::isnan(rstd[6])) << what;
    expect_untouched(out, N, C, stride, what);
    for (int32_t c = 0; c < C; ++c)
      EXPECT_TRUE(std::isnan(out[c]) && std::isnan(out[6 * stride + c])) << what;
  }
}

struct AttentionShape {
  int32_t H, D;
  std::vector<int32_t> lengths;
  float scale;

  std::string text(const KernelRow& row) const {
    std::string text =
        row.name + shape_text({{"B", static_cast<int32_t>(lengths.size())}, {"H", H}, {"D", D}}) +
        "  lengths";
    for (const int32_t length : lengths) text += " " + std::to_string(length);
    return text;
  }
};

/// 1 … 33 tokens and longer, plain or designed inputs.
std::vector<AttentionShape> attention_shapes() {
  std::vector<AttentionShape> shapes = {
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
  return shapes;
}

/// The first key's product with every query leaves f32: its score of -∞ weighs nothing. Those of
/// the others are far below the 0 that stands for keys beyond T.
template <typename Call>
void expect_nothing_of_minus_infinity(const KernelRow& row, const Call& call) {
  constexpr int32_t T = 20, D = 16;
  const int32_t cu[] = {0, T};
  Guarded qkv(T * 3 * D), out(T * D);
  Guarded scratch(std::max(attention_scratch_floats(T, D), attention_bf16_scratch_floats(T, D)));
  for (int32_t i = 0; i < T; ++i) {
    for (int32_t d = 0; d < D; ++d) {
      float* at = qkv.data() + i * 3 * D + d;
      at[0] = d == 0 ? 1e30f : 0.0f;
      at[D] = d != 0 ? 0.0f : i == 0 ? -1e30f : -1e-26f;
      at[2 * D] = i == 0 ? 9.0f : 1.0f;
    }
  }
  call(qkv.data(), 3 * D, cu, D, out.data(), scratch.data());
  for (int32_t i = 0; i < T * D; ++i)
    ASSERT_FLOAT_EQ(1, out[i]) << row.name << ": a score of -∞, row " << i / D;
}

void check_attention(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<attention_forward_f32_t*>(row.function);
  Random random(4);
  int variant = 0;
  for (const AttentionShape& shape : attention_shapes()) {
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
    const std::string what = shape.text(row);
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
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(split, out, N, H * D, out_stride, what + " split"));
  }
  expect_nothing_of_minus_infinity(row, [&](const float* qkv, int64_t stride, const int32_t* cu,
                                            int32_t D, float* out, float* scratch) {
    kernel(qkv, stride, cu, 0, 1, 0, 1, 1, D, out, D, nullptr, scratch);
  });
}

void check_attention_bf16(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<attention_forward_bf16_t*>(row.function);
  Random random(4);
  int variant = 0;
  for (const AttentionShape& shape : attention_shapes()) {
    const int32_t H = shape.H, D = shape.D, B = static_cast<int32_t>(shape.lengths.size());
    std::vector<int32_t> cu = {0};
    for (int32_t length : shape.lengths) cu.push_back(cu.back() + length);
    const int32_t longest = *std::max_element(shape.lengths.begin(), shape.lengths.end());
    const int32_t N = cu.back(), C = H * D;
    const int shift = variant++ % 4;
    const int64_t stride = 3 * C + 5, out_stride = C + 3, narrow_stride = (C + 1) / 2 * 2 + 2;
    Guarded rows = random_rows(random, N, 3 * C, stride, 0, shape.scale);
    std::vector<uint16_t> shifted = operand<uint16_t>(rows.data(), rows.size(), shift);
    uint16_t* const qkv = shifted.data() + shift;
    Guarded out(N * out_stride, shift), plain(N * out_stride), only(N * out_stride, shift);
    Guarded scratch(attention_bf16_scratch_floats(longest, D));
    std::vector<uint16_t> narrow(N * narrow_stride + 8, 0xdead), narrow_only = narrow;
    std::vector<double> exact(N * out_stride + 1), wide(N * stride + 1), wide_scratch(longest + 1);
    for (int64_t i = 0; i < N * stride; ++i) wide[i] = f32_from_bf16(qkv[i]);
    const auto call = [&](int32_t b, int32_t b_end, int32_t h, int32_t h_end, float* to,
                          uint16_t* to_narrow) {
      kernel(qkv, stride, cu.data(), b, b_end, h, h_end, H, D, to, out_stride, to_narrow,
             narrow_stride, scratch.data());
    };
    call(0, B, 0, H, out.data(), narrow.data());
    call(0, B, 0, H, only.data(), nullptr);
    call(0, B, 0, H, nullptr, narrow_only.data());
    std::vector<float> plain_scratch(longest + 1);
    attention_forward_bf16_ref(qkv, stride, cu.data(), 0, B, 0, H, H, D, plain.data(), out_stride,
                               nullptr, 0, plain_scratch.data());
    attention_forward_ref<double>(wide.data(), stride, cu.data(), 0, B, 0, H, H, D, exact.data(),
                                  out_stride, nullptr, wide_scratch.data());
    const std::string what = shape.text(row);
    ErrorBudget budget(shape.scale > 1 ? kIllConditioned : 2);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < C; ++c) {
        const int64_t at = i * out_stride + c;
        budget.add(out[at], plain[at], exact[at], i, c);
        // Subnormals may become 0.
        if (std::fabs(out[at]) >= std::numeric_limits<float>::min() || out[at] == 0) {
          ASSERT_EQ(bf16_from_f32(out[at]), narrow[i * narrow_stride + c]) << what;
        }
      }
      for (int64_t c = C; c < narrow_stride; ++c) {
        ASSERT_EQ(c == C && C % 2 == 1 ? 0 : 0xdead, narrow[i * narrow_stride + c])
            << what << " narrow column " << c;
      }
    }
    EXPECT_TRUE(budget.check(what, filter));
    EXPECT_EQ(narrow, narrow_only) << what;
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(only, out, N, C, out_stride, what + " f32 only"));
    expect_untouched(out, N, C, out_stride, what);
    EXPECT_TRUE(scratch.intact()) << what << ": wrote outside its scratch";
    Guarded split(N * out_stride, shift);
    std::vector<uint16_t> narrow_split(narrow.size(), 0xdead);
    for (int32_t b = 0; b < B; ++b) {
      for (int32_t h = 0; h < H; ++h) call(b, b + 1, h, h + 1, split.data(), narrow_split.data());
    }
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(split, out, N, C, out_stride, what + " split"));
    EXPECT_EQ(narrow, narrow_split) << what;
    // What is divided and what divides are sums of the same rounded E, in orders of their own.
    for (int32_t i = 0; i < N; ++i) std::fill_n(&qkv[i * stride + 2 * C], C, bf16_from_f32(1));
    call(0, B, 0, H, out.data(), nullptr);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t c = 0; c < C; ++c)
        ASSERT_NEAR(1, out[i * out_stride + c], std::ldexp(longest + 2, -24)) << what << " ones";
    }
  }
  expect_nothing_of_minus_infinity(row, [&](const float* qkv, int64_t stride, const int32_t* cu,
                                            int32_t D, float* out, float* scratch) {
    const std::vector<uint16_t> narrow = operand<uint16_t>(qkv, cu[1] * stride);
    kernel(narrow.data(), stride, cu, 0, 1, 0, 1, 1, D, out, D, nullptr, 0, scratch);
  });
}

void check_layernorm_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<layernorm_backward_f32_t*>(row.function);
  Random random(13);
  for (int32_t C : widths()) {
    for (float offset : {0.0f, 100.0f}) {
      const int shift = C % 4;
      const int32_t N = 2 * kLayernormBlockRows + 6, blocks = 3;
      const int64_t stride = C + 3, dy_stride = C + 1, dx_stride = C + 2;
      Guarded x = random_rows(random, N, C, stride, shift, 3),
              dy = random_rows(random, N, C, dy_stride, shift),
              gamma = random_rows(random, 1, C, C, shift);
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < C; ++c) x[i * stride + c] += offset;
      }
      struct Result {
        Result(int64_t dx_size, int64_t parts, int shift)
            : dx(dx_size, shift), dgamma(parts, shift), dbeta(parts, shift) {}
        Guarded dx, dgamma, dbeta;
      } out(N * dx_stride, blocks * C, shift), plain(N * dx_stride, blocks * C, 0),
          split(N * dx_stride, blocks * C, shift);
      std::vector<double> wide = widen(x), wide_dy = widen(dy), wide_gamma = widen(gamma),
                          exact(N * dx_stride), exact_dgamma(blocks * C), exact_dbeta(blocks * C);
      // Of a few values that nearly agree rstd is huge, and one row decides the largest error.
      const float eps = C < 5 ? 1.0f : 1e-12f;
      const auto call = [&](layernorm_backward_f32_t* f, int32_t first, int32_t last, Result& to) {
        f(x.data(), stride, dy.data(), dy_stride, N, first, last, C, gamma.data(), eps,
          to.dx.data(), dx_stride, to.dgamma.data(), to.dbeta.data());
      };
      call(kernel, 0, blocks, out);
      call(layernorm_backward_f32_ref, 0, blocks, plain);
      layernorm_backward_ref<double>(wide.data(), stride, wide_dy.data(), dy_stride, N, 0, blocks,
                                     C, wide_gamma.data(), double(eps), exact.data(), dx_stride,
                                     exact_dgamma.data(), exact_dbeta.data());
      const std::string what = row.name + shape_text({{"C", C}, {"offset", int64_t(offset)}});
      const double factor = offset == 0 ? 3 : 1.5 * kIllConditioned;
      ErrorBudget budget(factor), dgamma_budget(factor), dbeta_budget(3);
      for (int32_t i = 0; i < N; ++i) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(out.dx[i * dx_stride + c], plain.dx[i * dx_stride + c],
                     exact[i * dx_stride + c], i, c);
      }
      for (int32_t i = 0; i < blocks * C; ++i) {
        dgamma_budget.add(out.dgamma[i], plain.dgamma[i], exact_dgamma[i], i / C, i % C);
        dbeta_budget.add(out.dbeta[i], plain.dbeta[i], exact_dbeta[i], i / C, i % C);
      }
      EXPECT_TRUE(budget.check(what + " dx", filter));
      EXPECT_TRUE(dgamma_budget.check(what + " dgamma", filter));
      EXPECT_TRUE(dbeta_budget.check(what + " dbeta", filter));
      expect_untouched(out.dx, N, C, dx_stride, what);
      EXPECT_TRUE(out.dgamma.intact() && out.dbeta.intact()) << what;
      // One block at a time: the same bits, and nothing of the others.
      for (int32_t k : {2, 0}) call(kernel, k, k + 1, split);
      const int64_t middle = kLayernormBlockRows * dx_stride;
      for (int64_t i = 0; i < N * dx_stride; ++i) {
        if (i >= middle && i < 2 * middle)
          ASSERT_TRUE(std::isnan(split.dx[i])) << what << " split";
        else
          ASSERT_EQ(0, std::memcmp(&split.dx[i], &out.dx[i], 4)) << what << " split";
      }
      for (int32_t c = 0; c < C; ++c) {
        ASSERT_TRUE(std::isnan(split.dgamma[C + c]) && std::isnan(split.dbeta[C + c])) << what;
        for (int32_t k : {0, 2 * C}) {
          ASSERT_EQ(out.dgamma[k + c], split.dgamma[k + c]) << what << " split";
          ASSERT_EQ(out.dbeta[k + c], split.dbeta[k + c]) << what << " split";
        }
      }
      kernel(x.data(), stride, dy.data(), dy_stride, N, 0, blocks, C, gamma.data(), eps, dy.data(),
             dy_stride, split.dgamma.data(), split.dbeta.data());
      for (int32_t i = 0; i < N; ++i) {
        ASSERT_EQ(0, std::memcmp(&dy[i * dy_stride], &out.dx[i * dx_stride], 4 * C))
            << what << " in place";
      }
      expect_untouched(dy, N, C, dy_stride, what);
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

void check_activation_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<activation_backward_f32_t*>(row.function);
  Random random(14);
  for (Activation activation : kActivations) {
    ErrorBudget budget(3);  // over all lengths
    for (int32_t n = 0; n <= 33; ++n) {
      Guarded x = random_rows(random, 1, n, n, n % 4, 4), dy = random_rows(random, 1, n, n, n % 3),
              out(n, (n + 1) % 4);
      kernel(x.data(), dy.data(), n, activation, out.data());
      for (int32_t i = 0; i < n; ++i) {
        float plain;
        double exact;
        const double wide = x[i], wide_dy = dy[i];
        activation_backward_ref(&x[i], &dy[i], 1, activation, &plain);
        activation_backward_ref(&wide, &wide_dy, 1, activation, &exact);
        budget.add(out[i], plain, exact, n, i);
      }
      EXPECT_TRUE(out.intact());
      Guarded copy(n, n % 3);
      for (int32_t i = 0; i < n; ++i) copy[i] = dy[i];
      kernel(x.data(), copy.data(), n, activation, copy.data());
      EXPECT_EQ(0, std::memcmp(copy.data(), out.data(), 4 * n)) << "in place of dy";
      kernel(x.data(), dy.data(), n, activation, x.data());
      EXPECT_EQ(0, std::memcmp(x.data(), out.data(), 4 * n)) << "in place of x";
      EXPECT_TRUE(copy.intact() && x.intact());
    }
    const std::string what = row.name + shape_text({{"activation", int64_t(activation)}});
    EXPECT_TRUE(budget.check(what, filter));
    // Where the exponentials have left the range the slope is 0 on the left and 1 on the right.
    const float far[] = {-3e38f, -1e30f, -1e13f, -200, 200, 1e13f, 1e30f, 3e38f},
                ones[] = {1, 1, 1, 1, 1, 1, 1, 1};
    float out[8];
    kernel(far, ones, 8, activation, out);
    for (int i = 0; i < 8; ++i) {
      const float expected = activation == Activation::kNone   ? 1.0f
                             : activation == Activation::kTanh ? 0.0f
                             : far[i] < 0                      ? 0.0f
                                                               : 1.0f;
      EXPECT_EQ(expected, out[i]) << what << " at " << far[i];
    }
    const float zero = 0, one = 1, nan = NAN;
    kernel(&zero, &one, 1, activation, out);
    const bool linear = activation == Activation::kNone || activation == Activation::kTanh;
    EXPECT_EQ(linear ? 1.0f : activation == Activation::kRelu ? 0.0f : 0.5f, out[0]) << what;
    kernel(&one, &nan, 1, activation, out);
    EXPECT_TRUE(std::isnan(out[0])) << what << ": a NaN gradient stays one";
  }
}

void check_pooling_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<pooling_backward_f32_t*>(row.function);
  Random random(15);
  int variant = 0;
  for (int32_t C : widths()) {
    for (Pooling pooling : {Pooling::kMean, Pooling::kMax, Pooling::kCls}) {
      const int shift = variant++ % 4;
      const std::vector<int32_t> cu = {0, 3, 3, 4, 24, 26};
      const int32_t B = 5, N = 26, last = 4;  // the rows of the last sentence stay as they are
      const int64_t stride = C + 3, dy_stride = C + 1, dx_stride = C + 2;
      Guarded x = random_rows(random, N, C, stride, shift),
              dy = random_rows(random, B, C, dy_stride, shift), dx(N * dx_stride, shift),
              plain(N * dx_stride);
      for (int32_t c = 0; c < C; c += 2) x[9 * stride + c] = x[17 * stride + c] = 9;  // ties
      std::vector<double> exact(N * dx_stride), wide = widen(x), wide_dy = widen(dy);
      const float* rows = pooling == Pooling::kMax ? x.data() : nullptr;
      kernel(rows, stride, dy.data(), dy_stride, cu.data(), 0, last, C, pooling, dx.data(),
             dx_stride);
      pooling_backward_f32_ref(x.data(), stride, dy.data(), dy_stride, cu.data(), 0, last, C,
                               pooling, plain.data(), dx_stride);
      pooling_backward_ref<double>(wide.data(), stride, wide_dy.data(), dy_stride, cu.data(), 0,
                                   last, C, pooling, exact.data(), dx_stride);
      const std::string what = row.name + shape_text({{"C", C}, {"pooling", int64_t(pooling)}});
      ErrorBudget budget(3);
      for (int32_t i = 0; i < cu[last]; ++i) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(dx[i * dx_stride + c], plain[i * dx_stride + c], exact[i * dx_stride + c], i,
                     c);
      }
      EXPECT_TRUE(budget.check(what, filter));
      expect_untouched(dx, N, C, dx_stride, what);
      for (int32_t i = cu[last]; i < N; ++i) {
        for (int32_t c = 0; c < C; ++c) ASSERT_TRUE(std::isnan(dx[i * dx_stride + c])) << what;
      }
      if (pooling != Pooling::kMax) continue;
      for (int32_t c = 0; c < C; c += 2) {
        EXPECT_EQ(dy[3 * dy_stride + c], dx[9 * dx_stride + c]) << what << ": the first of a tie";
        EXPECT_EQ(0.0f, dx[17 * dx_stride + c]) << what << ": the second of a tie";
      }
    }
  }
}

void check_l2_normalize_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<l2_normalize_backward_f32_t*>(row.function);
  Random random(16);
  for (int32_t C : widths()) {
    for (float scale : {1.0f, 1e30f, 1e-30f}) {  // squares beyond the range of f32
      const int32_t B = 5;
      const int64_t stride = C + 2, dy_stride = C + 1, dx_stride = C + 3;
      Guarded x = random_rows(random, B, C, stride, C % 4, scale),
              dy = random_rows(random, B, C, dy_stride, C % 4), dx(B * dx_stride, C % 4),
              plain(B * dx_stride);
      for (int32_t c = 0; c < C; ++c) x[2 * stride + c] = 0;
      std::vector<double> exact(B * dx_stride), wide = widen(x), wide_dy = widen(dy);
      kernel(x.data(), stride, dy.data(), dy_stride, 1, B, C, dx.data(), dx_stride);
      l2_normalize_backward_f32_ref(x.data(), stride, dy.data(), dy_stride, 1, B, C, plain.data(),
                                    dx_stride);
      l2_normalize_backward_ref<double>(wide.data(), stride, wide_dy.data(), dy_stride, 1, B, C,
                                        exact.data(), dx_stride);
      const std::string what =
          row.name + shape_text({{"C", C}}) + " scale " + std::to_string(scale);
      ErrorBudget budget(3);
      // In one dimension the gradient is 0 and what is left of it is the rounding of f64.
      for (int32_t b = 1; b < B && C > 1; ++b) {
        for (int32_t c = 0; c < C; ++c)
          budget.add(dx[b * dx_stride + c], plain[b * dx_stride + c], exact[b * dx_stride + c], b,
                     c);
      }
      EXPECT_TRUE(budget.check(what, filter));
      expect_untouched(dx, B, C, dx_stride, what);
      for (int32_t c = 0; c < C; ++c) {
        EXPECT_TRUE(std::isnan(dx[c])) << what << ": a row before the range";
        EXPECT_EQ(0.0f, dx[2 * dx_stride + c]) << what << ": a zero row";
      }
      kernel(x.data(), stride, dy.data(), dy_stride, 1, B, C, dy.data(), dy_stride);
      for (int32_t b = 1; b < B; ++b) {
        ASSERT_EQ(0, std::memcmp(&dy[b * dy_stride], &dx[b * dx_stride], 4 * C))
            << what << " in place";
      }
    }
  }
}

/// No budget: every ISA gives ref's bits.
void check_dropout(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<dropout_forward_f32_t*>(row.function);
  Random random(17);
  int variant = 0;
  std::vector<int32_t> columns = widths();
  for (int32_t c : {127, 129, 130}) columns.push_back(c);  // beyond two runs of AVX-512's words
  for (int32_t C : columns) {
    for (uint32_t threshold : {0u, 0x40000000u, 0xf0000000u}) {
      const int shift = variant++ % 4;
      const bool added = variant % 2;
      const int32_t N = 6, first = 1, last = 5;
      const int64_t stride = C + 3, residual_stride = C + 1, out_stride = C + 2;
      Dropout dropout;
      dropout.threshold = threshold;
      dropout.scale = 1.3f;
      dropout.key[0] = static_cast<uint32_t>(random.bits());
      dropout.key[1] = static_cast<uint32_t>(random.bits());
      dropout.step = 5;
      dropout.stream = 0x80000001u;
      Guarded x = random_rows(random, N, C, stride, shift),
              residual = random_rows(random, N, C, residual_stride, shift),
              out(N * out_stride, shift), expected(N * out_stride);
      for (int32_t c = 0; c < C; ++c) {
        if (!dropout_keeps(dropout, 2, c)) x[2 * stride + c] = NAN;
      }
      const auto call = [&](dropout_forward_f32_t* f, const float* from, int64_t from_stride,
                            const float* sum, int64_t sum_stride, float* to, int64_t to_stride) {
        f(from, from_stride, first, last, C, dropout, added ? sum : nullptr, sum_stride, to,
          to_stride);
      };
      call(kernel, x.data(), stride, residual.data(), residual_stride, out.data(), out_stride);
      call(dropout_forward_f32_ref, x.data(), stride, residual.data(), residual_stride,
           expected.data(), out_stride);
      const std::string what =
          row.name + shape_text({{"C", C}, {"threshold", threshold}, {"added", added}});
      expect_untouched(out, N, C, out_stride, what);
      for (int32_t c = 0; c < C; ++c) {
        EXPECT_TRUE(std::isnan(out[c]) && std::isnan(out[last * out_stride + c])) << what;
        EXPECT_FALSE(std::isnan(out[2 * out_stride + c])) << what << ": NaN where it was dropped";
      }
      call(kernel, x.data(), stride, residual.data(), residual_stride, x.data(), stride);
      for (int32_t i = first; i < last; ++i) {
        ASSERT_EQ(0, std::memcmp(&expected[i * out_stride], &out[i * out_stride], 4 * C)) << what;
        ASSERT_EQ(0, std::memcmp(&expected[i * out_stride], &x[i * stride], 4 * C))
            << what << " in place of x";
      }
      expect_untouched(x, N, C, stride, what);
      if (!added) continue;
      Guarded again = random_rows(random, N, C, stride, shift),
              sum = random_rows(random, N, C, residual_stride, shift);
      call(dropout_forward_f32_ref, again.data(), stride, sum.data(), residual_stride,
           expected.data(), out_stride);
      call(kernel, again.data(), stride, sum.data(), residual_stride, sum.data(), residual_stride);
      for (int32_t i = first; i < last; ++i) {
        ASSERT_EQ(0, std::memcmp(&expected[i * out_stride], &sum[i * residual_stride], 4 * C))
            << what << " in place of the residual";
      }
      expect_untouched(sum, N, C, residual_stride, what);
    }
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

/// No budget: every ISA gives ref's bits, and those are of a loop in the order of the contract.
void check_inner_products(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<inner_products_forward_f64_t*>(row.function);
  Random random(31);
  for (int32_t size : widths()) {
    for (int64_t rows : {0, 1, 3, 4, 5, 8, 11}) {
      // Of the exact size, so that sanitizers see what reaches beyond.
      std::vector<double> a(rows * size), panel(int64_t{size} * kPanelRows),
          out(rows * kPanelRows + 1, NAN);
      // More digits than a float's, whose products would be exact, fused or not.
      for (double& x : a) x = random.normal() / 3.0;
      for (double& x : panel) x = random.normal() / 3.0;
      kernel(a.data(), panel.data(), rows, size, out.data());
      for (int64_t r = 0; r < rows; ++r) {
        for (int32_t j = 0; j < kPanelRows; ++j) {
          double sum = 0;
          for (int32_t k = 0; k < size; ++k) sum += a[r * size + k] * panel[k * kPanelRows + j];
          ASSERT_EQ(sum, out[r * kPanelRows + j])
              << row.name << shape_text({{"size", size}, {"rows", rows}}) << " " << r << " " << j;
        }
      }
      EXPECT_TRUE(std::isnan(out.back())) << row.name << " writes behind its rows";
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

constexpr double kGradientBudget = 3;

struct WeightCase {
  int32_t M, N, K, first, last;
  bool accumulate;
};

template <typename Kernel, typename E>
void check_gemm_backward_case(const KernelRow& row, const std::string& filter, Random& random,
                              const WeightCase& c, int shift) {
  auto* kernel = reinterpret_cast<Kernel*>(row.function);
  const int64_t dy_stride = c.N + 3, x_stride = c.K + 2, dw_stride = c.K + 5;
  Guarded gradients = random_rows(random, c.M, c.N, dy_stride, shift),
          inputs = random_rows(random, c.M, c.K, x_stride, shift);
  std::vector<E> dy = operand<E>(gradients.data(), gradients.size(), shift),
                 x = operand<E>(inputs.data(), inputs.size(), shift);
  std::vector<double> wide_dy(dy.size() + 1), wide_x(x.size() + 1);
  for (size_t i = 0; i < dy.size(); ++i) wide_dy[i] = widen_ref<double>(dy[i]);
  for (size_t i = 0; i < x.size(); ++i) wide_x[i] = widen_ref<double>(x[i]);
  for (int32_t m = 0; m < c.M; ++m) {  // columns of dy outside the range are not read
    for (int32_t n = 0; n < c.N; ++n) {
      if (n < c.first || n >= c.last)
        dy[shift + m * dy_stride + n] = std::is_same_v<E, float> ? E(NAN) : E(0x7fc0);
    }
  }
  Guarded dw(c.N * dw_stride, shift), plain(c.N * dw_stride), start(c.N * dw_stride, shift),
      scratch(kGemmBackwardScratchFloats);
  std::vector<double> exact(c.N * dw_stride);
  for (int32_t n = c.first; c.accumulate && n < c.last; ++n) {
    for (int32_t k = 0; k < c.K; ++k) {
      const int64_t i = n * dw_stride + k;
      exact[i] = dw[i] = plain[i] = start[i] = random.normal();
    }
  }
  kernel(dy.data() + shift, dy_stride, x.data() + shift, x_stride, c.M, c.first, c.last, c.K,
         c.accumulate, dw.data(), dw_stride, scratch.data());
  gemm_backward_weight_ref(dy.data() + shift, dy_stride, x.data() + shift, x_stride, c.M, c.first,
                           c.last, c.K, c.accumulate, plain.data(), dw_stride);
  gemm_backward_weight_ref<double>(wide_dy.data() + shift, dy_stride, wide_x.data() + shift,
                                   x_stride, c.M, c.first, c.last, c.K, c.accumulate, exact.data(),
                                   dw_stride);
  const std::string what = row.name + shape_text({{"M", c.M},
                                                  {"N", c.N},
                                                  {"K", c.K},
                                                  {"rows from", c.first},
                                                  {"to", c.last},
                                                  {"accumulate", c.accumulate}});
  ErrorBudget budget(kGradientBudget);
  for (int32_t n = 0; n < c.N; ++n) {
    for (int32_t k = 0; k < c.K; ++k) {
      const int64_t i = n * dw_stride + k;
      if (n >= c.first && n < c.last) {
        budget.add(dw[i], plain[i], exact[i], n, k);
      } else {
        ASSERT_TRUE(std::isnan(dw[i])) << what << ": wrote row " << n << " outside its range";
      }
    }
  }
  EXPECT_TRUE(budget.check(what, filter));
  expect_untouched(dw, c.N, c.K, dw_stride, what);
  EXPECT_TRUE(scratch.intact()) << what << ": wrote outside its scratch";
  // The range in three parts: the same bits.
  const int32_t a = c.first + (c.last - c.first) / 3, b = c.last - (c.last - c.first) / 4;
  for (const auto& [from, to] : {std::pair{c.first, a}, std::pair{a, b}, std::pair{b, c.last}}) {
    kernel(dy.data() + shift, dy_stride, x.data() + shift, x_stride, c.M, from, to, c.K,
           c.accumulate, start.data(), dw_stride, scratch.data());
  }
  for (int32_t n = c.first; n < c.last; ++n) {
    ASSERT_EQ(0, std::memcmp(&start[n * dw_stride], &dw[n * dw_stride], 4 * c.K))
        << what << ": row " << n << " has other bits when the range is split";
  }
}

template <typename Kernel, typename E>
void check_gemm_backward(const KernelRow& row, const std::string& filter) {
  Random random(21);
  const auto check = [&](const WeightCase& c, int shift) {
    check_gemm_backward_case<Kernel, E>(row, filter, random, c, shift);
  };
  for (int32_t M = 0; M <= 17; ++M) check({M, 5, 7, 0, 5, M % 2 == 1}, M % 4);
  for (int32_t N = 1; N <= 27; ++N) check({9, N, 1 + N % 19, N / 4, N, N % 3 == 0}, N % 4);
  for (int32_t K = 1; K <= 66; ++K) check({10 + K % 2, 13, K, 0, 13, K % 3 == 0}, K % 4);
  // More than a block of rows (256 · 2 at most) and more than a chunk of dw (192 rows).
  check({1100, 40, 33, 0, 40, true}, 1);
  check({515, 401, 17, 3, 400, false}, 2);
  // The real shapes of XSR, a part of each.
  check({300, 1536, 512, 1500, 1536, false}, 0);
  check({200, 512, 1024, 100, 130, true}, 0);
}

void check_column_sum(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<column_sum_f32_t*>(row.function);
  Random random(22);
  for (int32_t N : {1, 7, 8, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 300, 512}) {
    for (int32_t M : {0, 1, 3, 700}) {
      const bool accumulate = (N + M) % 2 == 0;
      const int32_t first = N / 5, last = N - N / 7;
      const int64_t stride = N + 3;
      Guarded dy = random_rows(random, M, N, stride, N % 4), sum(N, M % 4), plain(N), split(N, 1);
      std::vector<double> exact(N), wide = widen(dy);
      for (int32_t n = first; accumulate && n < last; ++n)
        exact[n] = sum[n] = plain[n] = split[n] = random.normal();
      for (int32_t m = 0; m < M; ++m) {
        for (int32_t n = 0; n < N; ++n) {
          if (n < first || n >= last) dy[m * stride + n] = NAN;
        }
      }
      kernel(dy.data(), stride, M, first, last, accumulate, sum.data());
      column_sum_f32_ref(dy.data(), stride, M, first, last, accumulate, plain.data());
      column_sum_ref<double>(wide.data(), stride, M, first, last, accumulate, exact.data());
      const int32_t middle = (first + last) / 2;
      kernel(dy.data(), stride, M, first, middle, accumulate, split.data());
      kernel(dy.data(), stride, M, middle, last, accumulate, split.data());
      const std::string what =
          row.name + shape_text({{"M", M}, {"N", N}, {"accumulate", accumulate}});
      ErrorBudget budget(kGradientBudget);
      for (int32_t n = 0; n < N; ++n) {
        if (n >= first && n < last) {
          budget.add(sum[n], plain[n], exact[n], 0, n);
          EXPECT_EQ(plain[n], sum[n]) << what << ": other bits than ref's at column " << n;
          EXPECT_EQ(split[n], sum[n]) << what << ": other bits when split, column " << n;
        } else {
          EXPECT_TRUE(std::isnan(sum[n])) << what << ": wrote column " << n;
        }
      }
      EXPECT_TRUE(budget.check(what, filter));
      EXPECT_TRUE(sum.intact()) << what;
    }
  }
}

struct AttentionCase {
  std::vector<int32_t> lengths;
  int32_t H, D;
  double drop;  // probability
};

const std::vector<AttentionCase>& attention_training_cases() {
  static const std::vector<AttentionCase> cases = {{{1, 0, 2, 3, 4, 5}, 2, 1, 0.5},
                                                   {{6, 7, 8, 9, 10}, 2, 5, 0},
                                                   {{11, 15, 16, 17}, 3, 8, 0.1},
                                                   {{31, 32, 33}, 1, 16, 0.3},
                                                   {{20, 0, 13, 27, 10}, 8, 64, 0.1},
                                                   {{20, 13}, 8, 64, 0},
                                                   {{12, 65}, 2, 17, 0.1},
                                                   {{7, 9}, 1, 80, 0.2},
                                                   {{200}, 1, 64, 0.1},
                                                   {{512}, 1, 32, 0.1}};
  return cases;
}

/// What a case of attention in training runs on.
struct AttentionInputs {
  AttentionInputs(Random& random, const AttentionCase& c, int shift)
      : cu{0}, stride(3 * c.H * c.D + 5), qkv(0), lse(0) {
    for (int32_t length : c.lengths) {
      cu.push_back(cu.back() + length);
      longest = std::max(longest, length);
    }
    N = cu.back();
    qkv = random_rows(random, N, 3 * c.H * c.D, stride, shift);
    lse = Guarded(N * c.H, shift);
    dropout.threshold = static_cast<uint32_t>(c.drop * 4294967296.0);
    dropout.scale = static_cast<float>(1 / (1 - c.drop));
    dropout.key[0] = 11;
    dropout.key[1] = 13;
    dropout.step = 5;
    dropout.stream = 100;
  }
  int32_t B() const { return static_cast<int32_t>(cu.size()) - 1; }
  std::vector<int32_t> cu;
  int32_t N = 0, longest = 0;
  int64_t stride;
  Guarded qkv, lse;
  Dropout dropout;
};

std::string attention_text(const KernelRow& row, const AttentionCase& c) {
  std::string what = row.name + shape_text({{"H", c.H}, {"D", c.D}}) + "  drop " +
                     std::to_string(c.drop) + "  lengths";
  for (int32_t length : c.lengths) what += " " + std::to_string(length);
  return what;
}

void check_attention_dropout(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<attention_dropout_forward_f32_t*>(row.function);
  Random random(23);
  int variant = 0;
  for (const AttentionCase& c : attention_training_cases()) {
    const int shift = variant++ % 4;
    AttentionInputs in(random, c, shift);
    const int32_t H = c.H, D = c.D, N = in.N, B = in.B();
    const int64_t out_stride = H * D + 3;
    Guarded out(N * out_stride, shift), plain(N * out_stride), plain_lse(N * H),
        scratch(attention_scratch_floats(in.longest, D));
    std::vector<double> exact(N * out_stride), exact_lse(N * H), wide = widen(in.qkv),
                                                                 wide_scratch(in.longest);
    kernel(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D, in.dropout, out.data(),
           out_stride, in.lse.data(), scratch.data());
    std::vector<float> plain_scratch(in.longest);
    attention_dropout_forward_f32_ref(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D,
                                      in.dropout, plain.data(), out_stride, plain_lse.data(),
                                      plain_scratch.data());
    attention_forward_ref<double>(wide.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D,
                                  exact.data(), out_stride, exact_lse.data(), wide_scratch.data(),
                                  in.dropout);
    const std::string what = attention_text(row, c);
    ErrorBudget budget, lse_budget(kGradientBudget);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t x = 0; x < H * D; ++x) {
        const int64_t at = i * out_stride + x;
        budget.add(out[at], plain[at], exact[at], i, x);
      }
      for (int32_t h = 0; h < H; ++h)
        lse_budget.add(in.lse[i * H + h], plain_lse[i * H + h], exact_lse[i * H + h], i, h);
    }
    EXPECT_TRUE(budget.check(what, filter));
    EXPECT_TRUE(lse_budget.check(what + " lse", filter));
    expect_untouched(out, N, H * D, out_stride, what);
    EXPECT_TRUE(scratch.intact()) << what << ": wrote outside its scratch";
    // One sentence, one head at a time: the same bits.
    Guarded split(N * out_stride, shift);
    for (int32_t b = 0; b < B; ++b) {
      for (int32_t h = 0; h < H; ++h) {
        kernel(in.qkv.data(), in.stride, in.cu.data(), b, b + 1, h, h + 1, H, D, in.dropout,
               split.data(), out_stride, nullptr, scratch.data());
      }
    }
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(split, out, N, H * D, out_stride, what + " split"));
    // Without dropout: the bits of the kernel for inference, whatever the scale says.
    Dropout none = in.dropout;
    none.threshold = 0;
    const auto forward = row.isa == Isa::kAvx512 ? attention_forward_f32_avx512
                         : row.isa == Isa::kAvx2 ? attention_forward_f32_avx2
                                                 : attention_forward_f32_ref;
    kernel(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D, none, out.data(), out_stride,
           nullptr, scratch.data());
    forward(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D, split.data(), out_stride,
            nullptr, scratch.data());
    ASSERT_NO_FATAL_FAILURE(
        expect_same_rows(split, out, N, H * D, out_stride, what + " without dropout"));
  }
}

/// At scores of thousands lse in f32 is off by a tenth of a thousandth: it must not reach P, whose
/// rows sum to one. Without dropout Σ_j dV[j] = Σ_i dO[i] then, and Σ_j dS[i, j] = 0, whatever the
/// scores.
void check_large_scores(const KernelRow& row) {
  auto* kernel = reinterpret_cast<attention_backward_f32_t*>(row.function);
  Random random(25);
  const AttentionCase c{{20, 1, 33}, 2, 24, 0};
  AttentionInputs in(random, c, 0);
  const int32_t H = c.H, D = c.D, C = H * D, N = in.N, B = in.B();
  for (int32_t i = 0; i < N; ++i) {
    for (int32_t h = 0; h < H; ++h) in.qkv[i * in.stride + C + h * D] = 1;
    for (int32_t x = 0; x < 2 * C; ++x) in.qkv[i * in.stride + x] *= 60;
  }
  std::vector<double> wide = widen(in.qkv), out(N * C), lse(N * H), wide_scratch(3 * in.longest);
  attention_forward_ref<double>(wide.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D, out.data(),
                                C, lse.data(), wide_scratch.data(), in.dropout);
  for (int64_t i = 0; i < N * H; ++i) in.lse[i] = static_cast<float>(lse[i]);
  Guarded dout = random_rows(random, N, C, C, 0), dqkv(int64_t{N} * 3 * C),
          scratch(attention_backward_scratch_floats(in.longest, D));
  kernel(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D, in.lse.data(), in.dropout,
         dout.data(), C, dqkv.data(), 3 * C, scratch.data());
  const std::string what = attention_text(row, c) + ", large scores";
  expect_whole_probabilities(what, in.cu, C, dout, dqkv, 1e-6);
  const auto x = [&](int32_t i, int32_t column) { return in.qkv[i * in.stride + column]; };
  test::expect_score_gradients_cancel(what, in.cu, H, D, 60, x, dout, dqkv, 1e-6);
}

void check_attention_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<attention_backward_f32_t*>(row.function);
  Random random(24);
  int variant = 0;
  for (const AttentionCase& c : attention_training_cases()) {
    const int shift = variant++ % 4;
    AttentionInputs in(random, c, shift);
    const int32_t H = c.H, D = c.D, N = in.N, B = in.B(), width = 3 * H * D;
    const int64_t out_stride = H * D + 3, stride = width + 2;
    Guarded dout = random_rows(random, N, H * D, out_stride, shift), dqkv(N * stride, shift),
            plain(N * stride), scratch(attention_backward_scratch_floats(in.longest, D));
    std::vector<double> exact(N * stride), out(N * out_stride), exact_lse(N * H),
        wide = widen(in.qkv), wide_dout = widen(dout), wide_scratch(3 * in.longest);
    attention_forward_ref<double>(wide.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D,
                                  out.data(), out_stride, exact_lse.data(), wide_scratch.data(),
                                  in.dropout);
    for (int64_t i = 0; i < N * H; ++i) in.lse[i] = static_cast<float>(exact_lse[i]);
    kernel(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D, in.lse.data(), in.dropout,
           dout.data(), out_stride, dqkv.data(), stride, scratch.data());
    std::vector<float> plain_scratch(3 * in.longest);
    attention_backward_f32_ref(in.qkv.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D,
                               in.lse.data(), in.dropout, dout.data(), out_stride, plain.data(),
                               stride, plain_scratch.data());
    attention_backward_ref<double>(wide.data(), in.stride, in.cu.data(), 0, B, 0, H, H, D,
                                   exact_lse.data(), in.dropout, wide_dout.data(), out_stride,
                                   exact.data(), stride, wide_scratch.data());
    const std::string what = attention_text(row, c);
    ErrorBudget budget(kGradientBudget);
    for (int32_t i = 0; i < N; ++i) {
      for (int32_t x = 0; x < width; ++x) {
        const int64_t at = i * stride + x;
        budget.add(dqkv[at], plain[at], exact[at], i, x);
      }
    }
    EXPECT_TRUE(budget.check(what, filter));
    expect_untouched(dqkv, N, width, stride, what);
    EXPECT_TRUE(scratch.intact()) << what << ": wrote outside its scratch";
    // One sentence, one head at a time: the same bits.
    Guarded split(N * stride, shift);
    for (int32_t b = B - 1; b >= 0; --b) {
      for (int32_t h = 0; h < H; ++h) {
        kernel(in.qkv.data(), in.stride, in.cu.data(), b, b + 1, h, h + 1, H, D, in.lse.data(),
               in.dropout, dout.data(), out_stride, split.data(), stride, scratch.data());
      }
    }
    ASSERT_NO_FATAL_FAILURE(expect_same_rows(split, dqkv, N, width, stride, what + " split"));
  }
  check_large_scores(row);
}

void check_vocabulary_softmax(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<vocabulary_softmax_forward_f32_t*>(row.function);
  Random random(20);
  int variant = 0;
  for (int32_t N : widths()) {
    const int32_t R = variant % 5 == 0 ? 1 : 37, first = N > 40 ? 3 : 0, last = N - first;
    const int64_t stride = N + 3;
    const bool with_bias = variant % 2, in_place = variant % 3 == 0;
    const int shift = variant++ % 4;
    // The released initialisation gives logits of this size (docs/methods.md, Initial values).
    Guarded z = random_rows(random, R, N, stride, shift, 22.6f), bias(R);
    for (int32_t v = 0; v < R; ++v) bias[v] = random.normal();
    std::vector<double> z64 = widen(z), bias64 = widen(bias), e64(R * stride), max64(N), sum64(N);
    Guarded plain(R * stride), plain_max(N), plain_sum(N), e(R * stride, shift), max(N), sum(N);
    std::vector<uint16_t> narrow(R * stride, 0x1234);
    const float* b = with_bias ? bias.data() : nullptr;
    vocabulary_softmax_forward_f32_ref(z.data(), stride, R, b, first, last, plain_max.data(),
                                       plain_sum.data(), plain.data(), stride, nullptr, 0);
    vocabulary_softmax_forward_ref<double>(
        z64.data(), stride, R, with_bias ? bias64.data() : nullptr, first, last, max64.data(),
        sum64.data(), e64.data(), stride, nullptr, 0);
    Guarded& out = in_place ? z : e;
    kernel(z.data(), stride, R, b, first, last, max.data(), sum.data(), out.data(), stride,
           narrow.data(), stride);
    const std::string what = row.name + shape_text({{"R", R}, {"N", N}, {"first", first}});
    ErrorBudget exponentials, maxima, sums;
    for (int32_t j = first; j < last; ++j) {
      for (int32_t v = 0; v < R; ++v) {
        const int64_t at = v * stride + j;
        exponentials.add(out[at], plain[at], e64[at], v, j);
        ASSERT_EQ(bf16_from_f32(out[at]), narrow[at]) << what << " row " << v << " col " << j;
      }
      maxima.add(max[j], plain_max[j], max64[j], 0, j);
      sums.add(sum[j], plain_sum[j], sum64[j], 0, j);
    }
    EXPECT_TRUE(exponentials.check(what + " exponentials", filter));
    EXPECT_TRUE(maxima.check(what + " max", filter));
    EXPECT_TRUE(sums.check(what + " sum", filter));
    expect_untouched(out, R, N, stride, what);
    EXPECT_TRUE(max.intact() && sum.intact()) << what;
    for (int32_t j = 0; j < N; ++j) {
      if (j >= first && j < last) continue;
      EXPECT_TRUE(std::isnan(max[j]) && std::isnan(sum[j])) << what << ": wrote column " << j;
      for (int32_t v = 0; v < R; ++v) EXPECT_EQ(0x1234, narrow[v * stride + j]) << what;
    }
    for (int32_t v = 0; v < R; ++v) {
      for (int64_t j = N; j < stride; ++j) EXPECT_EQ(0x1234, narrow[v * stride + j]) << what;
    }
  }
  // What is not finite must show in the sum of its column, and in no other.
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    const int32_t R = 5, N = 45;
    for (int32_t at = 0; at < N; ++at) {
      Guarded z = random_rows(random, R, N, N, 0), max(N), sum(N);
      z[2 * N + at] = bad;
      kernel(z.data(), N, R, nullptr, 0, N, max.data(), sum.data(), z.data(), N, nullptr, 0);
      for (int32_t j = 0; j < N; ++j) EXPECT_EQ(j != at, std::isfinite(sum[j])) << row.name << j;
    }
  }
  float max = 0, sum = 1;
  kernel(nullptr, 1, 0, nullptr, 0, 1, &max, &sum, nullptr, 0, nullptr, 0);
  EXPECT_EQ(-INFINITY, max);
  EXPECT_EQ(0, sum);
}

void check_vocabulary_softmax_backward(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<vocabulary_softmax_backward_f32_t*>(row.function);
  Random random(21);
  int variant = 0;
  for (int32_t N : widths()) {
    const int32_t R = 7;
    const int64_t stride = N + 3;
    const bool in_place = variant % 3 == 0;
    const int shift = variant++ % 4;
    Guarded e = random_rows(random, R, N, stride, shift), factor(N, shift), dbias(R);
    Guarded dz(R * stride), plain(R * stride), plain_dbias(R);
    for (int32_t b = 0; b < N; ++b) factor[b] = random.normal();
    for (int32_t v = 0; v < R; ++v) plain_dbias[v] = dbias[v] = random.normal();
    std::vector<double> e64 = widen(e), factor64 = widen(factor), dbias64 = widen(dbias),
                        dz64(R * stride);
    vocabulary_softmax_backward_f32_ref(e.data(), stride, R, N, factor.data(), plain.data(), stride,
                                        plain_dbias.data());
    vocabulary_softmax_backward_ref<double>(e64.data(), stride, R, N, factor64.data(), dz64.data(),
                                            stride, dbias64.data());
    Guarded& out = in_place ? e : dz;
    kernel(e.data(), stride, R, N, factor.data(), out.data(), stride, dbias.data());
    const std::string what = row.name + shape_text({{"N", N}});
    ErrorBudget products(3), sums(3);
    for (int32_t v = 0; v < R; ++v) {
      for (int32_t b = 0; b < N; ++b) {
        const int64_t at = v * stride + b;
        products.add(out[at], plain[at], dz64[at], v, b);
      }
      sums.add(dbias[v], plain_dbias[v], dbias64[v], v, 0);
    }
    EXPECT_TRUE(products.check(what + " dz", filter));
    EXPECT_TRUE(sums.check(what + " dbias", filter));
    expect_untouched(out, R, N, stride, what);
    EXPECT_TRUE(dbias.intact()) << what;
  }
}

void check_vocabulary_softmax_backward_bf16(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<vocabulary_softmax_backward_bf16_t*>(row.function);
  Random random(22);
  for (int32_t N : widths()) {
    const int32_t R = 5;
    const int64_t stride = N + 3;
    std::vector<uint16_t> e(R * stride, 0x7fc1), dz(R * stride, 0x1234);
    Guarded factor(N, N % 4), dbias(R), plain_dbias(R);
    for (int32_t b = 0; b < N; ++b) factor[b] = random.normal();
    for (int32_t v = 0; v < R; ++v) {
      plain_dbias[v] = dbias[v] = random.normal();
      for (int32_t b = 0; b < N; ++b) e[v * stride + b] = bf16_from_f32(random.normal());
    }
    std::vector<double> dbias64 = widen(dbias);
    std::vector<uint16_t> plain(R * stride, 0x1234);
    vocabulary_softmax_backward_bf16_ref(e.data(), stride, R, N, factor.data(), plain.data(),
                                         stride, plain_dbias.data());
    for (int32_t v = 0; v < R; ++v) {
      for (int32_t b = 0; b < N; ++b) {
        dbias64[v] += static_cast<double>(f32_from_bf16(e[v * stride + b])) * factor[b];
      }
    }
    const std::vector<uint16_t> stored = e;
    kernel(stored.data(), stride, R, N, factor.data(), dz.data(), stride, dbias.data());
    EXPECT_EQ(plain, dz) << row.name << " N=" << N;  // one product, rounded once
    kernel(e.data(), stride, R, N, factor.data(), e.data(), stride, nullptr);
    ErrorBudget sums(3);
    for (int32_t v = 0; v < R; ++v) {
      sums.add(dbias[v], plain_dbias[v], dbias64[v], v, 0);
      for (int32_t b = 0; b < stride; ++b) {
        EXPECT_EQ(b < N ? plain[v * stride + b] : 0x7fc1, e[v * stride + b]) << row.name;
      }
    }
    EXPECT_TRUE(sums.check(row.name + shape_text({{"N", N}}) + " dbias", filter));
  }
}

void check_softmax(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<softmax_forward_f32_t*>(row.function);
  Random random(23);
  int variant = 0;
  for (int32_t N : widths()) {
    const int32_t rows = 5, first = 1, last = 4;
    const int64_t stride = N + 2;
    const bool in_place = variant % 3 == 0;
    const float gain = variant % 2 ? -0.25f : 1.0f;
    const int shift = variant++ % 4;
    Guarded s = random_rows(random, rows, N, stride, shift, 20);
    Guarded p(rows * stride, shift), max(rows), sum(rows);
    Guarded plain(rows * stride), plain_max(rows), plain_sum(rows);
    std::vector<double> s64 = widen(s), p64(rows * stride), max64(rows), sum64(rows);
    softmax_forward_f32_ref(s.data(), stride, first, last, N, gain, plain.data(), stride,
                            plain_max.data(), plain_sum.data());
    softmax_forward_ref<double>(s64.data(), stride, first, last, N, gain, p64.data(), stride,
                                max64.data(), sum64.data());
    Guarded& out = in_place ? s : p;
    kernel(s.data(), stride, first, last, N, gain, out.data(), stride, max.data(), sum.data());
    const std::string what = row.name + shape_text({{"N", N}});
    ErrorBudget shares, maxima, sums;
    for (int32_t i = first; i < last; ++i) {
      for (int32_t j = 0; j < N; ++j) {
        const int64_t at = i * stride + j;
        shares.add(out[at], plain[at], p64[at], i, j);
      }
      maxima.add(max[i], plain_max[i], max64[i], i, 0);
      sums.add(sum[i], plain_sum[i], sum64[i], i, 0);
    }
    EXPECT_TRUE(shares.check(what + " p", filter));
    EXPECT_TRUE(maxima.check(what + " max", filter));
    EXPECT_TRUE(sums.check(what + " sum", filter));
    expect_untouched(out, rows, N, stride, what);
    EXPECT_TRUE(max.intact() && sum.intact() && std::isnan(sum[0]) && std::isnan(sum[4])) << what;
  }
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    const int32_t N = 45;
    for (int32_t at = 0; at < N; ++at) {
      Guarded s = random_rows(random, 2, N, N, 0), max(2), sum(2);
      s[N + at] = bad;
      kernel(s.data(), N, 0, 2, N, 1, s.data(), N, max.data(), sum.data());
      EXPECT_TRUE(std::isfinite(sum[0]) && std::isnan(sum[1])) << row.name << " " << bad;
      for (int32_t j = 0; j < N; ++j) EXPECT_TRUE(std::isnan(s[N + j])) << row.name << " " << bad;
    }
  }
}

void check_sim(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<sim_forward_backward_f32_t*>(row.function);
  Random random(24);
  for (double min_cosine : {0.0, 1e-3, 0.5}) {
    for (int32_t N : {1, 2, 7, 33, 128}) {
      const int32_t rows = 4, first = 1, last = 3;
      const int64_t stride = N + 2;
      const double argument = M_PI / 2, gain = 0.7;
      Guarded p1(rows * stride), p2(rows * stride);
      for (int32_t i = 0; i < rows; ++i) {  // softmaxes that range from alike to opposed
        for (Guarded* p : {&p1, &p2}) {
          std::vector<double> x(N);
          double total = 0;
          for (double& value : x) total += value = std::exp(random.normal(i == 1 ? 0.2f : 4.0f));
          for (int32_t j = 0; j < N; ++j) (*p)[i * stride + j] = static_cast<float>(x[j] / total);
        }
      }
      Guarded ds1(rows * stride), ds2(rows * stride);
      std::memcpy(ds1.data(), p1.data(), rows * stride * 4);
      std::memcpy(ds2.data(), p2.data(), rows * stride * 4);
      std::vector<double> loss(rows, -1);
      kernel(ds1.data(), ds2.data(), stride, first, last, N, argument, min_cosine, gain,
             loss.data());
      const std::string what = row.name + shape_text({{"N", N}}) + std::to_string(min_cosine);
      ErrorBudget gradient(3);
      for (int32_t i = first; i < last; ++i) {
        double total = 0, dot1 = 0, dot2 = 0;
        std::vector<double> g(N);
        for (int32_t j = 0; j < N; ++j) {
          const double q1 = p1[i * stride + j], q2 = p2[i * stride + j];
          const double cosine = std::cos(argument * (q1 - q2));
          total -= std::log(std::max(cosine, min_cosine));
          g[j] = cosine < min_cosine ? 0 : gain * argument * std::tan(argument * (q1 - q2));
          dot1 += q1 * g[j];
          dot2 += q2 * g[j];
        }
        EXPECT_NEAR(total, loss[i], 1e-13 * N + 1e-12 * total) << what;
        for (int32_t j = 0; j < N; ++j) {
          const double q1 = p1[i * stride + j], q2 = p2[i * stride + j];
          const double exact1 = q1 * (g[j] - dot1), exact2 = q2 * (dot2 - g[j]);
          gradient.add(ds1[i * stride + j], static_cast<float>(exact1), exact1, i, j);
          gradient.add(ds2[i * stride + j], static_cast<float>(exact2), exact2, i, j);
        }
      }
      EXPECT_TRUE(gradient.check(what, filter));
      EXPECT_EQ(-1, loss[0]);
      EXPECT_EQ(-1, loss[3]);
      expect_untouched(ds1, rows, N, stride, what);
      expect_untouched(ds2, rows, N, stride, what);
      EXPECT_EQ(0, std::memcmp(ds1.data(), p1.data(), N * 4)) << what << ": wrote row 0";
    }
  }
  float p1[2] = {NAN, 0.5f}, p2[2] = {0.5f, 0.5f};
  double loss = 0;
  kernel(p1, p2, 2, 0, 1, 2, M_PI / 2, 1e-3, 1, &loss);
  EXPECT_TRUE(std::isnan(loss));
  float far1[1] = {1.0f}, far2[1] = {0.0f};  // EMS: cos π < 0 has no logarithm, but a bound
  kernel(far1, far2, 1, 0, 1, 1, M_PI, 0, 1, &loss);
  EXPECT_TRUE(std::isnan(loss));
  far1[0] = 1, far2[0] = 0;
  kernel(far1, far2, 1, 0, 1, 1, M_PI, 1e-3, 1, &loss);
  EXPECT_DOUBLE_EQ(-std::log(1e-3), loss);
}

void check_adam(const KernelRow& row, const std::string& filter) {
  auto* kernel = reinterpret_cast<adam_update_f32_t*>(row.function);
  Random random(25);
  int variant = 0;
  for (int32_t n : widths()) {
    const int64_t first = n > 20 ? 3 : 0, last = n - first;
    const bool amsgrad = variant % 2, narrow = variant % 3 != 0;
    const int shift = variant++ % 4;
    AdamStep step;
    step.gradient_scale = 0.5f;
    step.l2 = variant % 2 ? 1e-2f : 0;
    step.shrink = variant % 2 ? 0 : 0.01f;
    step.step_size = 1e-2f;
    step.inverse_correction2 = 1.5f;
    step.eps = 0.02f;
    Guarded gradient(n, shift), state[4] = {Guarded(n, shift), Guarded(n), Guarded(n), Guarded(n)};
    for (int32_t i = 0; i < n; ++i) {
      gradient[i] = i % 7 == 0 ? 0 : random.normal();
      state[0][i] = random.normal();
      state[1][i] = random.normal();
      state[2][i] = std::fabs(random.normal());
      state[3][i] = std::fabs(random.normal());
      if (i % 14 == 7) state[1][i] = state[2][i] = state[3][i] = 0;  // as of a word never seen
    }
    if (n > 12)
      state[0][12] = f32_from_bits(0x7fffffff);  // a NaN, which rounding must not carry on
    std::vector<double> exact[4], gradient64 = widen(gradient);
    Guarded plain[4] = {Guarded(n), Guarded(n), Guarded(n), Guarded(n)};
    for (int k = 0; k < 4; ++k) {
      exact[k] = widen(state[k]);
      std::memcpy(plain[k].data(), state[k].data(), n * sizeof(float));
    }
    std::vector<uint16_t> copy(n, 0x1234);
    kernel(state[0].data(), gradient.data(), state[1].data(), state[2].data(),
           amsgrad ? state[3].data() : nullptr, narrow ? copy.data() : nullptr, first, last, step);
    adam_update_f32_ref(plain[0].data(), gradient.data(), plain[1].data(), plain[2].data(),
                        amsgrad ? plain[3].data() : nullptr, nullptr, first, last, step);
    adam_update_ref<double>(exact[0].data(), gradient64.data(), exact[1].data(), exact[2].data(),
                            amsgrad ? exact[3].data() : nullptr, nullptr, first, last, step);
    const std::string what = row.name + shape_text({{"n", n}, {"amsgrad", amsgrad}});
    for (int k = 0; k < 4; ++k) {
      ErrorBudget budget;
      for (int32_t i = 0; i < n; ++i) budget.add(state[k][i], plain[k][i], exact[k][i], k, i);
      EXPECT_TRUE(budget.check(what, filter));
      EXPECT_TRUE(state[k].intact()) << what;
    }
    for (int32_t i = 0; i < n; ++i) {
      const bool written = narrow && i >= first && i < last;
      EXPECT_EQ(written ? bf16_from_f32(state[0][i]) : 0x1234, copy[i]) << what << " at " << i;
    }
  }
}

void check_sum_of_squares(const KernelRow& row, const std::string&) {
  auto* kernel = reinterpret_cast<sum_of_squares_f32_t*>(row.function);
  Random random(26);
  for (int32_t n : widths()) {
    for (float scale : {1.0f, 1e30f, 1e-30f}) {  // squares beyond the range of f32
      Guarded x(n, n % 4);
      long double exact = 0;
      for (int32_t i = 0; i < n; ++i) {
        x[i] = random.normal(scale);
        exact += static_cast<long double>(x[i]) * x[i];
      }
      const double sum = kernel(x.data(), n);
      EXPECT_NEAR(1, static_cast<double>(sum / exact), 1e-14) << row.name << " n=" << n;
      EXPECT_EQ(sum_of_squares_f32_ref(x.data(), n), sum) << row.name << " n=" << n;
    }
  }
  const float bad[3] = {1, NAN, 2};
  EXPECT_TRUE(std::isnan(kernel(bad, 3)));
  EXPECT_EQ(0, kernel(bad, 0));
}

const std::map<std::string, std::function<void(const KernelRow&, const std::string&)>> kChecks = {
    {"embedding_forward_f32", check_embedding},
    {"qkv_table_forward_f32", check_qkv_table},
    {"layernorm_forward_f32", check_layernorm},
    {"gemm_forward_f32", check_gemm},
    {"attention_forward_f32", check_attention},
    {"attention_forward_bf16", check_attention_bf16},
    {"gemm_forward_bf16", check_gemm_bf16},
    {"gemm_forward_bf16x3", check_gemm_bf16x3},
    {"split_forward_bf16x3", check_split_bf16x3},
    {"narrow_forward_bf16", check_narrow_bf16},
    {"activation_forward_f32", check_activation},
    {"gemm_forward_i8", check_gemm_i8},
    {"quantize_forward_u8", check_quantize_u8},
    {"quantize_columns_i8", check_quantize_columns_i8},
    {"gemm_backward_weight_i8", check_gemm_backward_weight_i8},
    {"embedding_forward_i8", check_embedding_i8},
    {"pooling_forward_f32", check_pooling},
    {"l2_normalize_forward_f32", check_l2_normalize},
    {"inner_products_forward_f64", check_inner_products},
    {"layernorm_backward_f32", check_layernorm_backward},
    {"activation_backward_f32", check_activation_backward},
    {"pooling_backward_f32", check_pooling_backward},
    {"l2_normalize_backward_f32", check_l2_normalize_backward},
    {"embedding_backward_f32", check_embedding_backward},
    {"dropout_forward_f32", check_dropout},
    {"gemm_backward_weight_f32", check_gemm_backward<gemm_backward_weight_f32_t, float>},
    {"gemm_backward_weight_bf16", check_gemm_backward<gemm_backward_weight_bf16_t, uint16_t>},
    {"column_sum_f32", check_column_sum},
    {"attention_dropout_forward_f32", check_attention_dropout},
    {"attention_backward_f32", check_attention_backward},
    {"vocabulary_softmax_forward_f32", check_vocabulary_softmax},
    {"vocabulary_softmax_backward_f32", check_vocabulary_softmax_backward},
    {"vocabulary_softmax_backward_bf16", check_vocabulary_softmax_backward_bf16},
    {"softmax_forward_f32", check_softmax},
    {"sim_forward_backward_f32", check_sim},
    {"adam_update_f32", check_adam},
    {"sum_of_squares_f32", check_sum_of_squares}};

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

TEST(BucketRows, ListsEveryRowOnceInOrder) {
  Random random(18);
  for (int32_t N : {0, 1, 2, 17, 200}) {
    for (int32_t V : {1, 5, 1000}) {
      for (int32_t skipped : {-1, 0, V - 1}) {
        std::vector<int32_t> ids(N), memory(bucket_rows_memory(N, V) + 1, -7);
        std::map<int32_t, std::vector<int32_t>> expected;
        for (int32_t i = 0; i < N; ++i) {
          ids[i] = random.range(0, V - 1);
          if (ids[i] != skipped) expected[ids[i]].push_back(i);
        }
        const RowBuckets buckets = bucket_rows(ids.data(), N, V, skipped, memory.data());
        EXPECT_EQ(-7, memory.back()) << "wrote beyond its memory";
        ASSERT_EQ(static_cast<int32_t>(expected.size()), buckets.count);
        EXPECT_EQ(0, buckets.starts[0]);
        int32_t u = 0;
        for (const auto& [id, rows] : expected) {  // a std::map rises
          EXPECT_EQ(id, buckets.ids[u]);
          EXPECT_EQ(rows, std::vector<int32_t>(buckets.rows + buckets.starts[u],
                                               buckets.rows + buckets.starts[u + 1]));
          ++u;
        }
      }
    }
  }
}

TEST(Dispatch, TakesTheFastestKernelUnderTheCap) {
  for (Isa cap : {Isa::kRef, Isa::kAvx2, Isa::kAvx2Vnni, Isa::kAvx512, Isa::kAvx512Vnni,
                  Isa::kAvx512Bf16, Isa::kAmx}) {
    const KernelTable table = resolve_kernels(cap);
    Isa expected = Isa::kRef;  // the fastest of this CPU under the cap
    for (Isa isa : {Isa::kAvx2, Isa::kAvx2Vnni, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16,
                    Isa::kAmx}) {
      if (isa <= cap && isa_supported(isa)) expected = isa;
    }
    EXPECT_EQ(expected, table.isa);
#define XSR_OP(op)                     \
  ASSERT_NE(nullptr, table.op) << #op; \
  EXPECT_LE(table.op##_isa, cap) << #op;
#include "kernels/kernels.inc"
  }
  EXPECT_EQ(isa_of_bits(Isa::kAvx2Vnni), Isa::kAvx2);
  EXPECT_EQ(isa_of_bits(Isa::kAvx512Vnni), Isa::kAvx512Vnni);
  EXPECT_EQ(&gemm_forward_f32_ref, resolve_kernels(Isa::kRef).gemm_forward_f32);
  if (isa_supported(Isa::kAvx512)) {
    EXPECT_EQ(&gemm_forward_f32_avx512, resolve_kernels(Isa::kAvx512).gemm_forward_f32);
  }
}

TEST(Dispatch, NamesRoundTrip) {
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx2Vnni, Isa::kAvx512, Isa::kAvx512Vnni,
                  Isa::kAvx512Bf16, Isa::kAmx}) {
    Isa parsed;
    ASSERT_TRUE(parse_isa(isa_name(isa), &parsed));
    EXPECT_EQ(isa, parsed);
  }
  Isa parsed;
  EXPECT_FALSE(parse_isa("AVX512", &parsed));
  EXPECT_FALSE(parse_isa("", &parsed));
}

TEST(Pack, FromBf16GivesThePanelsThatRoundingF32Gives) {
  for (const std::pair<int32_t, int32_t>& shape :
       {std::pair{37, 5}, std::pair{1, 1}, std::pair{64, 96}, std::pair{33, 71}}) {
    const int32_t N = shape.first, K = shape.second, stride = K + 3;
    Random random(1);
    std::vector<float> wide(N * stride);
    for (float& value : wide) value = random.normal();
    const std::vector<uint16_t> narrow = operand<uint16_t>(wide.data(), wide.size());
    const auto compare = [&](int32_t outputs, int32_t inputs, auto&& from_wide,
                             auto&& from_narrow) {
      const int64_t elements = packed_elements(outputs, inputs, Storage::kBF16);
      std::vector<uint16_t> expected(elements, 0xffffu), found(elements, 0xffffu);
      // A panel at a time, as threads do: the others are left alone.
      for (int32_t panel = 0; panel < panel_count(outputs); ++panel) {
        from_wide(panel, expected.data());
        from_narrow(panel, found.data());
        ASSERT_EQ(expected, found) << N << " " << K << ", panel " << panel;
      }
    };
    compare(
        N, K,
        [&](int32_t panel, uint16_t* packed) {
          gemm_pack_panels(wide.data(), stride, N, K, Storage::kBF16, panel, panel + 1, packed);
        },
        [&](int32_t panel, uint16_t* packed) {
          gemm_pack_panels(narrow.data(), stride, N, K, panel, panel + 1, packed);
        });
    compare(
        K, N,
        [&](int32_t panel, uint16_t* packed) {
          gemm_pack_transposed_panels(wide.data(), stride, N, K, Storage::kBF16, panel, panel + 1,
                                      packed);
        },
        [&](int32_t panel, uint16_t* packed) {
          gemm_pack_transposed_panels(narrow.data(), stride, N, K, panel, panel + 1, packed);
        });
  }
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

TEST(Pack, WeightsInEightBitsAreHalfAStepAway) {
  Random random(15);
  const int32_t N = 37, K = 9;
  std::vector<float> dense(N * K);
  for (float& value : dense) value = random.normal();
  for (int32_t k = 0; k < K; ++k) {
    dense[3 * K + k] = 0;
    dense[4 * K + k] = 1e-40f;  // too small for a scale
    dense[5 * K + k] = k % 2 ? 3.4e38f : -3.4e38f;
  }
  std::vector<int8_t> packed(packed_elements(N, K, Storage::kI8)), row(K);
  std::vector<float> scales(N);
  std::vector<int32_t> sums(N);
  gemm_quantize_panels(dense.data(), N, K, packed.data(), scales.data());
  PackedMatrix w{packed.data(), Storage::kI8, N, K, scales.data(), nullptr};
  gemm_sum_panels(w, sums.data());
  int64_t filled = 0;
  for (const int8_t q : packed) filled += q != 0;
  for (int32_t n = 0; n < N; ++n) {
    EXPECT_EQ(scales[n], quantize_row_i8(&dense[n * K], K, row.data()));
    float largest = 0;
    int32_t sum = 0;
    for (int32_t k = 0; k < K; ++k) {
      const float value = dense[n * K + k], found = gemm_packed_element(w, n, k);
      EXPECT_EQ(row[k], packed[packed_index(n, k, K, 4)]);
      EXPECT_LE(std::fabs(double{value} - found), n == 4 ? 1e-40 : 0.5001 * scales[n]);
      largest = std::max(largest, std::fabs(value));
      sum += row[k];
      filled -= row[k] != 0;
    }
    EXPECT_EQ(sum, sums[n]);
    EXPECT_EQ(n == 3 || n == 4 ? 0 : largest / 127, scales[n]);
  }
  EXPECT_EQ(0, filled) << "the padding is zero";
}

TEST(Pack, StepsHaveMasksOnlyWhereAPairCouldSaturate) {
  if (!isa_supported(Isa::kAvx2)) GTEST_SKIP() << "needs AVX2";
  const int32_t K = 12;
  std::vector<unsigned char> bytes(packed_elements(32, K, Storage::kI8) + 64);
  int8_t* data = reinterpret_cast<int8_t*>(aligned64(bytes));
  for (int32_t n = 0; n < 32; ++n) {
    for (int32_t k = 0; k < K; ++k) data[packed_index(n, k, K, 4)] = n % 2 == 0 ? 64 : -64;
  }
  const auto pair = [&](int32_t n, int32_t k, int8_t first, int8_t second) {
    data[packed_index(n, k, K, 4)] = first;
    data[packed_index(n, k + 1, K, 4)] = second;
  };
  const auto expect_steps = [&](int32_t plain, int32_t flipped, int32_t offset) {
    PackedMatrix w{data, Storage::kI8, 32, K};
    Steps steps;
    steps.pack(w);
    const char* begin = static_cast<const char*>(w.steps);
    StepsI8 half[2];
    for (int32_t i = 0; i < 2; ++i) {
      int64_t offset_of_half;
      std::memcpy(&offset_of_half, begin + 8 * i, 8);
      std::memcpy(&half[i], begin + offset_of_half, sizeof half[i]);
    }
    EXPECT_EQ(3, half[0].plain);
    EXPECT_EQ(0, half[0].flipped);
    EXPECT_EQ(plain, half[1].plain);
    EXPECT_EQ(flipped, half[1].flipped);
    EXPECT_EQ(offset, half[1].offsets[5]);
  };
  expect_steps(3, 0, 0);
  pair(21, 4, 127, 2);  // 129
  expect_steps(2, 1, 255 * 2);
  pair(21, 4, 127, 1);
  expect_steps(3, 0, 0);
  pair(21, 6, -1, -128);
  expect_steps(2, 1, 255 * -1);  // -128 itself cannot be flipped
  pair(21, 6, -128, -128);
  expect_steps(4, 0, 0);
}

TEST(Pack, PanelsAreRoundedAndWidenedAsTheDenseMatrixIs) {
  Random random(16);
  for (const Storage storage : {Storage::kF32, Storage::kBF16, Storage::kF16}) {
    for (const auto& [N, K] : {std::pair{37, 9}, {1, 1}, {32, 4}, {64, 130}, {33, 7}}) {
      SCOPED_TRACE(std::to_string(N) + " x " + std::to_string(K));
      std::vector<float> dense(N * K);
      for (float& value : dense) value = random.normal();
      std::fill_n(dense.begin() + (N - 1) * K, N > 1 ? K : 0, 0.0f);  // without a scale
      std::vector<uint32_t> panels(packed_elements(N, K, storage));
      gemm_pack_panels(dense.data(), N, K, storage, panels.data());
      const PackedMatrix w{panels.data(), storage, N, K};
      for (int32_t i = 0; i < N * K; ++i) dense[i] = gemm_packed_element(w, i / K, i % K);
      const int64_t bytes = packed_elements(N, K, Storage::kI8);
      std::vector<int8_t> expected(bytes), found(bytes, 77);
      std::vector<float> expected_scales(N), found_scales(N);
      gemm_quantize_panels(dense.data(), N, K, expected.data(), expected_scales.data());
      gemm_quantize_panels(w, found.data(), found_scales.data());
      EXPECT_EQ(expected, found);
      EXPECT_EQ(expected_scales, found_scales);

      // Panel by panel from rows further apart.
      std::vector<int32_t> expected_sums(N), sums(N, 77);
      gemm_sum_panels({expected.data(), Storage::kI8, N, K, expected_scales.data()},
                      expected_sums.data());
      const int32_t stride = K + 3;
      std::vector<float> apart(N * stride, NAN);
      for (int32_t i = 0; i < N * K; ++i) apart[i / K * stride + i % K] = dense[i];
      std::fill(found.begin(), found.end(), 77);
      std::fill(found_scales.begin(), found_scales.end(), 77.0f);
      for (int32_t panel = panel_count(N) - 1; panel >= 0; --panel) {
        gemm_quantize_panels(apart.data(), stride, N, K, panel, panel + 1, found.data(),
                             found_scales.data(), sums.data());
      }
      EXPECT_EQ(expected, found);
      EXPECT_EQ(expected_scales, found_scales);
      EXPECT_EQ(expected_sums, sums);

      const PackedMatrix i8{found.data(), Storage::kI8, N, K, found_scales.data(), nullptr};
      for (int32_t i = 0; i < N * K; ++i) dense[i] = gemm_packed_element(i8, i / K, i % K);
      std::vector<float> packed(packed_elements(N, K, Storage::kF32)), widened(packed.size(), 7);
      gemm_pack_panels(dense.data(), N, K, Storage::kF32, packed.data());
      gemm_widen_panels(i8, widened.data());
      EXPECT_EQ(packed, widened);

      // What is not finite must show in the products.
      apart[0] = NAN;
      apart[(N - 1) * stride + K - 1] = std::numeric_limits<float>::infinity();
      gemm_quantize_panels(apart.data(), stride, N, K, 0, panel_count(N), found.data(),
                           found_scales.data(), sums.data());
      EXPECT_FALSE(std::isfinite(found_scales[0]) || std::isfinite(found_scales[N - 1]));
      EXPECT_TRUE(sums[0] == 0 && sums[N - 1] == 0);
      gemm_pack_panels(apart.data(), stride, N, K, storage, 0, panel_count(N), panels.data());
      std::vector<int8_t> codes(bytes, 77);
      gemm_quantize_panels(w, codes.data(), expected_scales.data());
      EXPECT_FALSE(std::isfinite(expected_scales[0]) || std::isfinite(expected_scales[N - 1]));
      EXPECT_EQ(found, codes);
    }
  }
}

TEST(Pack, NarrowingRoundsToNearestEven) {
  EXPECT_EQ(0x3f80, bf16_from_f32(1.0f));
  EXPECT_EQ(0x3f80, bf16_from_f32(1.0f + 1.0f / 256));  // a tie goes to the even neighbour below
  EXPECT_EQ(0x3f82, bf16_from_f32(1.0f + 3.0f / 256));  // and above
  EXPECT_EQ(0x7f80, bf16_from_f32(3.4e38f));            // rounds up to infinity
  EXPECT_EQ(0x3c00, f16_from_f32(1.0f));
  EXPECT_EQ(0x7bff, f16_from_f32(65504.0f));
  EXPECT_EQ(0x7bff, f16_from_f32(65519.0f));
  EXPECT_EQ(0x7c00, f16_from_f32(65520.0f));
  EXPECT_EQ(0x0001, f16_from_f32(5.9604645e-8f));
  EXPECT_EQ(0x0000, f16_from_f32(2.9802322e-8f));  // half of the smallest: a tie to zero
  EXPECT_EQ(0x0400, f16_from_f32(6.1035156e-5f));
  for (const uint32_t bits : {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0xff800001u}) {
    EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_from_f32(f32_from_bits(bits))))) << std::hex << bits;
    EXPECT_TRUE(std::isnan(f32_from_f16(f16_from_f32(f32_from_bits(bits))))) << std::hex << bits;
  }
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
