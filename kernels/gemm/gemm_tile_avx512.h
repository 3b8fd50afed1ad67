#pragma once
// What the AVX-512 gemm files share: the tile, its epilogue, and the loops over panels and rows.
// `Core` is the sum over K:
//
//     struct Core {
//       using Element = ...;                      // of the activations
//       static constexpr bool kNarrow = ...;      // results may also be wanted in bf16
//       static constexpr bool kSplit = ...;       // and then split
//       static constexpr bool kAddsBias = ...;    // run() adds the bias
//       static int64_t panel_bytes(int32_t K);
//       template <int MR> static void run(const Tile<Element>& tile, __m512 (&acc)[MR][2]);
//     };
#include "kernels/gemm/gemm.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

// 12 rows × 32 columns: 24 accumulators, at most 4 weight vectors and one broadcast, of 32
// registers.
static constexpr int32_t kMaxRows = 12;
// With more than two blocks of rows, a block meets so many panels before the next one does: its
// rows stay in L1, and it writes 1 KiB of a row at a time instead of 128 bytes.
static constexpr int32_t kGroupPanels = 8;
/// Asks for the weights ahead of `w`, two lines a step: the panels are read in address order from
/// beyond L2. Up to 8 rows the stream itself is the limit and a request for each line, 8 KiB ahead
/// into L1, is best: against two a line 11 % on Zen 4 up to 4 rows, on Zen 5 11 to 15 % at 5 and 2
/// to 4 % at 6 to 8. With more rows L2 far ahead and L1 shortly before gives 2 % over one distance
/// (4 KiB) on Zen 4; Zen 5 gains some 1 % in f32 and loses as much in int8.
template <int MR>
static inline __attribute__((always_inline)) void prefetch_panel(const void* w) {
  constexpr int64_t near = MR <= 8 ? 8192 : 2048, far = 32768;
  _mm_prefetch((const char*)w + near, _MM_HINT_T0);
  _mm_prefetch((const char*)w + near + 64, _MM_HINT_T0);
  if (MR > 8) {
    _mm_prefetch((const char*)w + far, _MM_HINT_T1);
    _mm_prefetch((const char*)w + far + 64, _MM_HINT_T1);
  }
}

template <typename Element>
struct Tile {
  const Element* a;
  int64_t a_stride;
  const void* panel;
  int32_t K;
  const GemmEpilogue* epilogue;
  int32_t column;  // first column of the panel
  __mmask16 mask[2];
  float* out;  // null where only the narrow result is wanted
  int64_t out_stride;
  const float* residual;
  uint16_t* narrow;  // null where it is not wanted
  int64_t narrow_stride;
  int64_t narrow_low;        // kSplit only: from hi to lo
  const QuantizedRow* rows;  // kI8 only: of a's rows
  const float* scales;       // kI8 only: of the panel's outputs, as sums
  const int32_t* sums;
};

template <int MR, typename Core>
static void gemm_tile(const Tile<typename Core::Element>& tile) {
  const GemmEpilogue& epilogue = *tile.epilogue;
  __m512 acc[MR][2];
  if constexpr (!Core::kAddsBias) {
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
  }
  Core::template run<MR>(tile, acc);
  if (!Core::kAddsBias && epilogue.bias != nullptr) {
    const float* bias = epilogue.bias + tile.column;
    const __m512 bias0 = _mm512_maskz_loadu_ps(tile.mask[0], bias);
    const __m512 bias1 = _mm512_maskz_loadu_ps(tile.mask[1], bias + 16);
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      acc[m][0] = _mm512_add_ps(acc[m][0], bias0);
      acc[m][1] = _mm512_add_ps(acc[m][1], bias1);
    }
  }
  if (epilogue.activation == Activation::kSwish) {
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      acc[m][0] = times_sigmoid_f32(acc[m][0], acc[m][0]);
      acc[m][1] = times_sigmoid_f32(acc[m][1], acc[m][1]);
    }
  } else if (epilogue.activation != Activation::kNone) {
    // Through memory of its own: a loop over acc would put acc itself there, for every activation.
    alignas(64) float values[2 * MR][16];
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      _mm512_store_ps(values[2 * m], acc[m][0]);
      _mm512_store_ps(values[2 * m + 1], acc[m][1]);
    }
    for (auto& value : values)
      _mm512_store_ps(value, activate_f32(_mm512_loadu_ps(value), epilogue.activation));
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      acc[m][0] = _mm512_loadu_ps(values[2 * m]);
      acc[m][1] = _mm512_loadu_ps(values[2 * m + 1]);
    }
  }
  if (epilogue.residual != nullptr) {
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      const float* residual = tile.residual + m * epilogue.residual_stride;
      acc[m][0] = _mm512_add_ps(acc[m][0], _mm512_maskz_loadu_ps(tile.mask[0], residual));
      acc[m][1] = _mm512_add_ps(acc[m][1], _mm512_maskz_loadu_ps(tile.mask[1], residual + 16));
    }
  }
