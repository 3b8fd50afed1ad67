// Every kernel of kernels.inc that this CPU runs, on the shapes of the XSR encoder, by Google
// Benchmark. A kernel whose result differs from ref's is reported as an error and not timed.
//
//     xsr_microbench --benchmark_filter='gemm_forward_f32_avx512/f32/qkv'
//
// Weights and the token table are larger than L2 and visited in turn, as in a model: one hot matrix
// in a loop flatters a gemm by 5 to 9 %.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "bench/huge_buffer.h"
#include "kernels/dispatch.h"
#include "kernels/gemm/gemm_backward_ref.h"
#include "kernels/shapes.h"
#include "runtime/text/standard_streams.h"
#ifdef XSR_HAVE_ONEDNN
#include "kernels/gemm/gemm_onednn.h"
#endif

namespace xsr::bench {
namespace {

using namespace xsr::kernels;

// What the model's weights come to in f32; more than any L2.
constexpr size_t kWeightBytes = size_t{16} << 20;
// Rows of the ref kernels are few: they are here to be compared with, not to wait for.
constexpr int32_t kRefRows = 20;
constexpr int32_t kC = kXsrHiddenSize;

const char* storage_name(Storage storage) {
  return storage == Storage::kF32 ? "f32" : storage == Storage::kF16 ? "f16" : "bf16";
}
constexpr Storage kStorages[] = {Storage::kF32, Storage::kBF16, Storage::kF16};

constexpr struct {
  const char* name;
  Activation activation;
} kActivations[] = {{"swish", Activation::kSwish},
                    {"gelu_erf", Activation::kGeluErf},
                    {"gelu_tanh", Activation::kGeluTanh},
                    {"relu", Activation::kRelu},
                    {"tanh", Activation::kTanh}};
constexpr struct {
  const char* name;
  Pooling pooling;
} kPoolings[] = {{"mean", Pooling::kMean}, {"max", Pooling::kMax}, {"cls", Pooling::kCls}};

void fill_normal(float* data, size_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  for (size_t i = 0; i < count; ++i) data[i] = normal(random);
}

std::vector<float> normal_floats(size_t count, float deviation, uint32_t seed) {
  std::vector<float> data(count);
  fill_normal(data.data(), count, deviation, seed);
  return data;
}

/// Of deviation 1; E: float, or uint16_t for bf16.
template <typename E>
std::vector<E> normal_operand(size_t count, uint32_t seed) {
  std::vector<E> values;
  for (const float value : normal_floats(count, 1.0f, seed)) {
    if constexpr (std::is_same_v<E, float>) {
      values.push_back(value);
    } else {
      values.push_back(bf16_from_f32(value));
    }
  }
  return values;
}

/// The tolerance of kernels whose sums have at most a few thousand terms: f32 rounding grows with
/// the root of their number and stays below 1e-5 of the largest result.
bool agrees(const std::vector<float>& got, const std::vector<float>& expected,
            float tolerance = 1e-5f) {
  float largest = 0.0f, error = 0.0f;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    const float difference = std::fabs(got[i] - expected[i]);
    if (!(difference <= error)) error = difference;  // keeps a NaN
  }
  return error <= tolerance * largest;
}

template <typename Call>
void run(benchmark::State& state, bool right, double flop, double elements, const Call& call) {
  if (!right) {
    state.SkipWithError("the result differs from the ref kernel's: not timed");
    return;
  }
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  const double iterations = static_cast<double>(state.iterations());
  if (flop > 0)
    state.counters["GFLOP"] =
        benchmark::Counter(1e-9 * flop * iterations, benchmark::Counter::kIsRate);
  if (elements > 0)
    state.counters["elements"] =
        benchmark::Counter(elements * iterations, benchmark::Counter::kIsRate);
}

template <typename Body>
void add(const std::string& name, Body body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->Unit(benchmark::kMicrosecond);
}

/// [0, length, 2·length, ...): `tokens` tokens in sentences of at most `length`.
std::vector<int32_t> sentences_of(int32_t tokens, int32_t length) {
  std::vector<int32_t> cu_seqlens{0};
  while (cu_seqlens.back() < tokens)
    cu_seqlens.push_back(std::min(tokens, cu_seqlens.back() + length));
  return cu_seqlens;
}

/// bench(state, shape, M) for every product of XSR and number of tokens.
template <typename Bench>
void add_gemm_shapes(const std::string& name, Isa isa, const Bench& bench) {
  for (const GemmShape& shape : kXsrGemms) {
    for (const int32_t M : kXsrTokenCounts) {
      if (isa == Isa::kRef && M > kRefRows) continue;
      add(name + "/" + shape.name + "/" + std::to_string(M),
          [=](benchmark::State& state) { bench(state, shape, M); });
    }
  }
}

/// Times call(copy) over copies of the weights in turn.
template <typename Call>
void run_over_copies(benchmark::State& state, bool right, const GemmShape& shape, int32_t M,
                     size_t copies, const Call& call) {
  size_t copy = 0;
  run(state, right, 2.0 * M * shape.N * shape.K, 0, [&] {
    call(copy);
    copy = copy + 1 == copies ? 0 : copy + 1;
  });
}

/// make(w) gives what is to be timed: something called as gemm_forward_f32_t is, without w, which
/// may change between calls to any of `copies` matrices that lie one after the other.
template <typename Make>
void add_gemms(const std::string& name, Isa isa, std::initializer_list<Storage> storages,
               bool padded, const Make& make, float tolerance = 1e-5f) {
  for (const Storage storage : storages) {
    const auto bench = [=](benchmark::State& state, const GemmShape& shape, int32_t M) {
      const size_t bytes = packed_elements(shape.N, shape.K, storage) * storage_size(storage);
      const size_t copies = (kWeightBytes + bytes - 1) / bytes;
      const HugeBuffer weights(copies * bytes);
      const std::vector<float> plain =
          normal_floats(size_t(shape.N) * shape.K, 1.0f / std::sqrt(float(shape.K)), 1);
      gemm_pack_panels(plain.data(), shape.N, shape.K, storage, weights.data());
      for (size_t i = 1; i < copies; ++i)
        memcpy(static_cast<char*>(weights.data()) + i * bytes, weights.data(), bytes);
      const int64_t a_stride = padded ? padded_stride(shape.K) : shape.K;
      const int64_t out_stride = padded ? padded_stride(shape.N) : shape.N;
      const std::vector<float> a = normal_floats(M * a_stride, 1.0f, 2);
      const std::vector<float> residual = normal_floats(M * out_stride, 1.0f, 3);
      const std::vector<float> bias = normal_floats(shape.N, 0.1f, 4);
      GemmEpilogue epilogue;
      epilogue.bias = bias.data();
      epilogue.activation = shape.activation;
      epilogue.residual = shape.residual ? residual.data() : nullptr;
      epilogue.residual_stride = out_stride;
      std::vector<float> out(M * out_stride), expected(M * out_stride);
      std::vector<PackedMatrix> matrices;
      for (size_t i = 0; i < copies; ++i)
        matrices.push_back(
            {static_cast<const char*>(weights.data()) + i * bytes, storage, shape.N, shape.K});
      auto gemm = make(matrices);
      const auto call = [&](size_t copy) {
        gemm(copy, a.data(), a_stride, M, epilogue, out.data(), out_stride);
      };
      call(0);
      const int32_t checked_rows = std::min(M, kRefRows);
      gemm_forward_f32_ref(a.data(), a_stride, checked_rows, matrices[0], 0, panel_count(shape.N),
                           epilogue, expected.data(), out_stride);
      const size_t checked = checked_rows * out_stride;
      const bool right = agrees({out.begin(), out.begin() + checked},
                                {expected.begin(), expected.begin() + checked}, tolerance);
      for (size_t i = 0; i < copies; ++i) call(i);
      run_over_copies(state, right, shape, M, copies, call);
    };
    add_gemm_shapes(name + "/" + storage_name(storage), isa, bench);
  }
}

void bench_gemm_forward_f32(const std::string& name, Isa isa, gemm_forward_f32_t* gemm) {
  add_gemms(name, isa, {Storage::kF32, Storage::kBF16, Storage::kF16}, true,
            [gemm](const std::vector<PackedMatrix>& matrices) {
              return
                  [&matrices, gemm](size_t i, const float* a, int64_t a_stride, int32_t M,
                                    const GemmEpilogue& epilogue, float* out, int64_t out_stride) {
                    gemm(a, a_stride, M, matrices[i], 0, panel_count(matrices[i].N), epilogue, out,
                         out_stride);
                  };
            });
}

void bench_gemm_forward_bf16(const std::string& name, Isa isa, gemm_forward_bf16_t* gemm) {
  // Rounding the activations to bf16 (2^-9 a value) is not an error of the kernel.
  constexpr float kTolerance = 2e-2f;
  add_gemms(
      name, isa, {Storage::kBF16}, true,
      [gemm](const std::vector<PackedMatrix>& matrices) {
        // Rounded at the first call, which is not timed.
        const auto narrow = std::make_shared<std::vector<uint16_t>>();
        return [&matrices, gemm, narrow](size_t i, const float* a, int64_t a_stride, int32_t M,
                                         const GemmEpilogue& epilogue, float* out,
                                         int64_t out_stride) {
          if (narrow->empty()) {
            narrow->resize(M * a_stride);
            narrow_forward_bf16_ref(a, a_stride, 0, M, matrices[i].K, narrow->data(), a_stride);
          }
          gemm(narrow->data(), a_stride, M, matrices[i], 0, panel_count(matrices[i].N), epilogue,
               out, out_stride, nullptr, 0);
        };
      },
      kTolerance);
}

void bench_gemm_forward_bf16x3(const std::string& name, Isa isa, gemm_forward_bf16x3_t* gemm) {
  add_gemm_shapes(name, isa, [gemm](benchmark::State& state, const GemmShape& shape, int32_t M) {
    const int64_t elements = split_elements(shape.N, shape.K);
    const size_t bytes = elements * sizeof(uint16_t);
    const size_t copies = (kWeightBytes + bytes - 1) / bytes;
    const HugeBuffer weights(copies * bytes), packed(bytes);
    const std::vector<float> dense =
        normal_floats(size_t(shape.N) * shape.K, 1 / std::sqrt(float(shape.K)), 1);
    gemm_pack_panels(dense.data(), shape.N, shape.K, Storage::kF32, packed.data());
    const PackedMatrix wide{packed.data(), Storage::kF32, shape.N, shape.K};
    uint16_t* data = static_cast<uint16_t*>(weights.data());
    gemm_split_panels(wide, data);
    for (size_t i = 1; i < copies; ++i) std::memcpy(data + i * elements, data, bytes);
    const int64_t x_stride = padded_stride(shape.K), a_stride = 2 * x_stride,
                  out_stride = padded_stride(shape.N);
    const std::vector<float> x = normal_floats(M * x_stride, 1, 2),
                             bias = normal_floats(shape.N, 1, 3);
    std::vector<uint16_t> a(M * a_stride);
    split_forward_bf16x3_ref(x.data(), x_stride, 0, M, shape.K, a.data(), a_stride);
    const GemmEpilogue epilogue{bias.data(), shape.activation, nullptr, 0};
    std::vector<float> out(M * out_stride), expected(M * out_stride);
    const auto call = [&](size_t copy, int32_t count) {
      gemm(a.data(), a_stride, count, {data + copy * elements, shape.N, shape.K}, 0,
           panel_count(shape.N), epilogue, out.data(), out_stride, nullptr, 0);
    };
    const int32_t checked = std::min(M, kRefRows);
    call(0, checked);
    gemm_forward_f32_ref(x.data(), x_stride, checked, wide, 0, panel_count(shape.N), epilogue,
                         expected.data(), out_stride);
    const bool right = agrees(out, expected);
    run_over_copies(state, right, shape, M, copies, [&](size_t copy) { call(copy, M); });
  });
}

void bench_split_forward_bf16x3(const std::string& name, Isa, split_forward_bf16x3_t* split) {
  for (const int32_t N : {1, 20, 96}) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> x = normal_floats(N * stride, 1.0f, 1);
      std::vector<uint16_t> out(N * 2 * stride), expected(N * 2 * stride);
      split(x.data(), stride, 0, N, kC, out.data(), 2 * stride);
      split_forward_bf16x3_ref(x.data(), stride, 0, N, kC, expected.data(), 2 * stride);
      run(state, out == expected, 0, double(N) * kC,
          [&] { split(x.data(), stride, 0, N, kC, out.data(), 2 * stride); });
    });
  }
}

