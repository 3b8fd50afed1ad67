#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

template <int MR, Storage S>
struct Accumulate;

template <int MR>
struct Accumulate<MR, Storage::kF32> {
  static inline __attribute__((always_inline)) void run(const Tile<float>& tile,
                                                        __m512 (&acc)[MR][2]) {
    const float* w = (const float*)tile.panel;
    const float* a = tile.a;
    const int64_t stride = tile.a_stride;
    for (int32_t k = 0; k < tile.K; ++k, w += kPanelColumns) {
      prefetch_panel<MR>(w);
      const __m512 w0 = _mm512_load_ps(w), w1 = _mm512_load_ps(w + 16);
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k]);
        acc[m][0] = _mm512_fmadd_ps(x, w0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, w1, acc[m][1]);
      }
    }
  }
};

// A 32-bit lane holds inputs k (low half) and k + 1 (high half) of one output.
template <Storage S>
static inline __m512 widen_low(__m512i pair) {
  if (S == Storage::kBF16) return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
}
template <Storage S>
static inline __m512 widen_high(__m512i pair) {
  if (S == Storage::kBF16)
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
}

template <int MR, Storage S>
struct Accumulate {
  static inline __attribute__((always_inline)) void run(const Tile<float>& tile,
                                                        __m512 (&acc)[MR][2]) {
    const uint16_t* w = (const uint16_t*)tile.panel;
    const float* a = tile.a;
    const int64_t stride = tile.a_stride;
    int32_t k = 0;
    for (; k + 2 <= tile.K; k += 2, w += 2 * kPanelColumns) {
      prefetch_panel<MR>(w);
      const __m512 even0 = widen_low<S>(_mm512_load_si512(w));
      const __m512 even1 = widen_low<S>(_mm512_load_si512(w + 32));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k]);
        acc[m][0] = _mm512_fmadd_ps(x, even0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, even1, acc[m][1]);
      }
      // Read again rather than kept: two registers more and gcc spills in the inner loop.
      const uint16_t* again = w;
      __asm__("" : "+r"(again));
      const __m512 odd0 = widen_high<S>(_mm512_load_si512(again));
      const __m512 odd1 = widen_high<S>(_mm512_load_si512(again + 32));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k + 1]);
        acc[m][0] = _mm512_fmadd_ps(x, odd0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, odd1, acc[m][1]);
      }
    }
    if (k < tile.K) {  // an odd K: a[k + 1] does not exist
      const __m512 even0 = widen_low<S>(_mm512_load_si512(w)),
                   even1 = widen_low<S>(_mm512_load_si512(w + 32));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k]);
        acc[m][0] = _mm512_fmadd_ps(x, even0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, even1, acc[m][1]);
      }
    }
  }
};

template <Storage S>
struct Core {
  using Element = float;
  static constexpr bool kNarrow = false;
  static constexpr bool kSplit = false;
  static constexpr bool kAddsBias = false;
  static int64_t panel_bytes(int32_t K) {
    const int32_t kp = panel_group(S);
    return (int64_t)((K + kp - 1) / kp) * kp * kPanelColumns * storage_size(S);
  }
  template <int MR>
  static inline __attribute__((always_inline)) void run(const Tile<float>& tile,
                                                        __m512 (&acc)[MR][2]) {
    Accumulate<MR, S>::run(tile, acc);
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
