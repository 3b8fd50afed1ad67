#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
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
                       bool, bool, bool, bool>;

}  // namespace

struct Gemm::Impl {
  cublasLtHandle_t handle = nullptr;
  cublasComputeType_t f32_compute = CUBLAS_COMPUTE_32F;
  Memory workspace{Place::kDevice, kWorkspaceBytes};
  std::map<Key, cublasLtMatmulAlgo_t> algorithms;

  ~Impl() {
    if (handle != nullptr) cublasLtDestroy(handle);
  }

  cublasLtMatmulAlgo_t choose(const Product& p, cublasLtMatmulDesc_t description) {
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
    // They come best first, and are promised for the rows that were asked for alone.
    const auto* best = std::find_if(results, results + found, [&](const auto& result) {
      return !same_for_every_M(p) ||
             (takes(result.algo, p, description, 1) && takes(result.algo, p, description, 1 << 16));
    });
    return (best == results + found ? results : best)->algo;
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
  check_blas(cublasLtMatmulDescCreate(
                 &description.value,
                 p.a.dtype == Dtype::kF32 ? impl_->f32_compute : CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "describing a product");
  const auto describe = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check_blas(cublasLtMatmulDescSetAttribute(description.value, attribute, &value, sizeof value),
               "describing a product");
  };
  describe(CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_N : CUBLAS_OP_T);
  describe(CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.bias != nullptr) {
    describe(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    describe(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  const Key key{same_for_every_M(p) ? 0 : p.M,
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
                p.c != nullptr};
  auto at = impl_->algorithms.find(key);
  if (at == impl_->algorithms.end()) {
    at = impl_->algorithms.emplace(key, impl_->choose(p, description.value)).first;
  }
  const Layouts layouts(p, p.M);
  const float one = 1, beta = p.c == nullptr ? 0 : 1;
  check_blas(cublasLtMatmul(impl_->handle, description.value, &one, p.b.data, layouts.b.value,
                            p.a.data, layouts.a.value, &beta, p.c == nullptr ? p.out : p.c,
                            layouts.c.value, p.out, layouts.out.value, &at->second,
                            impl_->workspace.data(), kWorkspaceBytes, stream),
             "multiplying");
}

}  // namespace xsr::cuda
