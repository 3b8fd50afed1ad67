// A weight's gradient on AMX tiles: 16 outputs a row tile, whose lanes are pairs of rows of dy and
// x.
#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_backward_tile_avx512.h"
#include "kernels/gemm/gemm_tile_amx.h"

namespace xsr::kernels {
namespace {

static_assert(kWeightColumns == 2 * kTileRows && kWeightChunk % kBlockRows == 0 &&
              kWeightBlock % kTileRows == 0);
constexpr int32_t kRows = 2 * kWeightBlock;  // of dy and x that are summed at a time
constexpr int32_t kTileLanes = kTileBytes / 4;

struct Pairs {
  using Element = uint16_t;
  static constexpr int32_t kStepRows = 2;
  static inline __m512 load(const uint16_t* row, int64_t stride, int32_t rows, __mmask16 mask) {
    return load_row_pair(row, stride, rows, mask);
  }
};

/// Tiles that `rows` rows of dy and x fill, one behind the other; the last one ends with zeros.
int32_t tile_count(int32_t rows) { return (rows + 2 * kTileLanes - 1) / (2 * kTileLanes); }

/// dy [rows, count columns] → [⌈count/32⌉][tiles][32 columns][16 pairs of rows]. Of the last 32
/// columns only tiles of 16 with a column that exists are written.
void pack_gradients(const uint16_t* dy, int64_t stride, int32_t rows, int32_t count,
                    float* packed) {
  const int32_t tiles = tile_count(rows);
  for (int32_t n = 0; n < count; n += kTileRows) {
    const __mmask16 columns = tail_mask(count - n);
    float* to = packed + (int64_t)(n / kBlockRows) * tiles * kBlockRows * kTileLanes +
                n % kBlockRows * kTileLanes;
    for (int32_t m = 0; m < rows; m += 2 * kTileLanes, to += kBlockRows * kTileLanes) {
      __m512 lines[kTileRows];
      for (int32_t i = 0; i < kTileLanes; ++i) {
        const int32_t row = m + 2 * i;
        lines[i] = row < rows ? load_row_pair(dy + row * stride + n, stride, rows - row, columns)
                              : _mm512_setzero_ps();
      }
      transpose_16x16(lines);
      for (int32_t i = 0; i < kTileRows; ++i) _mm512_store_ps(to + i * kTileLanes, lines[i]);
    }
  }
}

/// x [rows, up to 32 columns] → [tiles][16 pairs of rows][32 columns]
void pack_inputs(const uint16_t* x, int64_t stride, int32_t rows, int32_t count, float* packed) {
  pack_steps<Pairs, kWeightColumns>(x, stride, rows, count, packed);
  for (int32_t step = (rows + 1) / 2; step < tile_count(rows) * kTileLanes; ++step) {
    _mm512_store_ps(packed + step * kWeightColumns, _mm512_setzero_ps());
    _mm512_store_ps(packed + step * kWeightColumns + 16, _mm512_setzero_ps());
  }
}

/// The sums of a block on their way to dw. Its rows are added between the tile products of the next
/// block, which would otherwise leave the vector units idle.
struct Pending {
  alignas(64) float sums[kBlockRows][kWeightColumns];
  float* dw = nullptr;
  __mmask16 mask[2] = {0, 0};   // of the columns that exist
  bool store = false;           // overwrites dw
  int32_t next = 0, count = 0;  // rows finished, rows there are
};

inline void finish_rows(Pending& p, int64_t dw_stride, int32_t count) {
  for (; count > 0 && p.next < p.count; --count, ++p.next) {
    float* out = p.dw + p.next * dw_stride;
    for (int j = 0; j < 2; ++j) {
      __m512 sum = _mm512_load_ps(p.sums[p.next] + 16 * j);
      if (!p.store) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(p.mask[j], out + 16 * j), sum);
      _mm512_mask_storeu_ps(out + 16 * j, p.mask[j], sum);
    }
  }
}

/// One block of up to 32 rows of dw (16 unless kTwo) times 32 columns, into `sums`; meanwhile the
/// rows of `before` are finished.
template <bool kTwo>
void multiply_block(const float* gradients, const float* inputs, int32_t tiles, int64_t dw_stride,
                    Pending& before, Pending& sums) {
  for (int32_t r = 0; r < sums.count; ++r) {
    _mm_prefetch((const char*)(sums.dw + r * dw_stride), _MM_HINT_T0);
    _mm_prefetch((const char*)(sums.dw + r * dw_stride + 16), _MM_HINT_T0);
  }
  zero_sums<kTwo>();
  const int32_t rows_a_step = (kBlockRows + tiles - 1) / tiles;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    multiply_step<false, kTwo, true>((const char*)gradients, kTileBytes, (const char*)inputs);
    gradients += kBlockRows * kTileLanes;
    inputs += kTileLanes * kWeightColumns;
    finish_rows(before, dw_stride, rows_a_step);
  }
  store_sums<kTwo>(sums.sums[0], kWeightColumns);
}

}  // namespace

void gemm_backward_weight_bf16_amx(const uint16_t* dy, int64_t dy_stride, const uint16_t* x,
                                   int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                   int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                   float* scratch) {
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
    for (int32_t m = 0; m < M; m += kRows) {
      const int32_t rows = M - m < kRows ? M - m : kRows, tiles = tile_count(rows);
      pack_gradients(dy + m * dy_stride + n, dy_stride, rows, chunk, gradients);
      for (int32_t k = 0; k < K; k += kWeightColumns) {
        const int32_t columns = K - k < kWeightColumns ? K - k : kWeightColumns;
        pack_inputs(x + m * x_stride + k, x_stride, rows, columns, inputs);
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
          const float* block = gradients + (int64_t)r * tiles * kTileLanes;
          if (sums.count > kTileRows) {
            multiply_block<true>(block, inputs, tiles, dw_stride, before, sums);
          } else {
            multiply_block<false>(block, inputs, tiles, dw_stride, before, sums);
          }
          now = 1 - now;
        }
      }
    }
  }
  finish_rows(pending[1 - now], dw_stride, kBlockRows);
  release_tiles();
}

}  // namespace xsr::kernels
