#include "kernels/isa.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace xsr::kernels {
namespace {

uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

/// Linux saves the tiles (8 KiB a thread) of processes only that asked for them; 5.16 and later.
bool tiles_permitted() {
  const long request_permission = 0x1023,
             tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

struct Features {
  bool avx2 = false;
  bool avx2_vnni = false;
  bool avx512 = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool amx = false;
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
  features.avx2_vnni = features.avx512 = features.avx512_vnni = features.avx512_bf16 =
      features.amx = features.avx2;  // see simd/emulated_avx512.h
  return features;
#endif
  const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  features.avx512 = features.avx2 && (b & avx512) == avx512 && (xcr0 & zmm_state) == zmm_state;
  features.avx512_vnni = features.avx512 && (c & (1u << 11));
  const uint32_t tiles = (1u << 22) | (1u << 24) | (1u << 25);  // AMX-BF16, AMX-TILE, AMX-INT8
  const uint64_t tile_state = 0x60000;
  const bool amx = (d & tiles) == tiles && (xcr0 & tile_state) == tile_state;
  const bool more = __get_cpuid_count(7, 1, &a, &b, &c, &d);
  features.avx2_vnni = features.avx2 && more && (a & (1u << 4));
  features.avx512_bf16 = features.avx512_vnni && more && (a & (1u << 5));
  features.amx = features.avx512_bf16 && amx && tiles_permitted();
  return features;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx2Vnni:
      return "avx2_vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

bool parse_isa(const char* text, Isa* isa) {
  const Isa all[] = {Isa::kRef,        Isa::kAvx2,       Isa::kAvx2Vnni, Isa::kAvx512,
                     Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx};
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
    case Isa::kAvx2Vnni:
      return features.avx2_vnni;
    case Isa::kAvx512:
      return features.avx512;
    case Isa::kAvx512Vnni:
      return features.avx512_vnni;
    case Isa::kAvx512Bf16:
      return features.avx512_bf16;
    case Isa::kAmx:
      return features.amx;
  }
  return false;
}

Isa best_isa() {
  if (isa_supported(Isa::kAmx)) return Isa::kAmx;
  if (isa_supported(Isa::kAvx512Bf16)) return Isa::kAvx512Bf16;
  if (isa_supported(Isa::kAvx512Vnni)) return Isa::kAvx512Vnni;
  if (isa_supported(Isa::kAvx512)) return Isa::kAvx512;
  if (isa_supported(Isa::kAvx2Vnni)) return Isa::kAvx2Vnni;
  if (isa_supported(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kRef;
}

Isa isa_of_bits(Isa isa) { return isa == Isa::kAvx2Vnni ? Isa::kAvx2 : isa; }

}  // namespace xsr::kernels
