#pragma once
// The tiles of products in AVX2 registers, for every kind of element; only the files of AVX2
// include this.
#include "kernels/gemm/gemm.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

// 6 rows × 16 columns: 12 accumulators, 2 weight vectors, 1 broadcast, of 16 registers. A panel is
// passed in two halves.
constexpr int32_t kMaxRows = 6;
constexpr int32_t kColumns = 16;
// The weights ahead are asked for into L2, and only the lines that a tile reads. Every second line
// has room in every second set of L1 alone: those of f32 have left it for the next block of rows,
// and are asked for again shortly before. See decision 0018, "Weights beyond the caches".
constexpr int64_t kPrefetchBytes = 32768, kPrefetchNearBytes = 2048;

/// An element of split rows, in bf16.
struct Split {
  uint16_t bits;
};
template <typename A>
constexpr bool kIsSplit = false;
template <>
constexpr bool kIsSplit<Split> = true;
/// How products of elements other than bytes are summed: here. Of bytes, a Core has how many rows
/// its tiles have (kMaxRows, kMaxRowsWide), where weights begin (half_of) and the sums
/// (accumulate).
struct Plain {};
template <Storage S, typename A, typename Core>
constexpr int32_t kMaxRowsOf = kMaxRows;
template <typename A, typename Core>
constexpr int32_t kMaxRowsOf<Storage::kI8, A, Core> = Core::kMaxRows;
/// So few rows wait for their weights alone, and one pass over whole panels brings them sooner: 3
/// rows × 32 columns in f32, 2 in 16 bits, which take registers to widen. None of split rows.
template <Storage S, typename A, typename Core>
constexpr int32_t kMaxRowsWide = kIsSplit<A>          ? 0
                                 : S == Storage::kF32 ? 3
                                                      : 2;
template <typename A, typename Core>
constexpr int32_t kMaxRowsWide<Storage::kI8, A, Core> = Core::kMaxRowsWide;
/// Results of f32 are wanted in f32 alone.
template <typename A>
constexpr bool kIsF32 = sizeof(A) == sizeof(float);

/// A: float, uint16_t for bf16 activations, Split for split ones, or uint8_t for quantised ones.
template <typename A>
struct Tile {
  const A* a;
  int64_t a_stride;
  const void* panel;  // of the half, or of the panel where rows are few
  int32_t K;
  const GemmEpilogue* epilogue;
  int32_t column;
  int64_t count;  // columns of it that exist
  float* out;     // null where only the narrow result is wanted
  int64_t out_stride;
  const float* residual;
  uint16_t* narrow;  // null where it is not wanted
  int64_t narrow_stride;
  int64_t narrow_low;        // Split only: from hi to lo
  const QuantizedRow* rows;  // kI8 only: of a's rows
  const float* scales;       // kI8 only: of the half's outputs, as sums
  const int32_t* sums;
};

static inline __m256 broadcast(const float* a) { return _mm256_broadcast_ss(a); }
static inline __m256 broadcast(const uint16_t* a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16((int16_t)*a), 16));
}

static inline __m256i broadcast4(const uint8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

static inline __m256 broadcast(const Split* a) { return broadcast(&a->bits); }

template <int MR, typename A>
static inline __attribute__((always_inline)) void multiply_add(const A* a, int64_t stride,
                                                               __m256 w0, __m256 w1,
                                                               __m256 (&acc)[MR][2]) {
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
    const __m256 x = broadcast(a + m * stride);
    acc[m][0] = _mm256_fmadd_ps(x, w0, acc[m][0]);
    acc[m][1] = _mm256_fmadd_ps(x, w1, acc[m][1]);
  }
}

// A 32-bit lane holds inputs k (low half) and k + 1 (high half) of one output.
template <Storage S>
static inline __m256 widen_low(__m256i pair) {
  if (S == Storage::kBF16) return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
  const __m256i masked = _mm256_srli_epi32(_mm256_slli_epi32(pair, 16), 16);
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm256_castsi256_si128(masked), _mm256_extracti128_si256(masked, 1)));
}
/// For R rows; of the most rows two shifts, since zeros to blend with take a register.
template <Storage S, int R>
static inline __m256 widen_high(__m256i pair) {
  if (S == Storage::kBF16 && R < kMaxRows)
    return _mm256_castsi256_ps(_mm256_blend_epi16(_mm256_setzero_si256(), pair, 0xaa));
  if (S == Storage::kBF16)
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(pair, 16), 16));
  const __m256i high = _mm256_srli_epi32(pair, 16);
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

