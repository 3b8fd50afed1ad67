#include "kernels/attention/attention.h"

#include "kernels/attention/attention_head.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

constexpr int32_t kQueryRows = 4;

/// keys [T rows, stride] → transposed [D][columns]; the columns beyond T are zero.
void transpose_keys(const float* keys, int64_t stride, int32_t T, int32_t D, float* transposed,
                    int32_t columns) {
  for (int32_t d = 0; d < D; ++d) {
    float* row = transposed + (int64_t)d * columns;
    for (int32_t j = 0; j < T; ++j) row[j] = keys[j * stride + d];
    for (int32_t j = T; j < columns; ++j) row[j] = 0.0f;
  }
}

/// scores[m][j] = q_m · k_j for MR query rows and every column.
template <int MR>
void score_rows(const float* q, int64_t stride, const float* transposed, int32_t D, int32_t columns,
                float* scores) {
  for (int32_t j = 0; j < columns; j += 16) {
    __m256 acc[MR][2];
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
    const float* k = transposed + j;
    for (int32_t d = 0; d < D; ++d, k += columns) {
      const __m256 k0 = _mm256_load_ps(k), k1 = _mm256_load_ps(k + 8);
#pragma GCC unroll 4
      for (int m = 0; m < MR; ++m) {
        const __m256 x = _mm256_broadcast_ss(q + m * stride + d);
        acc[m][0] = _mm256_fmadd_ps(x, k0, acc[m][0]);
        acc[m][1] = _mm256_fmadd_ps(x, k1, acc[m][1]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      _mm256_store_ps(scores + m * columns + j, acc[m][0]);
      _mm256_store_ps(scores + m * columns + j + 8, acc[m][1]);
    }
  }
}

/// Turns a row of scores into e^(scale·(s - max)), in place; gives their sum and scale·max. Columns
/// beyond T become 0.
float softmax_row(float* scores, int32_t T, float scale, float* largest) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 peak = lowest;
  for (int32_t j = 0; j < T; j += 8) {
    const __m256 mask = _mm256_castsi256_ps(tail_mask8(T - j));
    peak = _mm256_max_ps(peak, _mm256_blendv_ps(lowest, _mm256_load_ps(scores + j), mask));
  }
  *largest = reduce_max(peak) * scale;
  const __m256 scales = _mm256_set1_ps(scale), shift = _mm256_set1_ps(*largest);
  __m256 sum = _mm256_setzero_ps();
  for (int32_t j = 0; j < T; j += 8) {
    const __m256 mask = _mm256_castsi256_ps(tail_mask8(T - j));
    const __m256 x = _mm256_fmsub_ps(_mm256_load_ps(scores + j), scales, shift);
    const __m256 p = _mm256_and_ps(mask, exp_f32(x));
    sum = _mm256_add_ps(sum, p);
    _mm256_store_ps(scores + j, p);
  }
  return reduce_add(sum);
}

/// out[m] = Σ_j p[m][j] v_j / sum[m] for MR rows and the 16 columns from d on, of which `count`
/// exist.
template <int MR>
void weigh_values(const float* p, int32_t columns, const float* v, int64_t v_stride, int32_t T,
                  const float* sum, int64_t count, float* out, int64_t out_stride) {
  const __m256i mask0 = tail_mask8(count), mask1 = tail_mask8(count - 8);
  __m256 acc[MR][2];
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  for (int32_t j = 0; j < T; ++j) {
    const __m256 v0 = _mm256_maskload_ps(v + j * v_stride, mask0),
                 v1 = _mm256_maskload_ps(v + j * v_stride + 8, mask1);
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      const __m256 x = _mm256_broadcast_ss(p + m * columns + j);
      acc[m][0] = _mm256_fmadd_ps(x, v0, acc[m][0]);
      acc[m][1] = _mm256_fmadd_ps(x, v1, acc[m][1]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
    const __m256 sums = _mm256_set1_ps(sum[m]);
    _mm256_maskstore_ps(out + m * out_stride, mask0, _mm256_div_ps(acc[m][0], sums));
    _mm256_maskstore_ps(out + m * out_stride + 8, mask1, _mm256_div_ps(acc[m][1], sums));
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
  for (int32_t d = 0; d < head.D; d += 16) {
    weigh_values<MR>(head.scores, head.columns, head.v + d, head.stride, head.T, sum, head.D - d,
                     head.out + row * head.out_stride + d, head.out_stride);
  }
}

void attend(const Head& head) {
  transpose_keys(head.k, head.stride, head.T, head.D, head.transposed, head.columns);
  for (int32_t row = 0; row < head.T; row += kQueryRows) {
    switch (head.T - row < kQueryRows ? head.T - row : kQueryRows) {
      case 1:
        attend_rows<1>(head, row);
        break;
      case 2:
        attend_rows<2>(head, row);
        break;
      case 3:
        attend_rows<3>(head, row);
        break;
      case 4:
        attend_rows<4>(head, row);
        break;
    }
  }
}

}  // namespace

void attention_forward_f32_avx2(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                int32_t H, int32_t D, float* out, int64_t out_stride, float* lse,
                                float* scratch) {
  const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss((float)D)));
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, scale, out,
                out_stride, lse, scratch, attend);
}

}  // namespace xsr::kernels
