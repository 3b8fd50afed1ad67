#include "kernels/attention/attention.h"

#include "kernels/attention/attention_head.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

constexpr int32_t kQueryRows = 8;

/// rows[j] lane i  →  rows[i] lane j.
inline void transpose_16x16(__m512 (&rows)[16]) {
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

/// keys [T rows, stride] → transposed [D][columns]; the columns beyond T are zero.
void transpose_keys(const float* keys, int64_t stride, int32_t T, int32_t D, float* transposed,
                    int32_t columns) {
  for (int32_t j = 0; j < columns; j += 16) {
    for (int32_t d = 0; d < D; d += 16) {
      const __mmask16 mask = tail_mask(D - d);
      __m512 rows[16];
      for (int i = 0; i < 16; ++i) {
        rows[i] = j + i < T ? _mm512_maskz_loadu_ps(mask, keys + (j + i) * stride + d)
                            : _mm512_setzero_ps();
      }
      transpose_16x16(rows);
      const int32_t count = D - d < 16 ? D - d : 16;
      for (int i = 0; i < count; ++i)
        _mm512_store_ps(transposed + (int64_t)(d + i) * columns + j, rows[i]);
    }
  }
}

/// scores[m][j] = q_m · k_j for MR query rows and every column.
template <int MR>
void score_rows(const float* q, int64_t stride, const float* transposed, int32_t D, int32_t columns,
                float* scores) {
  for (int32_t j = 0; j < columns; j += 32) {
    __m512 acc[MR][2];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm512_setzero_ps();
    const float* k = transposed + j;
    for (int32_t d = 0; d < D; ++d, k += columns) {
      const __m512 k0 = _mm512_load_ps(k), k1 = _mm512_load_ps(k + 16);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const __m512 x = _mm512_set1_ps(q[m * stride + d]);
        acc[m][0] = _mm512_fmadd_ps(x, k0, acc[m][0]);
        acc[m][1] = _mm512_fmadd_ps(x, k1, acc[m][1]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      _mm512_store_ps(scores + m * columns + j, acc[m][0]);
      _mm512_store_ps(scores + m * columns + j + 16, acc[m][1]);
    }
  }
}

/// Turns a row of scores into e^(scale·(s - max)), in place; gives their sum and scale·max. Columns
/// beyond T become 0.
float softmax_row(float* scores, int32_t T, float scale, float* largest) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 peak = lowest;
  for (int32_t j = 0; j < T; j += 16) {
    peak = _mm512_max_ps(peak, _mm512_mask_loadu_ps(lowest, tail_mask(T - j), scores + j));
  }
  *largest = _mm512_reduce_max_ps(peak) * scale;
  const __m512 scales = _mm512_set1_ps(scale), shift = _mm512_set1_ps(*largest);
  __m512 sum = _mm512_setzero_ps();
  for (int32_t j = 0; j < T; j += 16) {
    const __mmask16 mask = tail_mask(T - j);
    const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores + j), scales, shift);
    const __m512 p = _mm512_maskz_mov_ps(mask, exp_f32(x));
    sum = _mm512_add_ps(sum, p);
    _mm512_store_ps(scores + j, p);
  }
  return _mm512_reduce_add_ps(sum);
}

/// out[m] = Σ_j p[m][j] v_j / sum[m] for MR rows, NV·16 columns of which the last vector is masked.
template <int MR, int NV>
void weigh_values(const float* p, int32_t columns, const float* v, int64_t v_stride, int32_t T,
                  const float* sum, __mmask16 tail, float* out, int64_t out_stride) {
  __m512 acc[MR][NV];
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_setzero_ps();
  }
  for (int32_t j = 0; j < T; ++j) {
    __m512 value[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV - 1; ++n) value[n] = _mm512_loadu_ps(v + j * v_stride + 16 * n);
    value[NV - 1] = _mm512_maskz_loadu_ps(tail, v + j * v_stride + 16 * (NV - 1));
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const __m512 x = _mm512_set1_ps(p[m * columns + j]);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_fmadd_ps(x, value[n], acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
    const __m512 sums = _mm512_set1_ps(sum[m]);
#pragma GCC unroll 4
    for (int n = 0; n < NV - 1; ++n)
      _mm512_storeu_ps(out + m * out_stride + 16 * n, _mm512_div_ps(acc[m][n], sums));
    _mm512_mask_storeu_ps(out + m * out_stride + 16 * (NV - 1), tail,
                          _mm512_div_ps(acc[m][NV - 1], sums));
  }
}

