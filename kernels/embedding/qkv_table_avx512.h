#pragma once
// The table of Q, K and V of the AVX-512 files: with AVX512_BF16 its bf16 results are one
// instruction.
#include "kernels/simd/avx512.h"

namespace xsr::kernels {

static inline void qkv_table_forward(const int32_t* token_ids, const int32_t* positions,
                                     int32_t first, int32_t last, const float* token_table,
                                     const float* position_table, const float* rstd,
                                     const float* bias, int32_t N, float* out, int64_t out_stride,
                                     uint16_t* narrow, int64_t narrow_stride) {
  for (int32_t i = first; i < last; ++i) {
    const float* token = token_table + (int64_t)token_ids[i] * N;
    const float* position = position_table + (int64_t)positions[i] * N;
    // The next row comes from DRAM: its lines are asked for while this one is worked on.
    const float* next = i + 1 < last ? token_table + (int64_t)token_ids[i + 1] * N : token;
    const __m512 scale = _mm512_set1_ps(rstd[i]);
    for_each_vector(N, [&](int32_t n, __mmask16 mask) {
      _mm_prefetch((const char*)(next + n), _MM_HINT_T0);
      const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, token + n),
                                       _mm512_maskz_loadu_ps(mask, position + n));
      const __m512 value = _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, bias + n));
      if (out != nullptr) _mm512_mask_storeu_ps(out + i * out_stride + n, mask, value);
      if (narrow != nullptr) store_narrow(narrow + i * narrow_stride + n, mask, value);
    });
  }
}

}  // namespace xsr::kernels