void bench_gemm_forward_i8(const std::string& name, Isa isa, gemm_forward_i8_t* gemm) {
  add_gemm_shapes(
      name, isa, [isa, gemm](benchmark::State& state, const GemmShape& shape, int32_t M) {
        const HugeBuffer panels(packed_elements(shape.N, shape.K, Storage::kI8));
        const std::vector<float> dense =
            normal_floats(size_t(shape.N) * shape.K, 1 / std::sqrt(float(shape.K)), 1);
        std::vector<float> scales(shape.N);
        std::vector<int32_t> sums(shape.N);
        int8_t* packed = static_cast<int8_t*>(panels.data());
        gemm_quantize_panels(dense.data(), shape.N, shape.K, packed, scales.data());
        PackedMatrix w{packed, Storage::kI8, shape.N, shape.K, scales.data(), sums.data()};
        gemm_sum_panels(w, sums.data());
        // What the kernel reads: the panels, or on AVX2 the steps.
        const bool in_steps = isa == Isa::kAvx2;
        const size_t bytes = in_steps ? size_t(gemm_pack_steps_i8_avx2(w, nullptr))
                                      : size_t(packed_elements(shape.N, shape.K, Storage::kI8));
        const size_t copies = (kWeightBytes + bytes - 1) / bytes;
        const HugeBuffer weights(copies * bytes);
        char* data = static_cast<char*>(weights.data());
        if (in_steps) {
          gemm_pack_steps_i8_avx2(w, data);
        } else {
          std::memcpy(data, packed, bytes);
        }
        for (size_t i = 1; i < copies; ++i) std::memcpy(data + i * bytes, data, bytes);
        w.steps = in_steps ? data : nullptr;
        const int64_t x_stride = padded_stride(shape.K), a_stride = shape.K + 64,
                      out_stride = padded_stride(shape.N);
        const std::vector<float> x = normal_floats(M * x_stride, 1, 2),
                                 bias = normal_floats(shape.N, 1, 3);
        std::vector<uint8_t> a(M * a_stride);
        std::vector<QuantizedRow> rows(M);
        quantize_forward_u8_ref(x.data(), x_stride, 0, M, shape.K, nullptr, a.data(), a_stride,
                                rows.data());
        const GemmEpilogue epilogue{bias.data(), shape.activation, nullptr, 0};
        std::vector<float> out(M * out_stride), expected(M * out_stride);
        const auto call = [&](gemm_forward_i8_t* f, int32_t count, float* to) {
          f(a.data(), a_stride, count, rows.data(), w, 0, panel_count(shape.N), epilogue, to,
            out_stride, nullptr, 0);
        };
        const int32_t checked = std::min(M, kRefRows);
        call(gemm, checked, out.data());
        call(gemm_forward_i8_ref, checked, expected.data());
        const bool right = agrees(out, expected);
        run_over_copies(state, right, shape, M, copies, [&](size_t copy) {
          (in_steps ? w.steps : w.data) = data + copy * bytes;
          call(gemm, M, out.data());
        });
      });
}

