#include "runtime/text/piece_table.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <string>

#include "runtime/error.h"

namespace xsr {
namespace {

static_assert(std::endian::native == std::endian::little, "keep_bytes counts from the low byte");

[[noreturn]] void fail_tables(const std::string& what) {
  throw_bad_file("tokenizer tables: " + what + ". Convert the model again.");
}

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

/// Checks that every place holds the id of a piece or none, and that a search comes to an end.
void check_slots(std::span<const PieceSlot> slots, size_t num_pieces) {
  uint32_t highest = 0, empty = 0;  // of id + 1: no branch, so that opening does not wait
  for (const PieceSlot& slot : slots) {
    const uint32_t next = static_cast<uint32_t>(slot.id) + 1;
    highest = std::max(highest, next);
    empty += next == 0;
  }
  if (highest > num_pieces) {
    fail_tables("a place holds piece " + std::to_string(static_cast<int32_t>(highest - 1)) +
                ", expected -1 to " + std::to_string(num_pieces - 1));
  }
  if (empty == 0) fail_tables("no place is empty, expected half of them or more");
}

}  // namespace

PieceTable::PieceTable(std::string_view blob, std::span<const unsigned char> tables) {
  TokenizerTablesHead head;
  if (tables.size() < sizeof head) {
    fail_tables("they have " + std::to_string(tables.size()) + " bytes, expected a head of " +
                std::to_string(sizeof head));
  }
  std::memcpy(&head, tables.data(), sizeof head);
  const TokenizerTablesLayout at(head);
  if (head.num_pieces < 1 || head.num_pieces > INT32_MAX || !std::has_single_bit(head.num_slots) ||
      !std::has_single_bit(head.num_reserved_slots) || at.size != tables.size()) {
    fail_tables(std::to_string(head.num_pieces) + " pieces, " + std::to_string(head.num_slots) +
                " and " + std::to_string(head.num_reserved_slots) + " places and " +
                std::to_string(head.text_bytes) + " bytes of text do not go with their " +
                std::to_string(tables.size()) + " bytes");
  }
  if (head.type < 1 || head.type > 4 || (head.flags & ~kKnownTablesFlags) != 0) {
    fail_tables("type " + std::to_string(head.type) + " with flags " + std::to_string(head.flags) +
                ", expected 1 to 4 with 0 to " + std::to_string(kKnownTablesFlags));
  }
  if (head.charsmap_begin > blob.size() || head.charsmap_size > blob.size() - head.charsmap_begin) {
    fail_tables("the rules of the normaliser, bytes " + std::to_string(head.charsmap_begin) +
                " and the " + std::to_string(head.charsmap_size) +
                " that follow, reach beyond the SentencePiece model of " +
                std::to_string(blob.size()) + " bytes");
  }
  settings_.type = static_cast<SentencePieceType>(head.type);
  set_from_flags(head.flags, kTablesSettingBits, settings_);
  settings_.charsmap = blob.substr(head.charsmap_begin, head.charsmap_size);
  all_utf8_ = (head.flags & kTablesAllUtf8) != 0;
  space_inside_ = (head.flags & kTablesSpaceInside) != 0;
  plain_rules_ = (head.flags & kTablesPlainRules) != 0;

  const unsigned char* const bytes = tables.data();
  pieces_ = {reinterpret_cast<const Piece*>(bytes + at.pieces), head.num_pieces};
  const auto slots_at = [&](uint64_t offset, uint32_t count) {
    const std::span slots(reinterpret_cast<const PieceSlot*>(bytes + offset), count);
    check_slots(slots, pieces_.size());
    return slots;
  };
  slots_ = slots_at(at.slots, head.num_slots);
  slots_at(at.reserved_slots, head.num_reserved_slots);  // looked up only where tables are made
  texts_ = reinterpret_cast<const char*>(bytes + at.texts);
  read_pieces(head.text_bytes);
}

/// Checks that the pieces' texts are there, and collects what their users ask of all of them.
void PieceTable::read_pieces(uint32_t text_bytes) {
  if (settings_.byte_fallback) byte_ids_.assign(256, -1);
  facts_.min_score = FLT_MAX;
  facts_.max_score = FLT_MIN;  // as in the library, where it was meant to be the lowest number
  for (int32_t id = 0; id < size(); ++id) {
    const Piece& piece = (*this)[id];
    if (piece.size == 0 || piece.size > kMaxPieceBytes ||
        uint64_t{piece.begin} + piece.size + kTextPadding > text_bytes) {
      fail_tables("piece " + std::to_string(id) + " has " + std::to_string(piece.size) +
                  " bytes from " + std::to_string(piece.begin) + " on, of " +
                  std::to_string(text_bytes) + " bytes of text, expected 1 to " +
                  std::to_string(kMaxPieceBytes));
    }
    facts_.longest = std::max<size_t>(facts_.longest, piece.size);
    if (!(std::fabs(piece.score) < 1e30f)) facts_.scores_bounded = false;
    switch (piece.type) {
      case PieceType::kNormal:
        facts_.any_normal = true;
        facts_.min_score = std::min(facts_.min_score, piece.score);
        facts_.max_score = std::max(facts_.max_score, piece.score);
        break;
      case PieceType::kUnused:
        facts_.any_unused = true;
        break;
      case PieceType::kUserDefined:
        user_defined_ids_.push_back(id);
        symbol_sizes_.push_back(piece.size);
        break;
      case PieceType::kUnknown:
      case PieceType::kControl:
      case PieceType::kByte:
        note_reserved(id);
        break;
      default:
        fail_tables("piece " + std::to_string(id) + " has type " +
                    std::to_string(static_cast<int>(piece.type)) + ", expected 1 to 6");
    }
  }
  std::sort(symbol_sizes_.begin(), symbol_sizes_.end(), std::greater<>());
  symbol_sizes_.erase(std::unique(symbol_sizes_.begin(), symbol_sizes_.end()), symbol_sizes_.end());
  if (unk_id_ < 0) bad_sentencepiece_model("unk is not defined: no piece is of the type unknown");
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    if (byte_ids_[byte] < 0) {
      bad_sentencepiece_model("byte_fallback is on, but there is no byte piece for byte " +
                              std::to_string(byte) + ", expected all 256");
    }
  }
}

void PieceTable::note_reserved(int32_t id) {
  reserved_ids_.push_back(id);
  const PieceType type = (*this)[id].type;
  if (type == PieceType::kUnknown) {
    if (unk_id_ >= 0) {
      bad_sentencepiece_model("unk is already defined, pieces " + std::to_string(unk_id_) +
                              " and " + std::to_string(id) + " are both of the type unknown");
    }
    unk_id_ = id;
  }
  if (type == PieceType::kByte) {
    if (!settings_.byte_fallback) {
      bad_sentencepiece_model("byte piece " + std::string(text(id)) +
                              " is found although byte_fallback is off");
    }
    const int byte = byte_of(text(id));
    if (byte < 0) {
      bad_sentencepiece_model("byte piece " + std::to_string(id) + " is \"" +
                              std::string(text(id)) + "\", expected <0x00> to <0xFF>");
    }
    byte_ids_[static_cast<size_t>(byte)] = id;
  }
}

}  // namespace xsr
