#pragma once
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/dispatch.h"

namespace xsr::test {

/// The instruction sets that this CPU runs, ref first, up to XSR_FORCE_ISA where it is set.
inline std::vector<kernels::Isa> training_isas() {
  kernels::Isa cap = kernels::best_isa();
  const char* forced = std::getenv("XSR_FORCE_ISA");
  if (forced != nullptr) kernels::parse_isa(forced, &cap);
  std::vector<kernels::Isa> isas;
  for (const kernels::Isa isa :
       {kernels::Isa::kRef, kernels::Isa::kAvx2, kernels::Isa::kAvx2Vnni, kernels::Isa::kAvx512,
        kernels::Isa::kAvx512Bf16, kernels::Isa::kAmx}) {
    if (isa <= cap && kernels::isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

}  // namespace xsr::test
