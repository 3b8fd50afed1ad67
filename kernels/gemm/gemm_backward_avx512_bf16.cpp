#include "kernels/gemm/gemm_backward.h"
#include "kernels/gemm/gemm_backward_tile_avx512.h"
#include "kernels/simd/avx512.h"

namespace xsr::kernels {
namespace {

struct CoreBf16 {
  using Element = uint16_t;
  static constexpr int32_t kStepRows = 2;
  static inline __m512 load(const uint16_t* row, int64_t stride, int32_t rows, __mmask16 mask) {
    return load_row_pair(row, stride, rows, mask);
  }
  static inline __m512 multiply_add(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)pair_lanes(_mm512_castps_si512(a)), (__m512bh)b);
  }
};

}  // namespace

void gemm_backward_weight_bf16_avx512_bf16(const uint16_t* dy, int64_t dy_stride, const uint16_t* x,
                                           int64_t x_stride, int32_t M, int32_t first, int32_t last,
                                           int32_t K, bool accumulate, float* dw, int64_t dw_stride,
                                           float* scratch) {
  backward_weight<CoreBf16>(dy, dy_stride, x, x_stride, M, first, last, K, accumulate, dw,
                            dw_stride, scratch);
}

}  // namespace xsr::kernels
