// Products on AMX tiles over the panels that the AVX-512 files read: 32 inputs in bf16 (64 in int8)
// of 16 outputs are one tile of 16 rows 128 bytes apart, so that a panel is two tiles wide.
//
// Rows left over (M mod 32) get tiles of just so many rows.
#include "kernels/activation/activation_pieces_avx512.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_amx.h"

namespace xsr::kernels {
namespace {

// Panels that the rows left over read again after the full blocks have: they should still be in L2.
constexpr int64_t kGroupBytes = 256 << 10;

/// What a call multiplies, the same for every element type.
struct Call {
  const char* a;
  int64_t a_stride;   // bytes
  int32_t row_bytes;  // of a that are read: a multiple of 4
  int32_t M;
  const char* w;
  int32_t N;
  int32_t first_panel, last_panel;
  const GemmEpilogue* epilogue;
  float* out;  // null where only the narrow result is wanted
  int64_t out_stride;
  uint16_t* narrow;  // null where it is not wanted
  int64_t narrow_stride;
  const QuantizedRow* rows;  // int8 only, as the next two
  const float* scales;
  const int32_t* weight_sums;
};

/// The sums of a block on their way to the output. Its rows are finished between the tile products
/// of the next block, which would otherwise leave the vector units idle.
struct Pending {
  alignas(64) float sums[kBlockRows][kPanelColumns];  // s32 in int8
  int32_t row = 0;                                    // of the output: first of the block
  int32_t column = 0;
  int32_t next = 0, count = 0;  // rows finished, rows there are
};

/// bf16: two inputs a lane.
struct CoreBf16 {
  static constexpr int64_t kWeightStride = kPanelRowBytes;  // between the weight tile's rows
  static constexpr bool kSplit = false;
  static constexpr bool kByPieces = true;

  template <bool kTwo, bool kStreamRows>
  static inline void step(const char* a, int64_t a_stride, int64_t, const char* w) {
    multiply_step<false, kTwo, kStreamRows>(a, a_stride, w);
  }

  static inline void load(const Call&, const Pending& p, int32_t m, const __mmask16 (&)[2],
                          __m512 (&value)[2]) {
    value[0] = _mm512_load_ps(p.sums[m]);
    value[1] = _mm512_load_ps(p.sums[m] + 16);
  }
  static inline void store(const Call& call, const __mmask16 (&mask)[2], const __m512 (&value)[2],
                           int64_t row, int32_t column) {
    uint16_t* narrow = call.narrow + row * call.narrow_stride + column;
    store_narrow(narrow, mask[0], value[0]);
    store_narrow(narrow + 16, mask[1], value[1]);
  }
};

/// Split bf16: rows hold hi and, `low` bytes further, lo; the panel's lines alternate hi and lo.
struct CoreSplit {
  static constexpr int64_t kWeightStride = 2 * kPanelRowBytes;
  static constexpr bool kSplit = true;
  static constexpr bool kByPieces = false;

  template <bool kTwo>
  static inline void multiply_rows(const char* a, int64_t a_stride) {
    tile_load<4>(a, a_stride);
    tile_product<false, 0, 4, 6>();
    tile_product<false, 1, 4, 7>();
    if (!kTwo) return;
    tile_load<5>(a + kTileRows * a_stride, a_stride);
    tile_product<false, 2, 5, 6>();
    tile_product<false, 3, 5, 7>();
  }

  /// Every operand but the weights' lo is used twice, so all go through L1.
  template <bool kTwo, bool>
  static inline void step(const char* a, int64_t a_stride, int64_t low, const char* w) {
    tile_load<6>(w, kWeightStride);
    tile_load<7>(w + kTileBytes, kWeightStride);
    multiply_rows<kTwo>(a, a_stride);
    multiply_rows<kTwo>(a + low, a_stride);
    tile_load<6>(w + kPanelRowBytes, kWeightStride);
    tile_load<7>(w + kPanelRowBytes + kTileBytes, kWeightStride);
    multiply_rows<kTwo>(a, a_stride);
  }

  static inline void load(const Call& call, const Pending& p, int32_t m, const __mmask16 (&mask)[2],
                          __m512 (&value)[2]) {
    CoreBf16::load(call, p, m, mask, value);
  }
  static inline void store(const Call& call, const __mmask16 (&mask)[2], const __m512 (&value)[2],
                           int64_t row, int32_t column) {
    uint16_t* hi = call.narrow + row * call.narrow_stride + column;
    store_split(hi, hi + split_columns(call.N), _mm512_maskz_mov_ps(mask[0], value[0]));
    store_split(hi + 16, hi + 16 + split_columns(call.N), _mm512_maskz_mov_ps(mask[1], value[1]));
  }
};

/// u8 · s8: four inputs a lane, exact sums.
struct CoreI8 {
  static constexpr int64_t kWeightStride = kPanelRowBytes;
  static constexpr bool kSplit = false;
  static constexpr bool kByPieces = true;

  template <bool kTwo, bool kStreamRows>
  static inline void step(const char* a, int64_t a_stride, int64_t, const char* w) {
    multiply_step<true, kTwo, kStreamRows>(a, a_stride, w);
  }