void bench_quantize_forward_u8(const std::string& name, Isa, quantize_forward_u8_t* quantize) {
  for (const int32_t N : {1, 20, 96}) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> x = normal_floats(N * stride, 1.0f, 1);
      std::vector<uint8_t> out(N * stride), expected(N * stride);
      std::vector<QuantizedRow> rows(N);
      quantize(x.data(), stride, 0, N, kC, nullptr, out.data(), stride, rows.data());
      quantize_forward_u8_ref(x.data(), stride, 0, N, kC, nullptr, expected.data(), stride,
                              rows.data());
      run(state, out == expected, 0, double(N) * kC,
          [&] { quantize(x.data(), stride, 0, N, kC, nullptr, out.data(), stride, rows.data()); });
    });
  }
}

void bench_quantize_columns_i8(const std::string& name, Isa, quantize_columns_i8_t* quantize) {
  for (const int32_t M : {4, 128}) {
    add(name + "/" + std::to_string(M), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> x = normal_floats(M * stride, 1.0f, 1);
      std::vector<uint32_t> lanes(M / 4 * stride), expected(lanes.size());
      std::vector<float> scales(kC);
      std::vector<int32_t> sums(kC);
      const auto call = [&](quantize_columns_i8_t* f, uint32_t* to) {
        f(x.data(), stride, M, kC, 0, to, stride, scales.data(), sums.data());
      };
      call(quantize, lanes.data());
      call(quantize_columns_i8_ref, expected.data());
      run(state, lanes == expected, 0, double(M) * kC, [&] { call(quantize, lanes.data()); });
    });
  }
}

void bench_narrow_forward_bf16(const std::string& name, Isa, narrow_forward_bf16_t* narrow) {
  for (const int32_t N : {1, 20, 96}) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> x = normal_floats(N * stride, 1.0f, 1);
      std::vector<uint16_t> out(N * stride), expected(N * stride);
      narrow(x.data(), stride, 0, N, kC, out.data(), stride);
      narrow_forward_bf16_ref(x.data(), stride, 0, N, kC, expected.data(), stride);
      run(state, out == expected, 0, double(N) * kC,
          [&] { narrow(x.data(), stride, 0, N, kC, out.data(), stride); });
    });
  }
}

/// The gradients of the encoder's weights from a batch's tokens, then that of the sentence
/// embeddings from a group of the vocabulary's rows (N = 2B).
struct WeightShape {
  const char* name;
  int32_t M, N, K;
};
constexpr WeightShape kWeightShapes[] = {{"qkv", 4096, 3 * kC, kC},
                                         {"attention_output", 4096, kC, kC},
                                         {"up", 4096, kXsrIntermediateSize, kC},
                                         {"down", 4096, kC, kXsrIntermediateSize},
                                         {"head", 4096, 256, kC}};

/// make(shape) gives what is to be timed: dw [N, K] (dense) from dy and x with the given strides.
template <typename E, typename Make>
void add_weight_gradients(const std::string& name, Isa isa, bool padded, const Make& make) {
  for (const WeightShape& shape : kWeightShapes) {
    const int32_t M = isa == Isa::kRef ? 64 : shape.M;
    add(name + "/" + shape.name, [=](benchmark::State& state) {
      const int64_t dy_stride = padded ? padded_stride(shape.N) : shape.N;
      const int64_t x_stride = padded ? padded_stride(shape.K) : shape.K;
      const std::vector<E> dy = normal_operand<E>(M * dy_stride, 1),
                           x = normal_operand<E>(M * x_stride, 2);
      std::vector<float> dw(size_t(shape.N) * shape.K), expected(dw.size());
      auto gradient = make(shape, M);
      gradient(dy.data(), dy_stride, x.data(), x_stride, dw.data());
      // The first rows: ref takes seconds for all.
      constexpr int32_t kCheckedRows = 16;
      gemm_backward_weight_ref<float>(dy.data(), dy_stride, x.data(), x_stride, M, 0, kCheckedRows,
                                      shape.K, false, expected.data(), shape.K);
      const size_t checked = size_t(kCheckedRows) * shape.K;
      const bool right = agrees({dw.begin(), dw.begin() + checked},
                                {expected.begin(), expected.begin() + checked});
      run(state, right, 2.0 * M * shape.N * shape.K, 0,
          [&] { gradient(dy.data(), dy_stride, x.data(), x_stride, dw.data()); });
    });
  }
}

template <typename E, typename Kernel>
void bench_gemm_backward_weight(const std::string& name, Isa isa, Kernel* kernel) {
  add_weight_gradients<E>(name, isa, true, [kernel](const WeightShape& shape, int32_t M) {
    const auto scratch = std::make_shared<HugeBuffer>(kGemmBackwardScratchFloats * sizeof(float));
    return [=](const E* dy, int64_t dy_stride, const E* x, int64_t x_stride, float* dw) {
      kernel(dy, dy_stride, x, x_stride, M, 0, shape.N, shape.K, false, dw, shape.K,
             scratch->floats());
    };
  });
}

void bench_gemm_backward_weight_f32(const std::string& name, Isa isa,
                                    gemm_backward_weight_f32_t* kernel) {
  bench_gemm_backward_weight<float>(name, isa, kernel);
}

void bench_gemm_backward_weight_bf16(const std::string& name, Isa isa,
                                     gemm_backward_weight_bf16_t* kernel) {
  bench_gemm_backward_weight<uint16_t>(name, isa, kernel);
}