/// One input of every row: a_hi · W_hi + a_lo · W_hi as one product, since a_hi + a_lo is exact in
/// f32, and a_hi · W_lo. `Widen` takes the input out of the panel's pairs.
template <int MR, typename Widen>
static inline __attribute__((always_inline)) void multiply_add_split(const Split* a, int64_t stride,
                                                                     int32_t low, const __m256i* w,
                                                                     Widen widen,
                                                                     __m256 (&acc)[MR][2]) {
  const __m256 hi0 = widen(_mm256_load_si256(w)), hi1 = widen(_mm256_load_si256(w + 1));
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
    const Split* row = a + m * stride;
    const __m256 x = _mm256_add_ps(broadcast(row), broadcast(row + low));
    acc[m][0] = _mm256_fmadd_ps(x, hi0, acc[m][0]);
    acc[m][1] = _mm256_fmadd_ps(x, hi1, acc[m][1]);
  }
  multiply_add<MR>(a, stride, widen(_mm256_load_si256(w + 4)), widen(_mm256_load_si256(w + 5)),
                   acc);
}

template <int MR>
static inline __attribute__((always_inline)) void accumulate_split(const Tile<Split>& tile,
                                                                   __m256 (&acc)[MR][2]) {
  const Split* a = tile.a;
  const __m256i* w = (const __m256i*)tile.panel;
  const int32_t S = split_columns(tile.K);
  for (int32_t k = 0; k < S; k += 2, w += 8) {
    multiply_add_split<MR>(a + k, tile.a_stride, S, w, widen_low<Storage::kBF16>, acc);
    multiply_add_split<MR>(a + k + 1, tile.a_stride, S, w, widen_high<Storage::kBF16, kMaxRows>,
                           acc);
  }
}

template <int MR, Storage S, typename A>
static inline __attribute__((always_inline)) void accumulate(const Tile<A>& tile,
                                                             __m256 (&acc)[MR][2]) {
  const A* a = tile.a;
  if (S == Storage::kF32) {
    const float* w = (const float*)tile.panel;
    for (int32_t k = 0; k < tile.K; ++k, w += kPanelColumns) {
      _mm_prefetch((const char*)w + kPrefetchNearBytes, _MM_HINT_T0);
      _mm_prefetch((const char*)w + kPrefetchBytes, _MM_HINT_T1);
      multiply_add<MR>(a + k, tile.a_stride, _mm256_load_ps(w), _mm256_load_ps(w + 8), acc);
    }
    return;
  }
  const uint16_t* w = (const uint16_t*)tile.panel;
  int32_t k = 0;
  for (; k + 2 <= tile.K; k += 2, w += 2 * kPanelColumns) {
    _mm_prefetch((const char*)w + kPrefetchBytes, _MM_HINT_T1);
    const __m256i* pair = (const __m256i*)w;
    multiply_add<MR>(a + k, tile.a_stride, widen_low<S>(_mm256_load_si256(pair)),
                     widen_low<S>(_mm256_load_si256(pair + 1)), acc);
    // Read again rather than kept: two registers more and gcc spills in this loop.
    __asm__("" : "+r"(pair));
    multiply_add<MR>(a + k + 1, tile.a_stride, widen_high<S, MR>(_mm256_load_si256(pair)),
                     widen_high<S, MR>(_mm256_load_si256(pair + 1)), acc);
  }
  if (k < tile.K) {  // an odd K: a[k + 1] does not exist
    const __m256i pair0 = _mm256_load_si256((const __m256i*)w),
                  pair1 = _mm256_load_si256((const __m256i*)(w + 16));
    multiply_add<MR>(a + k, tile.a_stride, widen_low<S>(pair0), widen_low<S>(pair1), acc);
  }
}

