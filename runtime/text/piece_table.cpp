#include "runtime/text/piece_table.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "runtime/error.h"
#include "runtime/text/utf8.h"

namespace xsr {
namespace {

static_assert(std::endian::native == std::endian::little, "keep_bytes counts from the low byte");

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

[[noreturn]] void fail(const std::string& what) {
  throw Error(XSR_STATUS_BAD_FILE, "SentencePiece model: " + what);
}

bool is_reserved(PieceType type) {
  return type == PieceType::kUnknown || type == PieceType::kControl || type == PieceType::kByte;
}

size_t slots_for(size_t pieces) { return std::bit_ceil(2 * pieces + 2); }

/// The byte that a piece of the form <0x3F> stands for; -1 when it has another form.
int byte_of(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (char c : text.substr(3, 2)) {
    const size_t digit = std::string_view("0123456789ABCDEF").find(c);
    if (digit == std::string_view::npos) return -1;
    value = value * 16 + static_cast<int>(digit);
  }
  return value;
}

}  // namespace

bool PieceTable::insert(Slots& slots, int32_t id, uint64_t h) {
  const Piece& piece = pieces_[static_cast<size_t>(id)];
  const char* text = texts_.data() + piece.begin;
  const uint32_t tag = static_cast<uint32_t>(h >> 32);
  const size_t mask = slots.size() - 1;
  size_t i = static_cast<size_t>(h) & mask;
  for (; slots[i].id >= 0; i = (i + 1) & mask) {
    if (slots[i].tag != tag) continue;
    const Piece& other = pieces_[static_cast<size_t>(slots[i].id)];
    if (other.size == piece.size && equal(texts_.data() + other.begin, text, piece.size)) {
      return false;
    }
  }
  slots[i] = {tag, id};
  return true;
}

/// Notes what is unusual about a piece (padded). Opening a model waits for this: most pieces are
/// ASCII behind the space symbol, which is seen at a glance.
void PieceTable::check_text(std::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  const size_t begin = text.starts_with(kSpaceSymbol) ? kSpaceSymbol.size() : 0;
  uint64_t high = 0;
  for (size_t i = begin; i < text.size(); i += 8) {
    high |= keep_bytes(load_u64(text.data() + i), std::min<size_t>(8, text.size() - i)) & kHighBits;
  }
  if (high == 0) return;
  if (!is_valid_utf8(text)) all_utf8_ = false;
  for (size_t at = text.find(kSpaceSymbol, 1); at != std::string_view::npos;
       at = text.find(kSpaceSymbol, at + 1)) {
    if (at < kSpaceSymbol.size() ||
        text.substr(at - kSpaceSymbol.size(), kSpaceSymbol.size()) != kSpaceSymbol) {
      space_inside_ = true;
    }
  }
}

PieceTable::PieceTable(SentencePieceModel&& model)
    : texts_(std::move(model.texts)), pieces_(std::move(model.pieces)) {
  const size_t reserved = static_cast<size_t>(std::count_if(
      pieces_.begin(), pieces_.end(), [](const Piece& piece) { return is_reserved(piece.type); }));
  pieces_by_text_.resize(slots_for(pieces_.size() - reserved));
  reserved_by_text_.resize(slots_for(reserved));
  if (model.byte_fallback) byte_ids_.assign(256, -1);
  // Every place of a table is a miss of the nearest cache, and opening a model waits for them: some
  // are fetched at once.
  constexpr int32_t kAhead = 16;
  uint64_t hashes[kAhead];
  const auto slots_of = [&](int32_t id) -> Slots& {
    return is_reserved((*this)[id].type) ? reserved_by_text_ : pieces_by_text_;
  };
  for (int32_t id = 0; id < size(); ++id) {
    if (id % kAhead == 0) {
      for (int32_t next = id; next < std::min(id + kAhead, size()); ++next) {
        const uint64_t h = hash(text(next).data(), text(next).size());
        hashes[next - id] = h;
        const Slots& slots = slots_of(next);
        __builtin_prefetch(&slots[static_cast<size_t>(h) & (slots.size() - 1)], 1);
      }
    }
    const PieceType type = (*this)[id].type;
    check_text(text(id));
    if (!insert(slots_of(id), id, hashes[id % kAhead])) {
      fail(std::string(text(id)) + " is already defined, piece " + std::to_string(id) +
           " has the same text");
    }
    if (is_reserved(type)) reserved_ids_.push_back(id);
    if (type == PieceType::kUnknown) {
      if (unk_id_ >= 0) {
        fail("unk is already defined, pieces " + std::to_string(unk_id_) + " and " +
             std::to_string(id) + " are both of the type unknown");
      }
      unk_id_ = id;
    }
    if (type == PieceType::kByte) {
      if (!model.byte_fallback) {
        fail("byte piece " + std::string(text(id)) + " is found although byte_fallback is off");
      }
      const int byte = byte_of(text(id));
      if (byte < 0) {
        fail("byte piece " + std::to_string(id) + " is \"" + std::string(text(id)) +
             "\", expected <0x00> to <0xFF>");
      }
      byte_ids_[static_cast<size_t>(byte)] = id;
    }
  }
  if (unk_id_ < 0) fail("unk is not defined: no piece is of the type unknown");
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    if (byte_ids_[byte] < 0) {
      fail("byte_fallback is on, but there is no byte piece for byte " + std::to_string(byte) +
           ", expected all 256");
    }
  }
}

}  // namespace xsr
