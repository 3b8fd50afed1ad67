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
  static int64_t panel_bytes(int32_t K) { return (int64_t)((K + 3) / 4) * 4 * kPanelColumns; }

  template <int MR>
  static inline __attribute__((always_inline)) void run(const Tile<uint8_t>& tile,
                                                        __m512 (&acc)[MR][2]) {
    __m512i sum[MR][2];
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) sum[m][0] = sum[m][1] = _mm512_setzero_si512();
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
    // Lanes beyond N stay finite: their masked loads give 0.
    const __m512i sums0 = _mm512_maskz_loadu_epi32(tile.mask[0], tile.sums);
    const __m512i sums1 = _mm512_maskz_loadu_epi32(tile.mask[1], tile.sums + 16);
    const __m512 scales0 = _mm512_maskz_loadu_ps(tile.mask[0], tile.scales);
    const __m512 scales1 = _mm512_maskz_loadu_ps(tile.mask[1], tile.scales + 16);
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const __m512i zero = _mm512_set1_epi32(tile.rows[m].zero);
      const __m512 scale = _mm512_set1_ps(tile.rows[m].scale);
      const __m512i exact0 = _mm512_sub_epi32(sum[m][0], _mm512_mullo_epi32(zero, sums0));
      const __m512i exact1 = _mm512_sub_epi32(sum[m][1], _mm512_mullo_epi32(zero, sums1));
      acc[m][0] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact0), scale), scales0);
      acc[m][1] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact1), scale), scales1);
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
