#include "runtime/text/sentencepiece_normalizer.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "runtime/error.h"

namespace xsr {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

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

SentencePieceNormalizer::SentencePieceNormalizer(const SentencePieceModel& model)
    : treat_whitespace_as_suffix_(model.treat_whitespace_as_suffix),
      add_dummy_prefix_(model.add_dummy_prefix),
      remove_extra_whitespaces_(model.remove_extra_whitespaces),
      space_(model.escape_whitespaces ? kSpaceSymbol : std::string_view(" ")) {
  for (const auto& p : model.pieces) {
    if (p.type != PieceType::kUserDefined) continue;
    symbols_.emplace(p.text);
    symbol_sizes_.push_back(p.text.size());
  }
  std::sort(symbol_sizes_.begin(), symbol_sizes_.end(), std::greater<>());
  symbol_sizes_.erase(std::unique(symbol_sizes_.begin(), symbol_sizes_.end()), symbol_sizes_.end());

  const std::string_view map = model.charsmap;
  if (map.empty()) return;
  uint32_t trie_bytes = 0;
  if (map.size() >= sizeof trie_bytes) std::memcpy(&trie_bytes, map.data(), sizeof trie_bytes);
  // The table: uint32 size of the trie in bytes, the trie, the replacements.
  if (map.size() <= sizeof trie_bytes || trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0 ||
      trie_bytes >= map.size() - sizeof trie_bytes || map.back() != '\0') {
    throw Error(
        XSR_STATUS_BAD_FILE,
        "SentencePiece model: precompiled_charsmap has " + std::to_string(map.size()) +
            " bytes with a trie of " + std::to_string(trie_bytes) +
            ", expected the trie's size (a multiple of 4), the trie and NUL-terminated text");
  }
  trie_.resize(trie_bytes / sizeof(uint32_t));
  std::memcpy(trie_.data(), map.data() + sizeof trie_bytes, trie_bytes);
  replacements_.assign(map.substr(sizeof trie_bytes + trie_bytes));
}

/// The normalised form of the longest prefix of text that has a rule, or of its first character.
/// Every step into the trie is checked here: nothing is assumed of its contents.
std::string_view SentencePieceNormalizer::prefix(std::string_view text, size_t* consumed) const {
  for (size_t size : symbol_sizes_) {
    if (size <= text.size() && symbols_.count(text.substr(0, size))) {
      *consumed = size;
      return text.substr(0, size);
    }
  }
  size_t longest = 0;
  uint32_t value = 0;
  if (!trie_.empty()) {
    uint32_t node = offset(trie_[0]);
    for (size_t i = 0; i < text.size(); ++i) {
      const uint32_t byte = static_cast<unsigned char>(text[i]);
      node ^= byte;
      if (node >= trie_.size()) break;
      const uint32_t unit = trie_[node];
      if (label(unit) != byte) break;
      node ^= offset(unit);
      if (node >= trie_.size()) break;
      if (has_value(unit)) {
        longest = i + 1;
        value = trie_[node] & 0x7FFFFFFFu;
      }
    }
  }
  if (longest == 0) {
    *consumed = character_size(text);
    return text.substr(0, *consumed);
  }
  *consumed = longest;
  if (value >= replacements_.size()) return {};
  return std::string_view(replacements_.c_str() + value);
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
        size_t consumed;
        if (n_.prefix(rest_, &consumed) != " ") break;
        rest_.remove_prefix(consumed);
      }
    }
    if (rest_.empty()) return false;
    if (!n_.treat_whitespace_as_suffix_ && n_.add_dummy_prefix_) out.append(n_.space_);
  }
  while (!rest_.empty()) {
    if (out.size() >= size) return true;
    size_t consumed;
    std::string_view piece = n_.prefix(rest_, &consumed);
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
