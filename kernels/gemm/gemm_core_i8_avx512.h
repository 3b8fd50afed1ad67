#pragma once
// The product in int8 of the AVX-512 files: with AVX512_BF16 its bf16 results are one instruction.
#include "kernels/gemm/gemm_tile_avx512.h"

namespace xsr::kernels {

/// sum + Σ of four products u8 · s8 in each 32-bit lane. As assembly, since gcc 12 moves the sums
/// of _mm512_dpbusd_epi32 through other registers and then to the stack.
static inline __attribute__((always_inline)) void dot(__m512i& sum, __m512i x, __m512i w) {
#if defined(XSR_EMULATE_ISA)
  sum = _mm512_dpbusd_epi32(sum, x, w);
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
#endif
}

/// A 32-bit lane of the panel holds inputs k to k + 3 of one output, a 32-bit broadcast the same
/// four of one row.
struct CoreI8 {
  using Element = uint8_t;
  using Sum = __m512i;
  static constexpr bool kNarrow = true;
  static constexpr bool kSplit = false;
  static constexpr bool kByPieces = true;
  static constexpr bool kInHalves = true;
  static constexpr UnaskedRows kUnasked = {3, 5};
  static constexpr int32_t kInputs = 4;
  static constexpr int64_t kBytes = kInputs * kPanelColumns;
  static int32_t steps(int32_t K) { return (K + kInputs - 1) / kInputs; }
  static int64_t panel_bytes(int32_t K) { return steps(K) * kBytes; }

  /// The zero points' share comes first, while the first loads are under way. Lanes beyond N stay
  /// finite: their masked loads give 0.
  template <int R>
  static inline __attribute__((always_inline)) void begin(const Tile<uint8_t>& tile,
                                                          __m512i (&sums)[R][2]) {
    const __m512i sums0 = _mm512_maskz_loadu_epi32(tile.mask[0], tile.sums);
    const __m512i sums1 = _mm512_maskz_loadu_epi32(tile.mask[1], tile.sums + 16);
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      const __m512i zero = _mm512_set1_epi32(-tile.rows[m].zero);
      sums[m][0] = _mm512_mullo_epi32(zero, sums0);
      sums[m][1] = _mm512_mullo_epi32(zero, sums1);
    }
  }

  template <int R>
  static inline __attribute__((always_inline)) void step(const Tile<uint8_t>& tile,
                                                         const uint8_t* a, const char* w,
                                                         __m512i (&sums)[R][2]) {
    const __m512i w0 = load_once<R>(w), w1 = load_once<R>(w + 64);
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      int32_t four;
      __builtin_memcpy(&four, a + m * tile.a_stride, 4);
      const __m512i x = _mm512_set1_epi32(four);
      dot(sums[m][0], x, w0);
      dot(sums[m][1], x, w1);
    }
  }

  template <int R>
  static inline __attribute__((always_inline)) void end(const Tile<uint8_t>& tile,
                                                        __m512i (&sums)[R][2],
                                                        __m512 (&values)[R][2]) {
    const __m512 scales0 = _mm512_maskz_loadu_ps(tile.mask[0], tile.scales);
    const __m512 scales1 = _mm512_maskz_loadu_ps(tile.mask[1], tile.scales + 16);
    const __m512 bias0 = load_bias(tile, 0), bias1 = load_bias(tile, 1);
    // All of a sum's way at once: a pass of its own for the bias costs 1 % of the product.
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      const __m512 scale = _mm512_set1_ps(tile.rows[m].scale);
      const __m512 scaled0 = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][0]), scale);
      const __m512 scaled1 = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][1]), scale);
      values[m][0] = _mm512_add_ps(_mm512_mul_ps(scaled0, scales0), bias0);
      values[m][1] = _mm512_add_ps(_mm512_mul_ps(scaled1, scales1), bias1);
    }
  }
};

static inline void gemm_forward_i8(const uint8_t* a, int64_t a_stride, int32_t M,
                                   const QuantizedRow* rows, const PackedMatrix& w,
                                   int32_t first_panel, int32_t last_panel,
                                   const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                   uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward<CoreI8>(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride,
                       narrow, narrow_stride, rows);
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

}  // namespace xsr::kernels
