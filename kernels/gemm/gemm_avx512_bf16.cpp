#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_core_i8_avx512.h"
#include "kernels/gemm/gemm_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

/// A 32-bit lane of the panel holds inputs k and k + 1 of one output, a 32-bit broadcast the same
/// two of one row.
struct CoreBf16 : FloatSums {
  using Element = uint16_t;
  static constexpr bool kNarrow = true;
  static constexpr bool kSplit = false;
  static constexpr bool kByPieces = true;
  static constexpr bool kInHalves = false;
  static constexpr UnaskedRows kUnasked = {3, 5};
  static constexpr int32_t kInputs = 2;
  static constexpr int64_t kBytes = kInputs * kPanelColumns * 2;
  static int32_t steps(int32_t K) { return (K + 1) / 2; }
  static int64_t panel_bytes(int32_t K) { return steps(K) * kBytes; }

  template <int R>
  static inline __attribute__((always_inline)) void step(const Tile<uint16_t>& tile,
                                                         const uint16_t* a, const char* w,
                                                         __m512 (&sums)[R][2]) {
    add_products<R>(a, tile.a_stride, w, sums);
  }

  /// sums += a pair of every row · the pairs of 32 outputs.
  template <int R>
  static inline __attribute__((always_inline)) void add_products(const uint16_t* a, int64_t stride,
                                                                 const char* w,
                                                                 __m512 (&sums)[R][2]) {
    const __m512bh w0 = (__m512bh)load_once<R>(w), w1 = (__m512bh)load_once<R>(w + 64);
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, a + m * stride, 4);
      const __m512bh x = (__m512bh)pair_lanes(_mm512_set1_epi32(pair));
      sums[m][0] = _mm512_dpbf16_ps(sums[m][0], x, w0);
      sums[m][1] = _mm512_dpbf16_ps(sums[m][1], x, w1);
    }
  }
};

/// Of every pair of inputs the panel holds the hi of 32 outputs, then their lo; a row its lo behind
/// its hi.
struct CoreSplit : FloatSums {
  using Element = uint16_t;
  static constexpr bool kNarrow = true;
  static constexpr bool kSplit = true;
  static constexpr bool kByPieces = false;
  static constexpr bool kInHalves = false;
  static constexpr UnaskedRows kUnasked = {3, 3};
  static constexpr int32_t kInputs = 2;
  static constexpr int64_t kBytes = 2 * CoreBf16::kBytes;
  static int32_t steps(int32_t K) { return split_columns(K) / 2; }
  static int64_t panel_bytes(int32_t K) { return steps(K) * kBytes; }

  template <int R>
  static inline __attribute__((always_inline)) void step(const Tile<uint16_t>& tile,
                                                         const uint16_t* a, const char* w,
                                                         __m512 (&sums)[R][2]) {
    CoreBf16::add_products<R>(a, tile.a_stride, w, sums);
    CoreBf16::add_products<R>(a + split_columns(tile.K), tile.a_stride, w, sums);
    // Read again rather than kept from above, for want of registers.
    __asm__("" : "+r"(a));
    CoreBf16::add_products<R>(a, tile.a_stride, w + CoreBf16::kBytes, sums);
  }
};

}  // namespace

void gemm_forward_bf16_avx512_bf16(const uint16_t* a, int64_t a_stride, int32_t M,
                                   const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                                   const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                   uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward<CoreBf16>(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride,
                         narrow, narrow_stride);
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void gemm_forward_i8_avx512_bf16(const uint8_t* a, int64_t a_stride, int32_t M,
                                 const QuantizedRow* rows, const PackedMatrix& w,
                                 int32_t first_panel, int32_t last_panel,
                                 const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                 uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward_i8(a, a_stride, M, rows, w, first_panel, last_panel, epilogue, out, out_stride,
                  narrow, narrow_stride);
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
