#include "runtime/device/isa_choice.h"

#include <algorithm>
#include <cstdlib>

#include "runtime/error.h"

namespace xsr {

kernels::Isa choose_isa(std::optional<kernels::Isa> wanted) {
  kernels::Isa isa = wanted.value_or(kernels::best_isa());
  if (!kernels::isa_supported(isa)) {
    throw Error(XSR_STATUS_UNSUPPORTED, std::string("this CPU or operating system does not run ") +
                                            kernels::isa_name(isa) + "; the fastest here is " +
                                            kernels::isa_name(kernels::best_isa()));
  }
  if (const char* forced = std::getenv("XSR_FORCE_ISA"); forced != nullptr && forced[0] != '\0') {
    kernels::Isa cap;
    if (!kernels::parse_isa(forced, &cap)) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT, "XSR_FORCE_ISA is \"" + std::string(forced) +
                                                   "\"; it can be " + kernels::kIsaNames);
    }
    if (!kernels::isa_supported(cap)) {
      throw Error(XSR_STATUS_UNSUPPORTED, std::string("XSR_FORCE_ISA asks for ") + forced +
                                              ", which this CPU or operating system does not run");
    }
    isa = std::min(isa, cap);
  }
  return isa;
}

kernels::Isa choose_isa(const std::string& name) {
  if (name == "auto") return choose_isa(std::nullopt);
  kernels::Isa isa;
  if (!kernels::parse_isa(name.c_str(), &isa)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "isa is \"" + name + "\"; it can be auto, " + kernels::kIsaNames);
  }
  return choose_isa(std::optional(isa));
}

}  // namespace xsr
