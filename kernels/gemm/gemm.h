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
  // kI8 only: a weight is scales[n] · its integer.
  const float* scales = nullptr;  // [N]
  const int32_t* sums = nullptr;  // [N] Σ_k of the integers of output n; gemm_forward_i8 needs them
  const void* steps = nullptr;    // what gemm_forward_i8_avx2 reads instead of data, and it alone
  // It comes from memory at each pass, being one of more matrices than caches hold: how far ahead
  // weights are asked for depends on it, no bits do.
  bool streamed = false;
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
/// a       [M, K]  bf16, row stride `a_stride` elements, even; where K is odd, column K is read and
///                 must be 0
/// w               bf16 panels
/// out     [M, N]  f32, row stride `out_stride`; null = not wanted
/// narrow  [M, N]  the same values rounded to bf16, row stride `narrow_stride`; null = not wanted;
///                 where N is odd, column N is set to 0 with the last panel, so that it can be the
///                 `a` of the next product
///
/// Products of two bf16 are exact in f32; sums round to f32 in the order of k, by pairs where the
/// ISA adds pairs (avx512_bf16, and amx, which adds the even k of 32 and the odd ones apart; both
/// take subnormals for 0). What is promised of rows, panels and batches is as above. Error against
/// the double reference of the same bf16 operands ≤ 2× that of the plain f32 loop; avx512_bf16 and
/// amx add at most 2^-16 min(1, |x|) for swish and GELU of x, a hundredth of what rounding the
/// result to bf16 does.
using gemm_forward_bf16_t = void(const uint16_t* a, int64_t a_stride, int32_t M,
                                 const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                                 const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                 uint16_t* narrow, int64_t narrow_stride);

gemm_forward_bf16_t gemm_forward_bf16_ref, gemm_forward_bf16_avx2, gemm_forward_bf16_avx512_bf16,
    gemm_forward_bf16_amx;

/// What the products of a narrow result do with its column N.
static inline void end_narrow_rows(const PackedMatrix& w, int32_t last_panel, int32_t M,
                                   uint16_t* narrow, int64_t narrow_stride) {
  if (narrow == nullptr || w.N % 2 == 0 || last_panel != panel_count(w.N)) return;
  for (int32_t m = 0; m < M; ++m) narrow[m * narrow_stride + w.N] = 0;
}

/// Rounds rows [first, last) of x [N, C] (row stride x_stride) to bf16, to nearest even; where C is
/// odd, column C of out is set to 0. NaN stays NaN; avx512_bf16 turns subnormals into 0. Row
/// strides in elements; out's is even.
using narrow_forward_bf16_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                   int32_t C, uint16_t* out, int64_t out_stride);

narrow_forward_bf16_t narrow_forward_bf16_ref, narrow_forward_bf16_avx512_bf16;

/// f32 as two bf16: hi = bf16(x), lo = bf16(x - hi), so that |x - hi - lo| ≤ 2^-17 |x| while lo is
/// a normal number; lo is 0 where hi is not finite (|x| ≥ 2^128 - 2^119 too).
///
/// A split row of C values holds hi in columns [0, S) and lo in [S, 2S), S = split_columns(C);
/// columns beyond C are 0. Strides count bf16 elements.
static constexpr int32_t split_columns(int32_t C) { return (C + 31) / 32 * 32; }
void split_bf16(float x, uint16_t* hi, uint16_t* lo);

/// A weight matrix W [N, K] split, in panels of 32 outputs: [ceil(N/32)][S/2][2][32][2] with
/// S = split_columns(K). The hi of element (n, k) stands at 128 (n/32 · S/2 + k/2) + 2 (n%32) +
/// k%2, its lo 64 elements further; what is beyond N or K is 0. A panel is read once, in address
/// order, by every ISA.
struct SplitMatrix {
  const uint16_t* data = nullptr;  // 64-byte aligned
  int32_t N = 0;
  int32_t K = 0;
};
/// Elements of a split matrix, padding included: as many bytes as in f32.
static constexpr int64_t split_elements(int32_t N, int32_t K) {
  return (int64_t)panel_count(N) * kPanelColumns * 2 * split_columns(K);
}
/// Splits a packed matrix into `split` [split_elements(N, K)].
void gemm_split_panels(const PackedMatrix& w, uint16_t* split);