/// A batch's tokens in blocks of 128 rows.
void bench_gemm_backward_weight_i8(const std::string& name, Isa isa,
                                   gemm_backward_weight_i8_t* kernel) {
  constexpr int32_t kRows = 128, kSteps = kRows / 4;
  for (const WeightShape& shape : kWeightShapes) {
    const int32_t blocks = (isa == Isa::kRef ? 128 : shape.M) / kRows;
    add(name + "/" + shape.name, [=](benchmark::State& state) {
      struct Operand {
        int64_t stride;
        std::vector<uint32_t> lanes;
        std::vector<float> scales;
        std::vector<int32_t> sums;
      };
      const auto operand = [=](int32_t columns, int32_t zero, int seed) {
        Operand out{padded_stride(columns), {}, {}, {}};
        const std::vector<float> x = normal_floats(size_t(blocks) * kRows * columns, 1.0f, seed);
        out.lanes.resize(blocks * kSteps * out.stride);
        out.scales.resize(size_t(blocks) * columns);
        out.sums.resize(out.scales.size());
        for (int32_t block = 0; block < blocks; ++block) {
          quantize_columns_i8_ref(x.data() + int64_t(block) * kRows * columns, columns, kRows,
                                  columns, zero, out.lanes.data() + block * kSteps * out.stride,
                                  out.stride, out.scales.data() + int64_t(block) * columns,
                                  out.sums.data() + int64_t(block) * columns);
        }
        return out;
      };
      const Operand dy = operand(shape.N, 128, 1), x = operand(shape.K, 0, 2);
      const HugeBuffer scratch(kGemmBackwardScratchFloats * sizeof(float));
      const auto call = [&](gemm_backward_weight_i8_t* f, int32_t last, float* dw) {
        for (int32_t block = 0; block < blocks; ++block) {
          f(dy.lanes.data() + block * kSteps * dy.stride, dy.stride,
            dy.scales.data() + int64_t(block) * shape.N, x.lanes.data() + block * kSteps * x.stride,
            x.stride, x.scales.data() + int64_t(block) * shape.K,
            x.sums.data() + int64_t(block) * shape.K, kRows, 0, last, shape.K, block > 0, dw,
            shape.K, scratch.floats());
        }
      };
      std::vector<float> dw(size_t(shape.N) * shape.K), expected(dw.size());
      constexpr int32_t kCheckedRows = 16;  // ref takes seconds for all
      call(kernel, shape.N, dw.data());
      call(gemm_backward_weight_i8_ref, kCheckedRows, expected.data());
      const bool right =
          std::equal(dw.begin(), dw.begin() + size_t(kCheckedRows) * shape.K, expected.begin());
      run(state, right, 2.0 * blocks * kRows * shape.N * shape.K, 0,
          [&] { call(kernel, shape.N, dw.data()); });
    });
  }
}

void bench_column_sum_f32(const std::string& name, Isa, column_sum_f32_t* column_sum) {
  add(name + "/4096", [=](benchmark::State& state) {
    constexpr int32_t kRows = 4096;
    const int64_t stride = padded_stride(kC);
    const std::vector<float> dy = normal_floats(kRows * stride, 1.0f, 1);
    std::vector<float> sum(kC), expected(kC);
    column_sum(dy.data(), stride, kRows, 0, kC, false, sum.data());
    column_sum_f32_ref(dy.data(), stride, kRows, 0, kC, false, expected.data());
    run(state, sum == expected, 0, double(kRows) * kC,
        [&] { column_sum(dy.data(), stride, kRows, 0, kC, false, sum.data()); });
  });
}

/// Every training step packs the weights anew, and their transposes.
void bench_pack() {
  for (const Storage storage : kStorages) {
    for (const bool transposed : {false, true}) {
      add(std::string(transposed ? "gemm_pack_transposed_panels/" : "gemm_pack_panels/") +
              storage_name(storage),
          [=](benchmark::State& state) {
            constexpr int32_t kN = 3 * kC;
            const std::vector<float> w = normal_floats(size_t(kN) * kC, 1.0f, 1);
            const HugeBuffer packed(packed_elements(kN, kC, storage) * storage_size(storage));
            const auto call = [&] {
              if (transposed)
                gemm_pack_transposed_panels(w.data(), kC, kN, kC, storage, 0, panel_count(kC),
                                            packed.data());
              else
                gemm_pack_panels(w.data(), kN, kC, storage, packed.data());
            };
            run(state, true, 0, double(kN) * kC, call);
          });
    }
  }
}

#ifdef XSR_HAVE_ONEDNN
void bench_gemm_onednn() {
  OnednnGemm::set_num_threads(1);
  add_gemms("gemm_forward_f32_onednn", Isa::kAvx2, {Storage::kF32}, false,
            [](const std::vector<PackedMatrix>& matrices) {
              auto gemms = std::make_shared<std::vector<std::unique_ptr<OnednnGemm>>>();
              for (const PackedMatrix& w : matrices)
                gemms->push_back(std::make_unique<OnednnGemm>(w));
              return [gemms, panels = panel_count(matrices[0].N)](
                         size_t i, const float* a, int64_t a_stride, int32_t M,
                         const GemmEpilogue& epilogue, float* out, int64_t out_stride) {
                (*gemms)[i]->forward(a, a_stride, M, 0, panels, epilogue, out, out_stride);
              };
            });
  add_weight_gradients<float>(
      "gemm_backward_weight_f32_onednn", Isa::kAvx2, true, [](const WeightShape& shape, int32_t M) {
        return
            [=](const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, float* dw) {
              gemm_backward_weight_f32_onednn(dy, dy_stride, x, x_stride, M, shape.N, shape.K,
                                              false, dw, shape.K);
            };
      });
}
#endif

void bench_embedding_forward_f32(const std::string& name, Isa, embedding_forward_f32_t* embedding) {
  for (const Storage storage : kStorages) {
    for (const int32_t N : {1, 20, 96}) {
      add(name + "/" + storage_name(storage) + "/" + std::to_string(N),
          [=](benchmark::State& state) {
            const size_t row = size_t(kC) * storage_size(storage);
            const HugeBuffer token(kXsrVocabSize * row), position((kXsrMaxSeqLen + 1) * row);
            std::mt19937 random(1);
            const auto fill = [&](void* data, size_t count) {
              std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
              for (size_t i = 0; i < count; ++i) {
                const float value = uniform(random);
                if (storage == Storage::kF32)
                  static_cast<float*>(data)[i] = value;
                else
                  static_cast<uint16_t*>(data)[i] =
                      storage == Storage::kBF16 ? bf16_from_f32(value) : f16_from_f32(value);
              }
            };
            fill(token.data(), size_t(kXsrVocabSize) * kC);
            fill(position.data(), size_t(kXsrMaxSeqLen + 1) * kC);
            const std::vector<float> gamma = normal_floats(kC, 1.0f, 2), beta = gamma;
            // Enough different ids that the rows come from memory, as those of a corpus do.
            std::vector<int32_t> ids(N * 1024), positions(N * 1024);
            for (size_t i = 0; i < ids.size(); ++i) {
              ids[i] = std::uniform_int_distribution<int32_t>(0, kXsrVocabSize - 1)(random);
              positions[i] = 1 + static_cast<int32_t>(i % N);
            }
            const int64_t stride = padded_stride(kC);
            std::vector<float> out(N * stride), expected(N * stride);
            const auto call = [&](embedding_forward_f32_t* f, size_t batch, float* to) {
              f(ids.data() + batch * N, positions.data(), 0, N, token.data(), position.data(),
                storage, nullptr, gamma.data(), beta.data(), 1e-12f, kC, to, stride, nullptr);
            };
            call(embedding, 0, out.data());
            call(embedding_forward_f32_ref, 0, expected.data());
            size_t batch = 0;
            run(state, agrees(out, expected), 0, double(N) * kC, [&] {
              call(embedding, batch, out.data());
              batch = (batch + 1) % 1024;
            });
          });
    }
  }
}

