#pragma once
// What the AVX-512 attention files share.
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

static inline float scale_of(int32_t D) {
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss((float)D)));
}

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

/// Calls body<MR>(row) for tiles of up to kMost ≤ 8 rows, shared out evenly.
template <int kMost, typename Body>
static inline void for_each_tile(int32_t rows, const Body& body) {
  const int32_t tiles = (rows + kMost - 1) / kMost;
  int32_t row = 0;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    const int32_t count = (rows - row) / (tiles - tile);
    switch (count) {
      case 1:
        body.template operator()<1>(row);
        break;
      case 2:
        body.template operator()<2>(row);
        break;
      case 3:
        body.template operator()<3>(row);
        break;
      case 4:
        body.template operator()<4>(row);
        break;
      case 5:
        if constexpr (kMost >= 5) body.template operator()<5>(row);
        break;
      case 6:
        if constexpr (kMost >= 6) body.template operator()<6>(row);
        break;
      case 7:
        if constexpr (kMost >= 7) body.template operator()<7>(row);
        break;
      case 8:
        if constexpr (kMost >= 8) body.template operator()<8>(row);
        break;
    }
    row += count;
  }
}

}  // namespace xsr::kernels