/// The f32 product from bf16 multipliers ("bf16x3"), every operand split:
///
///     out[m, n] = f( Σ_k a_hi·W_hi + a_lo·W_hi + a_hi·W_lo + bias[n] ) + residual[m, n]
///
/// a         [M, 2S] split rows of K values, row stride `a_stride`, even
/// w                 split panels
/// out       [M, N]  f32, row stride `out_stride`; null = not wanted
/// split     [M, 2S'] the same values as split rows of N values, row stride `split_stride`; null =
///                   not wanted. Of each panel its 32 columns are written, the 0 beyond N too.
///
/// Products of two bf16 are exact in f32, sums round to f32; the order within 32 inputs is the
/// ISA's own, the same for every row, so that what is promised of rows, panels and batches is as
/// above. Error against the double reference of the same three products ≤ 2× that of the plain f32
/// loop; what splitting leaves out is at most 2.1 · 2^-16 Σ_k |a[m, k]| |W[n, k]|.
using gemm_forward_bf16x3_t = void(const uint16_t* a, int64_t a_stride, int32_t M,
                                   const SplitMatrix& w, int32_t first_panel, int32_t last_panel,
                                   const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                   uint16_t* split, int64_t split_stride);

gemm_forward_bf16x3_t gemm_forward_bf16x3_ref, gemm_forward_bf16x3_avx2,
    gemm_forward_bf16x3_avx512_bf16, gemm_forward_bf16x3_amx;

/// Splits rows [first, last) of x [N, C] (row stride x_stride floats) into split rows of C values.
/// avx512_bf16 turns subnormals into 0.
using split_forward_bf16x3_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                    int32_t C, uint16_t* out, int64_t out_stride);

split_forward_bf16x3_t split_forward_bf16x3_ref, split_forward_bf16x3_avx2,
    split_forward_bf16x3_avx512_bf16;

/// How a row of activations stands in 8 bits: x ≈ scale · (q - zero).
struct QuantizedRow {
  float scale;   // 0: every x is 0; NaN: the row held a NaN or an infinity
  int32_t zero;  // 0 to 255, the q of 0.0
};

/// The largest K of gemm_forward_i8: K · 255 · 128 stays below 2^31.
static constexpr int32_t kMaxInputsI8 = 65536;

/// The product of activations in u8 and weights in s8, in exact integers:
///
///     out[m, n] = f( (Σ_k (a[m, k] - zero[m]) · W[n, k]) · scale[m] · scales[n] + bias[n] )
///                 + residual[m, n]                                         for n in the panels
///
/// a     [M, K]  u8, row stride `a_stride` bytes, a multiple of 4; columns up to the next multiple
///               of 4 beyond K are read and count nothing, as the weights there are 0
/// rows  [M]     scale and zero of a's rows
/// w             packed kI8 panels with their scales and sums; K ≤ kMaxInputsI8. avx2 reads its
///               steps (gemm_pack_steps_i8_avx2) instead of the panels, which may be missing
/// out   [M, N]  f32, row stride `out_stride`; null = not wanted
/// narrow        as of gemm_forward_bf16; avx512_bf16 and amx turn subnormals into 0
///
/// The sum is taken as Σ a·W - zero · Σ W, whose second half is w.sums: the zero point costs one
/// multiplication an output. The sum is exact, then rounds to f32 once, and is multiplied by scale,
/// by scales[n] and added to bias in this order, unfused: without an activation every ISA gives the
/// same bits, with one the ISAs differ as their activations do; AVX-512 and AMX compute swish
/// and GELU of x within 2^-16 min(1, |x|). A row whose scale is NaN gives NaN
/// (before the residual and after). What is promised of rows, panels and batches is as above.
using gemm_forward_i8_t = void(const uint8_t* a, int64_t a_stride, int32_t M,
                               const QuantizedRow* rows, const PackedMatrix& w, int32_t first_panel,
                               int32_t last_panel, const GemmEpilogue& epilogue, float* out,
                               int64_t out_stride, uint16_t* narrow, int64_t narrow_stride);

