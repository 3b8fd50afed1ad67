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
#include <vector>

#include "bench/huge_buffer.h"
#include "kernels/dispatch.h"
#include "kernels/shapes.h"
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

/// make(w) gives what is to be timed: something called as gemm_forward_f32_t is, without w, which
/// may change between calls to any of `copies` matrices that lie one after the other.
template <typename Make>
void add_gemms(const std::string& name, Isa isa, std::initializer_list<Storage> storages,
               bool padded, const Make& make, float tolerance = 1e-5f) {
  for (const Storage storage : storages) {
    for (const GemmShape& shape : kXsrGemms) {
      for (const int32_t M : kXsrTokenCounts) {
        if (isa == Isa::kRef && M > kRefRows) continue;
        add(name + "/" + storage_name(storage) + "/" + shape.name + "/" + std::to_string(M),
            [=](benchmark::State& state) {
              const size_t bytes =
                  packed_elements(shape.N, shape.K, storage) * storage_size(storage);
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
                matrices.push_back({static_cast<const char*>(weights.data()) + i * bytes, storage,
                                    shape.N, shape.K});
              auto gemm = make(matrices);
              const auto call = [&](size_t copy) {
                gemm(copy, a.data(), a_stride, M, epilogue, out.data(), out_stride);
              };
              call(0);
              const int32_t checked_rows = std::min(M, kRefRows);
              gemm_forward_f32_ref(a.data(), a_stride, checked_rows, matrices[0], 0,
                                   panel_count(shape.N), epilogue, expected.data(), out_stride);
              const size_t checked = checked_rows * out_stride;
              const bool right = agrees({out.begin(), out.begin() + checked},
                                        {expected.begin(), expected.begin() + checked}, tolerance);
              for (size_t i = 0; i < copies; ++i) call(i);
              size_t copy = 0;
              run(state, right, 2.0 * M * shape.N * shape.K, 0, [&] {
                call(copy);
                copy = copy + 1 == copies ? 0 : copy + 1;
              });
            });
      }
    }
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
  for (const GemmShape& shape : kXsrGemms) {
    for (const int32_t M : kXsrTokenCounts) {
      if (isa == Isa::kRef && M > kRefRows) continue;
      add(name + "/" + shape.name + "/" + std::to_string(M), [=](benchmark::State& state) {
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
        size_t copy = 0;
        run(state, right, 2.0 * M * shape.N * shape.K, 0, [&] {
          call(copy, M);
          copy = copy + 1 == copies ? 0 : copy + 1;
        });
      });
    }
  }
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
          rstd.data(), row.data(), 3 * kC, to, stride);
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

void bench_attention_forward_f32(const std::string& name, Isa isa,
                                 attention_forward_f32_t* attention) {
  struct Case {
    int32_t tokens, length;
  };
  for (const Case c : {Case{1, 1}, Case{5, 5}, Case{10, 10}, Case{20, 20}, Case{50, 50},
                       Case{100, 100}, Case{200, 200}, Case{96, 8}, Case{96, 24}}) {
    if (isa == Isa::kRef && c.tokens > 50) continue;
    add(name + "/" + std::to_string(c.tokens) + "/sentences_of:" + std::to_string(c.length),
        [=](benchmark::State& state) {
          const int64_t qkv_stride = padded_stride(3 * kC), out_stride = padded_stride(kC);
          const std::vector<float> qkv = normal_floats(c.tokens * qkv_stride, 1.0f, 1);
          const std::vector<int32_t> cu_seqlens = sentences_of(c.tokens, c.length);
          const int32_t sentences = static_cast<int32_t>(cu_seqlens.size()) - 1;
          std::vector<float> out(c.tokens * out_stride), expected(c.tokens * out_stride);
          const HugeBuffer scratch(attention_scratch_floats(c.length, kXsrHeadDim) * sizeof(float));
          const auto call = [&](attention_forward_f32_t* f, float* to) {
            f(qkv.data(), qkv_stride, cu_seqlens.data(), 0, sentences, 0, kXsrHeads, kXsrHeads,
              kXsrHeadDim, to, out_stride, nullptr, scratch.floats());
          };
          call(attention, out.data());
          call(attention_forward_f32_ref, expected.data());
          double flop = 0;
          for (int32_t b = 0; b < sentences; ++b) {
            const double length = cu_seqlens[b + 1] - cu_seqlens[b];
            flop += 4.0 * length * length * kC;
          }
          run(state, agrees(out, expected), flop, 0, [&] { call(attention, out.data()); });
        });
  }
}

void bench_activation_forward_f32(const std::string& name, Isa,
                                  activation_forward_f32_t* activation) {
  struct Case {
    const char* name;
    Activation activation;
  };
  for (const Case c : {Case{"swish", Activation::kSwish}, Case{"gelu_erf", Activation::kGeluErf},
                       Case{"gelu_tanh", Activation::kGeluTanh}, Case{"relu", Activation::kRelu},
                       Case{"tanh", Activation::kTanh}}) {
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
  struct Case {
    const char* name;
    Pooling pooling;
  };
  for (const Case c :
       {Case{"mean", Pooling::kMean}, Case{"max", Pooling::kMax}, Case{"cls", Pooling::kCls}}) {
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

void add_all() {
#define XSR_KERNEL(op, isa, level) \
  if (isa_supported(level)) bench_##op(#op "_" #isa, level, op##_##isa);
#include "kernels/kernels.inc"
#ifdef XSR_HAVE_ONEDNN
  bench_gemm_onednn();
#endif
}

}  // namespace
}  // namespace xsr::bench

int main(int argc, char** argv) {
  xsr::bench::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
