#include "kernels/gemm/dot_avx2_vnni.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_backward_tile_i8.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

// 6 rows × 16 columns of dw: 12 sums, 2 vectors of x, 1 broadcast, of 16 registers.
constexpr int32_t kRows = 6;
constexpr int32_t kColumns = 16;
// Rows of dw that share a panel of x (4 KiB of 256 rows); their part of dy (24 KiB) stays in L1.
constexpr int32_t kRowsOfPanel = 96;
static_assert(kRowsOfPanel % kRows == 0);

template <bool kWhole>
static inline __attribute__((always_inline)) __m256i load_lanes(const void* lanes, __m256i mask) {
  return kWhole ? _mm256_loadu_si256((const __m256i*)lanes)
                : _mm256_maskload_epi32((const int*)lanes, mask);
}

template <int R, bool kWhole>
void weight_tile(const WeightTileI8& t) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) _mm_prefetch((const char*)(t.dw + r * t.dw_stride), _MM_HINT_T0);
  const __m256i mask[2] = {tail_mask8(t.columns), tail_mask8(t.columns - 8)};
  __m256i sums[R][2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {  // a code of dy is 128 too large
    const __m256i begin =
        _mm256_mullo_epi32(_mm256_set1_epi32(-128), load_lanes<kWhole>(t.x_sums + 8 * j, mask[j]));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) sums[r][j] = begin;
  }
  const uint32_t *dy = t.dy, *x = t.x;
  for (int32_t step = 0; step < t.steps; ++step, dy += t.dy_stride, x += t.x_stride) {
    const __m256i x0 = load_lanes<kWhole>(x, mask[0]), x1 = load_lanes<kWhole>(x + 8, mask[1]);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m256i gradients = _mm256_set1_epi32((int32_t)dy[r]);
      dot(sums[r][0], gradients, x0);
      dot(sums[r][1], gradients, x1);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m256 scales = _mm256_maskload_ps(t.x_scales + 8 * j, mask[j]);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      float* out = t.dw + r * t.dw_stride + 8 * j;
      const __m256 scaled =
          _mm256_mul_ps(_mm256_cvtepi32_ps(sums[r][j]), _mm256_set1_ps(t.dy_scales[r]));
      const int64_t left = t.columns - 8 * j;
      const __m256 before = t.store ? _mm256_setzero_ps() : load_up_to_8(out, left);
      store_up_to_8(out, left, _mm256_fmadd_ps(scaled, scales, before));
    }
  }
}

template <int R = kRows>
void weight_tile(const WeightTileI8& tile, int32_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return weight_tile<R - 1>(tile, rows);
  }
  if (tile.columns >= kColumns) return weight_tile<R, true>(tile);
  if constexpr (R < kRows) {
    weight_tile<R, false>(tile);
  } else {  // the masks leave no registers for so many rows
    WeightTileI8 lower = tile;
    lower.dy += kRows / 2;
    lower.dy_scales += kRows / 2;
    lower.dw += kRows / 2 * tile.dw_stride;
    weight_tile<kRows / 2, false>(tile);
    weight_tile<kRows / 2, false>(lower);
  }
}

}  // namespace

void gemm_backward_weight_i8_avx2_vnni(const uint32_t* dy, int64_t dy_stride,
                                       const float* dy_scales, const uint32_t* x, int64_t x_stride,
                                       const float* x_scales, const int32_t* x_sums, int32_t M,
                                       int32_t first, int32_t last, int32_t K, bool accumulate,
                                       float* dw, int64_t dw_stride, float*) {
  const int32_t steps = (M + 3) / 4;
  for (int32_t n = first; n < last; n += kRowsOfPanel) {
    const int32_t chunk = last - n < kRowsOfPanel ? last - n : kRowsOfPanel;
    for (int32_t k = 0; k < K; k += kColumns) {
      for (int32_t r = 0; r < chunk; r += kRows) {
        weight_tile(
            {dy + n + r, dy_stride, dy_scales + n + r, x + k, x_stride, x_scales + k, x_sums + k,
             steps, K - k, !accumulate, dw + (n + r) * dw_stride + k, dw_stride},
            chunk - r);
      }
    }
  }
}

}  // namespace xsr::kernels
