#include "runtime/text/sentencepiece_normalizer.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "runtime/error.h"
#include "runtime/text/utf8.h"

namespace xsr {
namespace {

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// A unit of the double array: bits 0-7 and 31 the label, 8 "a value hangs below", 9 the offset's
// scale, 10-30 the offset; a unit that holds a value has bit 31 set and the value below it.
uint32_t label(uint32_t unit) { return unit & 0x800000FFu; }
bool has_value(uint32_t unit) { return unit >> 8 & 1; }
uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

size_t character_size(std::string_view text) {
  const unsigned char lead = static_cast<unsigned char>(text[0]);
  const size_t size = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(size, text.size());
}

}  // namespace

SentencePieceRules::SentencePieceRules(std::string_view charsmap) {
  if (charsmap.empty()) return;
  uint32_t trie_bytes = 0;
  if (charsmap.size() >= sizeof trie_bytes) {
    std::memcpy(&trie_bytes, charsmap.data(), sizeof trie_bytes);
  }
  // The table: uint32 size of the trie in bytes, the trie, the replacements.
  if (charsmap.size() <= sizeof trie_bytes || trie_bytes == 0 ||
      trie_bytes % sizeof(uint32_t) != 0 || trie_bytes >= charsmap.size() - sizeof trie_bytes ||
      charsmap.back() != '\0') {
    throw Error(XSR_STATUS_BAD_FILE,
                "SentencePiece model: precompiled_charsmap has " + std::to_string(charsmap.size()) +
                    " bytes with a trie of " + std::to_string(trie_bytes) +
                    ", expected the trie's size (a multiple of 4), the trie and NUL-terminated "
                    "text");
  }
  trie = charsmap.substr(sizeof trie_bytes, trie_bytes);
  replacements = charsmap.substr(sizeof trie_bytes + trie_bytes);
}

bool SentencePieceRules::replacements_are_plain() const {
  return replacements.find(kSpaceSymbol) == std::string_view::npos && is_valid_utf8(replacements);
}

SentencePieceNormalizer::SentencePieceNormalizer(const PieceTable& pieces)
    : treat_whitespace_as_suffix_(pieces.settings().treat_whitespace_as_suffix),
      add_dummy_prefix_(pieces.settings().add_dummy_prefix),
      remove_extra_whitespaces_(pieces.settings().remove_extra_whitespaces),
      space_(pieces.settings().escape_whitespaces ? kSpaceSymbol : std::string_view(" ")),
      rules_(pieces.settings().charsmap),
      trie_size_(static_cast<uint32_t>(rules_.trie.size() / sizeof(uint32_t))),
      symbol_sizes_(pieces.symbol_sizes()) {
  for (const int32_t id : pieces.user_defined_ids()) {
    symbols_.emplace(pieces.text(id));
  }

  bool begins_symbol[256] = {};
  bool space_in_symbol = false;
  for (const std::string& symbol : symbols_) {
    begins_symbol[static_cast<unsigned char>(symbol[0])] = true;
    space_in_symbol |= symbol.find(' ') != std::string::npos;
  }
  const auto is_plain = [&](unsigned char c) {
    const char text = static_cast<char>(c);
    size_t consumed, seen;
    if (begins_symbol[c]) return false;
    if (prefix({&text, 1}, &consumed, &seen) != std::string_view(&text, 1)) return false;
    return !has_rule_path(c, 0, 0x80);
  };
  for (unsigned char c = 0; c < 0x80; ++c) plain_[c] = is_plain(c);
  words_apart_ = remove_extra_whitespaces_ && !treat_whitespace_as_suffix_ &&
                 space_ == kSpaceSymbol && !space_in_symbol && plain_[' '] &&
                 pieces.plain_rules() && !has_rule_path(' ', 0x80, 0x100);
}

bool SentencePieceNormalizer::step(uint32_t byte, uint32_t* node, uint32_t* unit_at) const {
  uint32_t next = *node ^ byte;
  if (next >= trie_size_) return false;
  *unit_at = unit(next);
  if (label(*unit_at) != byte) return false;
  *node = next ^ offset(*unit_at);
  return true;
}

/// True when a rule may begin with `first` and then a byte of [begin, end).
bool SentencePieceNormalizer::has_rule_path(unsigned char first, unsigned begin,
                                            unsigned end) const {
  if (trie_size_ == 0) return false;
  uint32_t node = offset(unit(0)), unit_at;
  if (!step(first, &node, &unit_at) || node >= trie_size_) return false;
  for (unsigned second = begin; second < end; ++second) {
    uint32_t behind = node;
    if (step(second, &behind, &unit_at) && behind < trie_size_) return true;
  }
  return false;
}

std::string_view SentencePieceNormalizer::prefix(std::string_view text, size_t* consumed,
                                                 size_t* seen) const {
  *seen = 0;
  for (size_t size : symbol_sizes_) {
    if (size <= text.size() && symbols_.count(text.substr(0, size))) {
      *consumed = size;
      return text.substr(0, size);
    }
  }
  size_t longest = 0;
  uint32_t value = 0;
  if (trie_size_ > 0) {
    uint32_t node = offset(unit(0)), unit_at;
    for (size_t i = 0; i < text.size(); ++i) {
      if (!step(static_cast<unsigned char>(text[i]), &node, &unit_at)) break;
      *seen = i + 1;
      if (node >= trie_size_) break;
      if (has_value(unit_at)) {
        longest = i + 1;
        value = unit(node) & 0x7FFFFFFFu;
      }
    }
  }
  if (longest == 0) {
    *consumed = character_size(text);
    return text.substr(0, *consumed);
  }
  *consumed = longest;
  if (value >= rules_.replacements.size()) return {};
  return std::string_view(rules_.replacements.data() + value);  // the last byte is a NUL
}

void SentencePieceNormalizer::append_escaped(std::string_view piece, std::string& out) const {
  while (!piece.empty()) {
    const size_t run = std::min(piece.find(' '), piece.size());
    out.append(piece.substr(0, run));
    piece.remove_prefix(run);
    if (piece.empty()) break;
    out.append(space_);
    piece.remove_prefix(1);
  }
}

SentencePieceNormalizer::Stream::Stream(const SentencePieceNormalizer& normalizer,
                                        std::string_view text)
    : n_(normalizer), rest_(text), after_space_(normalizer.remove_extra_whitespaces_) {}

bool SentencePieceNormalizer::Stream::append(size_t size, std::string& out) {
  if (!begun_) {
    begun_ = true;
    if (n_.remove_extra_whitespaces_) {
      while (!rest_.empty()) {
        size_t consumed, seen;
        if (n_.prefix(rest_, &consumed, &seen) != " ") break;
        rest_.remove_prefix(consumed);
      }
    }
    if (rest_.empty()) return false;
    if (!n_.treat_whitespace_as_suffix_ && n_.add_dummy_prefix_) out.append(n_.space_);
  }
  while (!rest_.empty()) {
    if (out.size() >= size) return true;
    size_t consumed, seen;
    std::string_view piece = n_.prefix(rest_, &consumed, &seen);
    rest_.remove_prefix(consumed);
    while (after_space_ && !piece.empty() && piece[0] == ' ') piece.remove_prefix(1);
    if (!piece.empty()) {
      n_.append_escaped(piece, out);
      after_space_ = n_.remove_extra_whitespaces_ && piece.back() == ' ';
    }
  }
  if (n_.remove_extra_whitespaces_) {
    while (ends_with(out, n_.space_)) out.resize(out.size() - n_.space_.size());
  }
  if (n_.treat_whitespace_as_suffix_ && n_.add_dummy_prefix_) out.append(n_.space_);
  return false;
}

}  // namespace xsr
