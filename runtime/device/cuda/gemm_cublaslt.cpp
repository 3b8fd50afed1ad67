#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/storage.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "runtime/device/cuda/summation_probe.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 32 << 20;

void check_blas(cublasStatus_t status, const char* doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(XSR_STATUS_CUDA,
              std::string("cuBLASLt: ") + doing + ": " + cublasLtGetStatusString(status));
}

cudaDataType_t type_of(Dtype dtype) { return dtype == Dtype::kF32 ? CUDA_R_32F : CUDA_R_16BF; }

/// A cuBLASLt object that ends with its scope.
template <typename T, cublasStatus_t (*kDestroy)(T)>
struct Owned {
  T value = nullptr;
  Owned() = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (value != nullptr) kDestroy(value);
  }
};
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

void make_layout(Layout& layout, cudaDataType_t type, int64_t rows, int64_t columns,
                 int64_t stride) {
  check_blas(cublasLtMatrixLayoutCreate(&layout.value, type, static_cast<uint64_t>(rows),
                                        static_cast<uint64_t>(columns), stride),
             "describing a matrix");
}

/// cuBLASLt counts by columns, so a row-major matrix is its transpose to it, and the product is
/// outᵀ [N, M] = b aᵀ.
struct Layouts {
  Layout b, a, c, out;
  Layouts(const Product& p, int32_t M) {
    const auto operand = [](Layout& layout, const Matrix& matrix, int32_t rows, int32_t K) {
      make_layout(layout, type_of(matrix.dtype), matrix.transposed ? rows : K,
                  matrix.transposed ? K : rows, matrix.stride);
    };
    operand(b, p.b, p.N, p.K);
    operand(a, p.a, M, p.K);
    const cudaDataType_t out_type = type_of(p.out_dtype);
    make_layout(c, out_type, p.N, M, p.c == nullptr ? p.out_stride : p.c_stride);
    make_layout(out, out_type, p.N, M, p.out_stride);
  }
};

using Key = std::tuple<int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, Dtype, Dtype,
                       bool, bool, bool, bool, bool>;

Key key_of(const Product& p) {
  return {rows_to_choose_by(p),
          p.N,
          p.K,
          p.a.stride,
          p.b.stride,
          p.c_stride,
          p.out_stride,
          p.a.dtype,
          p.out_dtype,
          p.a.transposed,
          p.b.transposed,
          p.bias != nullptr,
          p.c != nullptr,
          p.split_k};
}

}  // namespace

struct Gemm::Impl {
  cublasLtHandle_t handle = nullptr;
  cublasComputeType_t f32_compute = CUBLAS_COMPUTE_32F;
  Memory workspace{Place::kDevice, kWorkspaceBytes};
  std::map<Key, cublasLtMatmulAlgo_t> algorithms;
  FewRows few_rows;

  ~Impl() {
    if (handle != nullptr) cublasLtDestroy(handle);
  }

