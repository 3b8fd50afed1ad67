#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/format/flag_bits.h"
#include "runtime/text/sentencepiece_model.h"

// The bytes of a .xsr file's section of tokenizer tables, as docs/FORMAT.md describes them: what a
// tokenizer looks up, ready to be used in place, so that opening a model neither parses nor hashes
// its vocabulary.

namespace xsr {

/// Rises when the bytes that follow from a model change, the hash of a text among them. Tables of
/// another revision are not used: the tokenizer makes its own.
inline constexpr uint32_t kTokenizerTablesRevision = 1;

/// Bits of TokenizerTablesHead::flags.
enum TokenizerTablesFlag : uint32_t {
  kTablesByteFallback = 1u << 0,
  kTablesWhitespaceAsSuffix = 1u << 1,
  kTablesDummyPrefix = 1u << 2,
  kTablesRemoveExtraWhitespaces = 1u << 3,
  kTablesEscapeWhitespaces = 1u << 4,
  kTablesAllUtf8 = 1u << 5,      // every piece is UTF-8
  kTablesSpaceInside = 1u << 6,  // some piece has U+2581 behind another character
  kTablesPlainRules = 1u << 7,   // the normaliser's replacements are UTF-8 without U+2581
  kKnownTablesFlags = (1u << 8) - 1
};

inline constexpr FlagBit<SentencePieceSettings> kTablesSettingBits[] = {
    {kTablesByteFallback, &SentencePieceSettings::byte_fallback},
    {kTablesWhitespaceAsSuffix, &SentencePieceSettings::treat_whitespace_as_suffix},
    {kTablesDummyPrefix, &SentencePieceSettings::add_dummy_prefix},
    {kTablesRemoveExtraWhitespaces, &SentencePieceSettings::remove_extra_whitespaces},
    {kTablesEscapeWhitespaces, &SentencePieceSettings::escape_whitespaces}};

/// Then pieces, slots, reserved slots, texts, each from the next multiple of 64 bytes on.
struct TokenizerTablesHead {
  uint32_t revision;
  uint32_t type;  // SentencePieceType
  uint32_t flags;
  uint32_t charsmap_begin, charsmap_size;  // bytes of the SentencePiece model
  uint32_t num_pieces;
  uint32_t num_slots, num_reserved_slots;  // powers of two
  uint32_t text_bytes;                     // kTextPadding zeros included
  uint32_t zero[7];
};
static_assert(sizeof(TokenizerTablesHead) == 64);
static_assert(sizeof(SentencePieceModel::Piece) == 12);

/// A place of a hash table of pieces by text. Open addressing with linear probing from the hash's
/// low bits on; at most half of the places are taken.
struct PieceSlot {
  uint32_t tag = 0;  // the hash's high half
  int32_t id = -1;   // -1: empty
};
static_assert(sizeof(PieceSlot) == 8);

/// Where the arrays stand, in bytes from the head's beginning.
struct TokenizerTablesLayout {
  explicit TokenizerTablesLayout(const TokenizerTablesHead& head);
  uint64_t pieces, slots, reserved_slots, texts, size;
};

/// The tables of a SentencePiece model; a function of its bytes alone. Throws Error(BAD_FILE) where
/// parse_sentencepiece_model() and SentencePieceRules do and where two pieces have the same text.
std::vector<unsigned char> make_tokenizer_tables(std::string_view blob);

/// The same for a model file: empty where the tables would not be used, since the tokenizer needs
/// the SentencePiece library (see Segmenter::make) or the model is none that opens.
std::vector<unsigned char> tokenizer_tables_for_file(std::string_view blob);

/// Throws Error(BAD_FILE) where tables (of this revision, not empty) are not those of the model.
void verify_tokenizer_tables(std::string_view blob, std::span<const unsigned char> tables);

/// True where this build can use them: they are there and of its revision.
bool has_tokenizer_tables(std::span<const unsigned char> tables);

}  // namespace xsr
