#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_backward_tile_avx512.h"
#include "kernels/gemm/gemm_backward_tile_i8.h"
#include "kernels/gemm/gemm_core_i8_avx512.h"

namespace xsr::kernels {
namespace {

// Rows of dw that share a panel of x; their part of dy (24 KiB of 256 rows) stays in L1.
constexpr int32_t kRowsOfPanel = 96;
static_assert(kRowsOfPanel % kWeightRows == 0);

template <int kRows>
void weight_tile_i8(const WeightTileI8& t) {
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm_prefetch((const char*)(t.dw + r * t.dw_stride), _MM_HINT_T1);
    _mm_prefetch((const char*)(t.dw + r * t.dw_stride + 16), _MM_HINT_T1);
  }
  const __mmask16 mask[2] = {tail_mask(t.columns), tail_mask(t.columns - 16)};
  // A code of dy is 128 too large.
  const __m512i zero = _mm512_set1_epi32(-128);
  __m512i sums[kRows][2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512i begin =
        _mm512_mullo_epi32(zero, _mm512_maskz_loadu_epi32(mask[j], t.x_sums + 16 * j));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) sums[r][j] = begin;
  }
  const uint32_t *dy = t.dy, *x = t.x;
  for (int32_t step = 0; step < t.steps; ++step, dy += t.dy_stride, x += t.x_stride) {
    const __m512i x0 = _mm512_maskz_loadu_epi32(mask[0], x),
                  x1 = _mm512_maskz_loadu_epi32(mask[1], x + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512i gradients = _mm512_set1_epi32((int32_t)dy[r]);
      dot(sums[r][0], gradients, x0);
      dot(sums[r][1], gradients, x1);
    }
  }
  const __m512 scales[2] = {_mm512_maskz_loadu_ps(mask[0], t.x_scales),
                            _mm512_maskz_loadu_ps(mask[1], t.x_scales + 16)};
  // What is overwritten is not read.
  const __mmask16 added[2] = {t.store ? (__mmask16)0 : mask[0], t.store ? (__mmask16)0 : mask[1]};
  const float* dy_scales = t.dy_scales;
  const int64_t dw_stride = t.dw_stride;
  float* out = t.dw;
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r, out += dw_stride) {
    const __m512 scale = _mm512_set1_ps(dy_scales[r]);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][j]), scale);
      const __m512 before = _mm512_maskz_loadu_ps(added[j], out + 16 * j);
      _mm512_mask_storeu_ps(out + 16 * j, mask[j], _mm512_fmadd_ps(scaled, scales[j], before));
    }
  }
}

template <int kRows = kWeightRows>
void weight_tile_i8(const WeightTileI8& tile, int32_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return weight_tile_i8<kRows - 1>(tile, rows);
  }
  weight_tile_i8<kRows>(tile);
}

}  // namespace

void gemm_backward_weight_i8_avx512_vnni(const uint32_t* dy, int64_t dy_stride,
                                         const float* dy_scales, const uint32_t* x,
                                         int64_t x_stride, const float* x_scales,
                                         const int32_t* x_sums, int32_t M, int32_t first,
                                         int32_t last, int32_t K, bool accumulate, float* dw,
                                         int64_t dw_stride, float*) {
  const int32_t steps = (M + 3) / 4;
  for (int32_t n = first; n < last; n += kRowsOfPanel) {
    const int32_t chunk = last - n < kRowsOfPanel ? last - n : kRowsOfPanel;
    for (int32_t k = 0; k < K; k += kWeightColumns) {
      for (int32_t r = 0; r < chunk; r += kWeightRows) {
        if (k + kWeightColumns < K)
          prefetch_share(x + k + kWeightColumns, x_stride, steps, r, kWeightRows, chunk);
        weight_tile_i8(
            {dy + n + r, dy_stride, dy_scales + n + r, x + k, x_stride, x_scales + k, x_sums + k,
             steps, K - k, !accumulate, dw + (n + r) * dw_stride + k, dw_stride},
            chunk - r);
      }
    }
  }
}

}  // namespace xsr::kernels
