#pragma once
// What the AVX-512 gemm files share: the tile, its epilogue, and the loops over panels and rows.
// `Core` is the sum over K, in steps of some inputs; R is a number of rows:
//
//     struct Core {
//       using Element = ...;                     // of the activations
//       using Sum = ...;                         // __m512 or __m512i
//       static constexpr bool kNarrow = ...;     // results may also be wanted in bf16
//       static constexpr bool kSplit = ...;      // and then split
//       static constexpr bool kByPieces = ...;   // swish and GELU, see activation_pieces_avx512.h
//       static constexpr bool kInHalves = ...;   // of more than 8 rows, see gemm_tile_in_halves
//       static constexpr UnaskedRows kUnasked = ...;
//       static constexpr int32_t kInputs = ...;  // of a step
//       static constexpr int64_t kBytes = ...;   // of a panel, that a step reads
//       static int64_t panel_bytes(int32_t K);
//       static int32_t steps(int32_t K);
//       void begin<R>(const Tile& tile, Sum (&sums)[R][2]);
//       void step<R>(const Tile& tile, const Element* a, const char* w, Sum (&sums)[R][2]);
//       void end<R>(const Tile& tile, Sum (&sums)[R][2], __m512 (&values)[R][2]);  // with the bias
//     };
#include "kernels/activation/activation_pieces_avx512.h"
#include "kernels/gemm/gemm.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

// 12 rows × 32 columns: 24 accumulators, at most 4 weight vectors and one broadcast, of 32
// registers.
static constexpr int32_t kMaxRows = 12;
// A block of rows meets so many panels before the next one does: its rows stay in L1, and it writes
// 1 KiB of a row at a time instead of 128 bytes.
static constexpr int32_t kGroupPanels = 8;
// Steps of K that half of a tile is ahead of the other.
static constexpr int32_t kLead = 16;

/// 64 aligned bytes, for R rows, in a register: gcc 12 loads the weights of up to 3 rows, and in
/// int8 of all, again for each row, where a cycle has one load.
template <int R>
static inline __attribute__((always_inline)) __m512i load_once(const void* p) {
  __m512i x = _mm512_load_si512(p);
#if !defined(XSR_EMULATE_ISA)
  if constexpr (R > 1) __asm__("" : "+v"(x));
#endif
  return x;
}

/// Rows up to which the loads themselves run so far ahead that every request for weights delays
/// them: fewer the more is done with a line.
struct UnaskedRows {
  int cached;    // weights that come from a last-level cache
  int streamed;  // from memory
};

/// Asks for the weights ahead of `w`, a step's lines: the panels are read in address order from
/// beyond L2. One into L2 far ahead keeps memory busy while the multipliers work, and above 8 rows
/// one more into L1 shortly before, too. See decision 0018, "Weights beyond the caches".
template <int MR, typename Core>
static inline __attribute__((always_inline)) void prefetch_panel(const char* w) {
  constexpr int64_t near = 2048, far = 32768;
  for (int64_t line = 0; line < Core::kBytes; line += 64) {
    if (MR > 8) _mm_prefetch(w + near + line, _MM_HINT_T0);
    _mm_prefetch(w + far + line, _MM_HINT_T1);
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

/// The same Tile or Product from a row of it on.
template <typename Rows>
static inline __attribute__((always_inline)) Rows from_row(Rows rows, int32_t row) {
  rows.a += row * rows.a_stride;
  if (rows.rows != nullptr) rows.rows += row;
  if (rows.out != nullptr) rows.out += row * rows.out_stride;
  if (rows.narrow != nullptr) rows.narrow += row * rows.narrow_stride;
  if (rows.residual != nullptr) rows.residual += row * rows.epilogue->residual_stride;
  return rows;
}

/// Of the tile's columns; 0 where there is no bias.
template <typename Element>
static inline __attribute__((always_inline)) __m512 load_bias(const Tile<Element>& tile, int half) {
  if (tile.epilogue->bias == nullptr) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(tile.mask[half], tile.epilogue->bias + tile.column + 16 * half);
}

/// Sums in f32 begin with 0, and their end is the bias.
struct FloatSums {
  using Sum = __m512;
  template <int R, typename Element>
  static inline __attribute__((always_inline)) void begin(const Tile<Element>&,
                                                          __m512 (&sums)[R][2]) {
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
  }
  template <int R, typename Element>
  static inline __attribute__((always_inline)) void end(const Tile<Element>& tile,
                                                        __m512 (&sums)[R][2],
                                                        __m512 (&values)[R][2]) {
    const __m512 bias0 = load_bias(tile, 0), bias1 = load_bias(tile, 1);
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      values[m][0] = _mm512_add_ps(sums[m][0], bias0);
      values[m][1] = _mm512_add_ps(sums[m][1], bias1);
    }
  }
};

template <int R, bool kByPieces>
static inline __attribute__((always_inline)) void activate_tile(Activation activation,
                                                                __m512 (&acc)[R][2]) {
  if (activation == Activation::kNone) return;
  if constexpr (kByPieces) {
    if (const ActivationPieces* pieces = activation_pieces(activation)) {
#pragma GCC unroll 12
      for (int m = 0; m < R; ++m) {
        acc[m][0] = activate_by_pieces(acc[m][0], *pieces);
        acc[m][1] = activate_by_pieces(acc[m][1], *pieces);
      }
      return;
    }
  } else if (activation == Activation::kSwish) {
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      acc[m][0] = times_sigmoid_f32(acc[m][0], acc[m][0]);
      acc[m][1] = times_sigmoid_f32(acc[m][1], acc[m][1]);
    }
    return;
  }
  // Through memory of its own: a loop over acc would put acc itself there, for every activation.
  alignas(64) float values[2 * R][16];
#pragma GCC unroll 12
  for (int m = 0; m < R; ++m) {
    _mm512_store_ps(values[2 * m], acc[m][0]);
    _mm512_store_ps(values[2 * m + 1], acc[m][1]);
  }
  for (auto& value : values)
    _mm512_store_ps(value, activate_f32(_mm512_loadu_ps(value), activation));
#pragma GCC unroll 12
  for (int m = 0; m < R; ++m) {
    acc[m][0] = _mm512_loadu_ps(values[2 * m]);
    acc[m][1] = _mm512_loadu_ps(values[2 * m + 1]);
  }
}

