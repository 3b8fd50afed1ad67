#include <vector>

#include "kernels/cuda/emulated.h"
#include "kernels/gemm/gemm.h"
#include "kernels/storage.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {

/// The matrix as f32, [rows, columns] without gaps.
std::vector<float> dense(const Matrix& matrix, int32_t rows, int32_t columns) {
  std::vector<float> result(static_cast<size_t>(rows) * columns);
  const auto storage =
      matrix.dtype == Dtype::kF32 ? kernels::Storage::kF32 : kernels::Storage::kBF16;
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t c = 0; c < columns; ++c) {
      const int64_t at = matrix.transposed ? c * matrix.stride + r : r * matrix.stride + c;
      result[static_cast<size_t>(r) * columns + c] =
          kernels::load_storage(matrix.data, storage, at);
    }
  }
  return result;
}

void multiply(const Product& p) {
  const std::vector<float> a = dense(p.a, p.M, p.K), b = dense(p.b, p.N, p.K);
  for (int32_t m = 0; m < p.M; ++m) {
    for (int32_t n = 0; n < p.N; ++n) {
      const float *x = &a[static_cast<size_t>(m) * p.K], *w = &b[static_cast<size_t>(n) * p.K];
      float sum = 0;
      for (int32_t k = 0; k < p.K; ++k) sum += x[k] * w[k];
      if (p.bias != nullptr) sum += p.bias[n];
      if (p.c != nullptr) sum += p.c[m * p.c_stride + n];
      const int64_t at = m * p.out_stride + n;
      if (p.out_dtype == Dtype::kBf16) {
        static_cast<uint16_t*>(p.out)[at] = kernels::bf16_from_f32(sum);
      } else {
        static_cast<float*>(p.out)[at] = sum;
      }
    }
  }
}

}  // namespace

struct Gemm::Impl {};
Gemm::Gemm(bool) : impl_(nullptr) {}
Gemm::~Gemm() = default;
void Gemm::run(const Product& product, Stream stream) {
  if (product.out_dtype == Dtype::kBf16 &&
      (product.bias != nullptr || product.c != nullptr || product.a.dtype != Dtype::kBf16)) {
    throw Error(XSR_STATUS_INTERNAL, "a product into bf16 with a bias, a c or operands of f32");
  }
  if (product.M == 0 || product.N == 0) return;
  check(emulated::submit(stream, [product] { multiply(product); }), "multiplying");
}

}  // namespace xsr::cuda