  void describe(const Product& p, Description& description) const {
    check_blas(cublasLtMatmulDescCreate(&description.value,
                                        p.a.dtype == Dtype::kF32 ? f32_compute : CUBLAS_COMPUTE_32F,
                                        CUDA_R_32F),
               "describing a product");
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      check_blas(cublasLtMatmulDescSetAttribute(description.value, attribute, &value, sizeof value),
                 "describing a product");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_N : CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    }
  }

  cublasStatus_t multiply(const Product& p, cublasLtMatmulDesc_t description,
                          const cublasLtMatmulAlgo_t& algorithm, Stream stream) {
    const Layouts layouts(p, p.M);
    const float one = 1, beta = p.c == nullptr ? 0 : 1;
    return cublasLtMatmul(handle, description, &one, p.b.data, layouts.b.value, p.a.data,
                          layouts.a.value, &beta, p.c == nullptr ? p.out : p.c, layouts.c.value,
                          p.out, layouts.out.value, &algorithm, workspace.data(), kWorkspaceBytes,
                          stream);
  }

  const cublasLtMatmulAlgo_t& algorithm(const Product& p, cublasLtMatmulDesc_t description,
                                        Stream stream) {
    const Key key = key_of(p);
    auto at = algorithms.find(key);
    if (at == algorithms.end()) at = algorithms.emplace(key, choose(p, description, stream)).first;
    return at->second;
  }

  cublasLtMatmulAlgo_t choose(const Product& p, cublasLtMatmulDesc_t description, Stream stream) {
    const std::vector<cublasLtMatmulAlgo_t> found = candidates(p, description);
    if (!same_for_every_M(p)) return found.front();
    const int32_t rows = rows_to_choose_by(p);
    if (rows == std::end(kRowsToChooseBy)[-1]) {
      const auto best = std::find_if(found.begin(), found.end(), [&](const auto& one) {
        return takes(one, p, description, 1) && takes(one, p, description, 1 << 16);
      });
      return best == found.end() ? found.front() : *best;
    }
    Product many = p;
    many.M = std::end(kRowsToChooseBy)[-1];
    const cublasLtMatmulAlgo_t& reference = algorithm(many, description, stream);
    ++few_rows.kinds;
    try {
      Trial trial(*this, p, rows, stream);
      const std::optional<std::vector<char>> wanted = trial.bits(reference);
      constexpr size_t kMostTried = 16;
      for (size_t i = 0; i < std::min(found.size(), kMostTried); ++i) {
        const cublasLtMatmulAlgo_t& one = found[i];
        if (std::memcmp(&one, &reference, sizeof one) == 0) break;
        if (takes(one, p, description, 1) && takes(one, p, description, rows) &&
            trial.bits(one) == wanted) {
          ++few_rows.own;
          return one;
        }
      }
    } catch (const Error& e) {  // without memory for a trial
      if (e.status() != XSR_STATUS_OUT_OF_MEMORY) throw;
    }
    return reference;
  }

  /// Best first, at least one; promised for rows_to_choose_by(p) alone.
  std::vector<cublasLtMatmulAlgo_t> candidates(const Product& p, cublasLtMatmulDesc_t description) {
    const Layouts layouts(p, rows_to_choose_by(p));
    Preference preference;
    check_blas(cublasLtMatmulPreferenceCreate(&preference.value), "choosing an algorithm");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check_blas(
          cublasLtMatmulPreferenceSetAttribute(preference.value, attribute, &value, sizeof value),
          "choosing an algorithm");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    // In place would add with atomics, in an order of chance.
    const uint32_t reductions = p.split_k
                                    ? static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
                                    : static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE);
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    // Rows of buffers, biases too, are promised 16 bytes where their strides allow it; with more,
    // the choice would depend on the buffer.
    const uint32_t alignment = 16;
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    constexpr int kMost = 64;
    cublasLtMatmulHeuristicResult_t results[kMost] = {};
    int found = 0;
    check_blas(cublasLtMatmulAlgoGetHeuristic(handle, description, layouts.b.value, layouts.a.value,
                                              layouts.c.value, layouts.out.value, preference.value,
                                              kMost, results, &found),
               "choosing an algorithm");
    if (found == 0) {
      throw Error(XSR_STATUS_CUDA, "cuBLASLt has no algorithm for a product of " +
                                       std::to_string(p.N) + " outputs and " + std::to_string(p.K) +
                                       " inputs");
    }
    std::vector<cublasLtMatmulAlgo_t> algorithms_found;
    for (int i = 0; i < found; ++i) algorithms_found.push_back(results[i].algo);
    return algorithms_found;
  }

  /// Whether the algorithm can do the product with so many rows.
  bool takes(const cublasLtMatmulAlgo_t& algorithm, const Product& p,
             cublasLtMatmulDesc_t description, int32_t rows) {
    const Layouts layouts(p, rows);
    cublasLtMatmulHeuristicResult_t result = {};
    return cublasLtMatmulAlgoCheck(handle, description, layouts.b.value, layouts.a.value,
                                   layouts.c.value, layouts.out.value, &algorithm,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspaceBytes;
  }

  /// Products like one that is wanted, of operands that show the order of summation.
  class Trial {
   public:
    /// On the stream of the other products, whose workspace it uses.
    Trial(Impl& impl, const Product& like, int32_t rows, Stream stream)
        : impl_(impl), stream_(stream), product_(like) {
      product_.M = rows;
      const SummationProbe probe{like.K};
      const auto bytes = [](int64_t size, Dtype dtype) {
        return static_cast<size_t>(size) * (dtype == Dtype::kF32 ? sizeof(float) : 2);
      };
      const auto operand = [&](Memory& memory, Matrix& matrix, int32_t matrix_rows, auto&& value) {
        const int64_t lines = matrix.transposed ? like.K : matrix_rows;
        std::vector<char> host(bytes(lines * matrix.stride, matrix.dtype));
        for (int32_t r = 0; r < matrix_rows; ++r) {
          for (int32_t k = 0; k < like.K; ++k) {
            const int64_t at = matrix.transposed ? k * matrix.stride + r : r * matrix.stride + k;
            const uint32_t bits = kernels::f32_to_bits(value(r, k));  // bf16 is the upper half
            if (matrix.dtype == Dtype::kF32) {
              std::memcpy(&host[at * 4], &bits, 4);
            } else {
              std::memcpy(&host[at * 2], reinterpret_cast<const char*>(&bits) + 2, 2);
            }
          }
        }
        matrix.data = upload(memory, host);
      };
      operand(a_, product_.a, rows, [&](int32_t m, int32_t k) { return probe.a(m, k); });
      operand(b_, product_.b, like.N, [&](int32_t n, int32_t k) { return probe.b(n, k); });
      // Of the size of rounding errors, so that their order among the sums shows, too.
      const auto addend = [&](Memory& memory, int64_t size) {
        std::vector<float> host(static_cast<size_t>(size));
        for (size_t i = 0; i < host.size(); ++i)
          host[i] = probe.a(rows + static_cast<int32_t>(i % 1024), static_cast<int32_t>(i / 1024));
        return static_cast<const float*>(upload(memory, host));
      };
      if (like.bias != nullptr) product_.bias = addend(bias_, like.N);
      if (like.c != nullptr) product_.c = addend(c_, rows * like.c_stride);
      out_ = Memory(Place::kDevice, bytes(rows * like.out_stride, like.out_dtype));
      product_.out = out_.data();
      impl_.describe(product_, description_);
    }

    /// Of the result; none where the algorithm cannot do it.
    std::optional<std::vector<char>> bits(const cublasLtMatmulAlgo_t& algorithm) {
      std::vector<char> host(out_.size());
      fill_zero(out_.data(), out_.size(), stream_);  // between the rows
      if (impl_.multiply(product_, description_.value, algorithm, stream_) != CUBLAS_STATUS_SUCCESS)
        return std::nullopt;
      copy_to_host(host.data(), out_.data(), host.size(), stream_);
      wait();
      return host;
    }

   private:
    template <typename T>
    void* upload(Memory& memory, const std::vector<T>& host) {
      memory = Memory(Place::kDevice, sizeof(T) * host.size());
      copy_to_device(memory.data(), host.data(), sizeof(T) * host.size(), stream_);
      wait();
      return memory.data();
    }
    void wait() const {
      Event done;
      done.record(stream_);
      done.wait();
    }

    Impl& impl_;
    const Stream stream_;
    Product product_;
    Memory a_, b_, bias_, c_, out_;
    Description description_;
  };
};

Gemm::Gemm(bool tf32) : impl_(new Impl) {
  try {
    check_blas(cublasLtCreate(&impl_->handle), "starting");
  } catch (...) {
    delete impl_;
    throw;
  }
  if (tf32) impl_->f32_compute = CUBLAS_COMPUTE_32F_FAST_TF32;
}
Gemm::~Gemm() { delete impl_; }

void Gemm::run(const Product& p, Stream stream) {
  if (p.M == 0 || p.N == 0) return;
  Description description;
  impl_->describe(p, description);
  check_blas(
      impl_->multiply(p, description.value, impl_->algorithm(p, description.value, stream), stream),
      "multiplying");
}

Gemm::FewRows Gemm::few_rows() const { return impl_->few_rows; }

}  // namespace xsr::cuda
