#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

constexpr int32_t kBlockRows = 8;

/// What a row is multiplied by; gives its scale and zero point.
inline float row_steps(const float* row, int32_t K, const InputRange* range,
                       QuantizedRow* quantized) {
  const __m512 none = _mm512_setzero_ps();
  // A NaN leaves lows and highs as they are; it and an infinity show in poison.
  __m512 lows[2] = {none, none}, highs[2] = {none, none}, poison[2] = {none, none};
  const auto look = [&](int i, __m512 value) {
    lows[i] = _mm512_min_ps(value, lows[i]);
    highs[i] = _mm512_max_ps(value, highs[i]);
    poison[i] = _mm512_fmadd_ps(value, none, poison[i]);
  };
  int32_t k = 0;
  for (; k + 32 <= K; k += 32) {
    look(0, _mm512_loadu_ps(row + k));
    look(1, _mm512_loadu_ps(row + k + 16));
  }
  for (; k < K; k += 16) look(0, _mm512_maskz_loadu_ps(tail_mask(K - k), row + k));
  const float low =
      range != nullptr ? range->low : _mm512_reduce_min_ps(_mm512_min_ps(lows[0], lows[1]));
  const float high =
      range != nullptr ? range->high : _mm512_reduce_max_ps(_mm512_max_ps(highs[0], highs[1]));
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(poison[0], poison[1]));
  const float scale = high / 255 - low / 255;
  const bool empty = sum != sum || !(scale >= kLeastScaleI8);
  const float inverse = empty ? 0 : 1 / scale;
  *quantized = {sum != sum ? sum : 0.0f, 0};
  if (!empty) *quantized = {scale, _mm_cvtss_si32(_mm_set_ss(-low * inverse))};
  return inverse;
}

/// Rounded to 32 bits. Only what is too large needs the bound: beyond 2^31 the conversion gives the
/// smallest integer, which is right for what is too small.
inline __m512i steps(__m512 value, __m512 factor) {
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(value, factor), _mm512_set1_ps(255)));
}

/// The codes of 64 values; saturating packs are the clamp.
inline void store_codes(const float* row, __m512 factor, __m512i zero, uint8_t* codes) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i first = _mm512_packs_epi32(steps(_mm512_loadu_ps(row), factor),
                                           steps(_mm512_loadu_ps(row + 16), factor));
  const __m512i second = _mm512_packs_epi32(steps(_mm512_loadu_ps(row + 32), factor),
                                            steps(_mm512_loadu_ps(row + 48), factor));
  const __m512i bytes =
      _mm512_packus_epi16(_mm512_adds_epi16(first, zero), _mm512_adds_epi16(second, zero));
  _mm512_storeu_si512(codes, _mm512_permutexvar_epi32(order, bytes));
}

