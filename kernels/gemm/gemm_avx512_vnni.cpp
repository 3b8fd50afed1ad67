#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

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
  [[maybe_unused]] static constexpr bool kNarrow = false;
  static constexpr bool kSplit = false;
  static constexpr bool kAddsBias = true;
  static int64_t panel_bytes(int32_t K) { return (int64_t)((K + 3) / 4) * 4 * kPanelColumns; }

  template <int MR>
  static inline __attribute__((always_inline)) void run(const Tile<uint8_t>& tile,
                                                        __m512 (&acc)[MR][2]) {
    // The zero points' share comes first, while the first loads are under way. Lanes beyond N stay
    // finite: their masked loads give 0.
    const __m512i sums0 = _mm512_maskz_loadu_epi32(tile.mask[0], tile.sums);
    const __m512i sums1 = _mm512_maskz_loadu_epi32(tile.mask[1], tile.sums + 16);
    __m512i sum[MR][2];
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const __m512i zero = _mm512_set1_epi32(-tile.rows[m].zero);
      sum[m][0] = _mm512_mullo_epi32(zero, sums0);
      sum[m][1] = _mm512_mullo_epi32(zero, sums1);
    }
    const int8_t* w = (const int8_t*)tile.panel;
    const uint8_t* a = tile.a;
    const int64_t stride = tile.a_stride;
    for (int32_t k = 0; k < tile.K; k += 4, w += 4 * kPanelColumns) {
      prefetch_panel<MR>(w);
      const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        int32_t four;
        __builtin_memcpy(&four, a + m * stride + k, 4);
        const __m512i x = _mm512_set1_epi32(four);
        dot(sum[m][0], x, w0);
        dot(sum[m][1], x, w1);
      }
    }
    const __m512 scales0 = _mm512_maskz_loadu_ps(tile.mask[0], tile.scales);
    const __m512 scales1 = _mm512_maskz_loadu_ps(tile.mask[1], tile.scales + 16);
    __m512 bias0 = _mm512_setzero_ps(), bias1 = bias0;
    if (tile.epilogue->bias != nullptr) {
      bias0 = _mm512_maskz_loadu_ps(tile.mask[0], tile.epilogue->bias + tile.column);
      bias1 = _mm512_maskz_loadu_ps(tile.mask[1], tile.epilogue->bias + tile.column + 16);
    }
    // All of a sum's way at once: a pass of its own for the bias costs 1 % of the product.
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const __m512 scale = _mm512_set1_ps(tile.rows[m].scale);
      const __m512 scaled0 = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[m][0]), scale);
      const __m512 scaled1 = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[m][1]), scale);
      acc[m][0] = _mm512_add_ps(_mm512_mul_ps(scaled0, scales0), bias0);
      acc[m][1] = _mm512_add_ps(_mm512_mul_ps(scaled1, scales1), bias1);
    }
  }
};

}  // namespace

void gemm_forward_i8_avx512_vnni(const uint8_t* a, int64_t a_stride, int32_t M,
                                 const QuantizedRow* rows, const PackedMatrix& w,
                                 int32_t first_panel, int32_t last_panel,
                                 const GemmEpilogue& epilogue, float* out, int64_t out_stride) {
  gemm_forward<CoreI8>(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride,
                       nullptr, 0, rows);
}

}  // namespace xsr::kernels
