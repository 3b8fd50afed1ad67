#include "runtime/text/segmenter.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>

namespace xsr {
namespace {

// Up to here the best merge is looked for among all of them; beyond, a heap finds it.
constexpr size_t kFewSymbols = 32;
constexpr size_t kLongSizeBuckets = 8192;
constexpr size_t kVeryLongPiece = 63;
// What the library takes off the lowest score for an unknown character.
constexpr float kUnknownPenalty = 10.0f;

size_t character_size(std::string_view text, size_t at) {
  const unsigned char lead = static_cast<unsigned char>(text[at]);
  const size_t size = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(size, text.size() - at);
}

size_t long_bucket(const char* text) {
  uint32_t x;
  std::memcpy(&x, text, sizeof x);
  return (x * 0x9E3779B1u) >> 19;
}
static_assert(kLongSizeBuckets == size_t{1} << (32 - 19));

}  // namespace

void Segmenter::Scratch::shrink() {
  shrink_scratch(symbols);
  shrink_scratch(merges);
  shrink_scratch(nodes);
  shrink_scratch(word_nodes);
  shrink_scratch(path);
}

std::unique_ptr<Segmenter> Segmenter::make(const PieceTable& pieces) {
  const SentencePieceType type = pieces.settings().type;
  if (type != SentencePieceType::kBpe && type != SentencePieceType::kUnigram) return nullptr;
  // A score of which 2^20 add up to no finite number is none that a training gave.
  if (!pieces.facts().any_normal || !pieces.facts().scores_bounded || !pieces.all_utf8()) {
    return nullptr;
  }
  if (type == SentencePieceType::kBpe) {
    // The library looks for the ids of BPE symbols among the reserved pieces first.
    for (int32_t id : pieces.reserved_ids()) {
      const std::string_view text = pieces.text(id);
      if (character_size(text, 0) == text.size() || pieces.find(text.data(), text.size()) >= 0) {
        return nullptr;
      }
    }
  }
  return std::unique_ptr<Segmenter>(new Segmenter(pieces));
}

Segmenter::Segmenter(const PieceTable& pieces)
    : pieces_(pieces),
      type_(pieces.settings().type),
      byte_fallback_(pieces.settings().byte_fallback),
      has_unused_(pieces.facts().any_unused),
      min_score_(pieces.facts().min_score),
      max_score_(pieces.facts().max_score) {
  for (int32_t id : pieces.user_defined_ids()) {
    begins_symbol_[static_cast<unsigned char>(pieces.text(id)[0])] = true;
  }
  if (type_ == SentencePieceType::kUnigram) note_sizes();
}

/// Notes which sizes of pieces begin with which bytes, for the unigram model.
void Segmenter::note_sizes() {
  long_sizes_.resize(kLongSizeBuckets);
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    const PieceType type = pieces_[id].type;
    if (type != PieceType::kNormal && type != PieceType::kUserDefined) continue;
    const std::string_view text = pieces_.text(id);
    if (text.size() < kShortPiece) {
      short_sizes_[static_cast<unsigned char>(text[0])] |= static_cast<uint8_t>(1 << text.size());
    } else {
      long_sizes_[long_bucket(text.data())] |= uint64_t{1} << std::min(text.size(), kVeryLongPiece);
      if (text.size() >= kVeryLongPiece) very_long_sizes_.push_back(text.size());
    }
  }
  std::sort(very_long_sizes_.begin(), very_long_sizes_.end());
  very_long_sizes_.erase(std::unique(very_long_sizes_.begin(), very_long_sizes_.end()),
                         very_long_sizes_.end());
}

/// Bytes of the user-defined symbol (the longest) or the character that begins at text[at].
size_t Segmenter::symbol_at(std::string_view text, size_t at, bool* user_defined) const {
  *user_defined = false;
  if (begins_symbol_[static_cast<unsigned char>(text[at])]) {
    for (size_t size : pieces_.symbol_sizes()) {
      if (size > text.size() - at) continue;
      const int32_t id = pieces_.find(text.data() + at, size);
      if (id < 0 || pieces_[id].type != PieceType::kUserDefined) continue;
      *user_defined = true;
      return size;
    }
  }
  return character_size(text, at);
}

