#include "kernels/gemm/dot_avx2_vnni.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_avx2.h"

namespace xsr::kernels {
namespace {

/// A 32-bit lane of the panel holds inputs k to k + 3 of one output, a 32-bit broadcast the same
/// four of one row.
struct PanelsCore {
  static constexpr int32_t kMaxRows = 6;
  static constexpr int32_t kMaxRowsWide = 3;
  static constexpr int64_t kStepBytes = 4 * kPanelColumns;
  static int32_t steps(int32_t K) { return (K + 3) / 4; }
  static const void* half_of(const PackedMatrix& w, int32_t panel, int32_t half) {
    return (const char*)w.data + panel * steps(w.K) * kStepBytes + half * (kStepBytes / 2);
  }

  /// V: 2 of a half, 4 of a panel, whose lines come by themselves.
  template <int MR, int V>
  static inline __attribute__((always_inline)) void accumulate(const Tile<uint8_t>& tile,
                                                               __m256 (&acc)[MR][V]) {
    __m256i sum[MR][V];
    // The zero points' share comes first, while the first loads are under way.
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
      const __m256i sums = _mm256_maskload_epi32(tile.sums + 8 * j, tail_mask8(tile.count - 8 * j));
#pragma GCC unroll 6
      for (int m = 0; m < MR; ++m)
        sum[m][j] = _mm256_mullo_epi32(_mm256_set1_epi32(-tile.rows[m].zero), sums);
    }
    const uint8_t* a = tile.a;
    const char* w = (const char*)tile.panel;
    const uint8_t* const end = a + 4 * (int64_t)steps(tile.K);
    for (; a < end; a += 4, w += kStepBytes) {
      if constexpr (V == 2) {
        _mm_prefetch(w + kPrefetchBytes, _MM_HINT_T1);
        const __m256i w0 = _mm256_load_si256((const __m256i*)w),
                      w1 = _mm256_load_si256((const __m256i*)w + 1);
#pragma GCC unroll 6
        for (int m = 0; m < MR; ++m) {
          const __m256i x = broadcast4(a + m * tile.a_stride);
          dot(sum[m][0], x, w0);
          dot(sum[m][1], x, w1);
        }
      } else {
        __m256i x[MR];
#pragma GCC unroll 3
        for (int m = 0; m < MR; ++m) x[m] = broadcast4(a + m * tile.a_stride);
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
          const __m256i weights = _mm256_load_si256((const __m256i*)w + j);
#pragma GCC unroll 3
          for (int m = 0; m < MR; ++m) dot(sum[m][j], x[m], weights);
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
      const __m256 scales = _mm256_maskload_ps(tile.scales + 8 * j, tail_mask8(tile.count - 8 * j));
#pragma GCC unroll 6
      for (int m = 0; m < MR; ++m) {
        const __m256 exact = _mm256_cvtepi32_ps(sum[m][j]);
        acc[m][j] = _mm256_mul_ps(_mm256_mul_ps(exact, _mm256_set1_ps(tile.rows[m].scale)), scales);
      }
    }
  }
};

}  // namespace

void gemm_forward_i8_avx2_vnni(const uint8_t* a, int64_t a_stride, int32_t M,
                               const QuantizedRow* rows, const PackedMatrix& w, int32_t first_panel,
                               int32_t last_panel, const GemmEpilogue& epilogue, float* out,
                               int64_t out_stride, uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward<Storage::kI8, PanelsCore>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                         out_stride, narrow, narrow_stride, rows);
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

}  // namespace xsr::kernels
