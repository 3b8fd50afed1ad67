#include "kernels/gemm/gemm_ref.h"

namespace xsr::kernels {

void gemm_forward_f32_ref(const float* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                          int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                          float* out, int64_t out_stride) {
  gemm_forward_ref(a, a_stride, M, w, first_panel, last_panel, epilogue.bias, epilogue.activation,
                   epilogue.residual, epilogue.residual_stride, out, out_stride);
}

void gemm_forward_bf16_ref(const uint16_t* a, int64_t a_stride, int32_t M, const PackedMatrix& w,
                           int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                           float* out, int64_t out_stride, uint16_t* narrow,
                           int64_t narrow_stride) {
  const int32_t last = last_panel * kPanelColumns < w.N ? last_panel * kPanelColumns : w.N;
  for (int32_t m = 0; m < M; ++m) {
    for (int32_t n = first_panel * kPanelColumns; n < last; ++n) {
      // One value at a time, since either output may be missing.
      float value;
      gemm_element_ref<float>(a + m * a_stride, a_stride, 1, w, n, &value);
      if (epilogue.bias != nullptr) value += epilogue.bias[n];
      value = activate_ref(value, epilogue.activation);
      if (epilogue.residual != nullptr)
        value += epilogue.residual[m * epilogue.residual_stride + n];
      if (out != nullptr) out[m * out_stride + n] = value;
      if (narrow != nullptr) narrow[m * narrow_stride + n] = bf16_from_f32(value);
    }
    if (narrow != nullptr && last == w.N && w.N % 2 == 1) narrow[m * narrow_stride + w.N] = 0;
  }
}

void narrow_forward_bf16_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                             int32_t C, uint16_t* out, int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < C; ++c) out[i * out_stride + c] = bf16_from_f32(x[i * x_stride + c]);
    if (C % 2 == 1) out[i * out_stride + C] = 0;
  }
}

float gemm_packed_element(const PackedMatrix& w, int32_t n, int32_t k) {
  return load_storage(w.data, w.storage, packed_index(n, k, w.K, panel_group(w.storage)));
}

}  // namespace xsr::kernels