void bench_embedding_forward_i8(const std::string& name, Isa, embedding_forward_i8_t* embedding) {
  for (const int32_t N : {1, 20, 96}) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const HugeBuffer token(size_t(kXsrVocabSize) * kC), position((kXsrMaxSeqLen + 1) * kC);
      std::mt19937 random(1);
      for (const auto& [data, count] : {std::pair(token.data(), size_t(kXsrVocabSize) * kC),
                                        std::pair(position.data(), size_t(kXsrMaxSeqLen + 1) * kC)})
        for (size_t i = 0; i < count; ++i)
          static_cast<int8_t*>(data)[i] = static_cast<int8_t>(random() % 255 - 127);
      const std::vector<float> gamma = normal_floats(kC, 1.0f, 2), beta = gamma;
      const std::vector<float> token_scales(kXsrVocabSize, 0.01f),
          position_scales(kXsrMaxSeqLen + 1, 0.005f);
      // Enough different ids that the rows come from memory, as those of a corpus do.
      std::vector<int32_t> ids(N * 1024), positions(N * 1024);
      for (size_t i = 0; i < ids.size(); ++i) {
        ids[i] = std::uniform_int_distribution<int32_t>(0, kXsrVocabSize - 1)(random);
        positions[i] = 1 + static_cast<int32_t>(i % N);
      }
      const int64_t stride = padded_stride(kC);
      std::vector<float> out(N * stride), expected(N * stride);
      const auto call = [&](embedding_forward_i8_t* f, size_t batch, float* to) {
        f(ids.data() + batch * N, positions.data(), 0, N, static_cast<int8_t*>(token.data()),
          token_scales.data(), static_cast<int8_t*>(position.data()), position_scales.data(),
          nullptr, gamma.data(), beta.data(), 1e-12f, kC, to, stride, nullptr);
      };
      call(embedding, 0, out.data());
      call(embedding_forward_i8_ref, 0, expected.data());
      size_t batch = 0;
      run(state, agrees(out, expected), 0, double(N) * kC, [&] {
        call(embedding, batch, out.data());
        batch = (batch + 1) % 1024;
      });
    });
  }
}

void bench_qkv_table_forward_f32(const std::string& name, Isa, qkv_table_forward_f32_t* table) {
  for (const int32_t N : {1, 20, 96}) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      // A vocabulary whose table is beyond every cache, as a real one is.
      constexpr int32_t kRows = 16384;
      const HugeBuffer tokens(size_t(kRows) * 3 * kC * sizeof(float));
      const std::vector<float> row = normal_floats(3 * kC, 1.0f, 1),
                               positions = normal_floats(201 * 3 * kC, 1.0f, 2);
      for (int32_t r = 0; r < kRows; ++r) {
        memcpy(tokens.floats() + size_t(r) * 3 * kC, row.data(), row.size() * sizeof(float));
      }
      std::mt19937 random(3);
      std::vector<int32_t> ids(N * 256), at(N * 256);
      for (size_t i = 0; i < ids.size(); ++i) {
        ids[i] = std::uniform_int_distribution<int32_t>(0, kRows - 1)(random);
        at[i] = 1 + static_cast<int32_t>(i % N);
      }
      const std::vector<float> rstd(N, 0.7f);
      const int64_t stride = padded_stride(3 * kC);
      std::vector<float> out(N * stride), expected(N * stride);
      const auto call = [&](qkv_table_forward_f32_t* f, size_t batch, float* to) {
        f(ids.data() + batch * N, at.data() + batch * N, 0, N, tokens.floats(), positions.data(),
          rstd.data(), row.data(), 3 * kC, to, stride, nullptr, 0);
      };
      call(table, 0, out.data());
      call(qkv_table_forward_f32_ref, 0, expected.data());
      size_t batch = 0;
      run(state, agrees(out, expected), 0, double(N) * 3 * kC, [&] {
        call(table, batch, out.data());
        batch = (batch + 1) % 256;
      });
    });
  }
}

void bench_layernorm_forward_f32(const std::string& name, Isa, layernorm_forward_f32_t* layernorm) {
  for (const int32_t N : {1, 20, 96}) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> x = normal_floats(N * stride, 1.0f, 1);
      const std::vector<float> gamma = normal_floats(kC, 1.0f, 2),
                               beta = normal_floats(kC, 1.0f, 3);
      std::vector<float> out(N * stride), expected(N * stride);
      const auto call = [&](layernorm_forward_f32_t* f, float* to) {
        f(x.data(), stride, 0, N, kC, gamma.data(), beta.data(), 1e-12f, to, stride);
      };
      call(layernorm, out.data());
      call(layernorm_forward_f32_ref, expected.data());
      run(state, agrees(out, expected), 0, double(N) * kC, [&] { call(layernorm, out.data()); });
    });
  }
}

/// Forward passes over sentences of several lengths to f32 rows. `unused` are the arguments between
/// these and the scratch.
template <typename Element, typename Kernel, typename... Unused>
void bench_attention_forward(const std::string& name, Isa isa, Kernel* attention, Kernel* ref,
                             int64_t (*scratch_floats)(int32_t, int32_t), float tolerance,
                             Unused... unused) {
  struct Case {
    int32_t tokens, length;
  };
  for (const Case c : {Case{1, 1}, Case{5, 5}, Case{10, 10}, Case{20, 20}, Case{50, 50},
                       Case{100, 100}, Case{200, 200}, Case{96, 8}, Case{96, 24}}) {
    if (isa == Isa::kRef && c.tokens > 50) continue;
    add(name + "/" + std::to_string(c.tokens) + "/sentences_of:" + std::to_string(c.length),
        [=](benchmark::State& state) {
          const int64_t qkv_stride = padded_stride(3 * kC), out_stride = padded_stride(kC);
          const std::vector<Element> qkv = normal_operand<Element>(c.tokens * qkv_stride, 1);
          const std::vector<int32_t> cu_seqlens = sentences_of(c.tokens, c.length);
          const int32_t sentences = static_cast<int32_t>(cu_seqlens.size()) - 1;
          std::vector<float> out(c.tokens * out_stride), expected(c.tokens * out_stride);
          const HugeBuffer scratch(scratch_floats(c.length, kXsrHeadDim) * sizeof(float));
          const auto call = [&](Kernel* f, float* to) {
            f(qkv.data(), qkv_stride, cu_seqlens.data(), 0, sentences, 0, kXsrHeads, kXsrHeads,
              kXsrHeadDim, to, out_stride, unused..., scratch.floats());
          };
          call(attention, out.data());
          call(ref, expected.data());
          double flop = 0;
          for (int32_t b = 0; b < sentences; ++b) {
            const double length = cu_seqlens[b + 1] - cu_seqlens[b];
            flop += 4.0 * length * length * kC;
          }
          run(state, agrees(out, expected, tolerance), flop, 0,
              [&] { call(attention, out.data()); });
        });
  }
}