/// Appends the piece with this text; ids[first] is the first id of this text.
void Segmenter::append_id(int32_t id, std::string_view text, size_t first,
                          std::vector<int32_t>& ids) const {
  if (id != pieces_.unk_id()) {
    ids.push_back(id);
  } else if (byte_fallback_) {
    for (char c : text) ids.push_back(pieces_.byte_ids()[static_cast<unsigned char>(c)]);
  } else if (ids.size() == first || ids.back() != id) {
    ids.push_back(id);
  }
}

void Segmenter::segment(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (type_ == SentencePieceType::kBpe) {
    merge(text, scratch, ids);
  } else {
    viterbi(text, scratch, ids);
  }
}

// ---- BPE: of all neighbouring symbols that together are a piece, those with the highest score
// merge first, the leftmost where scores are equal; user-defined symbols never do.

/// Appends the id of a symbol at the end of all merges. A merge may end in a piece of the type
/// unused; it is taken apart as such a piece was last put together.
void Segmenter::append_symbol(int32_t id, std::string_view text, const Scratch& scratch,
                              size_t first, std::vector<int32_t>& ids) const {
  if (id < 0) {
    id = pieces_.find(text.data(), text.size());
    if (id < 0) id = pieces_.unk_id();
  }
  if (has_unused_ && pieces_[id].type == PieceType::kUnused) {
    if (const auto it = scratch.unused.find(id); it != scratch.unused.end()) {
      append_symbol(-1, text.substr(0, it->second), scratch, first, ids);
      append_symbol(-1, text.substr(it->second), scratch, first, ids);
      return;
    }
  }
  append_id(id, text, first, ids);
}

void Segmenter::merge(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (has_unused_) return merge_long(text, scratch, ids);
  // Symbol i is text[begin[i], begin[i + 1]); merged_id[i], -1 for none, is what it and the next
  // one become.
  uint32_t begin[kFewSymbols + 1];
  int32_t id[kFewSymbols];
  int32_t merged_id[kFewSymbols];
  float merged_score[kFewSymbols];
  bool user_defined[kFewSymbols];
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  size_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) {
    if (count == kFewSymbols) return merge_long(text, scratch, ids);
    begin[count] = static_cast<uint32_t>(at);
    id[count] = -1;
    at += symbol_at(text, at, &user_defined[count]);
  }
  begin[count] = static_cast<uint32_t>(text.size());
  const auto look_up = [&](size_t i) {
    merged_score[i] = kNone;
    if (user_defined[i] || user_defined[i + 1]) return;
    merged_id[i] = pieces_.find(text.data() + begin[i], begin[i + 2] - begin[i]);
    if (merged_id[i] >= 0) merged_score[i] = pieces_[merged_id[i]].score;
  };
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      best = merged_score[i] > merged_score[best] ? i : best;
    }
    if (merged_score[best] == kNone) break;
    id[best] = merged_id[best];
    for (size_t i = best + 1; i + 1 < count; ++i) {
      begin[i] = begin[i + 1];
      id[i] = id[i + 1];
      user_defined[i] = user_defined[i + 1];
      merged_id[i] = merged_id[i + 1];
      merged_score[i] = merged_score[i + 1];
    }
    --count;
    begin[count] = static_cast<uint32_t>(text.size());
    if (best > 0) look_up(best - 1);
    if (best + 1 < count) look_up(best);
  }
  const size_t first = ids.size();
  for (size_t i = 0; i < count; ++i) {
    append_symbol(id[i], text.substr(begin[i], begin[i + 1] - begin[i]), scratch, first, ids);
  }
}

