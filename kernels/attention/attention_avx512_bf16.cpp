#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs_avx512.h"

namespace xsr::kernels {
namespace {

// Six rows by four vectors: 24 sums, four vectors and one broadcast, of 32 registers.
constexpr int kQueryRows = 6, kMostVectors = 4;

inline __m512bh broadcast_pair(const void* pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, 4);
  return (__m512bh)pair_lanes(_mm512_set1_epi32(bits));
}

/// scores[m][0 … 16·NV) = q_m · k_j for MR rows.
template <int MR, int NV>
void score_columns(const uint16_t* q, int64_t q_stride, const uint32_t* k, int32_t columns,
                   int32_t pairs, float* scores) {
  __m512 acc[MR][NV];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
  }
  for (int32_t d = 0; d < pairs; ++d, k += columns) {
    __m512bh key[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) key[n] = (__m512bh)_mm512_load_si512(k + 16 * n);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const __m512bh x = broadcast_pair(q + m * q_stride + 2 * d);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], x, key[n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) _mm512_store_ps(scores + m * columns + 16 * n, acc[m][n]);
  }
}

template <int MR>
void score_rows(const NarrowHead& head, const Pairs& pairs, int32_t row) {
  const uint16_t* q = pairs.q + row * pairs.q_stride;
  for (int32_t j = 0; j < pairs.columns;) {
    const auto score = [&]<int NV>() {
      score_columns<MR, NV>(q, pairs.q_stride, pairs.k + j, pairs.columns, (head.D + 1) / 2,
                            pairs.scores + j);
      j += 16 * NV;
    };
    switch ((pairs.columns - j) / 16) {
      case 1:
        score.template operator()<1>();
        break;
      case 2:
        score.template operator()<2>();
        break;
      case 3:
        score.template operator()<3>();
        break;
      default:
        score.template operator()<kMostVectors>();
    }
  }
}

/// Columns d to d + 16·NV of MR rows of the result, the last vector masked.
template <int MR, int NV>
void weigh_columns(const NarrowHead& head, const Pairs& pairs, int32_t row, int32_t d,
                   const float* inverse, __mmask16 tail, uint16_t* narrow, int64_t narrow_stride) {
  __m512 acc[MR][NV];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
  }
  const uint32_t* v = pairs.v + d;
  const uint16_t* p = pairs.p;
  for (int32_t j = 0; j < head.T; j += 2, v += pairs.v_stride, p += 2) {
    __m512bh value[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) value[n] = (__m512bh)_mm512_load_si512(v + 16 * n);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const __m512bh x = broadcast_pair(p + m * pairs.columns);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], x, value[n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
    const __m512 factor = _mm512_set1_ps(inverse[m]);
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) {
      const __m512 result = _mm512_mul_ps(acc[m][n], factor);
      const __mmask16 mask = n == NV - 1 ? tail : (__mmask16)0xffff;
      if (head.out != nullptr)
        _mm512_mask_storeu_ps(head.out + (row + m) * head.out_stride + d + 16 * n, mask, result);
      if (narrow != nullptr)
        store_narrow(narrow + (row + m) * narrow_stride + d + 16 * n, mask, result);
    }
  }
}

template <int MR>
void attend_rows(const NarrowHead& head, const Pairs& pairs, int32_t row, uint16_t* narrow,
                 int64_t narrow_stride) {
  score_rows<MR>(head, pairs, row);
  float inverse[MR];
  softmax_rows<MR>(head, pairs, MR, inverse);
  for_each_column_piece(head.D, [&]<int NV>(int32_t d, __mmask16 tail) {
    weigh_columns<MR, NV>(head, pairs, row, d, inverse, tail, narrow, narrow_stride);
  });
}

}  // namespace

void attention_forward_bf16_avx512_bf16(const uint16_t* qkv, int64_t qkv_stride,
                                        const int32_t* cu_seqlens, int32_t first, int32_t last,
                                        int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                        float* out, int64_t out_stride, uint16_t* narrow,
                                        int64_t narrow_stride, float* scratch) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, {}, out,
                out_stride, nullptr, scratch, [=](const NarrowHead& head) {
                  Pairs pairs;
                  pairs.rows = head.T;
                  pairs.columns = (head.T + 15) / 16 * 16;
                  pairs.v_stride = (D + 15) / 16 * 16;
                  const int32_t width = (D + 31) / 32 * 32;
                  uint16_t* const queries = (uint16_t*)scratch;
                  pairs.k = (uint32_t*)(queries + (int64_t)head.T * width);
                  pairs.v = pairs.k + (int64_t)width / 2 * pairs.columns;
                  pairs.scores = (float*)(pairs.v + (int64_t)((head.T + 1) / 2) * pairs.v_stride);
                  pairs.p = (uint16_t*)(pairs.scores + (int64_t)kQueryRows * pairs.columns);
                  uint16_t* const rows = narrow_rows(head, narrow, narrow_stride);
                  pairs.q = head.q;
                  pairs.q_stride = head.stride;
                  if (D % 2 == 1) {  // what stands behind a row is no zero
                    copy_queries(head, head.T, queries, width);
                    pairs.q = queries;
                    pairs.q_stride = width;
                  }
                  transpose_keys(head, pairs);
                  pair_values(head, pairs);
                  for_each_tile<kQueryRows>(head.T, [&]<int MR>(int32_t row) {
                    attend_rows<MR>(head, pairs, row, rows, narrow_stride);
                  });
                  end_narrow_rows(head, rows, narrow_stride, H);
                });
}

}  // namespace xsr::kernels