/// The same over whole panels, whose lines come by themselves.
template <int MR, Storage S, typename A>
static inline __attribute__((always_inline)) void accumulate(const Tile<A>& tile,
                                                             __m256 (&acc)[MR][4]) {
  const char* w = (const char*)tile.panel;
  // Input k of every row, with weights that load(j) brings: 12 sums, 3 broadcasts, 1 weight vector.
  const auto multiply_add = [&](int32_t k, auto load) {
    __m256 x[MR];
#pragma GCC unroll 3
    for (int m = 0; m < MR; ++m) x[m] = broadcast(tile.a + m * tile.a_stride + k);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256 weights = load(j);
#pragma GCC unroll 3
      for (int m = 0; m < MR; ++m) acc[m][j] = _mm256_fmadd_ps(x[m], weights, acc[m][j]);
    }
  };
  const auto low = [&](int j) { return widen_low<S>(_mm256_load_si256((const __m256i*)w + j)); };
  const auto high = [&](int j) {
    return widen_high<S, MR>(_mm256_load_si256((const __m256i*)w + j));
  };
  for (int32_t k = 0; k < tile.K; w += 128) {
    if constexpr (S == Storage::kF32) {
      multiply_add(k++, [&](int j) { return _mm256_load_ps((const float*)w + 8 * j); });
    } else {
      multiply_add(k++, low);
      if (k < tile.K) multiply_add(k++, high);
    }
  }
}

/// 8 values as split_bf16 (gemm.h) splits them.
static inline void store_split(uint16_t* hi, uint16_t* lo, __m256 value) {
  const __m256i upper = bf16_bits(value);
  const __m256 rest = _mm256_sub_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32(upper, 16)));
  const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), rest);
  const __m256 finite = _mm256_cmp_ps(magnitude, _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  _mm_storeu_si128((__m128i*)hi, packed_bf16(upper));
  _mm_storeu_si128((__m128i*)lo, packed_bf16(bf16_bits(_mm256_and_ps(rest, finite))));
}

/// Of an even number of vectors in memory.
template <Activation kActivation>
inline void activate_pairs(__m256* values, int32_t count) {
  for (int32_t i = 0; i < count; i += 2) {
    const __m256 first = activate_f32(values[i], kActivation),
                 second = activate_f32(values[i + 1], kActivation);
    values[i] = first;
    values[i + 1] = second;
  }
}

/// Not inlined: every activation for every vector of every tile was three quarters of the code.
__attribute__((noinline)) void activate_values(__m256* values, int32_t count,
                                               Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kSwish:
      return activate_pairs<Activation::kSwish>(values, count);
    case Activation::kGeluErf:
      return activate_pairs<Activation::kGeluErf>(values, count);
    case Activation::kGeluTanh:
      return activate_pairs<Activation::kGeluTanh>(values, count);
    case Activation::kRelu:
      return activate_pairs<Activation::kRelu>(values, count);
    case Activation::kTanh:
      return activate_pairs<Activation::kTanh>(values, count);
  }
}

template <int MR, int V, Storage S, typename Core, typename A>
__attribute__((noinline)) void gemm_tile(const Tile<A>& tile) {
  __m256 acc[MR][V];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) acc[m][j] = _mm256_setzero_ps();
  }
  if constexpr (S == Storage::kI8) {
    Core::accumulate(tile, acc);
  } else if constexpr (kIsSplit<A>) {
    accumulate_split<MR>(tile, acc);
  } else {
    accumulate<MR, S, A>(tile, acc);
  }
  const GemmEpilogue& epilogue = *tile.epilogue;
  if (epilogue.bias != nullptr) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) {
      const __m256 bias =
          _mm256_maskload_ps(epilogue.bias + tile.column + 8 * j, tail_mask8(tile.count - 8 * j));
#pragma GCC unroll 6
      for (int m = 0; m < MR; ++m) acc[m][j] = _mm256_add_ps(acc[m][j], bias);
    }
  }
  if (epilogue.activation != Activation::kNone) {
    __m256 values[MR * V];
#pragma GCC unroll 12
    for (int i = 0; i < MR * V; ++i) values[i] = acc[i / V][i % V];
    activate_values(values, MR * V, epilogue.activation);
#pragma GCC unroll 12
    for (int i = 0; i < MR * V; ++i) acc[i / V][i % V] = values[i];
  }
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) {
    const __m256i mask = tail_mask8(tile.count - 8 * j);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      __m256 value = acc[m][j];
      if (epilogue.residual != nullptr) {
        value = _mm256_add_ps(
            value, _mm256_maskload_ps(tile.residual + m * epilogue.residual_stride + 8 * j, mask));
      }
      if (kIsF32<A> || tile.out != nullptr) {
        store_up_to_8(tile.out + m * tile.out_stride + 8 * j, tile.count - 8 * j, value);
      }
      if (!kIsF32<A> && tile.narrow != nullptr) {
        uint16_t* narrow = tile.narrow + m * tile.narrow_stride + 8 * j;
        if (kIsSplit<A>) {
          const __m256 there = _mm256_and_ps(value, _mm256_castsi256_ps(mask));
          store_split(narrow, narrow + tile.narrow_low, there);
        } else {
          store_bf16(narrow, value, tile.count - 8 * j);
        }
      }
    }
  }
}