template <int R, typename Core>
static inline __attribute__((always_inline)) void write_tile(
    const Tile<typename Core::Element>& tile, typename Core::Sum (&sums)[R][2]) {
  const GemmEpilogue& epilogue = *tile.epilogue;
  __m512 acc[R][2];
  Core::template end<R>(tile, sums, acc);
  activate_tile<R, Core::kByPieces>(epilogue.activation, acc);
  if (epilogue.residual != nullptr) {
#pragma GCC unroll 12
    for (int m = 0; m < R; ++m) {
      const float* residual = tile.residual + m * epilogue.residual_stride;
      acc[m][0] = _mm512_add_ps(acc[m][0], _mm512_maskz_loadu_ps(tile.mask[0], residual));
      acc[m][1] = _mm512_add_ps(acc[m][1], _mm512_maskz_loadu_ps(tile.mask[1], residual + 16));
    }
  }
  if constexpr (Core::kNarrow) {
    if (tile.narrow != nullptr) {
#pragma GCC unroll 12
      for (int m = 0; m < R; ++m) {
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
#pragma GCC unroll 12
  for (int m = 0; m < R; ++m) {
    float* out = tile.out + m * tile.out_stride;
    _mm512_mask_storeu_ps(out, tile.mask[0], acc[m][0]);
    _mm512_mask_storeu_ps(out + 16, tile.mask[1], acc[m][1]);
  }
}

/// The first half of the rows is some steps ahead of the others, so that its results are written
/// while the others' products go on: between two tiles the multipliers would run dry. Where a tile
/// has few steps, as in int8, that is 3 to 4 % on Zen 5.
template <int MR, typename Core>
static inline __attribute__((always_inline)) void gemm_tile_in_halves(
    const Tile<typename Core::Element>& ahead) {
  constexpr int kAhead = MR / 2, kBehind = MR - kAhead;
  const Tile<typename Core::Element> behind = from_row(ahead, kAhead);
  const int32_t steps = Core::steps(ahead.K), lead = steps < kLead ? steps : kLead;
  typename Core::Sum first[kAhead][2], second[kBehind][2];
  const auto *a = ahead.a, *b = behind.a;
  const char *wa = (const char*)ahead.panel, *wb = wa;
  Core::template begin<kAhead>(ahead, first);
  for (int32_t i = 0; i < lead; ++i, a += Core::kInputs, wa += Core::kBytes) {
    prefetch_panel<MR, Core>(wa);
    Core::template step<kAhead>(ahead, a, wa, first);
  }
  Core::template begin<kBehind>(behind, second);
  for (int32_t i = lead; i < steps; ++i) {
    prefetch_panel<MR, Core>(wa);
    Core::template step<kAhead>(ahead, a, wa, first);
    Core::template step<kBehind>(behind, b, wb, second);
    a += Core::kInputs, b += Core::kInputs, wa += Core::kBytes, wb += Core::kBytes;
  }
  write_tile<kAhead, Core>(ahead, first);
  for (int32_t i = 0; i < lead; ++i, b += Core::kInputs, wb += Core::kBytes)
    Core::template step<kBehind>(behind, b, wb, second);
  write_tile<kBehind, Core>(behind, second);
}

template <int MR, typename Core, bool kAsk>
static inline __attribute__((always_inline)) void gemm_tile_at_once(
    const Tile<typename Core::Element>& tile) {
  typename Core::Sum sums[MR][2];
  Core::template begin<MR>(tile, sums);
  const auto* a = tile.a;
  const char* w = (const char*)tile.panel;
  for (int32_t i = Core::steps(tile.K); i > 0; --i, a += Core::kInputs, w += Core::kBytes) {
    if constexpr (kAsk) prefetch_panel<MR, Core>(w);
    Core::template step<MR>(tile, a, w, sums);
  }
  write_tile<MR, Core>(tile, sums);
}

/// A function of its own: in the loop over panels gcc 12 copies sums of int8 to and fro.
template <int MR, typename Core, bool kAsk>
static __attribute__((noinline)) void gemm_tile_alone(const Tile<typename Core::Element>& tile) {
  gemm_tile_at_once<MR, Core, kAsk>(tile);
}

/// The arguments of the gemm contracts for some rows; what is not a core's own is null. Matrix:
/// PackedMatrix, or SplitMatrix where the core is split.
template <typename Element, typename Matrix>
struct Product {
  const Element* a;
  int64_t a_stride;
  const Matrix* w;
  const GemmEpilogue* epilogue;
  float* out;
  int64_t out_stride;
  const float* residual;
  uint16_t* narrow;
  int64_t narrow_stride;
  const QuantizedRow* rows;
};

template <typename Core, typename Matrix>
static inline __attribute__((always_inline)) Tile<typename Core::Element> tile_at(
    const Product<typename Core::Element, Matrix>& product, int32_t panel) {
  const Matrix& w = *product.w;
  Tile<typename Core::Element> tile;
  tile.a = product.a;
  tile.a_stride = product.a_stride;
  tile.panel = (const char*)w.data + panel * Core::panel_bytes(w.K);
  tile.K = w.K;
  tile.epilogue = product.epilogue;
  tile.column = panel * kPanelColumns;
  tile.mask[0] = tail_mask(w.N - tile.column);
  tile.mask[1] = tail_mask(w.N - tile.column - 16);
  tile.out = product.out == nullptr ? nullptr : product.out + tile.column;
  tile.out_stride = product.out_stride;
  tile.residual = product.residual == nullptr ? nullptr : product.residual + tile.column;
  tile.narrow = product.narrow == nullptr ? nullptr : product.narrow + tile.column;
  tile.narrow_stride = product.narrow_stride;
  tile.narrow_low = split_columns(w.N);
  tile.rows = product.rows;
  if constexpr (!Core::kSplit) {
    tile.scales = w.scales == nullptr ? nullptr : w.scales + tile.column;
    tile.sums = w.sums == nullptr ? nullptr : w.sums + tile.column;
  }
  return tile;
}

template <int MR, typename Core, typename Matrix>
static void gemm_block(const Product<typename Core::Element, Matrix>& product, int32_t first,
                       int32_t last) {
  for (int32_t panel = first; panel < last; ++panel) {
    const Tile<typename Core::Element> tile = tile_at<Core>(product, panel);
    if constexpr (MR <= 8) {
      constexpr bool kAsk = MR > Core::kUnasked.cached;
      if constexpr (kAsk && MR <= Core::kUnasked.streamed) {
        if (product.w->streamed) {
          gemm_tile_alone<MR, Core, false>(tile);
          continue;
        }
      }
      gemm_tile_alone<MR, Core, kAsk>(tile);
    } else if constexpr (Core::kInHalves) {
      gemm_tile_in_halves<MR, Core>(tile);
    } else {
      gemm_tile_at_once<MR, Core, true>(tile);
    }
  }
}

template <typename Core, typename Matrix>
static void gemm_block(int32_t rows, const Product<typename Core::Element, Matrix>& product,
                       int32_t first, int32_t last) {
  switch (rows) {
    case 1:
      return gemm_block<1, Core>(product, first, last);
    case 2:
      return gemm_block<2, Core>(product, first, last);
    case 3:
      return gemm_block<3, Core>(product, first, last);
    case 4:
      return gemm_block<4, Core>(product, first, last);
    case 5:
      return gemm_block<5, Core>(product, first, last);
    case 6:
      return gemm_block<6, Core>(product, first, last);
    case 7:
      return gemm_block<7, Core>(product, first, last);
    case 8:
      return gemm_block<8, Core>(product, first, last);
    case 9:
      return gemm_block<9, Core>(product, first, last);
    case 10:
      return gemm_block<10, Core>(product, first, last);
    case 11:
      return gemm_block<11, Core>(product, first, last);
    case 12:
      return gemm_block<12, Core>(product, first, last);
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
  const Product<typename Core::Element, Matrix> product{
      a,          a_stride,          &w,     &epilogue,     out,
      out_stride, epilogue.residual, narrow, narrow_stride, a_rows};
  for (int32_t begin = first_panel; begin < last_panel; begin += kGroupPanels) {
    const int32_t end = begin + kGroupPanels < last_panel ? begin + kGroupPanels : last_panel;
    int32_t row = 0;
    for (int32_t block = 0; block < blocks; ++block) {
      // Rows are shared out evenly: 20 rows go as 10 + 10, since a tile of 8 would leave the FMA
      // units waiting.
      const int32_t rows = (M - row) / (blocks - block);
      gemm_block<Core>(rows, from_row(product, row), begin, end);
      row += rows;
    }
  }
}

}  // namespace xsr::kernels
