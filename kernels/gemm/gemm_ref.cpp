#include "kernels/gemm/gemm_ref.h"

namespace xsr::kernels {

void gemm_forward_f32_ref(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                          int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                          float* out, int64_t out_stride) {
  gemm_forward_ref(a, a_stride, M, w, first_panel, last_panel, epilogue.bias, epilogue.activation,
                   epilogue.residual, epilogue.residual_stride, out, out_stride);
}

float gemm_packed_element(const PackedMatrix& w, int32_t n, int32_t k) {
  return load_storage(w.data, w.storage, packed_index(n, k, w.K, panel_group(w.storage)));
}

}  // namespace xsr::kernels
