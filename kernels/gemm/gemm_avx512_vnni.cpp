#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_core_i8_avx512.h"

namespace xsr::kernels {

void gemm_forward_i8_avx512_vnni(const uint8_t* a, int64_t a_stride, int32_t M,
                                 const QuantizedRow* rows, const PackedMatrix& w,
                                 int32_t first_panel, int32_t last_panel,
                                 const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                                 uint16_t* narrow, int64_t narrow_stride) {
  gemm_forward_i8(a, a_stride, M, rows, w, first_panel, last_panel, epilogue, out, out_stride,
                  narrow, narrow_stride);
}

}  // namespace xsr::kernels
