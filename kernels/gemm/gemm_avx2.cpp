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
// Beside the sums: ones, two weights, the broadcast and a product.
constexpr int32_t kMaxRowsI8 = 5;

/// An element of split rows, in bf16.
struct Split {
  uint16_t bits;
};
template <typename A>
constexpr bool kIsSplit = false;
template <>
constexpr bool kIsSplit<Split> = true;
/// So few rows wait for their weights alone, and one pass over whole panels brings them sooner: 3
/// rows × 32 columns in f32, 2 in 16 bits, which take registers to widen. None of bytes, whose
/// steps are those of a half, nor of split rows.
template <Storage S, typename A>
constexpr int32_t kMaxRowsWide = S == Storage::kI8 || kIsSplit<A> ? 0
                                 : S == Storage::kF32             ? 3
                                                                  : 2;
/// Results of f32 are wanted in f32 alone.
template <typename A>
constexpr bool kIsF32 = sizeof(A) == sizeof(float);

/// A: float, uint16_t for bf16 activations, Split for split ones, or uint8_t for quantised ones.
template <typename A>
struct Tile {
  const A* a;
  int64_t a_stride;
  const void* panel;  // of the half, or of the panel where rows are few; kI8: its StepsI8
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

/// sum + Σ of four products of bytes in each 32-bit lane, where no pair of them saturates. The
/// barrier keeps the compiler from holding many products at once.
static inline __attribute__((always_inline)) void madd(__m256i& sum, __m256i x, __m256i w,
                                                       __m256i ones) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones));
  __asm__("" : "+x"(sum));
}

