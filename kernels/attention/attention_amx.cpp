// Attention on AMX tiles: 32 query rows at a time against all keys, then against all values. Rows,
// keys and columns beyond T and D are zeros, so that one tile configuration serves every sentence.
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs_avx512.h"
#include "kernels/gemm/gemm_tile_amx.h"

namespace xsr::kernels {
namespace {

/// c [32 or, unless kTwo, 16 rows, columns] ← a · b. a's rows are `steps` · 64 bytes of bf16, b has
/// `steps` · 16 rows of `columns` pairs; columns is a multiple of 32, strides are in 32-bit lanes.
template <bool kTwo>
void multiply_tiles(const void* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                    int32_t steps, int32_t columns, float* c, int64_t c_stride) {
  const int64_t a_bytes = 4 * a_stride, b_bytes = 4 * b_stride;
  for (int32_t column = 0; column < columns; column += 32) {
    const char* rows = (const char*)a;
    const uint32_t* lines = b + column;
    zero_sums<kTwo>();
    for (int32_t step = 0; step < steps; ++step) {
      tile_load<4>(rows, a_bytes);
      tile_load<6>(lines, b_bytes);
      tile_load<7>(lines + 16, b_bytes);
      tile_product<false, 0, 4, 6>();
      tile_product<false, 1, 4, 7>();
      if (kTwo) {
        tile_load<5>(rows + kTileRows * a_bytes, a_bytes);
        tile_product<false, 2, 5, 6>();
        tile_product<false, 3, 5, 7>();
      }
      rows += kTileBytes;
      lines += kTileRows * b_stride;
    }
    store_sums<kTwo>(c + column, c_stride);
  }
}

/// Row `row` of the result from its weighted values.
void finish_row(const NarrowHead& head, int32_t row, const float* weighted, float inverse,
                uint16_t* narrow, int64_t narrow_stride) {
  const __m512 factor = _mm512_set1_ps(inverse);
  for_each_vector(head.D, [&](int32_t d, __mmask16 mask) {
    const __m512 result = _mm512_mul_ps(_mm512_load_ps(weighted + d), factor);
    if (head.out != nullptr)
      _mm512_mask_storeu_ps(head.out + row * head.out_stride + d, mask, result);
    if (narrow != nullptr) store_narrow(narrow + row * narrow_stride + d, mask, result);
  });
}

template <bool kTwo>
void attend_rows(const NarrowHead& head, const Pairs& pairs, int32_t first, float* weighted,
                 uint16_t* narrow, int64_t narrow_stride) {
  const int32_t rows = head.T - first < kBlockRows ? head.T - first : kBlockRows;
  multiply_tiles<kTwo>(pairs.q + first * pairs.q_stride, pairs.q_stride / 2, pairs.k, pairs.columns,
                       pairs.v_stride / 32, pairs.columns, pairs.scores, pairs.columns);
  float inverse[kBlockRows];
  softmax_rows<kBlockRows>(head, pairs, rows, inverse);
  multiply_tiles<kTwo>(pairs.p, pairs.columns / 2, pairs.v, pairs.v_stride, pairs.columns / 32,
                       pairs.v_stride, weighted, pairs.v_stride);
  for (int32_t m = 0; m < rows; ++m)
    finish_row(head, first + m, weighted + m * pairs.v_stride, inverse[m], narrow, narrow_stride);
}

}  // namespace

void attention_forward_bf16_amx(const uint16_t* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                int32_t H, int32_t D, float* out, int64_t out_stride,
                                uint16_t* narrow, int64_t narrow_stride, float* scratch) {
  configure_tiles(kBlockRows);
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, {}, out,
                out_stride, nullptr, scratch, [=](const NarrowHead& head) {
                  Pairs pairs;
                  pairs.rows = pairs.columns = (head.T + 31) / 32 * 32;
                  pairs.v_stride = (D + 31) / 32 * 32;
                  pairs.q_stride = pairs.v_stride;
                  const int64_t each = pairs.rows * pairs.q_stride / 2;
                  uint16_t* const queries = (uint16_t*)scratch;
                  pairs.q = queries;
                  pairs.k = (uint32_t*)scratch + each;
                  pairs.v = pairs.k + each;
                  pairs.scores = (float*)(pairs.v + each);
                  pairs.p = (uint16_t*)(pairs.scores + (int64_t)kBlockRows * pairs.columns);
                  float* const weighted = (float*)(pairs.p + (int64_t)kBlockRows * pairs.columns);
                  uint16_t* const rows = narrow_rows(head, narrow, narrow_stride);
                  copy_queries(head, pairs.rows, queries, pairs.q_stride);
                  transpose_keys(head, pairs);
                  pair_values(head, pairs);
                  for (int32_t row = 0; row < head.T; row += kBlockRows) {
                    if (head.T - row > kTileRows) {
                      attend_rows<true>(head, pairs, row, weighted, rows, narrow_stride);
                    } else {
                      attend_rows<false>(head, pairs, row, weighted, rows, narrow_stride);
                    }
                  }
                  end_narrow_rows(head, rows, narrow_stride, H);
                });
  release_tiles();
}

}  // namespace xsr::kernels
