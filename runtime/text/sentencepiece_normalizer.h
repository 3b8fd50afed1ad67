#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/piece_table.h"

namespace xsr {

/// The parts of a model's precompiled_charsmap; views of it.
struct SentencePieceRules {
  /// Empty: no rules. Throws Error(BAD_FILE) where the sizes do not fit.
  explicit SentencePieceRules(std::string_view charsmap);
  /// True when they are UTF-8 without U+2581.
  bool replacements_are_plain() const;

  std::string_view trie;          // double array of u32
  std::string_view replacements;  // NUL-terminated strings, the trie's values are offsets
};

/// SentencePiece's text normalisation: the model's character rules (longest match first, left to
/// right), white space made one U+2581 each or one a run, the prefix in front. Immutable. It exists
/// beside the library's own because that one takes the rules of a damaged model on trust, and needs
/// memory for the whole text where a piece would do.
class SentencePieceNormalizer {
 public:
  /// The rules are used where they are: the model's bytes must outlive the object. Throws
  /// Error(BAD_FILE) as SentencePieceRules does.
  explicit SentencePieceNormalizer(const PieceTable& pieces);

  /// One text, from front to back.
  class Stream {
   public:
    /// text must outlive the stream; well-formed UTF-8.
    Stream(const SentencePieceNormalizer& normalizer, std::string_view text);
    /// Appends normalised text to out until out has at least `size` bytes or the text ends; false
    /// when it has ended, and then the white space that the model drops at the end is gone too.
    bool append(size_t size, std::string& out);

   private:
    const SentencePieceNormalizer& n_;
    std::string_view rest_;
    bool after_space_;
    bool begun_ = false;
  };

  /// The normalised form of the longest prefix of text (not empty) that has a rule, or of its first
  /// character; *consumed: the bytes of text that it stands for. *seen: the bytes of text that were
  /// looked at and may begin a rule; a rule that goes on behind the end of text has seen all of it.
  std::string_view prefix(std::string_view text, size_t* consumed, size_t* seen) const;
  /// True when this ASCII character stays as it is wherever an ASCII character or the end of the
  /// text follows.
  bool is_plain(unsigned char c) const { return plain_[c]; }
  /// True when normalising the text is normalising its words, ASCII space (and no other) between
  /// them, but for rules that a word begins and the space behind it goes on.
  bool words_apart() const { return words_apart_; }

 private:
  /// The trie behind one more byte; false when no rule goes on like that. Every step is checked:
  /// nothing is assumed of the trie's contents.
  bool step(uint32_t byte, uint32_t* node, uint32_t* unit) const;
  bool has_rule_path(unsigned char first, unsigned begin, unsigned end) const;
  uint32_t unit(uint32_t node) const {
    uint32_t value;
    std::memcpy(&value, rules_.trie.data() + sizeof value * node, sizeof value);
    return value;
  }
  void append_escaped(std::string_view piece, std::string& out) const;

  bool treat_whitespace_as_suffix_, add_dummy_prefix_, remove_extra_whitespaces_;
  std::string_view space_;  // what a space becomes
  SentencePieceRules rules_;
  uint32_t trie_size_;                          // units
  std::set<std::string, std::less<>> symbols_;  // user-defined symbols: kept as they are
  std::vector<size_t> symbol_sizes_;            // their different sizes, longest first
  std::array<bool, 256> plain_ = {};
  bool words_apart_ = false;
};

}  // namespace xsr
