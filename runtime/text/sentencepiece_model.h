#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace xsr {

/// The numbers of SentencePiece's ModelProto.
enum class SentencePieceType { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };
enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, for a space

/// Texts that are looked up or segmented must be readable for this many bytes behind their end (of
/// any value): look-ups load whole words.
constexpr size_t kTextPadding = 8;

/// Of a piece. Far above any real one; the library, and Segmenter with pieces of the type unused,
/// recurse once per character in places.
constexpr size_t kMaxPieceBytes = 4096;

/// What a SentencePiece model file says beside its pieces, as far as encoding needs it.
struct SentencePieceSettings {
  SentencePieceType type = SentencePieceType::kUnigram;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::string_view charsmap;  // the normaliser's rules, maybe empty; in the file's bytes
};

struct SentencePieceModel : SentencePieceSettings {
  struct Piece {
    uint32_t begin = 0;  // into texts
    float score = 0;
    uint16_t size = 0;  // bytes
    PieceType type = PieceType::kNormal;
    uint8_t zero = 0;
  };

  std::vector<Piece> pieces;  // by id
  std::string texts;          // of the pieces, next to each other, and kTextPadding zeros

  std::string_view text(const Piece& piece) const {
    return {texts.data() + piece.begin, piece.size};
  }
};

/// Throws Error(BAD_FILE).
[[noreturn]] void bad_sentencepiece_model(const std::string& what);

/// Parses and checks the bytes of a SentencePiece model: every length, and what the library itself
/// takes on trust (pieces with NUL bytes, very long pieces, more nested user-defined symbols than
/// its tables hold). Throws Error(BAD_FILE) with the offset.
SentencePieceModel parse_sentencepiece_model(std::string_view blob);

/// A model file with the same pieces and training settings whose normaliser changes nothing, and
/// without the self-test: what the SentencePiece library gets to see. blob has been parsed without
/// an error.
std::string without_normalizer(std::string_view blob);

}  // namespace xsr
