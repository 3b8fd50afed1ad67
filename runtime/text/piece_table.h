#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/sentencepiece_model.h"

namespace xsr {

inline uint64_t load_u64(const char* p) {
  uint64_t x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

/// Mixes two words so that every bit of both reaches every bit of the result: the halves of their
/// product. A zero factor would hide the other, so callers add constants.
inline uint64_t mix_u64(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#else
  a *= b;
  return a ^ a >> 32;
#endif
}

/// The pieces of a vocabulary by id, and their ids by text. Immutable; owns its texts.
class PieceTable {
 public:
  using Piece = SentencePieceModel::Piece;

  /// Throws Error(BAD_FILE) where SentencePiece refuses a model: no unknown piece or several, a
  /// text that two pieces have, byte pieces that are missing or wrong.
  /// Takes the pieces and their texts out of the model.
  explicit PieceTable(SentencePieceModel&& model);

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  int32_t unk_id() const { return unk_id_; }
  const Piece& operator[](int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  std::string_view text(int32_t id) const {
    const Piece& piece = (*this)[id];
    return {texts_.data() + piece.begin, piece.size};
  }
  /// The id of the normal, user-defined or unused piece with this text (padded, not empty); -1 when
  /// there is none.
  int32_t find(const char* text, size_t size) const { return find(pieces_by_text_, text, size); }
  /// The same among the other pieces: unknown, control and byte.
  int32_t find_reserved(const char* text, size_t size) const {
    return find(reserved_by_text_, text, size);
  }
  /// The pieces that stand for the bytes 0 to 255; empty unless the model has byte_fallback.
  const std::vector<int32_t>& byte_ids() const { return byte_ids_; }
  const std::vector<int32_t>& reserved_ids() const { return reserved_ids_; }
  bool all_utf8() const { return all_utf8_; }
  /// True when some piece has U+2581 behind another character.
  bool space_inside() const { return space_inside_; }

 private:
  void check_text(std::string_view text);

  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;  // -1: empty
  };
  /// Open addressing with linear probing; a power of two of slots, at most half of them taken.
  using Slots = std::vector<Slot>;

  static uint64_t hash(const char* text, size_t size);
  static bool equal(const char* a, const char* b, size_t size);
  int32_t find(const Slots& slots, const char* text, size_t size) const;
  /// h: the hash of the piece's text. False when another piece has that text.
  bool insert(Slots& slots, int32_t id, uint64_t h);

  std::string texts_;
  std::vector<Piece> pieces_;
  Slots pieces_by_text_, reserved_by_text_;
  std::vector<int32_t> reserved_ids_, byte_ids_;
  int32_t unk_id_ = -1;
  bool all_utf8_ = true, space_inside_ = false;
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

inline int32_t PieceTable::find(const Slots& slots, const char* text, size_t size) const {
  const uint64_t h = hash(text, size);
  const uint32_t tag = static_cast<uint32_t>(h >> 32);
  const size_t mask = slots.size() - 1;
  for (size_t i = static_cast<size_t>(h) & mask;; i = (i + 1) & mask) {
    const Slot& slot = slots[i];
    if (slot.id < 0) return -1;
    if (slot.tag != tag) continue;
    const Piece& piece = pieces_[static_cast<size_t>(slot.id)];
    if (piece.size == size && equal(texts_.data() + piece.begin, text, size)) return slot.id;
  }
}

}  // namespace xsr
