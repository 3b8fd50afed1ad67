#include "runtime/text/tokenizer_tables.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "runtime/error.h"
#include "runtime/format/xsr_layout.h"
#include "runtime/text/piece_table.h"
#include "runtime/text/segmenter.h"
#include "runtime/text/sentencepiece_normalizer.h"
#include "runtime/text/utf8.h"

namespace xsr {
namespace {

using Piece = SentencePieceModel::Piece;

uint64_t aligned(uint64_t offset) { return offset + padding_after(offset); }

bool is_reserved(PieceType type) {
  return type == PieceType::kUnknown || type == PieceType::kControl || type == PieceType::kByte;
}

uint32_t slots_for(size_t pieces) { return static_cast<uint32_t>(std::bit_ceil(2 * pieces + 2)); }

/// What is unusual about a piece (padded), as flags. Opening a model without tables waits for this:
/// most pieces are ASCII behind the space symbol, which is seen at a glance.
struct TextCheck {
  bool all_utf8 = true, space_inside = false;

  void add(std::string_view text) {
    constexpr uint64_t kHighBits = 0x8080808080808080u;
    const size_t begin = text.starts_with(kSpaceSymbol) ? kSpaceSymbol.size() : 0;
    uint64_t high = 0;
    for (size_t i = begin; i < text.size(); i += 8) {
      high |=
          keep_bytes(load_u64(text.data() + i), std::min<size_t>(8, text.size() - i)) & kHighBits;
    }
    if (high == 0) return;
    if (!is_valid_utf8(text)) all_utf8 = false;
    for (size_t at = text.find(kSpaceSymbol, 1); at != std::string_view::npos;
         at = text.find(kSpaceSymbol, at + 1)) {
      if (at < kSpaceSymbol.size() ||
          text.substr(at - kSpaceSymbol.size(), kSpaceSymbol.size()) != kSpaceSymbol) {
        space_inside = true;
      }
    }
  }
};

}  // namespace

TokenizerTablesLayout::TokenizerTablesLayout(const TokenizerTablesHead& head) {
  pieces = sizeof head;
  slots = aligned(pieces + head.num_pieces * uint64_t{sizeof(Piece)});
  reserved_slots = aligned(slots + head.num_slots * uint64_t{sizeof(PieceSlot)});
  texts = aligned(reserved_slots + head.num_reserved_slots * uint64_t{sizeof(PieceSlot)});
  size = texts + head.text_bytes;
}

std::vector<unsigned char> make_tokenizer_tables(std::string_view blob) {
  const SentencePieceModel model = parse_sentencepiece_model(blob);
  const std::vector<Piece>& pieces = model.pieces;
  const size_t reserved = static_cast<size_t>(std::count_if(
      pieces.begin(), pieces.end(), [](const Piece& piece) { return is_reserved(piece.type); }));
  TokenizerTablesHead head{};
  head.revision = kTokenizerTablesRevision;
  head.type = static_cast<uint32_t>(model.type);
  if (!model.charsmap.empty()) {
    head.charsmap_begin = static_cast<uint32_t>(model.charsmap.data() - blob.data());
    head.charsmap_size = static_cast<uint32_t>(model.charsmap.size());
  }
  head.num_pieces = static_cast<uint32_t>(pieces.size());
  head.num_slots = slots_for(pieces.size() - reserved);
  head.num_reserved_slots = slots_for(reserved);
  head.text_bytes = static_cast<uint32_t>(model.texts.size());

  const TokenizerTablesLayout at(head);
  std::vector<unsigned char> tables(at.size);
  std::memcpy(&tables[at.pieces], pieces.data(), pieces.size() * sizeof(Piece));
  std::memcpy(&tables[at.texts], model.texts.data(), model.texts.size());
  const auto slots_at = [&](uint64_t offset, size_t count) {
    const std::span<PieceSlot> slots(reinterpret_cast<PieceSlot*>(&tables[offset]), count);
    std::fill(slots.begin(), slots.end(), PieceSlot{});
    return slots;
  };
  const auto slots = slots_at(at.slots, head.num_slots);
  const auto reserved_slots = slots_at(at.reserved_slots, head.num_reserved_slots);

  // Every place of a table is a miss of the nearest cache: some are fetched at once.
  constexpr size_t kAhead = 16;
  uint64_t hashes[kAhead];
  TextCheck check;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const auto slots_of = [&](size_t of) {
      return is_reserved(pieces[of].type) ? reserved_slots : slots;
    };
    if (id % kAhead == 0) {
      for (size_t next = id; next < std::min(id + kAhead, pieces.size()); ++next) {
        const std::string_view text = model.text(pieces[next]);
        const uint64_t h = PieceTable::hash(text.data(), text.size());
        hashes[next - id] = h;
        const auto places = slots_of(next);
        __builtin_prefetch(&places[static_cast<size_t>(h) & (places.size() - 1)], 1);
      }
    }
    const std::string_view text = model.text(pieces[id]);
    check.add(text);
    const uint64_t h = hashes[id % kAhead];
    const auto places = slots_of(id);
    PieceSlot& slot =
        places[PieceTable::find_slot(places, pieces.data(), model.texts.data(), text, h)];
    if (slot.id >= 0) {
      throw Error(XSR_STATUS_BAD_FILE, "SentencePiece model: " + std::string(text) +
                                           " is already defined, piece " + std::to_string(id) +
                                           " has the same text");
    }
    slot = {static_cast<uint32_t>(h >> 32), static_cast<int32_t>(id)};
  }
  head.flags =
      flags_of(model, kTablesSettingBits) | (check.all_utf8 ? kTablesAllUtf8 : 0u) |
      (check.space_inside ? kTablesSpaceInside : 0u) |
      (SentencePieceRules(model.charsmap).replacements_are_plain() ? kTablesPlainRules : 0u);
  std::memcpy(tables.data(), &head, sizeof head);
  return tables;
}

std::vector<unsigned char> tokenizer_tables_for_file(std::string_view blob) {
  try {
    std::vector<unsigned char> tables = make_tokenizer_tables(blob);
    if (Segmenter::make(PieceTable(blob, tables)) != nullptr) return tables;
  } catch (const Error&) {
    // Opening the model says what is wrong with it.
  }
  return {};
}

bool has_tokenizer_tables(std::span<const unsigned char> tables) {
  uint32_t revision = 0;
  if (tables.size() >= sizeof revision) std::memcpy(&revision, tables.data(), sizeof revision);
  return revision == kTokenizerTablesRevision;
}

void verify_tokenizer_tables(std::string_view blob, std::span<const unsigned char> tables) {
  if (!has_tokenizer_tables(tables)) return;
  const std::vector<unsigned char> made = make_tokenizer_tables(blob);
  const auto [found, expected] =
      std::mismatch(tables.begin(), tables.end(), made.begin(), made.end());
  if (found == tables.end() && expected == made.end()) return;
  throw Error(XSR_STATUS_BAD_FILE,
              "tokenizer tables: byte " + std::to_string(expected - made.begin()) + " of " +
                  std::to_string(made.size()) +
                  " is not what follows from the SentencePiece model. Convert the model again.");
}

}  // namespace xsr
