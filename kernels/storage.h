#pragma once
// Scalar conversions between f32 and the narrow storages. `static inline`: included by ISA files.
#include <stdint.h>
#include <string.h>

#include "kernels/types.h"

namespace xsr::kernels {

static inline float f32_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t f32_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline float f32_from_bf16(uint16_t value) { return f32_from_bits((uint32_t)value << 16); }

static inline float f32_from_f16(uint16_t value) {
  const uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 31u;
  const uint32_t mantissa = value & 0x3ffu;
  if (exponent == 31) return f32_from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa · 2^-24, exact in f32
    const float magnitude = (float)mantissa * 5.9604644775390625e-08f;
    return f32_from_bits(f32_to_bits(magnitude) | sign);
  }
  return f32_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

/// Element i of a table in the given storage, as f32 (exact); of kI8 the integer, without its
/// scale.
static inline float load_storage(const void* data, Storage storage, int64_t i) {
  if (storage == Storage::kF32) return ((const float*)data)[i];
  if (storage == Storage::kI8) return (float)((const int8_t*)data)[i];
  const uint16_t value = ((const uint16_t*)data)[i];
  return storage == Storage::kBF16 ? f32_from_bf16(value) : f32_from_f16(value);
}

}  // namespace xsr::kernels
