#include "kernels/gemm/gemm_ref.h"

namespace xsr::kernels {

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);  // a quiet NaN
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void split_bf16(float x, uint16_t* hi, uint16_t* lo) {
  *hi = bf16_from_f32(x);
  const float rest = x - f32_from_bf16(*hi);
  *lo = (f32_to_bits(rest) & 0x7f800000u) == 0x7f800000u ? (uint16_t)0 : bf16_from_f32(rest);
}

uint16_t f16_from_f32(float value) {
  const uint32_t bits = f32_to_bits(value);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // ≥ 65520 rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts the unit 2^-24 at the last mantissa bit, so that the addition
    // rounds to nearest even.
    const float shifted = f32_from_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (f32_to_bits(shifted) - 0x3f000000u));
  }
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

namespace {

float scale_i8(const float* w, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = w[i] < 0 ? -w[i] : w[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = largest / 127;
  return scale < kLeastScaleI8 ? 0 : scale;
}

int8_t code_i8(float w, float scale) { return scale > 0 ? (int8_t)round_even(w / scale) : 0; }

}  // namespace

float quantize_row_i8(const float* w, int64_t count, int8_t* out) {
  const float scale = scale_i8(w, count);
  for (int64_t i = 0; i < count; ++i) out[i] = code_i8(w[i], scale);
  return scale;
}

void gemm_quantize_panels(const float* w, int32_t N, int32_t K, int8_t* packed, float* scales) {
  memset(packed, 0, (size_t)packed_elements(N, K, Storage::kI8));
  for (int32_t n = 0; n < N; ++n) {
    const float* row = w + (int64_t)n * K;
    scales[n] = scale_i8(row, K);
    for (int32_t k = 0; k < K; ++k) packed[packed_index(n, k, K, 4)] = code_i8(row[k], scales[n]);
  }
}

void gemm_sum_panels(const PackedMatrix& w, int32_t* sums) {
  for (int32_t n = 0; n < w.N; ++n) sums[n] = 0;
  const int32_t groups = (w.K + 3) / 4;
  const int8_t* data = (const int8_t*)w.data;
  for (int32_t panel = 0; panel < panel_count(w.N); ++panel) {
    const int32_t first = panel * kPanelColumns;
    const int32_t columns = w.N - first < kPanelColumns ? w.N - first : kPanelColumns;
    for (int32_t group = 0; group < groups; ++group, data += 4 * kPanelColumns) {
      for (int32_t column = 0; column < columns; ++column) {
        const int8_t* four = data + 4 * column;
        sums[first + column] += four[0] + four[1] + four[2] + four[3];
      }
    }
  }
}

void gemm_pack_panels(const float* w, int32_t N, int32_t K, Storage storage, void* packed) {
  const int32_t kp = panel_group(storage);
  const int32_t groups = (K + kp - 1) / kp;
  int64_t at = 0;
  for (int32_t panel = 0; panel < panel_count(N); ++panel) {
    for (int32_t group = 0; group < groups; ++group) {
      for (int32_t column = 0; column < kPanelColumns; ++column) {
        for (int32_t j = 0; j < kp; ++j, ++at) {
          const int32_t n = panel * kPanelColumns + column, k = group * kp + j;
          const float value = n < N && k < K ? w[(int64_t)n * K + k] : 0.0f;
          if (storage == Storage::kF32) {
            ((float*)packed)[at] = value;
          } else {
            ((uint16_t*)packed)[at] =
                storage == Storage::kBF16 ? bf16_from_f32(value) : f16_from_f32(value);
          }
        }
      }
    }
  }
}

void gemm_split_panels(const PackedMatrix& w, uint16_t* split) {
  const int32_t S = split_columns(w.K);
  for (int32_t panel = 0; panel < panel_count(w.N); ++panel) {
    for (int32_t k = 0; k < S; k += 2, split += 4 * kPanelColumns) {
      for (int32_t column = 0; column < kPanelColumns; ++column) {
        for (int32_t j = 0; j < 2; ++j) {
          const int32_t n = panel * kPanelColumns + column;
          const float value = n < w.N && k + j < w.K ? gemm_packed_element(w, n, k + j) : 0.0f;
          uint16_t* hi = split + 2 * column + j;
          split_bf16(value, hi, hi + 2 * kPanelColumns);
        }
      }
    }
  }
}

}  // namespace xsr::kernels