#if defined(__AVX512BF16__)
  if constexpr (Core::kNarrow) {
    if (tile.narrow != nullptr) {
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        uint16_t* narrow = tile.narrow + m * tile.narrow_stride;
        if constexpr (Core::kSplit) {
          store_split(narrow, narrow + tile.narrow_low,
                      _mm512_maskz_mov_ps(tile.mask[0], acc[m][0]));
          store_split(narrow + 16, narrow + 16 + tile.narrow_low,
                      _mm512_maskz_mov_ps(tile.mask[1], acc[m][1]));
        } else {
          store_narrow(narrow, tile.mask[0], acc[m][0]);
          store_narrow(narrow + 16, tile.mask[1], acc[m][1]);
        }
      }
      if (tile.out == nullptr) return;
    }
  }
#endif
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m) {
    float* out = tile.out + m * tile.out_stride;
    _mm512_mask_storeu_ps(out, tile.mask[0], acc[m][0]);
    _mm512_mask_storeu_ps(out + 16, tile.mask[1], acc[m][1]);
  }
}

template <typename Core>
static void gemm_tile_rows(int32_t rows, const Tile<typename Core::Element>& tile) {
  switch (rows) {
    case 1:
      return gemm_tile<1, Core>(tile);
    case 2:
      return gemm_tile<2, Core>(tile);
    case 3:
      return gemm_tile<3, Core>(tile);
    case 4:
      return gemm_tile<4, Core>(tile);
    case 5:
      return gemm_tile<5, Core>(tile);
    case 6:
      return gemm_tile<6, Core>(tile);
    case 7:
      return gemm_tile<7, Core>(tile);
    case 8:
      return gemm_tile<8, Core>(tile);
    case 9:
      return gemm_tile<9, Core>(tile);
    case 10:
      return gemm_tile<10, Core>(tile);
    case 11:
      return gemm_tile<11, Core>(tile);
    case 12:
      return gemm_tile<12, Core>(tile);
  }
}

/// Panel by panel, the rows' blocks inside. Matrix: PackedMatrix, or SplitMatrix where the core is
/// split.
template <typename Core, typename Matrix>
static void gemm_panels(const typename Core::Element* a, int64_t a_stride, int32_t M,
                        const Matrix& w, int32_t first_panel, int32_t last_panel,
                        const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                        uint16_t* narrow, int64_t narrow_stride, const QuantizedRow* a_rows) {
  const int64_t panel_bytes = Core::panel_bytes(w.K);
  const int32_t blocks = (M + kMaxRows - 1) / kMaxRows;
  for (int32_t panel = first_panel; panel < last_panel; ++panel) {
    Tile<typename Core::Element> tile;
    tile.a_stride = a_stride;
    tile.panel = (const char*)w.data + panel * panel_bytes;
    tile.K = w.K;
    tile.epilogue = &epilogue;
    tile.column = panel * kPanelColumns;
    tile.mask[0] = tail_mask(w.N - tile.column);
    tile.mask[1] = tail_mask(w.N - tile.column - 16);
    tile.out_stride = out_stride;
    tile.narrow_stride = narrow_stride;
    tile.narrow_low = split_columns(w.N);
    if constexpr (!Core::kSplit) {
      tile.scales = a_rows == nullptr ? nullptr : w.scales + tile.column;
      tile.sums = a_rows == nullptr ? nullptr : w.sums + tile.column;
    }
    int32_t row = 0;
    for (int32_t block = 0; block < blocks; ++block) {
      // Rows are shared out evenly: 20 rows go as 10 + 10, since a tile of 8 would leave the FMA
      // units waiting.
      const int32_t rows = (M - row) / (blocks - block);
      tile.a = a + row * a_stride;
      tile.rows = a_rows == nullptr ? nullptr : a_rows + row;
      tile.out = out == nullptr ? nullptr : out + row * out_stride + tile.column;
      tile.narrow = narrow == nullptr ? nullptr : narrow + row * narrow_stride + tile.column;
      tile.residual = epilogue.residual == nullptr
                          ? nullptr
                          : epilogue.residual + row * epilogue.residual_stride + tile.column;
      gemm_tile_rows<Core>(rows, tile);
      row += rows;
    }
  }
}

/// The arguments of the gemm contracts; what is not a core's own is null.
template <typename Core, typename Matrix>
static void gemm_forward(const typename Core::Element* a, int64_t a_stride, int32_t M,
                         const Matrix& w, int32_t first_panel, int32_t last_panel,
                         const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                         uint16_t* narrow, int64_t narrow_stride,
                         const QuantizedRow* a_rows = nullptr) {
  const int32_t blocks = (M + kMaxRows - 1) / kMaxRows;
  if (blocks <= 2) {
    gemm_panels<Core>(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride, narrow,
                      narrow_stride, a_rows);
    return;
  }
  for (int32_t begin = first_panel; begin < last_panel; begin += kGroupPanels) {
    const int32_t end = begin + kGroupPanels < last_panel ? begin + kGroupPanels : last_panel;
    int32_t row = 0;
    for (int32_t block = 0; block < blocks; ++block) {
      const int32_t rows = (M - row) / (blocks - block);
      GemmEpilogue of_rows = epilogue;
      if (epilogue.residual != nullptr) of_rows.residual += row * epilogue.residual_stride;
      gemm_panels<Core>(a + row * a_stride, a_stride, rows, w, begin, end, of_rows,
                        out == nullptr ? nullptr : out + row * out_stride, out_stride,
                        narrow == nullptr ? nullptr : narrow + row * narrow_stride, narrow_stride,
                        a_rows == nullptr ? nullptr : a_rows + row);
      row += rows;
    }
  }
}

}  // namespace xsr::kernels
