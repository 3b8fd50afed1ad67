#pragma once
#include <string>
#include <string_view>

namespace xsr {

/// Appends the lower case of well-formed UTF-8 text to out: full Unicode mapping, the same as
/// Python's str.lower, U+0130 and the final-sigma rule included. The Unicode version is
/// kLowercaseUnicodeVersion.
void append_lowercase(std::string_view text, std::string& out);

extern const char kLowercaseUnicodeVersion[];

}  // namespace xsr
