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
  }
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void narrow_forward_bf16_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                             int32_t C, uint16_t* out, int64_t out_stride) {
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < C; ++c) out[i * out_stride + c] = bf16_from_f32(x[i * x_stride + c]);
    if (C % 2 == 1) out[i * out_stride + C] = 0;
  }
}

void gemm_forward_i8_ref(const uint8_t* a, int64_t a_stride, int32_t M, const QuantizedRow* rows,
                         const PackedMatrix& w, int32_t first_panel, int32_t last_panel,
                         const GemmEpilogue& epilogue, float* out, int64_t out_stride,
                         uint16_t* narrow, int64_t narrow_stride) {
  gemm_quantized_ref<float>(a, a_stride, M, rows, w, first_panel, last_panel, epilogue.bias,
                            epilogue.activation, epilogue.residual, epilogue.residual_stride,
                            [&](int64_t m, int32_t n, float value) {
                              if (out != nullptr) out[m * out_stride + n] = value;
                              if (narrow != nullptr)
                                narrow[m * narrow_stride + n] = bf16_from_f32(value);
                            });
  end_narrow_rows(w, last_panel, M, narrow, narrow_stride);
}

void quantize_forward_u8_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                             int32_t K, const InputRange* range, uint8_t* out, int64_t out_stride,
                             QuantizedRow* rows) {
  for (int32_t i = first; i < last; ++i) {
    const float* row = x + i * x_stride;
    uint8_t* codes = out + i * out_stride;
    float low = 0, high = 0, poison = 0;
    for (int32_t k = 0; k < K; ++k) {
      low = row[k] < low ? row[k] : low;
      high = row[k] > high ? row[k] : high;
      poison += row[k] - row[k];  // 0, but NaN for a NaN or an infinity
    }
    rows[i] = range != nullptr ? quantized_row(range->low, range->high, poison)
                               : quantized_row(low, high, poison);
    const bool empty = !(rows[i].scale > 0);
    const float inverse = empty ? 0 : 1 / rows[i].scale;
    for (int32_t k = 0; k < (K + 3) / 4 * 4; ++k)
      codes[k] = k < K && !empty ? quantize_u8_ref(row[k], inverse, rows[i].zero) : 0;
  }
}

void gemm_forward_bf16x3_ref(const uint16_t* a, int64_t a_stride, int32_t M, const SplitMatrix& w,
                             int32_t first_panel, int32_t last_panel, const GemmEpilogue& epilogue,
                             float* out, int64_t out_stride, uint16_t* split,
                             int64_t split_stride) {
  for (int32_t m = 0; m < M; ++m) {
    for (int32_t n = first_panel * kPanelColumns; n < last_panel * kPanelColumns; ++n) {
      float value = 0;
      if (n < w.N) {
        value = gemm_split_sum_ref<float>(a + m * a_stride, w, n);
        if (epilogue.bias != nullptr) value += epilogue.bias[n];
        value = activate_ref(value, epilogue.activation);
        if (epilogue.residual != nullptr)
          value += epilogue.residual[m * epilogue.residual_stride + n];
        if (out != nullptr) out[m * out_stride + n] = value;
      }
      if (split != nullptr) {
        uint16_t* hi = split + m * split_stride + n;
        split_bf16(value, hi, hi + split_columns(w.N));
      }
    }
  }
}

void split_forward_bf16x3_ref(const float* x, int64_t x_stride, int32_t first, int32_t last,
                              int32_t C, uint16_t* out, int64_t out_stride) {
  const int32_t S = split_columns(C);
  for (int32_t i = first; i < last; ++i) {
    for (int32_t c = 0; c < S; ++c) {
      uint16_t* hi = out + i * out_stride + c;
      split_bf16(c < C ? x[i * x_stride + c] : 0.0f, hi, hi + S);
    }
  }
}

float gemm_packed_element(const PackedMatrix& w, int32_t n, int32_t k) {
  const float value =
      load_storage(w.data, w.storage, packed_index(n, k, w.K, panel_group(w.storage)));
  return w.storage == Storage::kI8 ? value * w.scales[n] : value;
}

}  // namespace xsr::kernels