/// Columns [0, 16 · kVectors) of quantize_columns_i8; `mask`: those of each 16 that exist.
template <int kVectors>
inline void quantize_columns(const float* x, int64_t x_stride, int32_t M, __mmask16 mask,
                             int32_t zero, uint32_t* lanes, int64_t lane_stride, float* scales,
                             int32_t* sums) {
  const __m512i byte = _mm512_set1_epi32(0xff),
                flip = _mm512_set1_epi32((int32_t)(0x01010101u * (uint32_t)zero));
  // As integers, magnitudes have the order they have as numbers; a NaN is above all.
  __m512i largest[kVectors], sum[kVectors];
  __m512 inverse[kVectors];
  __mmask16 filled[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) largest[v] = sum[v] = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int32_t m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 value = _mm512_maskz_loadu_ps(mask, x + m * x_stride + 16 * v);
      largest[v] =
          _mm512_max_epi32(largest[v], _mm512_and_si512(_mm512_castps_si512(value), magnitude));
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m512 scale = _mm512_div_ps(_mm512_castsi512_ps(largest[v]), _mm512_set1_ps(127));
    const __mmask16 poisoned = _mm512_cmpge_epu32_mask(largest[v], _mm512_set1_epi32(0x7f800000));
    filled[v] = _mm512_cmp_ps_mask(scale, _mm512_set1_ps(kLeastScaleI8), _CMP_GE_OQ) & ~poisoned;
    inverse[v] = _mm512_maskz_mov_ps(filled[v], _mm512_div_ps(_mm512_set1_ps(1), scale));
    const __m512 finite = _mm512_maskz_mov_ps(filled[v], scale);
    _mm512_mask_storeu_ps(scales + 16 * v, mask,
                          _mm512_mask_mov_ps(finite, poisoned, _mm512_set1_ps(__builtin_nanf(""))));
    filled[v] &= mask;
  }
  for (int32_t m = 0; m < M; m += 4, lanes += lane_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      __m512i q[4];
#pragma GCC unroll 4
      for (int32_t j = 0; j < 4; ++j) {
        const __mmask16 there = m + j < M ? filled[v] : (__mmask16)0;
        q[j] = _mm512_cvtps_epi32(_mm512_mul_ps(
            _mm512_maskz_loadu_ps(there, x + (m + j) * x_stride + 16 * v), inverse[v]));
      }
      sum[v] = _mm512_add_epi32(
          sum[v], _mm512_add_epi32(_mm512_add_epi32(q[0], q[1]), _mm512_add_epi32(q[2], q[3])));
      const __m512i low = _mm512_or_si512(_mm512_and_si512(q[0], byte),
                                          _mm512_slli_epi32(_mm512_and_si512(q[1], byte), 8));
      const __m512i high = _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(q[2], byte), 16),
                                           _mm512_slli_epi32(q[3], 24));
      _mm512_mask_storeu_epi32(lanes + 16 * v, mask,
                               _mm512_xor_si512(_mm512_or_si512(low, high), flip));
    }
  }
  if (sums == nullptr) return;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_epi32(sums + 16 * v, mask, sum[v]);
}

}  // namespace

void quantize_forward_u8_avx512(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                int32_t K, const InputRange* range, uint8_t* out,
                                int64_t out_stride, QuantizedRow* rows) {
  const int32_t padded = (K + 3) / 4 * 4;
  // The range of a row is a chain of reductions and divisions: the next row's loads hide it.
  for (int32_t begin = first; begin < last; begin += kBlockRows) {
    const int32_t end = begin + kBlockRows < last ? begin + kBlockRows : last;
    float inverse[kBlockRows];
    for (int32_t i = begin; i < end; ++i)
      inverse[i - begin] = row_steps(x + i * x_stride, K, range, rows + i);
    for (int32_t i = begin; i < end; ++i) {
      const float* row = x + i * x_stride;
      uint8_t* codes = out + i * out_stride;
      const bool empty = inverse[i - begin] == 0;
      const __m512 factor = _mm512_set1_ps(inverse[i - begin]);
      const __m512i zero = _mm512_set1_epi16((int16_t)rows[i].zero);
      int32_t k = 0;
      if (!empty) {
        for (; k + 64 <= K; k += 64) store_codes(row + k, factor, zero, codes + k);
      }
      for (; k < padded; k += 16) {
        const __mmask16 filled = empty ? (__mmask16)0 : tail_mask(K - k);
        const __m512i shifted = _mm512_add_epi32(
            steps(_mm512_maskz_loadu_ps(filled, row + k), factor), _mm512_set1_epi32(rows[i].zero));
        const __m512i q = _mm512_maskz_max_epi32(filled, shifted, _mm512_setzero_si512());
        _mm_mask_storeu_epi8(codes + k, tail_mask(padded - k), _mm512_cvtusepi32_epi8(q));
      }
    }
  }
}

void quantize_columns_i8_avx512(const float* x, int64_t x_stride, int32_t M, int32_t C,
                                int32_t zero, uint32_t* lanes, int64_t lane_stride, float* scales,
                                int32_t* sums) {
  const auto at = [=](int32_t c) { return sums == nullptr ? nullptr : sums + c; };
  int32_t c = 0;
  for (; c + 64 <= C; c += 64) {
    quantize_columns<4>(x + c, x_stride, M, 0xffff, zero, lanes + c, lane_stride, scales + c,
                        at(c));
  }
  for (; c + 32 <= C; c += 32) {
    quantize_columns<2>(x + c, x_stride, M, 0xffff, zero, lanes + c, lane_stride, scales + c,
                        at(c));
  }
  for (; c < C; c += 16) {
    quantize_columns<1>(x + c, x_stride, M, tail_mask(C - c), zero, lanes + c, lane_stride,
                        scales + c, at(c));
  }
}

}  // namespace xsr::kernels