  static inline void load(const Call& call, const Pending& p, int32_t m, const __mmask16 (&mask)[2],
                          __m512 (&value)[2]) {
    const QuantizedRow& row = call.rows[p.row + m];
    const __m512i zero = _mm512_set1_epi32(row.zero);
    const __m512 scale = _mm512_set1_ps(row.scale);
    for (int j = 0; j < 2; ++j) {
      const int32_t column = p.column + 16 * j;
      const __m512i weights = _mm512_maskz_loadu_epi32(mask[j], call.weight_sums + column);
      const __m512i exact = _mm512_sub_epi32(_mm512_load_si512(p.sums[m] + 16 * j),
                                             _mm512_mullo_epi32(zero, weights));
      value[j] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale),
                               _mm512_maskz_loadu_ps(mask[j], call.scales + column));
    }
  }
  static inline void store(const Call& call, const __mmask16 (&mask)[2], const __m512 (&value)[2],
                           int64_t row, int32_t column) {
    CoreBf16::store(call, mask, value, row, column);
  }
};

/// Row m of the block: bias, activation, residual, and out it goes.
template <typename Core>
void finish_row(const Call& call, const Pending& p, int32_t m) {
  const GemmEpilogue& epilogue = *call.epilogue;
  const __mmask16 mask[2] = {tail_mask(call.N - p.column), tail_mask(call.N - p.column - 16)};
  const int64_t row = p.row + m;
  const ActivationPieces* pieces =
      Core::kByPieces ? activation_pieces(epilogue.activation) : nullptr;
  __m512 value[2];
  Core::load(call, p, m, mask, value);
  for (int j = 0; j < 2; ++j) {
    const int32_t column = p.column + 16 * j;
    if (epilogue.bias != nullptr)
      value[j] = _mm512_add_ps(value[j], _mm512_maskz_loadu_ps(mask[j], epilogue.bias + column));
    value[j] = pieces != nullptr ? activate_by_pieces(value[j], *pieces)
                                 : activate_f32(value[j], epilogue.activation);
    if (epilogue.residual != nullptr) {
      const float* residual = epilogue.residual + row * epilogue.residual_stride + column;
      value[j] = _mm512_add_ps(value[j], _mm512_maskz_loadu_ps(mask[j], residual));
    }
    if (call.out != nullptr)
      _mm512_mask_storeu_ps(call.out + row * call.out_stride + column, mask[j], value[j]);
  }
  if (call.narrow != nullptr) Core::store(call, mask, value, row, p.column);
}

template <typename Core>
inline void finish_rows(const Call& call, Pending& p, int32_t count) {
  for (; count > 0 && p.next < p.count; --count) finish_row<Core>(call, p, p.next++);
}

/// The last inputs of rows that are no multiple of a tile's 64 bytes, and their weights, with
/// zeros behind them: what stands behind a row may be NaN, and 0 · NaN is no 0.
struct alignas(64) Tail {
  char a[kBlockRows][kTileBytes];
  char w[kTileRows][kPanelRowBytes];

  Tail(const char* a_from, int64_t a_stride, int32_t rows, const char* w_from, int32_t bytes) {
    const __mmask16 lanes = tail_mask(bytes / 4);
    for (int32_t m = 0; m < rows; ++m)
      _mm512_store_si512(a[m], _mm512_maskz_loadu_epi32(lanes, a_from + m * a_stride));
    for (int32_t lane = 0; lane < kTileRows; ++lane) {
      const __mmask16 there = lane < bytes / 4 ? (__mmask16)0xffff : (__mmask16)0;
      for (int32_t half = 0; half <= kTileBytes; half += kTileBytes) {
        _mm512_store_si512(w[lane] + half,
                           _mm512_maskz_loadu_epi32(there, w_from + lane * kPanelRowBytes + half));
      }
    }
  }
};

/// Asks for the next panel while this one is worked on, into L2, every second line (the other comes
/// along), evenly spread over the steps.
struct Prefetch {
  const char* next;
  const char* end;
  const char* due;  // what is asked for by the end of the step
  int64_t bytes_a_step;

  inline void step() {
    due = end - due > bytes_a_step ? due + bytes_a_step : end;
    for (; next < due; next += 128) _mm_prefetch(next, _MM_HINT_T1);
  }
};

/// One block of rows times one panel, into `sums`; meanwhile the rows of `before` are finished.
template <typename Core, bool kTwo, bool kStreamRows>
void multiply_block(const Call& call, int32_t row, int32_t rows, int32_t panel, const char* w,
                    Prefetch& prefetch, Pending& before, Pending& sums) {
  const char* a = call.a + row * call.a_stride;
  const int32_t steps = call.row_bytes / kTileBytes, tail = call.row_bytes % kTileBytes;
  const int64_t low = Core::kSplit ? call.row_bytes : 0;
  const int32_t rows_a_step = steps > 0 ? (kBlockRows + steps - 1) / steps : 0;
  zero_sums<kTwo>();
  for (int32_t step = 0; step < steps; ++step) {
    Core::template step<kTwo, kStreamRows>(a, call.a_stride, low, w);
    a += kTileBytes;
    w += kTileRows * Core::kWeightStride;
    prefetch.step();
    finish_rows<Core>(call, before, rows_a_step);
  }
  if (!Core::kSplit && tail > 0) {
    const Tail last(a, call.a_stride, rows, w, tail);
    Core::template step<kTwo, false>(last.a[0], kTileBytes, 0, last.w[0]);
  }
  finish_rows<Core>(call, before, kBlockRows);
  store_sums<kTwo>(sums.sums[0], kPanelColumns);
  sums.row = row;
  sums.column = panel * kPanelColumns;
  sums.next = 0;
  sums.count = rows;
}

