#include "kernels/gemm/gemm_ref.h"

namespace xsr::kernels {

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);  // a quiet NaN
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
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

}  // namespace xsr::kernels
