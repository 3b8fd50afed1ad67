#include "kernels/gemm/gemm.h"

#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

// 12 rows × 32 columns: 24 accumulators, at most 4 weight vectors and one broadcast, of 32
// registers.
constexpr int32_t kMaxRows = 12;
// The weight stream is read once from beyond L2; 4 KiB ahead covers that latency at full FMA rate
// (perf.md 2.6).
constexpr int64_t kPrefetchBytes = 4096;

struct Tile {
  const float* a;
  int64_t a_stride;
  const void* panel;
  int32_t K;
  const GemmEpilogue* epilogue;
  int32_t column;  // first column of the panel
  __mmask16 mask[2];
  float* out;
  int64_t out_stride;
  const float* residual;
};

template <int MR, Storage S>
struct Accumulate;

template <int MR>
struct Accumulate<MR, Storage::kF32> {
  static inline __attribute__((always_inline)) void run(const Tile& tile, __m512 (&acc)[MR][2]) {
    const float* w = (const float*)tile.panel;
    const float* a = tile.a;
    const int64_t stride = tile.a_stride;
    for (int32_t k = 0; k < tile.K; ++k, w += kPanelColumns) {
      _mm_prefetch((const char*)w + kPrefetchBytes, _MM_HINT_T0);
      _mm_prefetch((const char*)w + kPrefetchBytes + 64, _MM_HINT_T0);
      const __m512 w0 = _mm512_load_ps(w), w1 = _mm512_load_ps(w + 16);
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k]);
        acc[m][0] = _mm512_fmadd_ps(x, w0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, w1, acc[m][1]);
      }
    }
  }
};

// A 32-bit lane holds inputs k (low half) and k + 1 (high half) of one output.
template <Storage S>
static inline __m512 widen_low(__m512i pair) {
  if (S == Storage::kBF16) return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
}
template <Storage S>
static inline __m512 widen_high(__m512i pair) {
  if (S == Storage::kBF16)
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
}

template <int MR, Storage S>
struct Accumulate {
  static inline __attribute__((always_inline)) void run(const Tile& tile, __m512 (&acc)[MR][2]) {
    const uint16_t* w = (const uint16_t*)tile.panel;
    const float* a = tile.a;
    const int64_t stride = tile.a_stride;
    int32_t k = 0;
    for (; k + 2 <= tile.K; k += 2, w += 2 * kPanelColumns) {
      _mm_prefetch((const char*)w + kPrefetchBytes, _MM_HINT_T0);
      _mm_prefetch((const char*)w + kPrefetchBytes + 64, _MM_HINT_T0);
      const __m512 even0 = widen_low<S>(_mm512_load_si512(w));
      const __m512 even1 = widen_low<S>(_mm512_load_si512(w + 32));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k]);
        acc[m][0] = _mm512_fmadd_ps(x, even0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, even1, acc[m][1]);
      }
      // Read again rather than kept: two registers more and gcc spills in the inner loop.
      const uint16_t* again = w;
      __asm__("" : "+r"(again));
      const __m512 odd0 = widen_high<S>(_mm512_load_si512(again));
      const __m512 odd1 = widen_high<S>(_mm512_load_si512(again + 32));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k + 1]);
        acc[m][0] = _mm512_fmadd_ps(x, odd0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, odd1, acc[m][1]);
      }
    }
    if (k < tile.K) {  // an odd K: a[k + 1] does not exist
      const __m512 even0 = widen_low<S>(_mm512_load_si512(w)),
                   even1 = widen_low<S>(_mm512_load_si512(w + 32));
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(a[m * stride + k]);
        acc[m][0] = _mm512_fmadd_ps(x, even0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, even1, acc[m][1]);
      }
    }
  }
};

template <int MR, Storage S>
void gemm_tile(const Tile& tile) {
  __m512 acc[MR][2];
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
  Accumulate<MR, S>::run(tile, acc);
  const GemmEpilogue& epilogue = *tile.epilogue;
  if (epilogue.bias != nullptr) {
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
    for (int m = 0; m < MR; ++m) {
      for (int j = 0; j < 2; ++j) acc[m][j] = activate_f32(acc[m][j], epilogue.activation);
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
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m) {
    float* out = tile.out + m * tile.out_stride;
    _mm512_mask_storeu_ps(out, tile.mask[0], acc[m][0]);
    _mm512_mask_storeu_ps(out + 16, tile.mask[1], acc[m][1]);
  }
}

template <Storage S>
void gemm_tile_rows(int32_t rows, const Tile& tile) {
  switch (rows) {
    case 1:
      return gemm_tile<1, S>(tile);
    case 2:
      return gemm_tile<2, S>(tile);
    case 3:
      return gemm_tile<3, S>(tile);
    case 4:
      return gemm_tile<4, S>(tile);
    case 5:
      return gemm_tile<5, S>(tile);
    case 6:
      return gemm_tile<6, S>(tile);
    case 7:
      return gemm_tile<7, S>(tile);
    case 8:
      return gemm_tile<8, S>(tile);
    case 9:
      return gemm_tile<9, S>(tile);
    case 10:
      return gemm_tile<10, S>(tile);
    case 11:
      return gemm_tile<11, S>(tile);
    case 12:
      return gemm_tile<12, S>(tile);
  }
}

template <Storage S>
void gemm_forward(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                  int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue, float* out,
                  int64_t out_stride) {
  const int32_t kp = panel_group(S);
  const int64_t panel_bytes = (int64_t)((w.K + kp - 1) / kp) * kp * kPanelColumns * storage_size(S);
  const int32_t blocks = (M + kMaxRows - 1) / kMaxRows;
  for (int32_t panel = first_panel; panel < last_panel; ++panel) {
    Tile tile;
    tile.a_stride = a_stride;
    tile.panel = (const char*)w.data + panel * panel_bytes;
    tile.K = w.K;
    tile.epilogue = &epilogue;
    tile.column = panel * kPanelColumns;
    tile.mask[0] = tail_mask(w.N - tile.column);
    tile.mask[1] = tail_mask(w.N - tile.column - 16);
    tile.out_stride = out_stride;
    int32_t row = 0;
    for (int32_t block = 0; block < blocks; ++block) {
      // Rows are shared out evenly: 20 rows go as 10 + 10, since a tile of 8 would leave the FMA
      // units waiting.
      const int32_t rows = (M - row) / (blocks - block);
      tile.a = a + row * a_stride;
      tile.out = out + row * out_stride + tile.column;
      tile.residual = epilogue.residual == nullptr
                          ? nullptr
                          : epilogue.residual + row * epilogue.residual_stride + tile.column;
      gemm_tile_rows<S>(rows, tile);
      row += rows;
    }
  }
}

}  // namespace

void gemm_forward_f32_avx512(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                             int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                             float* out, int64_t out_stride) {
  switch (w.storage) {
    case Storage::kF32:
      return gemm_forward<Storage::kF32>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                         out_stride);
    case Storage::kF16:
      return gemm_forward<Storage::kF16>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                         out_stride);
    case Storage::kBF16:
      return gemm_forward<Storage::kBF16>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                          out_stride);
  }
}

}  // namespace xsr::kernels