/// A 32-bit lane holds four inputs of one output in s8, a broadcast the same four of one row in
/// u8. The half panel's steps are those of gemm_pack_steps_i8_avx2.
template <int MR>
static inline __attribute__((always_inline)) void accumulate_i8(const Tile<uint8_t>& tile,
                                                                __m256 (&acc)[MR][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[MR][2];
#pragma GCC unroll 5
  for (int m = 0; m < MR; ++m) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
  const StepsI8* steps = (const StepsI8*)tile.panel;
  const uint16_t* group = (const uint16_t*)(steps + 1);
  const uint16_t* const plain_end = group + steps->plain;
  const uint16_t* const end = plain_end + steps->flipped;
  const __m256i* w =
      (const __m256i*)((const char*)group + step_groups_bytes(steps->plain + steps->flipped));
  for (; group < plain_end; ++group, w += 2) {
    _mm_prefetch((const char*)w + kPrefetchBytes, _MM_HINT_T1);
    const uint8_t* a = tile.a + 4 * *group;
    const __m256i w0 = _mm256_load_si256(w), w1 = _mm256_load_si256(w + 1);
#pragma GCC unroll 5
    for (int m = 0; m < MR; ++m) {
      const __m256i x = broadcast4(a + m * tile.a_stride);
      madd(sum[m][0], x, w0, ones);
      madd(sum[m][1], x, w1, ones);
    }
  }
  for (; group < end; ++group, w += 4) {
    _mm_prefetch((const char*)w + kPrefetchBytes, _MM_HINT_T1);
    _mm_prefetch((const char*)w + kPrefetchBytes + 64, _MM_HINT_T1);
    const uint8_t* a = tile.a + 4 * *group;
    const __m256i w0 = _mm256_load_si256(w), w1 = _mm256_load_si256(w + 1);
#pragma GCC unroll 5
    for (int m = 0; m < MR; ++m) {
      const __m256i x = broadcast4(a + m * tile.a_stride);
      const __m256i* mask = w + 2;
      __asm__("" : "+r"(mask));  // read again for every row: there are no registers to keep it
      madd(sum[m][0], _mm256_xor_si256(x, _mm256_load_si256(mask)), w0, ones);
      madd(sum[m][1], _mm256_xor_si256(x, _mm256_load_si256(mask + 1)), w1, ones);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m256i mask = tail_mask8(tile.count - 8 * j);
    const __m256i sums = _mm256_maskload_epi32(tile.sums + 8 * j, mask);
    const __m256 scales = _mm256_maskload_ps(tile.scales + 8 * j, mask);
    const __m256i offsets = _mm256_load_si256((const __m256i*)steps->offsets + j);
#pragma GCC unroll 5
    for (int m = 0; m < MR; ++m) {
      const __m256i zero = _mm256_mullo_epi32(_mm256_set1_epi32(tile.rows[m].zero), sums);
      const __m256i whole = _mm256_add_epi32(sum[m][j], offsets);
      const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(whole, zero));
      acc[m][j] = _mm256_mul_ps(_mm256_mul_ps(exact, _mm256_set1_ps(tile.rows[m].scale)), scales);
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

template <int MR, int V, Storage S, typename A>
__attribute__((noinline)) void gemm_tile(const Tile<A>& tile) {
  __m256 acc[MR][V];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) acc[m][j] = _mm256_setzero_ps();
  }
  if constexpr (S == Storage::kI8) {
    accumulate_i8<MR>(tile, acc);
  } else if constexpr (kIsSplit<A>) {
    accumulate_split<MR>(tile, acc);
  } else {
    accumulate<MR, S, A>(tile, acc);
  }
  const GemmEpilogue& epilogue = *tile.epilogue;
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) {
    const __m256i mask = tail_mask8(tile.count - 8 * j);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      __m256 value = acc[m][j];
      if (epilogue.bias != nullptr) {
        value = _mm256_add_ps(value, _mm256_maskload_ps(epilogue.bias + tile.column + 8 * j, mask));
      }
      if (epilogue.activation != Activation::kNone)
        value = activate_f32(value, epilogue.activation);
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

template <int V, Storage S, typename A>
void gemm_tile_rows(int32_t rows, const Tile<A>& tile) {
  switch (rows) {
    case 1:
      return gemm_tile<1, V, S, A>(tile);
    case 2:
      return gemm_tile<2, V, S, A>(tile);
    case 3:
      if constexpr (V == 2 || kMaxRowsWide<S, A> == 3) gemm_tile<3, V, S, A>(tile);
      return;
    case 4:
      if constexpr (V == 2) gemm_tile<4, V, S, A>(tile);
      return;
    case 5:
      if constexpr (V == 2) gemm_tile<5, V, S, A>(tile);
      return;
    case 6:
      if constexpr (V == 2 && S != Storage::kI8) gemm_tile<6, V, S, A>(tile);
      return;
  }
}

/// Matrix: PackedMatrix, or SplitMatrix for split activations.
template <Storage S, typename A, typename Matrix>
void gemm_forward(const A* a, int64_t a_stride, int32_t M, const Matrix& w, int32_t first_panel,
                  int32_t last_panel, const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                  uint16_t* narrow, int64_t narrow_stride, const QuantizedRow* a_rows = nullptr) {
  const int32_t kp = panel_group(S);
  const int64_t panel_bytes =
      kIsSplit<A> ? (int64_t)split_columns(w.K) * 4 * kPanelColumns
                  : (int64_t)((w.K + kp - 1) / kp) * kp * kPanelColumns * storage_size(S);
  constexpr int32_t max_rows = S == Storage::kI8 ? kMaxRowsI8 : kMaxRows;
  int32_t blocks = (M + max_rows - 1) / max_rows;
  // In bf16 a tile of 5 rows does more in a cycle than one of 6.
  if (!kIsF32<A> && !kIsSplit<A> && S != Storage::kI8 && blocks < (M + 2) / 5) blocks = (M + 2) / 5;
  const bool wide = M <= kMaxRowsWide<S, A>;
  for (int32_t panel = first_panel; panel < last_panel; ++panel) {
    for (int32_t half = 0; half < (wide ? 1 : 2); ++half) {
      Tile<A> tile;
      tile.column = panel * kPanelColumns + half * kColumns;
      tile.count = w.N - tile.column;
      if (tile.count <= 0 && !kIsSplit<A>) break;  // split rows get their zeros
      tile.a_stride = a_stride;
      if constexpr (S == Storage::kI8) {
        tile.panel = (const char*)w.steps + ((const int64_t*)w.steps)[2 * panel + half];
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
          gemm_tile_rows<kMaxRowsWide<S, A> ? 4 : 2, S, A>(rows, tile);
        } else {
          gemm_tile_rows<2, S, A>(rows, tile);
        }
        row += rows;
      }
    }
  }
}

}  // namespace

void gemm_forward_f32_avx2(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                           int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                           float* out, int64_t out_stride) {
  const auto forward = w.storage == Storage::kF32 ? gemm_forward<Storage::kF32, float, PackedMatrix>
                       : w.storage == Storage::kF16
                           ? gemm_forward<Storage::kF16, float, PackedMatrix>
                           : gemm_forward<Storage::kBF16, float, PackedMatrix>;
  forward(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride, nullptr, 0,
          nullptr);
}

void gemm_forward_i8_avx2(const uint8_t* a, int64_t a_stride, int32_t M, const QuantizedRow* rows,
                          const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                          const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                          uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward<Storage::kI8, uint8_t>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                      out_stride, narrow, narrow_stride, rows);
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void gemm_forward_bf16_avx2(const uint16_t* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                            int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                            float* out, int64_t out_stride, uint16_t* narrow,
                            int64_t narrow_stride) {
  gemm_forward<Storage::kBF16, uint16_t>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                         out_stride, narrow, narrow_stride);
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void gemm_forward_bf16x3_avx2(const uint16_t* a, int64_t a_stride, int32_t M, const SplitMatrix& w,
                              int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                              float* out, int64_t out_stride, uint16_t* split,
                              int64_t split_stride) {
  gemm_forward<Storage::kBF16>((const Split*)a, a_stride, M, w, first_panel, last_panel, epilogue,
                               out, out_stride, split, split_stride);
}

void split_forward_bf16x3_avx2(const float* x, int64_t x_stride, int32_t first, int32_t last,
                               int32_t C, uint16_t* out, int64_t out_stride) {
  const int32_t S = split_columns(C);
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < S; c += 8) {
      uint16_t* hi = out + i * out_stride + c;
      store_split(hi, hi + S, _mm256_maskload_ps(x + i * x_stride + c, tail_mask8(C - c)));
    }
  }
}

}  // namespace xsr::kernels
