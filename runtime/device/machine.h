#pragma once
#include <string>

namespace xsr {

/// "AMD EPYC ...", from /proc/cpuinfo; "unknown" when it does not say.
std::string cpu_model();
/// "gcc 12.2.0" or "clang 14.0.6": what this was built with.
std::string compiler();

}  // namespace xsr
