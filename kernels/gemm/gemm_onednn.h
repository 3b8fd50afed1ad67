#pragma once
#include <stdint.h>

#include <memory>

#include "kernels/gemm/gemm.h"

namespace xsr::kernels {

/// The gemm contract (gemm.h) on oneDNN, for comparison: the yardstick of the benches and a second
/// opinion for the tests. Not part of xsr_kernels, which allocates nothing and needs libc only:
/// oneDNN primitives are objects with memory of their own, made for one shape, so this is a class
/// in a target of its own (xsr_onednn). docs/decisions/ says why xsr does not run on it.
///
/// Differences from gemm_forward_f32_t: a row's bits may depend on M (oneDNN chooses its blocking
/// by shape), the order of the sum is oneDNN's, and the threads are those of its OpenMP pool (call
/// set_num_threads first). Throws std::runtime_error when oneDNN refuses the shape.
class OnednnGemm {
 public:
  /// w stays referenced, and so do its bytes.
  explicit OnednnGemm(const PackedMatrix& w);
  ~OnednnGemm();
  OnednnGemm(const OnednnGemm&) = delete;
  OnednnGemm& operator=(const OnednnGemm&) = delete;

  /// As gemm_forward_f32_t. The first call with a shape (M, panels, strides, parts of the epilogue)
  /// tries oneDNN's ways to compute it (matmul on weights reordered as it likes, matmul on the f32
  /// panels as they stand, inner product), keeps the fastest, and has reordered the weights; later
  /// calls only run it. oneDNN 2.6 takes its AVX-512 brgemm only for dense rows (a_stride = K).
  void forward(const float* a, int64_t a_stride, int32_t M, int32_t first_panel, int32_t last_panel,
               const GemmEpilogue& epilogue, float* out, int64_t out_stride);

  /// Name of the implementation that ran last, e.g. "brgemm:avx512_core"; "" before the first call.
  const char* implementation() const;
  /// True when the last call read the .xsr panels themselves.
  bool reads_panels() const;

  /// Threads of the calling thread's later oneDNN calls. False when oneDNN was built without
  /// OpenMP.
  static bool set_num_threads(int32_t threads);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// gemm_backward_weight_f32 (gemm_backward.h) for all rows of dw, by oneDNN's sgemm on the matrices
/// as they stand. Its order of sums is oneDNN's; it allocates. Throws std::runtime_error when
/// oneDNN refuses.
void gemm_backward_weight_f32_onednn(const float* dy, int64_t dy_stride, const float* x,
                                     int64_t x_stride, int32_t M, int32_t N, int32_t K,
                                     bool accumulate, float* dw, int64_t dw_stride);

}  // namespace xsr::kernels