void bench_attention_forward_f32(const std::string& name, Isa isa,
                                 attention_forward_f32_t* attention) {
  bench_attention_forward<float>(name, isa, attention, attention_forward_f32_ref,
                                 attention_scratch_floats, 1e-5f, nullptr);
}

void bench_attention_forward_bf16(const std::string& name, Isa isa,
                                  attention_forward_bf16_t* attention) {
  bench_attention_forward<uint16_t>(name, isa, attention, attention_forward_bf16_ref,
                                    attention_bf16_scratch_floats, 1e-2f, nullptr, 0);
}

/// Attention in training: a batch of short sentences, then long ones.
struct AttentionBatch {
  AttentionBatch(int32_t tokens, int32_t length)
      : qkv_stride(padded_stride(3 * kC)),
        out_stride(padded_stride(kC)),
        cu_seqlens(sentences_of(tokens, length)),
        sentences(static_cast<int32_t>(cu_seqlens.size()) - 1),
        qkv(normal_floats(tokens * qkv_stride, 1.0f, 1)),
        dout(normal_floats(tokens * out_stride, 1.0f, 2)),
        lse(tokens * kXsrHeads),
        scratch(attention_backward_scratch_floats(length, kXsrHeadDim) * sizeof(float)) {
    dropout.threshold = 0x19999999;  // a tenth
    dropout.scale = 1 / 0.9f;
    for (size_t b = 1; b < cu_seqlens.size(); ++b) {
      const double count = cu_seqlens[b] - cu_seqlens[b - 1];
      flop += 4.0 * count * count * kC;
    }
  }
  int64_t qkv_stride, out_stride;
  std::vector<int32_t> cu_seqlens;
  int32_t sentences;
  std::vector<float> qkv, dout, lse;
  HugeBuffer scratch;
  Dropout dropout;
  double flop = 0;  // of the forward pass's two products
};

struct AttentionTrainingCase {
  int32_t tokens, length;
};
constexpr AttentionTrainingCase kAttentionTrainingCases[] = {
    {400, 10}, {400, 20}, {400, 30}, {400, 200}};

void bench_attention_dropout_forward_f32(const std::string& name, Isa isa,
                                         attention_dropout_forward_f32_t* attention) {
  for (const AttentionTrainingCase c : kAttentionTrainingCases) {
    if (isa == Isa::kRef && c.length > 20) continue;
    add(name + "/sentences_of:" + std::to_string(c.length), [=](benchmark::State& state) {
      AttentionBatch batch(c.tokens, c.length);
      std::vector<float> out(c.tokens * batch.out_stride), expected(out.size());
      const auto call = [&](attention_dropout_forward_f32_t* f, float* to) {
        f(batch.qkv.data(), batch.qkv_stride, batch.cu_seqlens.data(), 0, batch.sentences, 0,
          kXsrHeads, kXsrHeads, kXsrHeadDim, batch.dropout, to, batch.out_stride, batch.lse.data(),
          batch.scratch.floats());
      };
      call(attention, out.data());
      call(attention_dropout_forward_f32_ref, expected.data());
      run(state, agrees(out, expected), batch.flop, 0, [&] { call(attention, out.data()); });
    });
  }
}

void bench_attention_backward_f32(const std::string& name, Isa isa,
                                  attention_backward_f32_t* backward) {
  for (const AttentionTrainingCase c : kAttentionTrainingCases) {
    if (isa == Isa::kRef && c.length > 20) continue;
    add(name + "/sentences_of:" + std::to_string(c.length), [=](benchmark::State& state) {
      AttentionBatch batch(c.tokens, c.length);
      std::vector<float> dqkv(c.tokens * batch.qkv_stride), expected(dqkv.size());
      attention_dropout_forward_f32_ref(batch.qkv.data(), batch.qkv_stride, batch.cu_seqlens.data(),
                                        0, batch.sentences, 0, kXsrHeads, kXsrHeads, kXsrHeadDim,
                                        batch.dropout, dqkv.data(), batch.qkv_stride,
                                        batch.lse.data(), batch.scratch.floats());
      std::fill(dqkv.begin(), dqkv.end(), 0.0f);
      const auto call = [&](attention_backward_f32_t* f, float* to) {
        f(batch.qkv.data(), batch.qkv_stride, batch.cu_seqlens.data(), 0, batch.sentences, 0,
          kXsrHeads, kXsrHeads, kXsrHeadDim, batch.lse.data(), batch.dropout, batch.dout.data(),
          batch.out_stride, to, batch.qkv_stride, batch.scratch.floats());
      };
      call(backward, dqkv.data());
      call(attention_backward_f32_ref, expected.data());
      // Five products of the forward pass's size where that has two.
      run(state, agrees(dqkv, expected), 2.5 * batch.flop, 0, [&] { call(backward, dqkv.data()); });
    });
  }
}

void bench_activation_forward_f32(const std::string& name, Isa,
                                  activation_forward_f32_t* activation) {
  for (const auto& c : kActivations) {
    add(name + "/" + c.name, [=](benchmark::State& state) {
      constexpr int64_t kCount = 4 * kXsrIntermediateSize;
      const std::vector<float> x = normal_floats(kCount, 2.0f, 1);
      std::vector<float> out(kCount), expected(kCount);
      activation(x.data(), kCount, c.activation, out.data());
      activation_forward_f32_ref(x.data(), kCount, c.activation, expected.data());
      run(state, agrees(out, expected), 0, kCount,
          [&] { activation(x.data(), kCount, c.activation, out.data()); });
    });
  }
}

void bench_pooling_forward_f32(const std::string& name, Isa, pooling_forward_f32_t* pooling) {
  for (const auto& c : kPoolings) {
    for (const int32_t N : {20, 96}) {
      add(name + "/" + c.name + "/" + std::to_string(N), [=](benchmark::State& state) {
        const int64_t stride = padded_stride(kC);
        const std::vector<float> x = normal_floats(N * stride, 1.0f, 1);
        const std::vector<int32_t> cu_seqlens = sentences_of(N, 20);
        const int32_t sentences = static_cast<int32_t>(cu_seqlens.size()) - 1;
        std::vector<float> out(sentences * kC), expected(sentences * kC);
        const auto call = [&](pooling_forward_f32_t* f, float* to) {
          f(x.data(), stride, cu_seqlens.data(), 0, sentences, kC, c.pooling, to, kC);
        };
        call(pooling, out.data());
        call(pooling_forward_f32_ref, expected.data());
        run(state, agrees(out, expected), 0, double(N) * kC, [&] { call(pooling, out.data()); });
      });
    }
  }
}

void bench_l2_normalize_forward_f32(const std::string& name, Isa,
                                    l2_normalize_forward_f32_t* normalize) {
  for (const int32_t B : {1, 20}) {
    add(name + "/" + std::to_string(B), [=](benchmark::State& state) {
      const std::vector<float> x = normal_floats(B * kC, 1.0f, 1);
      std::vector<float> out = x, expected = x;
      normalize(out.data(), kC, 0, B, kC);
      l2_normalize_forward_f32_ref(expected.data(), kC, 0, B, kC);
      // In place: a unit row stays one, so every call does the same work.
      run(state, agrees(out, expected), 0, double(B) * kC,
          [&] { normalize(out.data(), kC, 0, B, kC); });
    });
  }
}

