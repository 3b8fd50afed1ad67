#pragma once
#include <span>
#include <string>

namespace xsr {

/// SHA-256 in lower-case hexadecimal, 64 characters.
std::string sha256_hex(std::span<const unsigned char> bytes);

}  // namespace xsr
