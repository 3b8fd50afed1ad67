#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// Slowest first; the numbers are those of xsr_isa in include/xsr/xsr.h.
enum class Isa : int32_t {
  kRef = 1,
  kAvx2 = 2,
  kAvx2Vnni = 3,
  kAvx512 = 4,
  kAvx512Vnni = 5,
  kAvx512Bf16 = 6,
  kAmx = 7
};

/// All names, as messages list them.
constexpr const char* kIsaNames = "ref, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 or amx";

/// One of kIsaNames.
const char* isa_name(Isa isa);
/// True and *isa set when text is one of the names.
bool parse_isa(const char* text, Isa* isa);
/// True when this CPU has, and the operating system saves (OSXSAVE, XCR0), everything the ISA's
/// files are compiled with. avx2: AVX, AVX2, FMA, F16C. avx2_vnni: those and AVX-VNNI. avx512:
/// those of avx2 and AVX-512 F, BW, DQ, VL, with or without AVX-VNNI. avx512_vnni: those and
/// AVX512_VNNI. avx512_bf16: those and AVX512_BF16; every CPU with BF16 has VNNI too, so that but
/// for avx2_vnni each ISA contains the one before it. amx: those and AMX-TILE, AMX-BF16 and
/// AMX-INT8; the first call asks Linux to let this process use the tile data (arch_prctl,
/// ARCH_REQ_XCOMP_PERM), which threads started before or after share. A build for tests with
/// XSR_EMULATE_ISA needs avx2 for all. Safe from any thread.
bool isa_supported(Isa isa);
/// The fastest supported ISA.
Isa best_isa();
/// kAvx2 for kAvx2Vnni, whose results are the same bits; all others are themselves.
Isa isa_of_bits(Isa isa);

}  // namespace xsr::kernels
