#pragma once
#include <optional>
#include <string>

#include "kernels/isa.h"

namespace xsr {

/// The ISA to compute with: wanted, or the best this machine runs; at most what XSR_FORCE_ISA says.
/// Throws Error(INVALID_ARGUMENT) for an unknown XSR_FORCE_ISA, Error(UNSUPPORTED) for an ISA that
/// this machine does not run.
kernels::Isa choose_isa(std::optional<kernels::Isa> wanted);
/// The same by name; "auto" is the best. Throws Error(INVALID_ARGUMENT) for an unknown name too.
kernels::Isa choose_isa(const std::string& name);

}  // namespace xsr
