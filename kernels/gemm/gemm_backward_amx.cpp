// A weight's gradient on AMX tiles: 16 outputs a row tile, whose lanes are steps of dy and x: pairs
// of rows in bf16, four in 8 bits.
#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_backward_tile_avx512.h"
#include "kernels/gemm/gemm_tile_amx.h"

namespace xsr::kernels {
namespace {

static_assert(kWeightColumns == 2 * kTileRows && kWeightChunk % kBlockRows == 0 &&
              kWeightBlock % kTileRows == 0);
constexpr int32_t kTileLanes = kTileBytes / 4;

/// kRows: of dy and x that are summed at a time.
struct Pairs {
  using Element = uint16_t;
  static constexpr bool kInt8 = false;
  static constexpr int32_t kStepRows = 2;
  static constexpr int32_t kRows = kStepRows * kWeightBlock;
  static inline __m512 load(const uint16_t* row, int64_t stride, int32_t rows, __mmask16 mask) {
    return load_row_pair(row, stride, rows, mask);
  }
};

/// A lane holds a step already; `rows` are steps, and all of a block.
struct Fours {
  using Element = uint32_t;
  static constexpr bool kInt8 = true;
  static constexpr int32_t kStepRows = 1;
  static constexpr int32_t kRows = kMaxRowsI8 / 4;
  static inline __m512 load(const uint32_t* row, int64_t, int32_t, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi32(mask, row));
  }
};
static_assert(Fours::kRows <= kWeightBlock);

/// Tiles that `rows` rows of dy and x fill, one behind the other; the last one ends with zeros.
template <typename Step>
int32_t tile_count(int32_t rows) {
  return (rows + Step::kStepRows * kTileLanes - 1) / (Step::kStepRows * kTileLanes);
}

/// dy [rows, count columns] → [⌈count/32⌉][tiles][32 columns][16 steps]. Of the last 32 columns
/// only tiles of 16 with a column that exists are written.
template <typename Step>
void pack_gradients(const typename Step::Element* dy, int64_t stride, int32_t rows, int32_t count,
                    float* packed) {
  const int32_t tiles = tile_count<Step>(rows);
  for (int32_t n = 0; n < count; n += kTileRows) {
    const __mmask16 columns = tail_mask(count - n);
    float* to = packed + (int64_t)(n / kBlockRows) * tiles * kBlockRows * kTileLanes +
                n % kBlockRows * kTileLanes;
    for (int32_t m = 0; m < rows;
         m += Step::kStepRows * kTileLanes, to += kBlockRows * kTileLanes) {
      __m512 lines[kTileRows];
      for (int32_t i = 0; i < kTileLanes; ++i) {
        const int32_t row = m + Step::kStepRows * i;
        lines[i] = row < rows ? Step::load(dy + row * stride + n, stride, rows - row, columns)
                              : _mm512_setzero_ps();
      }
      transpose_16x16(lines);
      for (int32_t i = 0; i < kTileRows; ++i) _mm512_store_ps(to + i * kTileLanes, lines[i]);
    }
  }
}

/// x [rows, up to 32 columns] → [tiles][16 steps][32 columns]
template <typename Step>
void pack_inputs(const typename Step::Element* x, int64_t stride, int32_t rows, int32_t count,
                 float* packed) {
  pack_steps<Step, kWeightColumns>(x, stride, rows, count, packed);
  const int32_t steps = (rows + Step::kStepRows - 1) / Step::kStepRows;
  for (int32_t step = steps; step < tile_count<Step>(rows) * kTileLanes; ++step) {
    _mm512_store_ps(packed + step * kWeightColumns, _mm512_setzero_ps());
    _mm512_store_ps(packed + step * kWeightColumns + 16, _mm512_setzero_ps());
  }
}

/// What makes sums of codes a gradient; of bf16 nothing does.
struct Scales {
  const float* dy = nullptr;
  const float* x = nullptr;
  const int32_t* x_sums = nullptr;
};

/// The sums of a block on their way to dw. Its rows are added between the tile products of the next
/// block, which would otherwise leave the vector units idle.
struct Pending {
  alignas(64) float sums[kBlockRows][kWeightColumns];
  float* dw = nullptr;
  __mmask16 mask[2] = {0, 0};   // of the columns that exist
  bool store = false;           // overwrites dw
  int32_t next = 0, count = 0;  // rows finished, rows there are
  Scales scales;                // of its first row and column
};

/// `before` and 16 sums of row `row` from column 16 j on.
template <bool kInt8>
inline __m512 finished(const Pending& p, int32_t row, int j, __m512 before) {
  const __m512 sums = _mm512_load_ps(p.sums[row] + 16 * j);
  if (!kInt8) return p.store ? sums : _mm512_add_ps(before, sums);
  // A code of dy is 128 too large.
  const __m512i exact = _mm512_add_epi32(
      _mm512_castps_si512(sums),
      _mm512_mullo_epi32(_mm512_set1_epi32(-128),
                         _mm512_maskz_loadu_epi32(p.mask[j], p.scales.x_sums + 16 * j)));
  return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(p.scales.dy[row])),
                         _mm512_maskz_loadu_ps(p.mask[j], p.scales.x + 16 * j), before);
}