void Segmenter::merge_long(std::string_view text, Scratch& scratch,
                           std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols;
  auto& merges = scratch.merges;
  symbols.clear();
  merges.clear();
  scratch.unused.clear();
  const auto worse = [](const Scratch::Merge& a, const Scratch::Merge& b) {
    return a.score < b.score || (a.score == b.score && a.left > b.left);
  };
  const auto look_up = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Scratch::Symbol &l = symbols[static_cast<size_t>(left)],
                          &r = symbols[static_cast<size_t>(right)];
    if (l.user_defined || r.user_defined) return;
    const int32_t id = pieces_.find(text.data() + l.begin, l.size + r.size);
    if (id < 0) return;
    merges.push_back({pieces_[id].score, left, right, id, l.size + r.size});
    std::push_heap(merges.begin(), merges.end(), worse);
    if (has_unused_ && pieces_[id].type == PieceType::kUnused) scratch.unused[id] = l.size;
  };
  for (size_t at = 0; at < text.size();) {
    Scratch::Symbol symbol;
    const int32_t index = static_cast<int32_t>(symbols.size());
    symbol.begin = at;
    symbol.size = symbol_at(text, at, &symbol.user_defined);
    symbol.previous = index - 1;
    at += symbol.size;
    symbol.next = at < text.size() ? index + 1 : -1;
    symbols.push_back(symbol);
  }
  for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i) look_up(i - 1, i);
  while (!merges.empty()) {
    std::pop_heap(merges.begin(), merges.end(), worse);
    const Scratch::Merge top = merges.back();
    merges.pop_back();
    Scratch::Symbol &left = symbols[static_cast<size_t>(top.left)],
                    &right = symbols[static_cast<size_t>(top.right)];
    if (left.size == 0 || right.size == 0 || left.size + right.size != top.size) continue;
    left.size = top.size;
    left.id = top.id;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.left;
    look_up(left.previous, top.left);
    look_up(top.left, left.next);
  }
  const size_t first = ids.size();
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    const Scratch::Symbol& symbol = symbols[static_cast<size_t>(i)];
    append_symbol(symbol.id, text.substr(symbol.begin, symbol.size), scratch, first, ids);
  }
}

// ---- Unigram: the segmentation with the highest sum of scores.

/// Calls visit(id, size) for every piece that begins at text[at], the shortest first.
template <typename Visit>
void Segmenter::for_each_piece_at(std::string_view text, size_t at, Visit&& visit) const {
  const char* p = text.data() + at;
  const size_t left = text.size() - at;
  const auto look_up = [&](size_t size) {
    const int32_t id = pieces_.find(p, size);
    if (id >= 0 && pieces_[id].type != PieceType::kUnused) visit(id, size);
  };
  const uint8_t short_sizes = short_sizes_[static_cast<unsigned char>(*p)];
  for (size_t size = 1; size < kShortPiece && size <= left; ++size) {
    if (short_sizes >> size & 1) look_up(size);
  }
  if (left < kShortPiece) return;
  for (uint64_t sizes = long_sizes_[long_bucket(p)]; sizes != 0; sizes &= sizes - 1) {
    const size_t size = static_cast<size_t>(__builtin_ctzll(sizes));
    if (size > left) return;
    if (size < kVeryLongPiece) {
      look_up(size);
      continue;
    }
    for (size_t very_long : very_long_sizes_) {
      if (very_long > left) return;
      look_up(very_long);
    }
  }
}

double Segmenter::score_of(int32_t id) const {
  const PieceTable::Piece& piece = pieces_[id];
  // Beats all other pieces. The product is a float and the rest a double, as in the library.
  if (piece.type == PieceType::kUserDefined) {
    return static_cast<float>(piece.size) * max_score_ - 0.1;
  }
  return piece.score;
}

