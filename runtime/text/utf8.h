#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace xsr {

/// Appends text to out with every malformed sequence replaced by U+FFFD (one per maximal subpart,
/// Unicode 15 §3.9, "substitution of maximal subparts", as Python's errors="replace"). Returns the
/// number of bytes replaced: 0 means that the text was well-formed. Surrogates, overlong forms and
/// values above U+10FFFF are malformed.
uint32_t sanitize_utf8(std::string_view text, std::string& out);

/// True when the text is well-formed UTF-8.
bool is_valid_utf8(std::string_view text);

}  // namespace xsr
