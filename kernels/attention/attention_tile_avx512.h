#pragma once
// What the AVX-512 attention files share.
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

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
