#include "bench/onednn_chain.h"

#ifdef XSR_HAVE_ONEDNN
#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/huge_buffer.h"
#include "kernels/gemm/gemm_onednn.h"

namespace xsr::bench {
namespace {

using namespace xsr::kernels;

void fill_normal(float* data, size_t count, float deviation, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, deviation);
  for (size_t i = 0; i < count; ++i) data[i] = normal(random);
}

struct Dense {
  Dense(int32_t N, int32_t K, Activation activation, std::mt19937& random)
      : memory(packed_elements(N, K, Storage::kF32) * sizeof(float)),
        w{memory.data(), Storage::kF32, N, K},
        bias(N),
        gemm(w) {
    std::vector<float> plain(static_cast<size_t>(N) * K);
    fill_normal(plain.data(), plain.size(), 1.0f / std::sqrt(static_cast<float>(K)), random);
    gemm_pack_panels(plain.data(), N, K, Storage::kF32, memory.data());
    fill_normal(bias.data(), bias.size(), 0.1f, random);
    epilogue.bias = bias.data();
    epilogue.activation = activation;
  }

  HugeBuffer memory;
  PackedMatrix w;
  std::vector<float> bias;
  GemmEpilogue epilogue;
  OnednnGemm gemm;
};

class Chain final : public OnednnChain {
 public:
  Chain(int32_t num_layers, int32_t hidden_size, int32_t intermediate_size, Activation activation)
      : C_(hidden_size), F_(intermediate_size) {
    OnednnGemm::set_num_threads(1);
    for (int32_t i = 0; i < num_layers; ++i) {
      dense_.emplace_back(3 * C_, C_, Activation::kNone, random_);
      dense_.emplace_back(C_, C_, Activation::kNone, random_);
      dense_.emplace_back(F_, C_, activation, random_);
      dense_.emplace_back(C_, F_, Activation::kNone, random_);
    }
  }

  void prepare(int32_t M) override {
    const size_t widest = static_cast<size_t>(3 * C_ > F_ ? 3 * C_ : F_);
    input_.resize(static_cast<size_t>(M) * widest);
    output_.resize(static_cast<size_t>(M) * widest);
    fill_normal(input_.data(), input_.size(), 1.0f, random_);
    std::vector<float> expected(output_.size());
    for (Dense& dense : dense_) {
      const int32_t N = dense.w.N;
      call(dense, M);
      // Two rows are enough to tell a wrong layout; the ref gemm is slow.
      const int32_t rows = M < 2 ? M : 2;
      gemm_forward_f32_ref(input_.data(), dense.w.K, rows, dense.w, 0, panel_count(N),
                           dense.epilogue, expected.data(), N);
      float largest = 0, error = 0;
      for (int64_t i = 0; i < int64_t{rows} * N; ++i) {
        largest = std::max(largest, std::fabs(expected[i]));
        error = std::max(error, std::fabs(output_[i] - expected[i]));
      }
      if (!(error <= 1e-5f * largest))
        throw std::runtime_error("the oneDNN yardstick differs from the ref gemm by " +
                                 std::to_string(error) + " at M=" + std::to_string(M));
    }
  }

  void run(int32_t M) override {
    for (Dense& dense : dense_) call(dense, M);
  }

 private:
  void call(Dense& dense, int32_t M) {
    dense.gemm.forward(input_.data(), dense.w.K, M, 0, panel_count(dense.w.N), dense.epilogue,
                       output_.data(), dense.w.N);
  }

  int32_t C_, F_;
  std::mt19937 random_{7};
  std::list<Dense> dense_;
  std::vector<float> input_, output_;
};

}  // namespace

std::unique_ptr<OnednnChain> OnednnChain::create(int32_t num_layers, int32_t hidden_size,
                                                 int32_t intermediate_size,
                                                 kernels::Activation activation) {
  return std::make_unique<Chain>(num_layers, hidden_size, intermediate_size, activation);
}

}  // namespace xsr::bench

#else

namespace xsr::bench {

std::unique_ptr<OnednnChain> OnednnChain::create(int32_t, int32_t, int32_t, kernels::Activation) {
  return nullptr;
}

}  // namespace xsr::bench

#endif