template <int V, Storage S, typename Core, typename A>
void gemm_tile_rows(int32_t rows, const Tile<A>& tile) {
  switch (rows) {
    case 1:
      return gemm_tile<1, V, S, Core, A>(tile);
    case 2:
      return gemm_tile<2, V, S, Core, A>(tile);
    case 3:
      if constexpr (V == 2 || kMaxRowsWide<S, A, Core> == 3) gemm_tile<3, V, S, Core, A>(tile);
      return;
    case 4:
      if constexpr (V == 2) gemm_tile<4, V, S, Core, A>(tile);
      return;
    case 5:
      if constexpr (V == 2) gemm_tile<5, V, S, Core, A>(tile);
      return;
    case 6:
      if constexpr (V == 2 && kMaxRowsOf<S, A, Core> == 6) gemm_tile<6, V, S, Core, A>(tile);
      return;
  }
}

/// Matrix: PackedMatrix, or SplitMatrix for split activations.
template <Storage S, typename Core = Plain, typename A, typename Matrix>
void gemm_forward(const A* a, int64_t a_stride, int32_t M, const Matrix& w, int32_t first_panel,
                  int32_t last_panel, const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                  uint16_t* narrow, int64_t narrow_stride, const QuantizedRow* a_rows = nullptr) {
  const int32_t kp = panel_group(S);
  const int64_t panel_bytes =
      kIsSplit<A> ? (int64_t)split_columns(w.K) * 4 * kPanelColumns
                  : (int64_t)((w.K + kp - 1) / kp) * kp * kPanelColumns * storage_size(S);
  constexpr int32_t max_rows = kMaxRowsOf<S, A, Core>;
  int32_t blocks = (M + max_rows - 1) / max_rows;
  // In bf16 a tile of 5 rows does more in a cycle than one of 6.
  if (!kIsF32<A> && !kIsSplit<A> && S != Storage::kI8 && blocks < (M + 2) / 5) blocks = (M + 2) / 5;
  const bool wide = M <= kMaxRowsWide<S, A, Core>;
  for (int32_t panel = first_panel; panel < last_panel; ++panel) {
    for (int32_t half = 0; half < (wide ? 1 : 2); ++half) {
      Tile<A> tile;
      tile.column = panel * kPanelColumns + half * kColumns;
      tile.count = w.N - tile.column;
      if (tile.count <= 0 && !kIsSplit<A>) break;  // split rows get their zeros
      tile.a_stride = a_stride;
      if constexpr (S == Storage::kI8) {
        tile.panel = Core::half_of(w, panel, half);
      } else {
        tile.panel =
            (const char*)w.data + panel * panel_bytes + half * kColumns * kp * storage_size(S);
      }
      tile.K = w.K;
      tile.epilogue = &epilogue;
      tile.out_stride = out_stride;
      tile.narrow_stride = narrow_stride;
      tile.narrow_low = split_columns(w.N);
      if constexpr (!kIsSplit<A>) {
        tile.scales = a_rows == nullptr ? nullptr : w.scales + tile.column;
        tile.sums = a_rows == nullptr ? nullptr : w.sums + tile.column;
      }
      int32_t row = 0;
      for (int32_t block = 0; block < blocks; ++block) {
        const int32_t rows = (M - row) / (blocks - block);
        tile.a = a + row * a_stride;
        tile.rows = a_rows == nullptr ? nullptr : a_rows + row;
        tile.out = out == nullptr ? nullptr : out + row * out_stride + tile.column;
        tile.narrow = narrow == nullptr ? nullptr : narrow + row * narrow_stride + tile.column;
        tile.residual = epilogue.residual == nullptr
                            ? nullptr
                            : epilogue.residual + row * epilogue.residual_stride + tile.column;
        if (wide) {
          gemm_tile_rows<kMaxRowsWide<S, A, Core> ? 4 : 2, S, Core>(rows, tile);
        } else {
          gemm_tile_rows<2, S, Core>(rows, tile);
        }
        row += rows;
      }
    }
  }
}

}  // namespace
}  // namespace xsr::kernels