/// Tokens of a training batch of 64 pairs, and of a share that one thread takes.
constexpr int32_t kTrainingRows[] = {96, 3072};

void bench_layernorm_backward_f32(const std::string& name, Isa isa,
                                  layernorm_backward_f32_t* layernorm) {
  for (const int32_t N : kTrainingRows) {
    if (isa == Isa::kRef && N > kXsrMaxSeqLen) continue;
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const int32_t blocks = layernorm_block_count(N);
      const std::vector<float> x = normal_floats(N * stride, 1.0f, 1),
                               dy = normal_floats(N * stride, 1.0f, 2),
                               gamma = normal_floats(kC, 1.0f, 3);
      struct Gradients {
        std::vector<float> dx, dgamma, dbeta;
      };
      const Gradients empty{std::vector<float>(N * stride), std::vector<float>(blocks * kC),
                            std::vector<float>(blocks * kC)};
      Gradients out = empty, expected = empty;
      const auto call = [&](layernorm_backward_f32_t* f, Gradients& to) {
        f(x.data(), stride, dy.data(), stride, N, 0, blocks, kC, gamma.data(), 1e-12f, to.dx.data(),
          stride, to.dgamma.data(), to.dbeta.data());
      };
      call(layernorm, out);
      call(layernorm_backward_f32_ref, expected);
      const bool right = agrees(out.dx, expected.dx) && agrees(out.dgamma, expected.dgamma) &&
                         agrees(out.dbeta, expected.dbeta);
      run(state, right, 0, double(N) * kC, [&] { call(layernorm, out); });
    });
  }
}

void bench_activation_backward_f32(const std::string& name, Isa,
                                   activation_backward_f32_t* activation) {
  for (const auto& c : kActivations) {
    add(name + "/" + c.name, [=](benchmark::State& state) {
      constexpr int64_t kCount = 4 * kXsrIntermediateSize;
      const std::vector<float> x = normal_floats(kCount, 2.0f, 1),
                               dy = normal_floats(kCount, 1.0f, 2);
      std::vector<float> out(kCount), expected(kCount);
      activation(x.data(), dy.data(), kCount, c.activation, out.data());
      activation_backward_f32_ref(x.data(), dy.data(), kCount, c.activation, expected.data());
      run(state, agrees(out, expected), 0, kCount,
          [&] { activation(x.data(), dy.data(), kCount, c.activation, out.data()); });
    });
  }
}

void bench_pooling_backward_f32(const std::string& name, Isa, pooling_backward_f32_t* pooling) {
  for (const auto& c : kPoolings) {
    for (const int32_t N : kTrainingRows) {
      add(name + "/" + c.name + "/" + std::to_string(N), [=](benchmark::State& state) {
        const int64_t stride = padded_stride(kC);
        const std::vector<int32_t> cu_seqlens = sentences_of(N, 24);
        const int32_t sentences = static_cast<int32_t>(cu_seqlens.size()) - 1;
        const std::vector<float> x = normal_floats(N * stride, 1.0f, 1),
                                 dy = normal_floats(sentences * kC, 1.0f, 2);
        std::vector<float> out(N * stride), expected(N * stride);
        const auto call = [&](pooling_backward_f32_t* f, float* to) {
          f(x.data(), stride, dy.data(), kC, cu_seqlens.data(), 0, sentences, kC, c.pooling, to,
            stride);
        };
        call(pooling, out.data());
        call(pooling_backward_f32_ref, expected.data());
        run(state, agrees(out, expected), 0, double(N) * kC, [&] { call(pooling, out.data()); });
      });
    }
  }
}

void bench_l2_normalize_backward_f32(const std::string& name, Isa,
                                     l2_normalize_backward_f32_t* normalize) {
  for (const int32_t B : {1, 128}) {
    add(name + "/" + std::to_string(B), [=](benchmark::State& state) {
      const std::vector<float> x = normal_floats(B * kC, 1.0f, 1),
                               dy = normal_floats(B * kC, 1.0f, 2);
      std::vector<float> out(B * kC), expected(B * kC);
      const auto call = [&](l2_normalize_backward_f32_t* f, float* to) {
        f(x.data(), kC, dy.data(), kC, 0, B, kC, to, kC);
      };
      call(normalize, out.data());
      call(l2_normalize_backward_f32_ref, expected.data());
      run(state, agrees(out, expected), 0, double(B) * kC, [&] { call(normalize, out.data()); });
    });
  }
}

void bench_embedding_backward_f32(const std::string& name, Isa,
                                  embedding_backward_f32_t* embedding) {
  for (const int32_t N : kTrainingRows) {
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> de = normal_floats(N * stride, 1.0f, 1);
      // Frequencies as 1 / rank, as those of words are.
      std::mt19937 random(2);
      std::uniform_real_distribution<double> uniform(0, std::log(double(kXsrVocabSize)));
      std::vector<int32_t> ids(N), memory(bucket_rows_memory(N, kXsrVocabSize));
      for (int32_t& id : ids) id = static_cast<int32_t>(std::exp(uniform(random))) - 1;
      const RowBuckets buckets = bucket_rows(ids.data(), N, kXsrVocabSize, -1, memory.data());
      std::vector<float> out(size_t{kXsrVocabSize} * kC), expected(out.size());
      const auto call = [&](embedding_backward_f32_t* f, float* to) {
        f(de.data(), stride, buckets, 0, buckets.count, kC, to);
      };
      call(embedding, out.data());
      call(embedding_backward_f32_ref, expected.data());
      run(state, agrees(out, expected), 0, double(N) * kC, [&] { call(embedding, out.data()); });
    });
  }
}

void bench_dropout_forward_f32(const std::string& name, Isa isa, dropout_forward_f32_t* dropout) {
  for (const int32_t N : kTrainingRows) {
    if (isa == Isa::kRef && N > kXsrMaxSeqLen) continue;
    add(name + "/" + std::to_string(N), [=](benchmark::State& state) {
      const int64_t stride = padded_stride(kC);
      const std::vector<float> x = normal_floats(N * stride, 1.0f, 1);
      Dropout tenth;
      tenth.threshold = 429496729;
      tenth.scale = 1 / 0.9f;
      std::vector<float> out(N * stride), expected(N * stride);
      const auto call = [&](dropout_forward_f32_t* f, float* to) {
        f(x.data(), stride, 0, N, kC, tenth, nullptr, 0, to, stride);
      };
      call(dropout, out.data());
      call(dropout_forward_f32_ref, expected.data());
      run(state, out == expected, 0, double(N) * kC, [&] { call(dropout, out.data()); });
    });
  }
}

// Of the loss: one tile of the vocabulary against both sides of a batch of 128 pairs.
constexpr int32_t kTileRows = 512, kVectors = 256;

