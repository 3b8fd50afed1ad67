#pragma once
// Matrix products on the device. Two bodies: gemm_cublaslt.cpp, and gemm_emulated.cpp with plain
// loops.
#include <cstdint>

#include "kernels/cuda/stream.h"

namespace xsr::cuda {

enum class Dtype : int32_t { kF32, kBf16 };

/// A row-major matrix on the device.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from row to row
  Dtype dtype = Dtype::kF32;
  bool transposed = false;  // it stands in memory with its rows and columns exchanged
};

/// out[m, n] = Σ_k a[m, k] · b[n, k] + bias[n] + c[m, n]
///
/// a     [M, K]; where transposed, [K, M] in memory
/// b     [N, K]; where transposed, [K, N] in memory; a.dtype
/// out   [M, N] in out_dtype, row stride out_stride
/// bias  [N] f32; null = none
/// c     [M, N] f32, row stride c_stride; null = none; may be out itself
///
/// A product into bf16 has neither bias nor c: cuBLASLt takes both in the type of out only, and
/// what reads such a product next adds an f32 bias at no cost. Its operands are bf16.
///
/// Sums in f32. Rows beyond M are neither read nor written. Data starts at multiples of 16 bytes.
struct Product {
  int32_t M = 0, N = 0, K = 0;
  Matrix a, b;
  void* out = nullptr;
  int64_t out_stride = 0;
  const float* bias = nullptr;
  const float* c = nullptr;
  int64_t c_stride = 0;
  Dtype out_dtype = Dtype::kF32;
  bool split_k = false;  // K may be summed in parts, whose number depends on M, N and K, if 128
                         // divides it
};

/// Whether one algorithm does a product with any M. Not where K may be split; nor where a is
/// transposed, for there M is the extent that a.stride is the stride of, and an algorithm may need
/// it to be even, or more.
constexpr bool same_for_every_M(const Product& p) { return !p.split_k && !p.a.transposed; }
/// The M that a product's algorithm is chosen for: its own, or where one does for every M the least
/// of these that is no less, since it must not depend on which product came first.
inline constexpr int32_t kManyRows = 4096;  // about a chunk of a corpus; more go as these do
inline constexpr int32_t kFewRows[] = {64, 512};
constexpr int32_t rows_to_choose_by(const Product& p) {
  if (!same_for_every_M(p)) return p.M;
  for (const int32_t rows : kFewRows) {
    if (p.M <= rows) return rows;
  }
  return kManyRows;
}

/// The products of one stream, which share a workspace.
class Gemm {
 public:
  /// On the device of this thread. tf32: f32 products may round their operands to TF32. Throws
  /// Error.
  explicit Gemm(bool tf32 = false);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  /// One algorithm for each (N, K, dtypes, layouts, bias, c), chosen at the first product of the
  /// kind, without splitting K; for up to 64 and 512 rows another, tiled for so few, if on this
  /// device it sums in the same order, which is tried (summation_probe.h). So a row's bits do not
  /// depend on the other rows, nor on how many they are. With split_k, or a transposed, one for
  /// each M: two runs give the same bits, no more. The first product of a kind and size is not to
  /// be captured. All products of a Gemm are on the same stream. Throws Error(CUDA, OUT_OF_MEMORY).
  void run(const Product& product, Stream stream);

  /// Kinds and sizes of products of up to 512 rows so far, and those among them that have an
  /// algorithm of their own.
  struct FewRows {
    int32_t kinds = 0, own = 0;
  };
  FewRows few_rows() const;

 private:
  struct Impl;
  Impl* impl_;
};

}  // namespace xsr::cuda
