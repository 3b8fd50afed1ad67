#include <set>
#include <tuple>
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

/// What cuBLASLt asks of a product, and of the one that stands for it when its algorithm is chosen.
void require_layouts(const Product& p) {
  const int64_t rows = rows_to_choose_by(p);
  const auto fits = [](const Matrix& matrix, int64_t r, int64_t columns) {
    return matrix.stride >= (matrix.transposed ? r : columns);
  };
  if (!fits(p.a, rows, p.K) || !fits(p.b, p.N, p.K) || p.out_stride < p.N ||
      (p.c != nullptr && p.c_stride < p.N) || (p.c == p.out && p.c_stride != p.out_stride))
    throw Error(XSR_STATUS_INTERNAL, "a product whose rows overlap");
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  if (!aligned(p.a.data) || !aligned(p.b.data) || !aligned(p.out) || !aligned(p.bias) ||
      !aligned(p.c))
    throw Error(XSR_STATUS_INTERNAL, "a product of data that is not aligned");
}

}  // namespace

struct Gemm::Impl {
  Stream stream = nullptr;  // of its products
  // Kinds whose algorithm would be chosen by now.
  std::set<std::tuple<int32_t, int32_t, int32_t, int64_t, int64_t, int64_t, int64_t, Dtype, Dtype,
                      bool, bool, bool, bool, bool>>
      chosen;
};
Gemm::Gemm(bool) : impl_(new Impl) {}
Gemm::~Gemm() { delete impl_; }
Gemm::FewRows Gemm::few_rows() const { return {}; }
void Gemm::run(const Product& product, Stream stream) {
  if (product.out_dtype == Dtype::kBf16 &&
      (product.bias != nullptr || product.c != nullptr || product.a.dtype != Dtype::kBf16)) {
    throw Error(XSR_STATUS_INTERNAL, "a product into bf16 with a bias, a c or operands of f32");
  }
  if (product.M == 0 || product.N == 0) return;
  require_layouts(product);
  if (impl_->stream == nullptr) impl_->stream = stream;
  if (impl_->stream != stream)
    throw Error(XSR_STATUS_INTERNAL, "products of two streams, which would share a workspace");
  const bool is_first =
      impl_->chosen
          .insert({rows_to_choose_by(product), product.N, product.K, product.a.stride,
                   product.b.stride, product.c_stride, product.out_stride, product.a.dtype,
                   product.out_dtype, product.a.transposed, product.b.transposed,
                   product.bias != nullptr, product.c != nullptr, product.split_k})
          .second;
  if (is_first && stream->capture != nullptr)
    throw Error(XSR_STATUS_INTERNAL, "a product whose algorithm would be chosen within a capture");
  check(emulated::submit(stream, [product] { multiply(product); }), "multiplying");
}

}  // namespace xsr::cuda
