#pragma once
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/text/sentencepiece_model.h"
#include "runtime/text/tokenizer_tables.h"

namespace xsr {

inline uint64_t load_u64(const char* p) {
  uint64_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

/// Mixes two words so that every bit of both reaches every bit of the result: the halves of their
/// product. A zero factor would hide the other, so callers add constants.
inline uint64_t mix_u64(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

/// The pieces of a vocabulary by id, and their ids by text: a view of tokenizer tables. Immutable.
class PieceTable {
 public:
  using Piece = SentencePieceModel::Piece;

  /// What all pieces together say.
  struct Facts {
    size_t longest = 0;                  // bytes
    float min_score = 0, max_score = 0;  // of the normal pieces, as the library has them
    bool any_normal = false, any_unused = false;
    bool scores_bounded = true;  // each below 1e30: 2^20 of them add up to a finite number
  };

  /// tables: of this build's revision, 64-byte aligned. Both must outlive the object. Trusts
  /// nothing that could lead out of the tables or of the model's bytes; throws Error(BAD_FILE)
  /// there and where SentencePiece refuses a model: no unknown piece or several, byte pieces that
  /// are missing or wrong.
  PieceTable(std::string_view blob, std::span<const unsigned char> tables);

  const SentencePieceSettings& settings() const { return settings_; }
  const Facts& facts() const { return facts_; }
  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  int32_t unk_id() const { return unk_id_; }
  const Piece& operator[](int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  std::string_view text(int32_t id) const {
    const Piece& piece = (*this)[id];
    return {texts_ + piece.begin, piece.size};
  }
  /// The id of the normal, user-defined or unused piece with this text (padded, not empty); -1 when
  /// there is none.
  int32_t find(const char* text, size_t size) const {
    return slots_[find_slot(slots_, pieces_.data(), texts_, {text, size}, hash(text, size))].id;
  }
  /// The pieces that stand for the bytes 0 to 255; empty unless the model has byte_fallback.
  const std::vector<int32_t>& byte_ids() const { return byte_ids_; }
  const std::vector<int32_t>& reserved_ids() const { return reserved_ids_; }
  const std::vector<int32_t>& user_defined_ids() const { return user_defined_ids_; }
  /// The different sizes of the user-defined pieces in bytes, longest first.
  const std::vector<size_t>& symbol_sizes() const { return symbol_sizes_; }
  bool all_utf8() const { return all_utf8_; }
  /// True when some piece has U+2581 behind another character.
  bool space_inside() const { return space_inside_; }
  /// SentencePieceRules::replacements_are_plain() of the model's rules.
  bool plain_rules() const { return plain_rules_; }

  static uint64_t hash(const char* text, size_t size);
  /// Where in slots, of which some are empty, the piece with this text (whose hash is h) stands, or
  /// the empty slot for it. texts: of the pieces.
  static size_t find_slot(std::span<const PieceSlot> slots, const Piece* pieces, const char* texts,
                          std::string_view text, uint64_t h);

 private:
  static bool equal(const char* a, const char* b, size_t size);
  void read_pieces(uint32_t text_bytes);
  void note_reserved(int32_t id);

  SentencePieceSettings settings_;
  Facts facts_;
  std::span<const Piece> pieces_;
  std::span<const PieceSlot> slots_;
  const char* texts_ = nullptr;
  std::vector<int32_t> reserved_ids_, user_defined_ids_, byte_ids_;
  std::vector<size_t> symbol_sizes_;
  int32_t unk_id_ = -1;
  bool all_utf8_, space_inside_, plain_rules_;
};

/// The first `size` bytes (1 to 8) of a word loaded from memory, the others 0.
inline uint64_t keep_bytes(uint64_t word, size_t size) {
  return word & ~uint64_t{0} >> (64 - 8 * size);
}

inline uint64_t PieceTable::hash(const char* text, size_t size) {
  constexpr uint64_t kOdd1 = 0x9E3779B97F4A7C15u, kOdd2 = 0xD6E8FEB86659FD93u;
  if (size <= 8) return mix_u64(keep_bytes(load_u64(text), size) ^ kOdd1, kOdd2 + size);
  uint64_t h = mix_u64(load_u64(text) ^ kOdd1, kOdd2 + size);
  size_t i = 8;
  for (; i + 8 < size; i += 8) h = mix_u64(load_u64(text + i) ^ h, kOdd2);
  return mix_u64(load_u64(text + size - 8) ^ h, kOdd2);
}

inline bool PieceTable::equal(const char* a, const char* b, size_t size) {
  if (size <= 8) return keep_bytes(load_u64(a) ^ load_u64(b), size) == 0;
  return std::memcmp(a, b, size) == 0;
}

inline size_t PieceTable::find_slot(std::span<const PieceSlot> slots, const Piece* pieces,
                                    const char* texts, std::string_view text, uint64_t h) {
  const uint32_t tag = static_cast<uint32_t>(h >> 32);
  const size_t mask = slots.size() - 1;
  for (size_t i = static_cast<size_t>(h) & mask;; i = (i + 1) & mask) {
    const PieceSlot& slot = slots[i];
    if (slot.id < 0) return i;
    if (slot.tag != tag) continue;
    const Piece& piece = pieces[slot.id];
    if (piece.size == text.size() && equal(texts + piece.begin, text.data(), piece.size)) return i;
  }
}

}  // namespace xsr
