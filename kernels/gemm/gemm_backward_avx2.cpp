#include "kernels/gemm/gemm_backward.h"
#include "kernels/simd/avx2.h"

namespace xsr::kernels {
namespace {

// 6 rows × 16 columns of dw: 12 accumulators, 2 input vectors, 1 broadcast, of 16 registers.
constexpr int32_t kRows = 6;
constexpr int32_t kColumns = 16;
// Rows of dy and x that are summed at a time: their panel of x (16 KiB) and 6 columns of dy (6 KiB)
// stay in L1.
constexpr int32_t kBlock = 256;
// Rows of dw that share a packed panel of x; their part of dy (192 KiB) stays in L2.
constexpr int32_t kChunk = 192;
static_assert(kChunk % kRows == 0 &&
              kBlock * (kChunk + kColumns) + 8 <= kGemmBackwardScratchFloats);

template <Storage S>
inline __m256 load_full(const void* data, int64_t i) {
  return S == Storage::kF32 ? _mm256_loadu_ps((const float*)data + i) : load_f32(data, S, i, 8);
}

/// dy [steps, count columns] → [⌈count/6⌉][steps][6], widened; what is beyond count is zero.
template <Storage S>
void pack_gradients(const void* dy, int64_t stride, int64_t at, int32_t steps, int32_t count,
                    float* packed) {
  // Two lanes too many are stored, which the next step overwrites: AMD's masked stores are slow.
  for (int32_t n = 0; n < count; n += kRows) {
    int64_t i = at + n;
    if (count - n >= 8) {
      for (int32_t m = 0; m < steps; ++m, i += stride, packed += kRows)
        _mm256_storeu_ps(packed, load_full<S>(dy, i));
    } else {
      for (int32_t m = 0; m < steps; ++m, i += stride, packed += kRows)
        _mm256_storeu_ps(packed, load_f32(dy, S, i, count - n));
    }
  }
}

/// x [steps, count columns] → [steps][16], widened; what is beyond count is zero.
template <Storage S>
void pack_inputs(const void* x, int64_t stride, int64_t at, int32_t steps, int64_t count,
                 float* packed) {
  for (int32_t m = 0; m < steps; ++m, at += stride, packed += kColumns) {
    if (count >= kColumns) {
      _mm256_store_ps(packed, load_full<S>(x, at));
      _mm256_store_ps(packed + 8, load_full<S>(x, at + 8));
    } else {
      _mm256_store_ps(packed, load_f32(x, S, at, count));
      _mm256_store_ps(packed + 8, load_f32(x, S, at + 8, count - 8));
    }
  }
}

/// Adds the products of `steps` packed rows to a tile of dw, of which `rows` and `count` columns
/// exist; overwrites it where `store`.
void weight_tile(const float* dy, const float* x, int32_t steps, bool store, int32_t rows,
                 int64_t count, float* dw, int64_t dw_stride) {
  for (int32_t r = 0; r < rows; ++r) _mm_prefetch((const char*)(dw + r * dw_stride), _MM_HINT_T0);
  __m256 acc[kRows][2];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int32_t m = 0; m < steps; ++m, dy += kRows, x += kColumns) {
    const __m256 x0 = _mm256_load_ps(x), x1 = _mm256_load_ps(x + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 gradient = _mm256_broadcast_ss(dy + r);
      acc[r][0] = _mm256_fmadd_ps(gradient, x0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(gradient, x1, acc[r][1]);
    }
  }
  const __m256i mask[2] = {tail_mask8(count), tail_mask8(count - 8)};
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) return;
    float* out = dw + r * dw_stride;
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      __m256 value = acc[r][j];
      if (count >= kColumns) {
        if (!store) value = _mm256_add_ps(_mm256_loadu_ps(out + 8 * j), value);
        _mm256_storeu_ps(out + 8 * j, value);
      } else {
        if (!store) value = _mm256_add_ps(_mm256_maskload_ps(out + 8 * j, mask[j]), value);
        _mm256_maskstore_ps(out + 8 * j, mask[j], value);
      }
    }
  }
}

template <Storage S>
void backward_weight(const void* dy, int64_t dy_stride, const void* x, int64_t x_stride, int32_t M,
                     int32_t first, int32_t last, int32_t K, bool accumulate, float* dw,
                     int64_t dw_stride, float* scratch) {
  float *gradients = scratch, *inputs = scratch + kBlock * kChunk;
  for (int32_t n = first; n < last; n += kChunk) {
    const int32_t chunk = last - n < kChunk ? last - n : kChunk;
    // Without rows one empty block, which stores zeros.
    for (int32_t m = 0; m < M || (m == 0 && !accumulate); m += kBlock) {
      const int32_t steps = M - m < kBlock ? M - m : kBlock;
      // The two lanes behind the last gradient fall on the inputs, which are packed later.
      pack_gradients<S>(dy, dy_stride, m * dy_stride + n, steps, chunk, gradients);
      for (int32_t k = 0; k < K; k += kColumns) {
        pack_inputs<S>(x, x_stride, m * x_stride + k, steps, K - k, inputs);
        for (int32_t r = 0; r < chunk; r += kRows) {
          weight_tile(gradients + (int64_t)r * steps, inputs, steps, m == 0 && !accumulate,
                      chunk - r, K - k, dw + (n + r) * dw_stride + k, dw_stride);
        }
      }
    }
  }
}