void bench_vocabulary_softmax_forward_f32(const std::string& name, Isa,
                                          vocabulary_softmax_forward_f32_t* softmax) {
  add(name, [=](benchmark::State& state) {
    const std::vector<float> z = normal_floats(kTileRows * kVectors, 20.0f, 1),
                             bias = normal_floats(kTileRows, 1.0f, 2);
    std::vector<float> max(kVectors), sum(kVectors), expected_sum(kVectors),
        e(kTileRows * kVectors), expected(e.size());
    const auto call = [&](vocabulary_softmax_forward_f32_t* f, float* to_sum, float* to) {
      f(z.data(), kVectors, kTileRows, bias.data(), 0, kVectors, max.data(), to_sum, to, kVectors,
        nullptr, 0);
    };
    call(softmax, sum.data(), e.data());
    call(vocabulary_softmax_forward_f32_ref, expected_sum.data(), expected.data());
    run(state, agrees(e, expected) && agrees(sum, expected_sum), 0, double(kTileRows) * kVectors,
        [&] { call(softmax, sum.data(), e.data()); });
  });
}

void bench_vocabulary_softmax_backward_f32(const std::string& name, Isa,
                                           vocabulary_softmax_backward_f32_t* softmax) {
  add(name, [=](benchmark::State& state) {
    const std::vector<float> e = normal_floats(kTileRows * kVectors, 1.0f, 1),
                             factor = normal_floats(kVectors, 1.0f, 2);
    std::vector<float> dz(e.size()), expected(e.size()), dbias(kTileRows);
    const auto call = [&](vocabulary_softmax_backward_f32_t* f, float* to) {
      f(e.data(), kVectors, kTileRows, kVectors, factor.data(), to, kVectors, dbias.data());
    };
    call(softmax, dz.data());
    call(vocabulary_softmax_backward_f32_ref, expected.data());
    run(state, agrees(dz, expected), 0, double(kTileRows) * kVectors,
        [&] { call(softmax, dz.data()); });
  });
}

void bench_vocabulary_softmax_backward_bf16(const std::string& name, Isa,
                                            vocabulary_softmax_backward_bf16_t* softmax) {
  add(name, [=](benchmark::State& state) {
    const std::vector<uint16_t> e = normal_operand<uint16_t>(kTileRows * kVectors, 1);
    const std::vector<float> factor = normal_floats(kVectors, 1.0f, 2);
    std::vector<uint16_t> dz(e.size()), expected(e.size());
    std::vector<float> dbias(kTileRows);
    const auto call = [&](vocabulary_softmax_backward_bf16_t* f, uint16_t* to) {
      f(e.data(), kVectors, kTileRows, kVectors, factor.data(), to, kVectors, dbias.data());
    };
    call(softmax, dz.data());
    call(vocabulary_softmax_backward_bf16_ref, expected.data());
    run(state, dz == expected, 0, double(kTileRows) * kVectors, [&] { call(softmax, dz.data()); });
  });
}

void bench_softmax_forward_f32(const std::string& name, Isa, softmax_forward_f32_t* softmax) {
  add(name, [=](benchmark::State& state) {
    constexpr int32_t kPairs = 128;
    const std::vector<float> s = normal_floats(kPairs * kPairs, 5.0f, 1);
    std::vector<float> p(s.size()), expected(s.size()), max(kPairs), sum(kPairs);
    const auto call = [&](softmax_forward_f32_t* f, float* to) {
      f(s.data(), kPairs, 0, kPairs, kPairs, 1.0f, to, kPairs, max.data(), sum.data());
    };
    call(softmax, p.data());
    call(softmax_forward_f32_ref, expected.data());
    run(state, agrees(p, expected), 0, double(kPairs) * kPairs, [&] { call(softmax, p.data()); });
  });
}

void bench_sim_forward_backward_f32(const std::string& name, Isa, sim_forward_backward_f32_t* sim) {
  add(name, [=](benchmark::State& state) {
    constexpr int32_t kPairs = 128;
    const std::vector<float> p(kPairs * kPairs, 1.0f / kPairs);
    std::vector<float> p1(p), p2(p);
    std::vector<double> loss(kPairs);
    // Works in place, so every call begins with a copy.
    run(state, true, 0, double(kPairs) * kPairs, [&] {
      p1 = p;
      p2 = p;
      sim(p1.data(), p2.data(), kPairs, 0, kPairs, kPairs, 1.5707963267948966, 1e-3, 1.0,
          loss.data());
    });
  });
}

void bench_adam_update_f32(const std::string& name, Isa, adam_update_f32_t* adam) {
  add(name, [=](benchmark::State& state) {
    constexpr int64_t kCount = 1 << 20;
    const std::vector<float> gradient = normal_floats(kCount, 1.0f, 1);
    AdamStep step;
    step.step_size = 1e-3f;
    struct Tensors {
      std::vector<float> value = std::vector<float>(kCount), first = value, second = value,
                         max = value;
    } ours, expected;
    const auto call = [&](adam_update_f32_t* f, Tensors& t) {
      f(t.value.data(), gradient.data(), t.first.data(), t.second.data(), t.max.data(), nullptr, 0,
        kCount, step);
    };
    call(adam, ours);
    call(adam_update_f32_ref, expected);
    run(state, agrees(ours.value, expected.value), 0, kCount, [&] { call(adam, ours); });
  });
}

void bench_sum_of_squares_f32(const std::string& name, Isa, sum_of_squares_f32_t* sum_of_squares) {
  add(name, [=](benchmark::State& state) {
    constexpr int64_t kCount = 1 << 20;
    const std::vector<float> x = normal_floats(kCount, 1.0f, 1);
    run(state, sum_of_squares(x.data(), kCount) == sum_of_squares_f32_ref(x.data(), kCount), 0,
        kCount, [&] { benchmark::DoNotOptimize(sum_of_squares(x.data(), kCount)); });
  });
}

/// A block of sentences beside a panel of others, as retrieval scores them.
void bench_inner_products_forward_f64(const std::string& name, Isa,
                                      inner_products_forward_f64_t* inner_products) {
  add(name, [=](benchmark::State& state) {
    constexpr int64_t kRows = 64;
    const auto doubles = [](int64_t count, uint64_t seed) {
      const std::vector<float> floats = normal_floats(count, 1.0f, seed);
      return std::vector<double>(floats.begin(), floats.end());
    };
    const std::vector<double> a = doubles(kRows * kC, 1), panel = doubles(kPanelRows * kC, 2);
    std::vector<double> out(kRows * kPanelRows), expected(out);
    const auto call = [&](inner_products_forward_f64_t* f, std::vector<double>& to) {
      f(a.data(), panel.data(), kRows, kC, to.data());
    };
    call(inner_products, out);
    call(inner_products_forward_f64_ref, expected);
    run(state, out == expected, 2.0 * kRows * kPanelRows * kC, 0,
        [&] { call(inner_products, out); });
  });
}

void add_all() {
#define XSR_KERNEL(op, isa, level) \
  if (isa_supported(level)) bench_##op(#op "_" #isa, level, op##_##isa);
#include "kernels/kernels.inc"
  bench_pack();
#ifdef XSR_HAVE_ONEDNN
  bench_gemm_onednn();
#endif
}

}  // namespace
}  // namespace xsr::bench

int main(int argc, char** argv) {
  return xsr::run_tool("xsr_microbench", [&] {
    xsr::bench::add_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
  });
}