template <typename Core>
void multiply(const Call& call) {
  if (call.M == 0 || call.first_panel >= call.last_panel) return;
  const int64_t panel_bytes = (int64_t)(call.row_bytes / 4) * Core::kWeightStride;
  const int32_t full = call.M / kBlockRows, rest = call.M % kBlockRows;
  // Without rows left over there is nothing to come back for.
  const int64_t group = rest == 0 || full == 0      ? call.last_panel - call.first_panel
                        : kGroupBytes > panel_bytes ? kGroupBytes / panel_bytes
                                                    : 1;
  const int32_t steps = call.row_bytes / kTileBytes;
  const int32_t steps_a_panel = steps > 0 ? (full > 0 ? full : 1) * steps : 1;
  const int64_t bytes_a_step = (panel_bytes + steps_a_panel - 1) / steps_a_panel;
  const auto prefetch_behind = [&](int32_t panel, bool wanted) {
    const char* next = call.w + (panel + 1) * panel_bytes;
    const bool asks = wanted && panel + 1 < call.last_panel;
    return Prefetch{next, asks ? next + panel_bytes : next, next, bytes_a_step};
  };
  Pending pending[2];
  int32_t now = 0;
  const auto block = [&](auto multiply_this, int32_t row, int32_t rows, int32_t panel,
                         Prefetch& prefetch) {
    multiply_this(call, row, rows, panel, call.w + panel * panel_bytes, prefetch, pending[1 - now],
                  pending[now]);
    now = 1 - now;
  };
  if (full == 0) configure_tiles(rest);
  if (rest == 0) configure_tiles(kBlockRows);
  for (int32_t first = call.first_panel; first < call.last_panel;) {
    const int32_t last = call.last_panel - first < group ? call.last_panel : first + (int32_t)group;
    if (full > 0) {
      if (rest > 0) configure_tiles(kBlockRows);
      for (int32_t panel = first; panel < last; ++panel) {
        Prefetch prefetch = prefetch_behind(panel, true);
        for (int32_t b = 0; b < full; ++b) {
          if (full > 1) {
            block(multiply_block<Core, true, true>, b * kBlockRows, kBlockRows, panel, prefetch);
          } else {
            block(multiply_block<Core, true, false>, b * kBlockRows, kBlockRows, panel, prefetch);
          }
        }
      }
    }
    if (rest > 0) {
      if (full > 0) configure_tiles(rest);
      for (int32_t panel = first; panel < last; ++panel) {
        Prefetch prefetch = prefetch_behind(panel, full == 0);  // else it was a moment ago
        if (rest > kTileRows) {
          block(multiply_block<Core, true, false>, full * kBlockRows, rest, panel, prefetch);
        } else {
          block(multiply_block<Core, false, false>, full * kBlockRows, rest, panel, prefetch);
        }
      }
    }
    first = last;
  }
  finish_rows<Core>(call, pending[1 - now], kBlockRows);
  // A configuration left active would be the next call's, and costs the system a larger context.
  release_tiles();
}

}  // namespace

void gemm_forward_bf16_amx(const uint16_t* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                           int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                           float* out, int64_t out_stride, uint16_t* narrow,
                           int64_t narrow_stride) {
  multiply<CoreBf16>({(const char*)a, a_stride * 2, (w.K + 1) / 2 * 4, M, (const char*)w.data, w.N,
                      first_panel, last_panel, &epilogue, out, out_stride, narrow, narrow_stride,
                      nullptr, nullptr, nullptr});
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void gemm_forward_bf16x3_amx(const uint16_t* a, int64_t a_stride, int32_t M, const SplitMatrix& w,
                             int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                             float* out, int64_t out_stride, uint16_t* split,
                             int64_t split_stride) {
  multiply<CoreSplit>({(const char*)a, a_stride * 2, split_columns(w.K) * 2, M, (const char*)w.data,
                       w.N, first_panel, last_panel, &epilogue, out, out_stride, split,
                       split_stride, nullptr, nullptr, nullptr});
}

void gemm_forward_i8_amx(const uint8_t* a, int64_t a_stride, int32_t M, const QuantizedRow* rows,
                         const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                         const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                         uint16_t* narrow, int64_t narrow_stride) {
  multiply<CoreI8>({(const char*)a, a_stride, (w.K + 3) / 4 * 4, M, (const char*)w.data, w.N,
                    first_panel, last_panel, &epilogue, out, out_stride, narrow, narrow_stride,
                    rows, w.scales, w.sums});
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

}  // namespace xsr::kernels
