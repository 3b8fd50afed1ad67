#include "runtime/text/utf8.h"

#include <cstring>
#include <limits>

namespace xsr {
namespace {

using Byte = unsigned char;

/// Index of the first byte >= 0x80 at or after i, or size.
size_t skip_ascii(const Byte* p, size_t i, size_t size) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  for (; size - i >= 16; i += 16) {
    uint64_t a, b;
    std::memcpy(&a, p + i, 8);
    std::memcpy(&b, p + i + 8, 8);
    if ((a | b) & kHighBits) break;
  }
  while (i < size && p[i] < 0x80) ++i;
  return i;
}

/// Length of the sequence that begins at p[0] >= 0x80: the whole sequence when it is well-formed,
/// else its maximal subpart (at least 1), with *well_formed saying which. Unicode 15, table 3-7:
/// only the second byte has ranges that depend on the first.
size_t sequence_length(const Byte* p, size_t size, bool* well_formed) {
  *well_formed = false;
  const Byte lead = p[0];
  size_t length;
  Byte low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // no overlong forms
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;  // nothing above U+10FFFF
  } else {
    return 1;
  }
  if (size < 2 || p[1] < low || p[1] > high) return 1;
  for (size_t i = 2; i < length; ++i) {
    if (i >= size || p[i] < 0x80 || p[i] > 0xBF) return i;
  }
  *well_formed = true;
  return length;
}

/// Index of the first malformed sequence at or after i, or size.
size_t skip_well_formed(const Byte* p, size_t i, size_t size) {
  for (;;) {
    i = skip_ascii(p, i, size);
    // Text outside ASCII comes in runs: try the 16-byte test again only after an ASCII byte.
    while (i < size && p[i] >= 0x80) {
      bool well_formed;
      const size_t length = sequence_length(p + i, size - i, &well_formed);
      if (!well_formed) return i;
      i += length;
    }
    if (i >= size) return size;
  }
}

}  // namespace

uint32_t sanitize_utf8(std::string_view text, std::string& out) {
  const Byte* p = reinterpret_cast<const Byte*>(text.data());
  uint64_t replaced = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t end = skip_well_formed(p, i, text.size());
    out.append(text.data() + i, end - i);
    if (end == text.size()) break;
    bool well_formed;
    const size_t length = sequence_length(p + end, text.size() - end, &well_formed);
    out.append("\xEF\xBF\xBD");
    replaced += length;
    i = end + length;
  }
  constexpr uint64_t kMax = std::numeric_limits<uint32_t>::max();
  return static_cast<uint32_t>(replaced < kMax ? replaced : kMax);
}

bool is_valid_utf8(std::string_view text) {
  const Byte* p = reinterpret_cast<const Byte*>(text.data());
  return skip_well_formed(p, 0, text.size()) == text.size();
}

}  // namespace xsr