template <int MR>
void weigh_rows(const float* p, int32_t columns, const float* v, int64_t v_stride, int32_t T,
                int32_t D, const float* sum, float* out, int64_t out_stride) {
  for (int32_t d = 0; d < D; d += 64) {
    const int32_t width = D - d < 64 ? D - d : 64;
    const __mmask16 tail = tail_mask(width - (width - 1) / 16 * 16);
    switch ((width + 15) / 16) {
      case 1:
        weigh_values<MR, 1>(p, columns, v + d, v_stride, T, sum, tail, out + d, out_stride);
        break;
      case 2:
        weigh_values<MR, 2>(p, columns, v + d, v_stride, T, sum, tail, out + d, out_stride);
        break;
      case 3:
        weigh_values<MR, 3>(p, columns, v + d, v_stride, T, sum, tail, out + d, out_stride);
        break;
      case 4:
        weigh_values<MR, 4>(p, columns, v + d, v_stride, T, sum, tail, out + d, out_stride);
        break;
    }
  }
}

template <int MR>
void attend_rows(const Head& head, int32_t row) {
  score_rows<MR>(head.q + row * head.stride, head.stride, head.transposed, head.D, head.columns,
                 head.scores);
  float sum[MR];
  for (int m = 0; m < MR; ++m) {
    float largest;
    sum[m] = softmax_row(head.scores + m * head.columns, head.T, head.scale, &largest);
    if (head.lse != nullptr) head.lse[(row + m) * head.lse_stride] = largest + logf(sum[m]);
  }
  constexpr int kFirst = MR > 4 ? 4 : MR;
  float* out = head.out + row * head.out_stride;
  weigh_rows<kFirst>(head.scores, head.columns, head.v, head.stride, head.T, head.D, sum, out,
                     head.out_stride);
  if constexpr (MR > 4) {
    weigh_rows<MR - 4>(head.scores + 4 * head.columns, head.columns, head.v, head.stride, head.T,
                       head.D, sum + 4, out + 4 * head.out_stride, head.out_stride);
  }
}

void attend_rows_switch(int32_t rows, const Head& head, int32_t row) {
  switch (rows) {
    case 1:
      return attend_rows<1>(head, row);
    case 2:
      return attend_rows<2>(head, row);
    case 3:
      return attend_rows<3>(head, row);
    case 4:
      return attend_rows<4>(head, row);
    case 5:
      return attend_rows<5>(head, row);
    case 6:
      return attend_rows<6>(head, row);
    case 7:
      return attend_rows<7>(head, row);
    case 8:
      return attend_rows<8>(head, row);
  }
}

void attend(const Head& head) {
  transpose_keys(head.k, head.stride, head.T, head.D, head.transposed, head.columns);
  const int32_t blocks = (head.T + kQueryRows - 1) / kQueryRows;
  int32_t row = 0;
  for (int32_t block = 0; block < blocks; ++block) {
    const int32_t rows = (head.T - row) / (blocks - block);
    attend_rows_switch(rows, head, row);
    row += rows;
  }
}

}  // namespace

void attention_forward_f32_avx512(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                  int32_t first, int32_t last, int32_t first_head,
                                  int32_t last_head, int32_t H, int32_t D, float* out,
                                  int64_t out_stride, float* lse, float* scratch) {
  const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss((float)D)));
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, scale, out,
                out_stride, lse, scratch, attend);
}

}  // namespace xsr::kernels