gemm_forward_i8_t gemm_forward_i8_ref, gemm_forward_i8_avx2, gemm_forward_i8_avx2_vnni,
    gemm_forward_i8_avx512_vnni, gemm_forward_i8_avx512_bf16, gemm_forward_i8_amx;

/// The integers of a kI8 matrix for vpmaddubsw, which multiplies u8 by s8 but saturates the sum of
/// two products at 16 bits. A step is a group of four neighbouring inputs of 16 outputs, in which
/// no pair of neighbours can saturate: two weights of one sign whose sum is beyond 128 are kept
/// apart by flipping one, w · a = -w · (255 - a) + 255 · w. 255 - a is a XOR 255, so that a mask
/// beside the weights flips, and the sum of 255 · w is a number an output. -128 cannot be flipped:
/// the second of two becomes a step of its own. Sums stay exact.
///
/// [2 · ceil(N/32)] int64, bytes from the beginning of steps to the half panel. A half begins at a
/// multiple of 64 bytes with StepsI8, then come the groups of its steps, uint16, filled up to 64
/// bytes, its plain steps ([16][4] s8), and its steps with flips ([16][4] s8 and the same of
/// masks).
struct StepsI8 {
  int32_t plain;
  int32_t flipped;
  int32_t padding[14];
  int32_t offsets[16];  // 255 · the sum of the flipped weights of an output
};
/// Of the groups of a half panel's steps.
static constexpr int64_t step_groups_bytes(int32_t steps) {
  return (sizeof(uint16_t) * (int64_t)steps + 63) / 64 * 64;
}

/// Writes the steps of the integers of w (its scales and sums are not read) to `steps`, 64-byte
/// aligned; null = counts only. Returns their bytes: 1 to 3 times those of the panels, 2 a step and
/// less than 200 a half. K ≤ kMaxInputsI8.
int64_t gemm_pack_steps_i8_avx2(const PackedMatrix& w, void* steps);

/// The range a row is quantised over where that does not come from the row itself; low ≤ 0 ≤ high.
struct InputRange {
  float low = 0;
  float high = 0;
};
/// A range narrower than 255 · this counts as empty: its reciprocal step would leave f32.
static constexpr float kLeastScaleI8 = 1.17549435e-38f;  // 2^-126

/// Quantises rows [first, last) of x [N, K] (row stride x_stride floats) to u8:
///
///     low = min(0, x[i, ·])   high = max(0, x[i, ·])       or those of `range` where it is given
///     scale = high / 255 - low / 255     zero = round(-low / scale)
///     q = clamp(round(x / scale) + zero, 0, 255)            (1 / scale is rounded once, then used)
///
/// range      null: each row's own, so that a row's bits depend on that row alone in the strictest
///            sense; else one for all rows, beyond which values saturate
/// out [N, K] row stride out_stride bytes, a multiple of 4; columns up to the next multiple of 4
/// are
///            set to 0
/// rows [N]   entries [first, last) are written
///
/// Rounds to nearest even. |x - scale · (q - zero)| ≤ scale / 2 inside the range, up to f32
/// rounding. A row of zeros, or whose scale would be below kLeastScaleI8, gets scale 0, zero 0 and
/// q = 0; a row with a NaN or an infinity gets scale NaN, zero 0 and q = 0. All ISAs give the same
/// bits.
using quantize_forward_u8_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                   int32_t K, const InputRange* range, uint8_t* out,
                                   int64_t out_stride, QuantizedRow* rows);

quantize_forward_u8_t quantize_forward_u8_ref, quantize_forward_u8_avx2, quantize_forward_u8_avx512;

