#include "runtime/text/lowercase.h"

#include <cstdint>
#include <cstring>

namespace xsr {
namespace {

struct CaseRecord {
  int32_t delta;  // lower case = code point + delta
  uint8_t flags;
};
constexpr uint8_t kCased = 1, kCaseIgnorable = 2;

#include "runtime/text/lowercase_table.inc"

constexpr char32_t kCapitalSigma = 0x3A3, kSmallSigma = 0x3C3, kFinalSigma = 0x3C2;
constexpr char32_t kCapitalIWithDot =
    0x130;  // the only code point whose lower case is two: "i" and U+0307

const CaseRecord& record(char32_t c) {
  if (c >= kLowercaseEnd) return kLowercaseRecords[0];
  const uint32_t block = kLowercaseBlocks[c >> kLowercaseShift];
  return kLowercaseRecords[kLowercaseIndex[(block << kLowercaseShift) +
                                           (c & ((1u << kLowercaseShift) - 1))]];
}

/// Decodes the code point at text[i] and moves i past it. The text is well-formed; should it not
/// be, the result is some number below 2^21 and i stays within the text.
char32_t decode(std::string_view text, size_t& i) {
  const auto at = [&](size_t k) {
    return k < text.size() ? static_cast<unsigned char>(text[k]) & 0x3Fu : 0u;
  };
  const unsigned char lead = static_cast<unsigned char>(text[i]);
  size_t length = 1;
  char32_t c = lead;
  if (lead >= 0xF0) {
    c = (lead & 0x07u) << 18 | at(i + 1) << 12 | at(i + 2) << 6 | at(i + 3);
    length = 4;
  } else if (lead >= 0xE0) {
    c = (lead & 0x0Fu) << 12 | at(i + 1) << 6 | at(i + 2);
    length = 3;
  } else if (lead >= 0xC0) {
    c = (lead & 0x1Fu) << 6 | at(i + 1);
    length = 2;
  }
  i = text.size() - i > length ? i + length : text.size();
  return c;
}

void append_utf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    const char bytes[] = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    out.append(bytes, 2);
  } else if (c < 0x10000) {
    const char bytes[] = {static_cast<char>(0xE0 | c >> 12),
                          static_cast<char>(0x80 | (c >> 6 & 0x3F)),
                          static_cast<char>(0x80 | (c & 0x3F))};
    out.append(bytes, 3);
  } else {
    const char bytes[] = {
        static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
        static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
    out.append(bytes, 4);
  }
}

/// Unicode 15, table 3-17, Final_Sigma, on the text behind the sigma: no cased letter follows, not
/// counting case-ignorable ones.
bool no_cased_letter_follows(std::string_view text, size_t i) {
  while (i < text.size()) {
    const uint8_t flags = record(decode(text, i)).flags;
    if (flags & kCaseIgnorable) continue;
    return !(flags & kCased);
  }
  return true;
}

/// Eight bytes at once: adds 0x20 to every byte in 'A'..'Z'. All bytes must be below 0x80.
uint64_t ascii_lower(uint64_t x) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  const uint64_t at_least_a = x + kOnes * (0x80 - 'A');     // bit 7 set where byte >= 'A'
  const uint64_t above_z = x + kOnes * (0x80 - ('Z' + 1));  // bit 7 set where byte > 'Z'
  return x | ((at_least_a & ~above_z & (kOnes << 7)) >>
              2);  // 0x80 >> 2 = 0x20; that bit is clear in 'A'..'Z'
}

}  // namespace

const char kLowercaseUnicodeVersion[] = XSR_LOWERCASE_UNICODE_VERSION;

void append_lowercase(std::string_view text, std::string& out) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  out.reserve(out.size() + text.size());
  // Whether the last letter that is not case-ignorable is cased: what a final sigma needs to know
  // of the text before it. Kept along the way, so that a run of sigmas and case-ignorable letters
  // does not cost a look back for each.
  bool after_cased = false;
  size_t i = 0;
  while (i < text.size()) {
    if (text.size() - i >= 8) {
      uint64_t x;
      std::memcpy(&x, text.data() + i, 8);
      if (!(x & kHighBits)) {
        const uint64_t lower = ascii_lower(x);
        char bytes[8];
        std::memcpy(bytes, &lower, 8);
        out.append(bytes, 8);
        i += 8;
        for (size_t k = i; k > i - 8; --k) {
          const uint8_t flags = record(static_cast<unsigned char>(text[k - 1])).flags;
          if (flags & kCaseIgnorable) continue;
          after_cased = flags & kCased;
          break;
        }
        continue;
      }
    }
    const size_t start = i;
    const char32_t c = decode(text, i);
    const CaseRecord& r = record(c);
    if (c == kCapitalSigma) {
      // The look ahead ends at the next sigma at the latest, so all of them together cost one pass.
      const bool final_sigma = after_cased && no_cased_letter_follows(text, i);
      append_utf8(final_sigma ? kFinalSigma : kSmallSigma, out);
    } else if (c == kCapitalIWithDot) {
      out.append("i\xCC\x87");
    } else if (r.delta == 0) {
      out.append(text.data() + start, i - start);
    } else {
      append_utf8(static_cast<char32_t>(static_cast<int32_t>(c) + r.delta), out);
    }
    if (!(r.flags & kCaseIgnorable)) after_cased = r.flags & kCased;
  }
}

}  // namespace xsr