/// Rows 4 · step to 4 · step + 3 of a column stand in one lane: bytes `byte` of up to 8 lanes, less
/// `zero`, which is 0 where codes are signed.
template <bool kSigned>
inline __m256 codes(const uint32_t* lanes, int64_t count, int32_t byte) {
  const __m256i four = count >= 8 ? _mm256_loadu_si256((const __m256i*)lanes)
                                  : _mm256_maskload_epi32((const int*)lanes, tail_mask8(count));
  const __m128i shift = _mm_cvtsi32_si128(24 - 8 * byte);
  const __m256i high = _mm256_sll_epi32(four, shift);
  if (kSigned) return _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 24));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(high, 24), _mm256_set1_epi32(128)));
}

/// A tile of products of codes, exact in f32, times its scales.
void scaled_tile(const float* dy, const float* x, int32_t steps, const float* dy_scales,
                 const float* x_scales, bool store, int32_t rows, int64_t count, float* dw,
                 int64_t dw_stride) {
  float sums[kRows * kColumns];
  weight_tile(dy, x, steps, true, rows, kColumns, sums, kColumns);
  for (int32_t r = 0; r < rows && r < kRows; ++r) {
    const __m256 scale = _mm256_set1_ps(dy_scales[r]);
    for (int32_t j = 0; j < kColumns && j < count; j += 8) {
      float* out = dw + r * dw_stride + j;
      const int64_t left = count - j;
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(sums + r * kColumns + j), scale);
      const __m256 before = store ? _mm256_setzero_ps() : load_up_to_8(out, left);
      store_up_to_8(out, left, _mm256_fmadd_ps(scaled, load_up_to_8(x_scales + j, left), before));
    }
  }
}

}  // namespace

void gemm_backward_weight_i8_avx2(const uint32_t* dy, int64_t dy_stride, const float* dy_scales,
                                  const uint32_t* x, int64_t x_stride, const float* x_scales,
                                  const int32_t*, int32_t M, int32_t first, int32_t last, int32_t K,
                                  bool accumulate, float* dw, int64_t dw_stride, float* scratch) {
  static_assert(kMaxRowsI8 <= kBlock);  // and 256 · 127 · 127 < 2^24: sums are exact
  float *gradients = scratch, *inputs = scratch + kBlock * kChunk;
  for (int32_t n = first; n < last; n += kChunk) {
    const int32_t chunk = last - n < kChunk ? last - n : kChunk;
    float* packed = gradients;
    for (int32_t r = 0; r < chunk; r += kRows) {
      for (int32_t m = 0; m < M; ++m, packed += kRows)
        _mm256_storeu_ps(packed, codes<false>(dy + m / 4 * dy_stride + n + r, chunk - r, m % 4));
    }
    for (int32_t k = 0; k < K; k += kColumns) {
      for (int32_t m = 0; m < M; ++m) {
        for (int32_t j = 0; j < kColumns; j += 8) {
          _mm256_store_ps(inputs + m * kColumns + j,
                          codes<true>(x + m / 4 * x_stride + k + j, K - k - j, m % 4));
        }
      }
      for (int32_t r = 0; r < chunk; r += kRows) {
        scaled_tile(gradients + (int64_t)r * M, inputs, M, dy_scales + n + r, x_scales + k,
                    !accumulate, chunk - r, K - k, dw + (n + r) * dw_stride + k, dw_stride);
      }
    }
  }
}

void gemm_backward_weight_f32_avx2(const float* dy, int64_t dy_stride, const float* x,
                                   int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                   int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                   float* scratch) {
  backward_weight<Storage::kF32>(dy, dy_stride, x, x_stride, M, first, last, K, accumulate, dw,
                                 dw_stride, scratch);
}

void gemm_backward_weight_bf16_avx2(const uint16_t* dy, int64_t dy_stride, const uint16_t* x,
                                    int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                    int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                    float* scratch) {
  backward_weight<Storage::kBF16>(dy, dy_stride, x, x_stride, M, first, last, K, accumulate, dw,
                                  dw_stride, scratch);
}

void column_sum_f32_avx2(const float* dy, int64_t dy_stride, int32_t M, int32_t first, int32_t last,
                         bool accumulate, float* sum) {
  constexpr int kVectors = 8;  // 256 bytes of a row at a time
  for (int32_t n = first; n < last; n += 8 * kVectors) {
    __m256 acc[kVectors];
    __m256i mask[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[v] = _mm256_setzero_ps();
      mask[v] = tail_mask8(last - n - 8 * v);
    }
    const float* row = dy + n;
    if (last - n >= 8 * kVectors) {
      for (int32_t m = 0; m < M; ++m, row += dy_stride) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          acc[v] = _mm256_add_ps(acc[v], _mm256_loadu_ps(row + 8 * v));
      }
    } else {
      for (int32_t m = 0; m < M; ++m, row += dy_stride) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          acc[v] = _mm256_add_ps(acc[v], _mm256_maskload_ps(row + 8 * v, mask[v]));
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* out = sum + n + 8 * v;
      if (accumulate) acc[v] = _mm256_add_ps(_mm256_maskload_ps(out, mask[v]), acc[v]);
      store_up_to_8(out, last - n - 8 * v, acc[v]);
    }
  }
}

}  // namespace xsr::kernels
