#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

/// sums += an input of every row · the weights of 32 outputs.
template <int R>
static inline __attribute__((always_inline)) void add_products(const float* a, int64_t stride,
                                                               __m512 w0, __m512 w1,
                                                               __m512 (&sums)[R][2]) {
#pragma GCC unroll 12
  for (int m = 0; m < R; ++m) {
    const __m512 x = _mm512_set1_ps(a[m * stride]);
    sums[m][0] = _mm512_fmadd_ps(x, w0, sums[m][0]);
    sums[m][1] = _mm512_fmadd_ps(x, w1, sums[m][1]);
  }
}

// A 32-bit lane holds inputs k (low half) and k + 1 (high half) of one output.
template <Storage S>
static inline __m512 widen_low(__m512i pair) {
  if (S == Storage::kBF16) return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
}
template <Storage S>
static inline __m512 widen_high(__m512i pair) {
  if (S == Storage::kBF16) return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(0xaaaaaaaau, pair));
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
}

template <Storage S>
struct Core : FloatSums {
  using Element = float;
  static constexpr bool kNarrow = false;
  static constexpr bool kSplit = false;
  static constexpr bool kByPieces = false;
  static constexpr bool kInHalves = false;
  static constexpr UnaskedRows kUnasked =
      S == Storage::kF32 ? UnaskedRows{3, 5} : UnaskedRows{2, 2};
  static constexpr int32_t kInputs = panel_group(S);
  static constexpr int64_t kBytes = kInputs * kPanelColumns * storage_size(S);
  static int32_t steps(int32_t K) { return K / kInputs; }
  static int64_t panel_bytes(int32_t K) { return (K + kInputs - 1) / kInputs * kBytes; }

  template <int R>
  static inline __attribute__((always_inline)) void step(const Tile<float>& tile, const float* a,
                                                         const char* w, __m512 (&sums)[R][2]) {
    if constexpr (S == Storage::kF32) {
      add_products<R>(a, tile.a_stride, _mm512_castsi512_ps(load_once<R>(w)),
                      _mm512_castsi512_ps(load_once<R>(w + 64)), sums);
    } else {
      add_products<R>(a, tile.a_stride, widen_low<S>(_mm512_load_si512(w)),
                      widen_low<S>(_mm512_load_si512(w + 64)), sums);
      // Read again rather than kept: two registers more and gcc spills in the inner loop.
      __asm__("" : "+r"(w));
      add_products<R>(a + 1, tile.a_stride, widen_high<S>(_mm512_load_si512(w)),
                      widen_high<S>(_mm512_load_si512(w + 64)), sums);
    }
  }

  template <int R>
  static inline __attribute__((always_inline)) void end(const Tile<float>& tile,
                                                        __m512 (&sums)[R][2],
                                                        __m512 (&values)[R][2]) {
    const int32_t k = steps(tile.K) * kInputs;
    if (k < tile.K) {  // an odd K: a[k + 1] does not exist
      const char* w = (const char*)tile.panel + steps(tile.K) * kBytes;
      add_products<R>(tile.a + k, tile.a_stride, widen_low<S>(_mm512_load_si512(w)),
                      widen_low<S>(_mm512_load_si512(w + 64)), sums);
    }
    FloatSums::end<R>(tile, sums, values);
  }
};

}  // namespace

void gemm_forward_f32_avx512(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                             int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                             float* out, int64_t out_stride) {
  const auto forward = w.storage == Storage::kF32 ? gemm_forward<Core<Storage::kF32>, PackedMatrix>
                       : w.storage == Storage::kF16
                           ? gemm_forward<Core<Storage::kF16>, PackedMatrix>
                           : gemm_forward<Core<Storage::kBF16>, PackedMatrix>;
  forward(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride, nullptr, 0,
          nullptr);
}

}  // namespace xsr::kernels
