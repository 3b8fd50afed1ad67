#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
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
constexpr uint32_t kAlignment = 16;

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

  /// With the workspace where K may be split alone: what could split it by itself finds no room.
  size_t workspace_bytes(const Product& p) const {
    return same_for_every_M(p) ? 0 : kWorkspaceBytes;
  }

  cublasStatus_t multiply(const Product& p, cublasLtMatmulDesc_t description,
                          const cublasLtMatmulAlgo_t& algorithm, Stream stream) {
    const Layouts layouts(p, p.M);
    const float one = 1, beta = p.c == nullptr ? 0 : 1;
    const size_t bytes = workspace_bytes(p);
    return cublasLtMatmul(handle, description, &one, p.b.data, layouts.b.value, p.a.data,
                          layouts.a.value, &beta, p.c == nullptr ? p.out : p.c, layouts.c.value,
                          p.out, layouts.out.value, &algorithm,
                          bytes == 0 ? nullptr : workspace.data(), bytes, stream);
  }

  const cublasLtMatmulAlgo_t& algorithm(const Product& p, Stream stream) {
    const Key key = key_of(p);
    auto at = algorithms.find(key);
    if (at == algorithms.end()) at = algorithms.emplace(key, choose(p, stream)).first;
    return at->second;
  }

  cublasLtMatmulAlgo_t choose(const Product& p, Stream stream) {
    // The choice follows the bias' alignment, and must not follow which caller came first.
    Product like = p;
    if (p.bias != nullptr) like.bias = reinterpret_cast<const float*>(uintptr_t{kAlignment});
    Description description;
    describe(like, description);
    const std::vector<cublasLtMatmulAlgo_t> found = candidates(p, description.value);
    if (!same_for_every_M(p)) return found.front();
    const int32_t rows = rows_to_choose_by(p);
    if (rows == kManyRows) {
      const auto best = std::find_if(found.begin(), found.end(), [&](const auto& one) {
        return takes(one, p, description.value, 1) && takes(one, p, description.value, 1 << 16);
      });
      return best == found.end() ? found.front() : *best;
    }
    Product many = p;
    many.M = kManyRows;
    const cublasLtMatmulAlgo_t& reference = algorithm(many, stream);
    ++few_rows.kinds;
    if (p.K < SummationProbe::kLeastK) return reference;
    try {
      Trial trial(*this, p, rows, stream);
      const std::optional<std::vector<char>> wanted = trial.bits(reference, rows);
      if (!wanted) return reference;
      constexpr size_t kMostTried = 16;
      for (size_t i = 0; i < std::min(found.size(), kMostTried); ++i) {
        const cublasLtMatmulAlgo_t& one = found[i];
        if (std::memcmp(&one, &reference, sizeof one) == 0) break;
        if (!takes(one, p, description.value, 1) || !takes(one, p, description.value, rows) ||
            trial.bits(one, rows) != wanted)
          continue;
        const std::optional<std::vector<char>> alone = trial.bits(one, 1);
        if (alone &&
            std::equal(alone->begin(), alone->begin() + trial.row_bytes(), wanted->begin())) {
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
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes(p));
    // In place would add with atomics, in an order of chance.
    const uint32_t reductions = p.split_k
                                    ? static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
                                    : static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE);
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    // Rows of buffers, biases too, are promised 16 bytes where their strides allow it; with more,
    // the choice would depend on the buffer.
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kAlignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kAlignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kAlignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kAlignment);
    constexpr int kMost = 64;
    cublasLtMatmulHeuristicResult_t results[kMost] = {};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle, description, layouts.b.value, layouts.a.value, layouts.c.value, layouts.out.value,
        preference.value, kMost, results, &found);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_blas(status, "choosing an algorithm");
    std::vector<cublasLtMatmulAlgo_t> usable;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS && may_split(results[i].algo, p))
        usable.push_back(results[i].algo);
    }
    if (usable.empty()) {
      throw Error(XSR_STATUS_CUDA, "cuBLASLt has no algorithm for a product of " +
                                       std::to_string(p.N) + " outputs and " + std::to_string(p.K) +
                                       " inputs");
    }
    return usable;
  }

  /// Whether the algorithm sums K in one part, or may do so in several: where it is a multiple of
  /// every step there is, for versions of cuBLASLt are said to leave out the rest.
  static bool may_split(const cublasLtMatmulAlgo_t& algorithm, const Product& p) {
    int32_t parts = 1;
    size_t written = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoConfigGetAttribute(
        &algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts, &written);
    return status != CUBLAS_STATUS_SUCCESS || parts <= 1 || (p.split_k && p.K % 128 == 0);
  }

  /// Whether the algorithm can do the product with so many rows.
  bool takes(const cublasLtMatmulAlgo_t& algorithm, const Product& p,
             cublasLtMatmulDesc_t description, int32_t rows) {
    const Layouts layouts(p, rows);
    cublasLtMatmulHeuristicResult_t result = {};
    return cublasLtMatmulAlgoCheck(handle, description, layouts.b.value, layouts.a.value,
                                   layouts.c.value, layouts.out.value, &algorithm,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= workspace_bytes(p);
  }

  /// Products like one that is wanted, of operands that show the order of summation.
  class Trial {
   public:
    /// On the stream of the other products.
    Trial(Impl& impl, const Product& like, int32_t rows, Stream stream)
        : impl_(impl), stream_(stream), product_(like), in_place_(like.c == like.out) {
      const SummationProbe probe(like.K, like.a.dtype == Dtype::kF32 ? 24 : 8);
      const auto operand = [&](Memory& memory, Matrix& matrix, int32_t matrix_rows, auto&& value) {
        const int64_t lines = matrix.transposed ? like.K : matrix_rows;
        std::vector<char> host(bytes_of(lines * matrix.stride, matrix.dtype));
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
      const auto addend = [&](Memory& memory, int64_t size) {
        std::vector<float> host(static_cast<size_t>(size));
        for (size_t i = 0; i < host.size(); ++i)
          host[i] = SummationProbe::addend(static_cast<int64_t>(i));
        return static_cast<const float*>(upload(memory, host));
      };
      if (like.bias != nullptr) product_.bias = addend(bias_, like.N);
      if (like.c != nullptr) product_.c = addend(c_, rows * like.c_stride);
      out_ = Memory(Place::kDevice, bytes_of(rows * like.out_stride, like.out_dtype));
      product_.out = out_.data();
      if (in_place_) product_.c = static_cast<const float*>(out_.data());
      impl_.describe(product_, description_);
    }

    /// Of the result's first rows; none where the algorithm cannot do it.
    std::optional<std::vector<char>> bits(const cublasLtMatmulAlgo_t& algorithm, int32_t rows) {
      std::vector<char> host(out_.size());
      if (in_place_) {
        copy_on_device(out_.data(), c_.data(), out_.size(), stream_);
      } else {
        fill_zero(out_.data(), out_.size(), stream_);  // between the rows
      }
      product_.M = rows;
      if (impl_.multiply(product_, description_.value, algorithm, stream_) != CUBLAS_STATUS_SUCCESS)
        return std::nullopt;
      copy_to_host(host.data(), out_.data(), host.size(), stream_);
      wait();
      return host;
    }
    size_t row_bytes() const { return bytes_of(product_.N, product_.out_dtype); }

   private:
    static size_t bytes_of(int64_t size, Dtype dtype) {
      return static_cast<size_t>(size) * (dtype == Dtype::kF32 ? sizeof(float) : sizeof(uint16_t));
    }
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
    const bool in_place_;
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
  check_blas(impl_->multiply(p, description.value, impl_->algorithm(p, stream), stream),
             "multiplying");
}

Gemm::FewRows Gemm::few_rows() const { return impl_->few_rows; }

}  // namespace xsr::cuda
