#pragma once
#include <stdint.h>

#include "kernels/activation/activation.h"
#include "kernels/types.h"

namespace xsr::kernels {

static constexpr int32_t kPanelColumns = 32;

/// A weight matrix W [N, K] (N outputs, K inputs) in panels of 32 outputs:
/// [ceil(N/32)][ceil(K/kp)][32][kp], kp = panel_group(storage). Element (n, k) stands at ((n/32 ·
/// ceil(K/kp) + k/kp) · 32 + n%32) · kp + k%kp; what is beyond N or K is zero. A panel is read
/// once, in address order; AVX-512 and AMX read the same bytes.
struct PackedMatrix {
  const void* data = nullptr;  // 64-byte aligned
  Storage storage = Storage::kF32;
  int32_t N = 0;
  int32_t K = 0;
};

static constexpr int32_t panel_count(int32_t N) { return (N + kPanelColumns - 1) / kPanelColumns; }
/// Elements of storage in the packed matrix, padding included.
static constexpr int64_t packed_elements(int32_t N, int32_t K, Storage storage) {
  const int32_t kp = panel_group(storage);
  return (int64_t)panel_count(N) * kPanelColumns * ((K + kp - 1) / kp) * kp;
}

/// What happens to a result before it is stored, in this order.
struct GemmEpilogue {
  const float* bias = nullptr;  // [N]; null = none
  Activation activation = Activation::kNone;
  const float* residual =
      nullptr;  // [M, N], row stride residual_stride; null = none; may be `out` itself
  int64_t residual_stride = 0;
};

/// out[m, n] = f( Σ_k a[m, k] · W[n, k] + bias[n] ) + residual[m, n]      for n in panels
/// [first_panel, last_panel)
///
/// a    [M, K]  row stride `a_stride` ≥ K floats; must not overlap out; nothing beyond column K is
/// read w            packed panels, widened to f32 exactly; panels outside the range are not read
/// out  [M, N]  row stride `out_stride` ≥ N floats; columns [32·first_panel, min(N, 32·last_panel))
/// are written
///
/// Accumulates in f32 in the order of k, whatever M and the range: an element depends on its row of
/// a and its row of W alone, so the same row gives the same bits in any batch and any split over
/// threads. Error against the double reference ≤ 2× that of the f32 reference. M = 0 writes
/// nothing. Pure: no allocation, no threads, no globals. Row strides that are multiples of 2 KiB
/// make rows fall into the same cache sets: give strides of C + 16 floats.
using gemm_forward_f32_t = void(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                                int32_t first_panel, int32_t last_panel,
                                const GemmEpilogue& epilogue, float* out, int64_t out_stride);

gemm_forward_f32_t gemm_forward_f32_ref, gemm_forward_f32_avx2, gemm_forward_f32_avx512;

/// The same product from bf16 activations and bf16 weights, accumulated in f32:
///
///     out[m, n] = f( Σ_k a[m, k] · W[n, k] + bias[n] ) + residual[m, n]     for n in the panels
///
/// a         [M, K]  bf16, row stride `a_stride` elements, even; where K is odd, column K is read
/// and must be 0 w                 bf16 panels out       [M, N]  f32, row stride `out_stride`; null
/// = not wanted narrow    [M, N]  the same values rounded to bf16, row stride `narrow_stride`; null
/// = not wanted; where N is odd, column
///                   N is set to 0 with the last panel, so that it can be the `a` of the next
///                   product
///
/// Products of two bf16 are exact in f32; sums round to f32 in the order of k, by pairs where the
/// ISA adds pairs (avx512_bf16, which also takes subnormals for 0). What is promised of rows,
/// panels and batches is as above. Error against the double reference of the same bf16 operands ≤
/// 2× that of the plain f32 loop.
using gemm_forward_bf16_t = void(const uint16_t* a, int64_t a_stride, int32_t M,
                                 const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                                 const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                 uint16_t* narrow, int64_t narrow_stride);

gemm_forward_bf16_t gemm_forward_bf16_ref, gemm_forward_bf16_avx2, gemm_forward_bf16_avx512_bf16;

/// Rounds rows [first, last) of x [N, C] (row stride x_stride) to bf16, to nearest even; where C is
/// odd, column C of out is set to 0. NaN stays NaN; avx512_bf16 turns subnormals into 0. Row
/// strides in elements; out's is even.
using narrow_forward_bf16_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                   int32_t C, uint16_t* out, int64_t out_stride);

narrow_forward_bf16_t narrow_forward_bf16_ref, narrow_forward_bf16_avx512_bf16;

/// Packs panels [first_panel, last_panel) of w [N, K] (row-major f32, row stride `w_stride` ≥ K
/// floats) into their places in `packed` [packed_elements(N, K, storage)], rounding to nearest even
/// for the narrow storages. NaN stays NaN; f16 overflow gives infinity. Panels may be shared out
/// over threads; the others are neither read nor written.
void gemm_pack_panels(const float* w, int64_t w_stride, int32_t N, int32_t K, Storage storage,
                      int32_t first_panel, int32_t last_panel, void* packed);

/// The same for Wᵀ, a matrix of K outputs and N inputs, from w [N, K]: panels [first_panel,
/// last_panel) of panel_count(K) in `packed` [packed_elements(K, N, storage)]. gemm_forward over
/// them gives dX = dY · W.
void gemm_pack_transposed_panels(const float* w, int64_t w_stride, int32_t N, int32_t K,
                                 Storage storage, int32_t first_panel, int32_t last_panel,
                                 void* packed);

/// All panels of a dense matrix (row stride K).
static inline void gemm_pack_panels(const float* w, int32_t N, int32_t K, Storage storage,
                                    void* packed) {
  gemm_pack_panels(w, K, N, K, storage, 0, panel_count(N), packed);
}

/// Element (n, k) of a packed matrix as f32.
float gemm_packed_element(const PackedMatrix& w, int32_t n, int32_t k);

/// Round to nearest even; NaN stays NaN.
uint16_t bf16_from_f32(float value);
uint16_t f16_from_f32(float value);

}  // namespace xsr::kernels
