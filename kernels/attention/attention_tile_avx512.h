#pragma once
// What the AVX-512 attention files share.
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

/// rows[j] lane i  →  rows[i] lane j.
static inline void transpose_16x16(__m512 (&rows)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  __m512 u[16];
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m512d low = _mm512_castps_pd(t[i + half]), high = _mm512_castps_pd(t[i + 2 + half]);
      u[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      u[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  // u[4 g + c] holds, in 128-bit lane l, column 4 l + c of rows 4 g … 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
                 b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd),
                 e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_f32x4(a, b, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
    rows[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
    rows[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
  }
}

/// The largest of T scores.
static inline float largest_score(const float* scores, int32_t T) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 peak = lowest;
  for (int32_t j = 0; j < T; j += 16)
    peak = _mm512_max_ps(peak, _mm512_mask_loadu_ps(lowest, tail_mask(T - j), scores + j));
  return _mm512_reduce_max_ps(peak);
}

/// Calls body<NV>(d, tail) for pieces of up to 64 of D columns: NV vectors from column d on, the
/// last of them masked.
template <typename Body>
static inline void for_each_column_piece(int32_t D, const Body& body) {
  for (int32_t d = 0; d < D; d += 64) {
    const int32_t width = D - d < 64 ? D - d : 64;
    const __mmask16 tail = tail_mask(width - (width - 1) / 16 * 16);
    switch ((width + 15) / 16) {
      case 1:
        body.template operator()<1>(d, tail);
        break;
      case 2:
        body.template operator()<2>(d, tail);
        break;
      case 3:
        body.template operator()<3>(d, tail);
        break;
      case 4:
        body.template operator()<4>(d, tail);
        break;
    }
  }
}

}  // namespace xsr::kernels