template <bool kInt8>
inline void finish_rows(Pending& p, int64_t dw_stride, int32_t count) {
  for (; count > 0 && p.next < p.count; --count, ++p.next) {
    float* out = p.dw + p.next * dw_stride;
    for (int j = 0; j < 2; ++j) {
      const __m512 before =
          p.store ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(p.mask[j], out + 16 * j);
      _mm512_mask_storeu_ps(out + 16 * j, p.mask[j], finished<kInt8>(p, p.next, j, before));
    }
  }
}

/// One block of up to 32 rows of dw (16 unless kTwo) times 32 columns, into `sums`; meanwhile the
/// rows of `before` are finished.
template <bool kInt8, bool kTwo>
void multiply_block(const float* gradients, const float* inputs, int32_t tiles, int64_t dw_stride,
                    Pending& before, Pending& sums) {
  for (int32_t r = 0; r < sums.count; ++r) {
    _mm_prefetch((const char*)(sums.dw + r * dw_stride), _MM_HINT_T0);
    _mm_prefetch((const char*)(sums.dw + r * dw_stride + 16), _MM_HINT_T0);
  }
  zero_sums<kTwo>();
  const int32_t rows_a_step = (kBlockRows + tiles - 1) / tiles;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    multiply_step<kInt8, kTwo, true>((const char*)gradients, kTileBytes, (const char*)inputs);
    gradients += kBlockRows * kTileLanes;
    inputs += kTileLanes * kWeightColumns;
    finish_rows<kInt8>(before, dw_stride, rows_a_step);
  }
  store_sums<kTwo>(sums.sums[0], kWeightColumns);
}

/// M: rows, of Fours steps.
template <typename Step>
void backward_weight_amx(const typename Step::Element* dy, int64_t dy_stride,
                         const typename Step::Element* x, int64_t x_stride, const Scales& scales,
                         int32_t M, int32_t first, int32_t last, int32_t K, bool accumulate,
                         float* dw, int64_t dw_stride, float* scratch) {
  float *gradients = scratch, *inputs = scratch + kWeightBlock * kWeightChunk;
  if (M == 0 && !accumulate) {
    for (int32_t n = first; n < last; ++n) std::memset(dw + n * dw_stride, 0, K * sizeof(float));
  }
  if (M == 0 || first >= last) return;
  configure_tiles(kBlockRows);
  Pending pending[2];
  int32_t now = 0;
  for (int32_t n = first; n < last; n += kWeightChunk) {
    const int32_t chunk = last - n < kWeightChunk ? last - n : kWeightChunk;
    for (int32_t m = 0; m < M; m += Step::kRows) {
      const int32_t rows = M - m < Step::kRows ? M - m : Step::kRows,
                    tiles = tile_count<Step>(rows);
      pack_gradients<Step>(dy + m * dy_stride + n, dy_stride, rows, chunk, gradients);
      for (int32_t k = 0; k < K; k += kWeightColumns) {
        const int32_t columns = K - k < kWeightColumns ? K - k : kWeightColumns;
        pack_inputs<Step>(x + m * x_stride + k, x_stride, rows, columns, inputs);
        for (int32_t r = 0; r < chunk; r += kBlockRows) {
          if (k + kWeightColumns < K) {
            prefetch_share(x + m * x_stride + k + kWeightColumns, x_stride, rows, r, kBlockRows,
                           chunk);
          }
          Pending &sums = pending[now], &before = pending[1 - now];
          sums.dw = dw + (n + r) * dw_stride + k;
          sums.mask[0] = tail_mask(columns);
          sums.mask[1] = tail_mask(columns - 16);
          sums.store = m == 0 && !accumulate;
          sums.next = 0;
          sums.count = chunk - r < kBlockRows ? chunk - r : kBlockRows;
          if (Step::kInt8) sums.scales = {scales.dy + n + r, scales.x + k, scales.x_sums + k};
          const float* block = gradients + (int64_t)r * tiles * kTileLanes;
          if (sums.count > kTileRows) {
            multiply_block<Step::kInt8, true>(block, inputs, tiles, dw_stride, before, sums);
          } else {
            multiply_block<Step::kInt8, false>(block, inputs, tiles, dw_stride, before, sums);
          }
          now = 1 - now;
        }
      }
    }
  }
  finish_rows<Step::kInt8>(pending[1 - now], dw_stride, kBlockRows);
  release_tiles();
}

}  // namespace

void gemm_backward_weight_bf16_amx(const uint16_t* dy, int64_t dy_stride, const uint16_t* x,
                                   int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                   int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                   float* scratch) {
  backward_weight_amx<Pairs>(dy, dy_stride, x, x_stride, {}, M, first, last, K, accumulate, dw,
                             dw_stride, scratch);
}

void gemm_backward_weight_i8_amx(const uint32_t* dy, int64_t dy_stride, const float* dy_scales,
                                 const uint32_t* x, int64_t x_stride, const float* x_scales,
                                 const int32_t* x_sums, int32_t M, int32_t first, int32_t last,
                                 int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                 float* scratch) {
  backward_weight_amx<Fours>(dy, dy_stride, x, x_stride, {dy_scales, x_scales, x_sums}, (M + 3) / 4,
                             first, last, K, accumulate, dw, dw_stride, scratch);
}

}  // namespace xsr::kernels
