#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

/// A 32-bit lane of the panel holds inputs k and k + 1 of one output, a 32-bit broadcast the same
/// two of one row.
struct CoreBf16 {
  using Element = uint16_t;
  static constexpr bool kNarrow = true;
  static constexpr bool kSplit = false;
  static constexpr bool kAddsBias = false;
  static int64_t panel_bytes(int32_t K) { return (int64_t)((K + 1) / 2) * 2 * kPanelColumns * 2; }

  template <int MR>
  static inline __attribute__((always_inline)) void run(const Tile<uint16_t>& tile,
                                                        __m512 (&acc)[MR][2]) {
    const uint16_t* w = (const uint16_t*)tile.panel;
    const uint16_t* a = tile.a;
    const int64_t stride = tile.a_stride;
    for (int32_t k = 0; k < tile.K; k += 2, w += 2 * kPanelColumns) {
      prefetch_panel<MR>(w);
      const __m512bh w0 = (__m512bh)_mm512_load_si512(w), w1 = (__m512bh)_mm512_load_si512(w + 32);
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        int32_t pair;
        __builtin_memcpy(&pair, a + m * stride + k, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        acc[m][0] = _mm512_dpbf16_ps(acc[m][0], x, w0);
        acc[m][1] = _mm512_dpbf16_ps(acc[m][1], x, w1);
      }
    }
  }
};

/// Of every pair of inputs the panel holds the hi of 32 outputs, then their lo; a row its lo behind
/// its hi.
struct CoreSplit {
  using Element = uint16_t;
  static constexpr bool kNarrow = true;
  static constexpr bool kSplit = true;
  static constexpr bool kAddsBias = false;
  static int64_t panel_bytes(int32_t K) {
    return (int64_t)split_columns(K) * 2 * kPanelColumns * 2;
  }

  static inline __attribute__((always_inline)) __m512bh broadcast_pair(const uint16_t* a) {
    int32_t pair;
    __builtin_memcpy(&pair, a, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }

  template <int MR>
  static inline __attribute__((always_inline)) void run(const Tile<uint16_t>& tile,
                                                        __m512 (&acc)[MR][2]) {
    const int32_t S = split_columns(tile.K);
    const uint16_t* w = (const uint16_t*)tile.panel;
    const uint16_t* a = tile.a;
    const int64_t stride = tile.a_stride;
    for (int32_t k = 0; k < S; k += 2, w += 4 * kPanelColumns) {
      prefetch_panel<MR>(w);
      prefetch_panel<MR>(w + 2 * kPanelColumns);
      const __m512bh hi0 = (__m512bh)_mm512_load_si512(w),
                     hi1 = (__m512bh)_mm512_load_si512(w + 32);
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512bh x = broadcast_pair(a + m * stride + k);
        acc[m][0] = _mm512_dpbf16_ps(acc[m][0], x, hi0);
        acc[m][1] = _mm512_dpbf16_ps(acc[m][1], x, hi1);
      }
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512bh x = broadcast_pair(a + m * stride + S + k);
        acc[m][0] = _mm512_dpbf16_ps(acc[m][0], x, hi0);
        acc[m][1] = _mm512_dpbf16_ps(acc[m][1], x, hi1);
      }
      const __m512bh lo0 = (__m512bh)_mm512_load_si512(w + 64),
                     lo1 = (__m512bh)_mm512_load_si512(w + 96);
      // Read again rather than kept from above, for want of registers.
      const uint16_t* again = a + k;
      __asm__("" : "+r"(again));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512bh x = broadcast_pair(again + m * stride);
        acc[m][0] = _mm512_dpbf16_ps(acc[m][0], x, lo0);
        acc[m][1] = _mm512_dpbf16_ps(acc[m][1], x, lo1);
      }
    }
  }
};

}  // namespace

void gemm_forward_bf16_avx512_bf16(const uint16_t* a, int64_t a_stride, int32_t M,
                                   const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                                   const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                   uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward<CoreBf16>(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride,
                         narrow, narrow_stride);
  if (narrow != nullptr && w.N % 2 == 1 && last_panel == panel_count(w.N)) {
    for (int32_t m = 0; m < M; ++m) narrow[m * narrow_stride + w.N] = 0;
  }
}

void gemm_forward_bf16x3_avx512_bf16(const uint16_t* a, int64_t a_stride, int32_t M,
                                     const SplitMatrix& w, int32_t first_panel, int32_t last_panel,
                                     const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                     uint16_t* split, int64_t split_stride) {
  gemm_forward<CoreSplit>(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride,
                          split, split_stride);
}

void split_forward_bf16x3_avx512_bf16(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                      int32_t C, uint16_t* out, int64_t out_stride) {
  const int32_t S = split_columns(C);
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < S; c += 16) {
      uint16_t* hi = out + i * out_stride + c;
      store_split(hi, hi + S, _mm512_maskz_loadu_ps(tail_mask(C - c), x + i * x_stride + c));
    }
  }
}

void narrow_forward_bf16_avx512_bf16(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                     int32_t C, uint16_t* out, int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    for_each_vector(C, [&](int32_t c, __mmask16 mask) {
      store_narrow(out + i * out_stride + c, mask,
                   _mm512_maskz_loadu_ps(mask, x + i * x_stride + c));
    });
    if (C % 2 == 1) out[i * out_stride + C] = 0;
  }
}

}  // namespace xsr::kernels
