#pragma once
// What the AVX-512 files of gemm_backward_weight share: the packing, the tile and the loops. A step
// is what one 32-bit lane holds of the rows of dy and x: a row of f32, or two of bf16. `Core`:
//
//     struct Core {
//       using Element = ...;
//       static constexpr int32_t kStepRows = ...;
//       static __m512 load(const Element* row, int64_t stride, int32_t rows, __mmask16 mask);
//       static __m512 multiply_add(__m512 sum, __m512 a, __m512 b);
//     };
//
// load gives up to 16 columns of the step that begins at `row`; `rows` ≤ kStepRows of it exist.
#include <cstring>

#include "kernels/gemm/gemm_backward.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

// 12 rows × 32 columns of dw: 24 accumulators, 2 input vectors, 1 broadcast, of 32 registers.
static constexpr int32_t kWeightRows = 12;
static constexpr int32_t kWeightColumns = 32;
// Steps that are summed at a time: their panel of x (24 KiB) and 12 columns of dy (9 KiB) stay in a
// 48 KiB L1.
static constexpr int32_t kWeightBlock = 192;
// Rows of dw that share a packed panel of x; their part of dy (288 KiB) stays in L2. Half as many
// pack x twice as often: 1.04 times a step of bf16 training on Zen 5.
static constexpr int32_t kWeightChunk = 384;
static_assert(kWeightChunk % kWeightRows == 0 &&
              kWeightBlock * (kWeightChunk + kWeightColumns) <= kGemmBackwardScratchFloats);

/// A step of bf16: a 32-bit lane holds one column of rows 2i (low half) and 2i + 1 (high half).
static inline __m512 load_row_pair(const uint16_t* row, int64_t stride, int32_t rows,
                                   __mmask16 mask) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
  if (rows < 2) return _mm512_castsi512_ps(low);
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + stride));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/// [rows, count columns] → [⌈count/kWidth⌉][steps][kWidth]; what is beyond rows and count is zero.
template <typename Core, int32_t kWidth>
static void pack_steps(const typename Core::Element* from, int64_t stride, int32_t rows,
                       int32_t count, float* packed) {
  for (int32_t n = 0; n < count; n += kWidth) {
    for (int32_t m = 0; m < rows; m += Core::kStepRows, packed += kWidth) {
#pragma GCC unroll 2
      for (int32_t c = 0; c < kWidth; c += 16) {
        const __m512 lanes =
            Core::load(from + m * stride + n + c, stride, rows - m, tail_mask(count - n - c));
        _mm512_mask_storeu_ps(packed + c, tail_mask(kWidth - c), lanes);
      }
    }
  }
}

/// Adds the products of `steps` packed steps to a tile of dw, of which `rows` and `count` columns
/// exist; overwrites it where `store`.
template <typename Core>
static void weight_tile(const float* dy, const float* x, int32_t steps, bool store, int32_t rows,
                        int64_t count, float* dw, int64_t dw_stride) {
  for (int32_t r = 0; r < kWeightRows && r < rows; ++r) {
    _mm_prefetch((const char*)(dw + r * dw_stride), _MM_HINT_T0);
    _mm_prefetch((const char*)(dw + r * dw_stride + 16), _MM_HINT_T0);
  }
  __m512 acc[kWeightRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kWeightRows; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (int32_t m = 0; m < steps; ++m, dy += kWeightRows, x += kWeightColumns) {
    const __m512 x0 = _mm512_load_ps(x), x1 = _mm512_load_ps(x + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kWeightRows; ++r) {
      const __m512 gradient = _mm512_set1_ps(dy[r]);
      acc[r][0] = Core::multiply_add(acc[r][0], gradient, x0);
      acc[r][1] = Core::multiply_add(acc[r][1], gradient, x1);
    }
  }
  const __mmask16 mask0 = tail_mask(count), mask1 = tail_mask(count - 16);
#pragma GCC unroll 12
  for (int r = 0; r < kWeightRows; ++r) {
    if (r >= rows) return;
    float* out = dw + r * dw_stride;
    if (!store) {
      acc[r][0] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask0, out), acc[r][0]);
      acc[r][1] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask1, out + 16), acc[r][1]);
    }
    _mm512_mask_storeu_ps(out, mask0, acc[r][0]);
    _mm512_mask_storeu_ps(out + 16, mask1, acc[r][1]);
  }
}

/// Of the next panel's `rows` rows those that fall to the tile of `tile_rows` rows at row r of
/// `chunk`: packing them would wait for each, since only a line of a row is read at a time.
template <typename Element>
static inline __attribute__((always_inline)) void prefetch_share(const Element* next,
                                                                 int64_t stride, int32_t rows,
                                                                 int32_t r, int32_t tile_rows,
                                                                 int32_t chunk) {
  const int32_t end = r + tile_rows < chunk ? r + tile_rows : chunk;
  for (int32_t m = rows * r / chunk; m < rows * end / chunk; ++m) {
    for (int32_t c = 0; c < kWeightColumns; c += 64 / (int32_t)sizeof(Element))
      _mm_prefetch((const char*)(next + m * stride + c), _MM_HINT_T1);
  }
}

template <typename Core>
static void backward_weight(const typename Core::Element* dy, int64_t dy_stride,
                            const typename Core::Element* x, int64_t x_stride, int32_t M,
                            int32_t first, int32_t last, int32_t K, bool accumulate, float* dw,
                            int64_t dw_stride, float* scratch) {
  constexpr int32_t kRows = kWeightBlock * Core::kStepRows;
  float *gradients = scratch, *inputs = scratch + kWeightBlock * kWeightChunk;
  if (M == 0 && !accumulate) {
    for (int32_t n = first; n < last; ++n) std::memset(dw + n * dw_stride, 0, K * sizeof(float));
  }
  for (int32_t n = first; n < last; n += kWeightChunk) {
    const int32_t chunk = last - n < kWeightChunk ? last - n : kWeightChunk;
    for (int32_t m = 0; m < M; m += kRows) {
      const int32_t rows = M - m < kRows ? M - m : kRows;
      const int32_t steps = (rows + Core::kStepRows - 1) / Core::kStepRows;
      pack_steps<Core, kWeightRows>(dy + m * dy_stride + n, dy_stride, rows, chunk, gradients);
      for (int32_t k = 0; k < K; k += kWeightColumns) {
        const int32_t columns = K - k < kWeightColumns ? K - k : kWeightColumns;
        pack_steps<Core, kWeightColumns>(x + m * x_stride + k, x_stride, rows, columns, inputs);
        for (int32_t r = 0; r < chunk; r += kWeightRows) {
          if (k + kWeightColumns < K)
            prefetch_share(x + m * x_stride + k + kWeightColumns, x_stride, rows, r, kWeightRows,
                           chunk);
          weight_tile<Core>(gradients + (int64_t)r * steps, inputs, steps, m == 0 && !accumulate,
                            chunk - r, columns, dw + (n + r) * dw_stride + k, dw_stride);
        }
      }
    }
  }
}

}  // namespace xsr::kernels
