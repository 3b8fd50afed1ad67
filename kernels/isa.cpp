#include "kernels/isa.h"

#include <cpuid.h>
#include <string.h>

namespace xsr::kernels {
namespace {

uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool avx512_bf16 = false;
};

Features detect() {
  Features features;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = c & (1u << 27);
  const bool avx = c & (1u << 28);
  const bool fma = c & (1u << 12);
  const bool f16c = c & (1u << 29);
  if (!osxsave || !avx || !fma || !f16c) return features;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const uint64_t xcr0 = read_xcr0();
  const uint64_t ymm_state = 0x6, zmm_state = 0xe6;
  features.avx2 = (b & (1u << 5)) && (xcr0 & ymm_state) == ymm_state;
#if defined(XSR_EMULATE_ISA)
  features.avx512 = features.avx512_bf16 = features.avx2;  // see simd/emulated_avx512.h
  return features;
#endif
  const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  features.avx512 = features.avx2 && (b & avx512) == avx512 && (xcr0 & zmm_state) == zmm_state;
  features.avx512_bf16 =
      features.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
  return features;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

bool parse_isa(const char* text, Isa* isa) {
  const Isa all[] = {Isa::kRef, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};
  for (Isa candidate : all) {
    if (strcmp(text, isa_name(candidate)) == 0) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

bool isa_supported(Isa isa) {
  static const Features features = detect();
  switch (isa) {
    case Isa::kRef:
      return true;
    case Isa::kAvx2:
      return features.avx2;
    case Isa::kAvx512:
      return features.avx512;
    case Isa::kAvx512Bf16:
      return features.avx512_bf16;
  }
  return false;
}

Isa best_isa() {
  if (isa_supported(Isa::kAvx512Bf16)) return Isa::kAvx512Bf16;
  if (isa_supported(Isa::kAvx512)) return Isa::kAvx512;
  if (isa_supported(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kRef;
}

}  // namespace xsr::kernels
