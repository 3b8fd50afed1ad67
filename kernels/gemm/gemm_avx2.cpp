#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_tile_avx2.h"

namespace xsr::kernels {
namespace {

/// sum + Σ of four products of bytes in each 32-bit lane, where no pair of them saturates. The
/// barrier keeps the compiler from holding many products at once.
static inline __attribute__((always_inline)) void madd(__m256i& sum, __m256i x, __m256i w,
                                                       __m256i ones) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones));
  __asm__("" : "+x"(sum));
}

/// A 32-bit lane holds four inputs of one output in s8, a broadcast the same four of one row in
/// u8. The half panel's steps are those of gemm_pack_steps_i8_avx2.
struct StepsCore {
  // Beside the sums: ones, two weights, the broadcast and a product.
  static constexpr int32_t kMaxRows = 5;
  static constexpr int32_t kMaxRowsWide = 0;  // steps are those of a half
  static const void* half_of(const PackedMatrix& w, int32_t panel, int32_t half) {
    return (const char*)w.steps + ((const int64_t*)w.steps)[2 * panel + half];
  }

  template <int MR>
  static inline __attribute__((always_inline)) void accumulate(const Tile<uint8_t>& tile,
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
};

}  // namespace

void gemm_forward_f32_avx2(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                           int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                           float* out, int64_t out_stride) {
  const auto forward =
      w.storage == Storage::kF32   ? gemm_forward<Storage::kF32, Plain, float, PackedMatrix>
      : w.storage == Storage::kF16 ? gemm_forward<Storage::kF16, Plain, float, PackedMatrix>
                                   : gemm_forward<Storage::kBF16, Plain, float, PackedMatrix>;
  forward(a, a_stride, M, w, first_panel, last_panel, epilogue, out, out_stride, nullptr, 0,
          nullptr);
}

void gemm_forward_i8_avx2(const uint8_t* a, int64_t a_stride, int32_t M, const QuantizedRow* rows,
                          const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                          const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                          uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward<Storage::kI8, StepsCore>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
                                        out_stride, narrow, narrow_stride, rows);
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void gemm_forward_bf16_avx2(const uint16_t* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                            int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                            float* out, int64_t out_stride, uint16_t* narrow,
                            int64_t narrow_stride) {
  gemm_forward<Storage::kBF16>(a, a_stride, M, w, first_panel, last_panel, epilogue, out,
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
