#pragma once
#include <istream>
#include <string>

namespace xsr {

/// "AMD EPYC (family 25, model 1)", from /proc/cpuinfo; a virtual machine's name alone often does
/// not tell one generation from another. "unknown" when it does not say.
std::string cpu_model();
/// The same from the text of another /proc/cpuinfo.
std::string cpu_model(std::istream& cpuinfo);
/// "gcc 12.2.0" or "clang 14.0.6": what this was built with.
std::string compiler();

}  // namespace xsr