/// Adds and compares in the library's types and order: a sum of a score is compared before it is
/// rounded to float, with one that has been rounded.
void Segmenter::viterbi(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  using Node = Scratch::Node;
  constexpr uint32_t kUnreached = std::numeric_limits<uint32_t>::max();
  auto& nodes = scratch.nodes;
  nodes.assign(text.size() + 1, Node{0, -1, kUnreached});
  const float unknown_score = min_score_ - kUnknownPenalty;
  for (size_t at = 0; at < text.size();) {
    const float before = nodes[at].score;
    const size_t character = character_size(text, at);
    bool known = false;
    const auto offer = [&](Node& node, auto score, int32_t id) {
      if (node.begin != kUnreached && !(score > node.score)) return;
      node = {static_cast<float>(score), id, static_cast<uint32_t>(at)};
    };
    for_each_piece_at(text, at, [&](int32_t id, size_t size) {
      offer(nodes[at + size], score_of(id) + before, id);
      known |= size == character;
    });
    if (!known) offer(nodes[at + character], unknown_score + before, pieces_.unk_id());
    at += character;
  }
  scratch.path.clear();
  for (size_t end = text.size(); end > 0; end = nodes[end].begin) {
    scratch.path.emplace_back(nodes[end].begin, nodes[end].id);
  }
  const size_t first = ids.size();
  for (size_t i = scratch.path.size(); i-- > 0;) {
    const auto [begin, id] = scratch.path[i];
    const size_t end = i > 0 ? scratch.path[i - 1].first : text.size();
    append_id(id, text.substr(begin, end - begin), first, ids);
  }
}

/// In double, where errors are too small to matter, and with the gap between the best and the
/// second best last piece of every stretch on the way. In the float sums of a whole text each
/// addition is wrong by half a unit of the last of 24 bits at most: after `steps` of them, all sums
/// at most M, by steps * M * 2^-24. A gap of more than twice that is decided the same way there.
Segmenter::Word Segmenter::segment_word(std::string_view word, Scratch& scratch,
                                        std::vector<int32_t>& ids) const {
  if (word.empty()) return {FLT_MAX, 0};
  if (type_ == SentencePieceType::kBpe) {
    merge(word, scratch, ids);
    return {FLT_MAX, 0};
  }
  using Node = Scratch::WordNode;
  constexpr uint32_t kUnreached = std::numeric_limits<uint32_t>::max();
  auto& nodes = scratch.word_nodes;
  nodes.assign(word.size() + 1, Node{0, DBL_MAX, -1, kUnreached});
  const float unknown_score = min_score_ - kUnknownPenalty;
  double magnitude = std::fabs(unknown_score);
  size_t steps = 0;
  for (size_t at = 0; at < word.size(); ++steps) {
    const double before = nodes[at].score;
    magnitude = std::max(magnitude, std::fabs(before));
    const size_t character = character_size(word, at);
    bool known = false;
    const auto offer = [&](Node& node, double score, int32_t id) {
      if (node.begin == kUnreached) {
        node = {score, DBL_MAX, id, static_cast<uint32_t>(at)};
      } else if (score > node.score) {
        node = {score, score - node.score, id, static_cast<uint32_t>(at)};
      } else {
        node.gap = std::min(node.gap, node.score - score);
      }
    };
    for_each_piece_at(word, at, [&](int32_t id, size_t size) {
      offer(nodes[at + size], score_of(id) + before, id);
      known |= size == character;
    });
    if (!known) offer(nodes[at + character], unknown_score + before, pieces_.unk_id());
    at += character;
  }
  magnitude = std::max(magnitude, std::fabs(nodes[word.size()].score));
  double gap = DBL_MAX;
  scratch.path.clear();
  for (size_t end = word.size(); end > 0; end = nodes[end].begin) {
    scratch.path.emplace_back(nodes[end].begin, nodes[end].id);
    gap = std::min(gap, nodes[end].gap);
  }
  const size_t first = ids.size();
  for (size_t i = scratch.path.size(); i-- > 0;) {
    const auto [begin, id] = scratch.path[i];
    const size_t end = i > 0 ? scratch.path[i - 1].first : word.size();
    append_id(id, word.substr(begin, end - begin), first, ids);
  }
  // 1 / 1.1: the sum of the scores before is itself rounded, and so is this.
  const double limit = gap / (2 * static_cast<double>(steps + 2)) * 0x1p24 / 1.1 - magnitude;
  return {static_cast<float>(std::min<double>(limit, FLT_MAX)),
          static_cast<float>(std::fabs(nodes[word.size()].score))};
}

}  // namespace xsr