/// Rounds a row of weights to s8 with one scale, max|w| / 127: w ≈ scale · out, out in [-127, 127].
/// Returns the scale; a row without a value of at least 127 · kLeastScaleI8 becomes 0 with scale 0.
/// The weights must be finite.
float quantize_row_i8(const float* w, int64_t count, int8_t* out);

/// Rounds panels [first_panel, last_panel) of w [N, K] (row-major f32, row stride `w_stride` ≥ K
/// floats) to s8, a scale an output, into their places in `packed` [packed_elements(N, K, kI8)],
/// `scales` [N] and `sums` [N] (null = not wanted), which then are those of a PackedMatrix. A row
/// that is not finite has a scale that is not, and integers of 0. Panels may be shared out over
/// threads; the others are neither read nor written.
void gemm_quantize_panels(const float* w, int64_t w_stride, int32_t N, int32_t K,
                          int32_t first_panel, int32_t last_panel, int8_t* packed, float* scales,
                          int32_t* sums);
/// All panels of a dense matrix (row stride K).
static inline void gemm_quantize_panels(const float* w, int32_t N, int32_t K, int8_t* packed,
                                        float* scales) {
  gemm_quantize_panels(w, K, N, K, 0, panel_count(N), packed, scales, nullptr);
}
/// The same from panels of f32, bf16 or f16: the same bits where a row is finite.
void gemm_quantize_panels(const PackedMatrix& w, int8_t* packed, float* scales);

/// Widens kI8 panels with their scales to f32 panels, `packed` [packed_elements(N, K, kF32)].
void gemm_widen_panels(const PackedMatrix& w, float* packed);

/// sums[n] = Σ_k of the integers of output n of a kI8 matrix; what w.sums of gemm_forward_i8 takes.
void gemm_sum_panels(const PackedMatrix& w, int32_t* sums);

/// Packs panels [first_panel, last_panel) of w [N, K] (row-major f32, row stride `w_stride` ≥ K
/// floats) into their places in `packed` [packed_elements(N, K, storage)], rounding to nearest even
/// for bf16 and f16 (kI8: gemm_quantize_panels). NaN stays NaN; f16 overflow gives infinity. Panels
/// may be shared out over threads; the others are neither read nor written.
void gemm_pack_panels(const float* w, int64_t w_stride, int32_t N, int32_t K, Storage storage,
                      int32_t first_panel, int32_t last_panel, void* packed);

/// The same for Wᵀ, a matrix of K outputs and N inputs, from w [N, K]: panels [first_panel,
/// last_panel) of panel_count(K) in `packed` [packed_elements(K, N, storage)]. gemm_forward over
/// them gives dX = dY · W.
void gemm_pack_transposed_panels(const float* w, int64_t w_stride, int32_t N, int32_t K,
                                 Storage storage, int32_t first_panel, int32_t last_panel,
                                 void* packed);

/// Both from w in bf16 (row stride in elements), for panels of bf16: the bits that f32 which
/// rounds to w gives.
void gemm_pack_panels(const uint16_t* w, int64_t w_stride, int32_t N, int32_t K,
                      int32_t first_panel, int32_t last_panel, void* packed);
void gemm_pack_transposed_panels(const uint16_t* w, int64_t w_stride, int32_t N, int32_t K,
                                 int32_t first_panel, int32_t last_panel, void* packed);

/// All panels of a dense matrix (row stride K).
static inline void gemm_pack_panels(const float* w, int32_t N, int32_t K, Storage storage,
                                    void* packed) {
  gemm_pack_panels(w, K, N, K, storage, 0, panel_count(N), packed);
}

/// Element (n, k) of a packed matrix as f32, its scale included.
float gemm_packed_element(const PackedMatrix& w, int32_t n, int32_t k);

/// Round to nearest even; NaN stays NaN.
uint16_t bf16_from_f32(float value);
uint16_t f16_from_f32(float value);

}  // namespace xsr::kernels
