#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <span>
#include <string>
#include <unordered_set>

#include "runtime/error.h"
#include "runtime/text/lowercase.h"
#include "runtime/text/piece_table.h"
#include "runtime/text/segmenter.h"
#include "runtime/text/sentencepiece_library.h"
#include "runtime/text/sentencepiece_model.h"
#include "runtime/text/sentencepiece_normalizer.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"
#include "runtime/text/word_memo.h"

namespace xsr {
namespace {

// A long text is segmented piece by piece, and only as far as its first max_tokens ids go, so that
// a text of any length takes bounded time and memory. The cuts are exact: see can_cut(). What a
// piece aims at, in normalised bytes:
constexpr size_t kSegmentBytes = 1024;
// The unigram segmentation adds up scores in float from the segment's first byte, so that a second
// segment might round a near tie otherwise than the whole text would. Its first segment therefore
// holds 200 tokens of any language.
constexpr size_t kUnigramSegmentBytes = 65536;
// Without a place to cut (the same letters over and over), this much is segmented at once: the
// library needs some 100 bytes of memory for each. What comes behind the cut can only matter to ids
// near it.
constexpr size_t kMaxSegmentBytes = 256 * 1024;
// A text with a longer word (no space: another script, or no text at all) is normalised as a whole.
constexpr size_t kMaxWordBytes = 1024;

/// The bytes of the code point that ends just before text[at], at > 0, and of the one that begins
/// there.
std::string_view character_before(std::string_view text, size_t at) {
  size_t begin = at - 1;
  while (begin > 0 && at - begin < 4 && (text[begin] & 0xC0) == 0x80) --begin;
  return text.substr(begin, at - begin);
}
std::string_view character_at(std::string_view text, size_t at) {
  size_t end = at + 1;
  while (end < text.size() && end - at < 4 && (text[end] & 0xC0) == 0x80) ++end;
  return text.substr(at, end - at);
}

/// Two neighbouring characters (at most 4 bytes each) as one number.
uint64_t pair_key(std::string_view left, std::string_view right) {
  uint64_t key = 0;
  for (char c : left) key = key << 8 | static_cast<unsigned char>(c);
  uint64_t low = 0;
  for (char c : right) low = low << 8 | static_cast<unsigned char>(c);
  return key << 32 | low;
}

/// What the calls of one thread share.
struct ThreadScratch {
  Segmenter::Scratch segmenter;
  std::string well_formed, lower, normalized, padded;
  std::vector<int32_t> ids, word_ids;
  std::vector<int> library_ids;

  void shrink() {
    for (std::string* s : {&well_formed, &lower, &normalized, &padded}) shrink_scratch(*s);
    shrink_scratch(ids);
    shrink_scratch(library_ids);
    segmenter.shrink();
  }
};

/// Reads the words between the ASCII spaces of a text.
class WordReader {
 public:
  explicit WordReader(std::string_view text) : text_(text) { move_to(0); }

  /// Moves to the next word; false at the end.
  bool next() {
    for (;;) {
      // Copied where loads of whole words would pass the end of the text.
      if (text_.size() - at_ < kPeek && !in_tail_) enter_tail();
      if (at_ >= text_.size()) return false;
      if (*here_ != ' ') break;
      ++here_;
      ++at_;
    }
    begin_ = at_;
    size_t size = 0, i = 0;
    for (; i < std::size(key_.words); ++i) {
      const uint64_t bytes = load_u64(here_ + 8 * i);
      const uint64_t other = bytes ^ 0x2020202020202020u;
      // The lowest high bit that is set marks the first space.
      const uint64_t spaces = (other - 0x0101010101010101u) & ~other & 0x8080808080808080u;
      if (spaces != 0) {
        const size_t before = static_cast<size_t>(std::countr_zero(spaces)) / 8;
        key_.words[i] = before == 0 ? 0 : keep_bytes(bytes, before);
        size = 8 * i + before;
        break;
      }
      key_.words[i] = bytes;
    }
    if (i < std::size(key_.words)) {
      while (++i < std::size(key_.words)) key_.words[i] = 0;
    } else {
      size = std::min(text_.find(' ', at_ + sizeof key_.words), text_.size()) - at_;
    }
    key_.size = size;
    here_ += size;
    at_ += size;
    return true;
  }
  /// The word; as a key it is whole only up to WordMemo::kMaxBytes.
  std::string_view word() const { return text_.substr(begin_, at_ - begin_); }
  const WordMemo::Key& key() const { return key_; }
  /// What is behind the word.
  std::string_view rest() const { return text_.substr(at_); }

 private:
  static constexpr size_t kPeek = WordMemo::kMaxBytes;

  void move_to(size_t at) {
    at_ = at;
    here_ = text_.data() + at;
  }
  void enter_tail() {
    in_tail_ = true;
    std::memset(tail_, ' ', sizeof tail_);
    const size_t left = text_.size() - at_;
    if (left > 0) std::memcpy(tail_, text_.data() + at_, left);
    here_ = tail_;
  }

  std::string_view text_;
  const char* here_ = nullptr;  // the byte at at_, in the text or in the tail
  size_t at_ = 0, begin_ = 0;
  bool in_tail_ = false;
  char tail_[2 * kPeek];
  WordMemo::Key key_;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  /// tables: the file's, or empty and then they are made from the model.
  SentencePieceTokenizer(std::string_view blob, std::span<const unsigned char> tables,
                         const ModelConfig& config);
  /// False when the file's tables are of a model that needs the library, which only a model that
  /// was parsed may be given to.
  bool usable() const { return segmenter_ != nullptr || processor_ != nullptr; }

  using Tokenizer::encode;
  Result encode(std::string_view text, size_t max_tokens, std::vector<int32_t>& ids,
                State* state) const override;
  std::unique_ptr<State> make_state(size_t memo_bytes) const override;
  int32_t vocab_size() const override { return pieces_.size(); }

 private:
  struct Memo final : State {
    explicit Memo(size_t max_bytes) : words(max_bytes) {}
    WordMemo words;
  };

  // Text as a whole.
  Result encode_text(std::string_view text, size_t limit, std::vector<int32_t>& ids,
                     ThreadScratch& scratch) const;
  /// Appends up to limit ids of the well-formed text; true when it has more.
  bool segment(std::string_view text, size_t limit, std::vector<int32_t>& ids,
               ThreadScratch& scratch) const;
  void segment_part(std::string_view normalized, std::vector<int32_t>& ids, size_t first_id,
                    ThreadScratch& scratch) const;
  /// True when the segmentations of normalized[0, at) and of the rest, side by side, are the
  /// segmentation of the whole.
  bool can_cut(std::string_view normalized, size_t at) const;
  size_t find_cut(std::string_view normalized, size_t* searched) const;
  void collect_pairs() const;

  // Text word by word.
  bool encode_words(std::string_view text, size_t limit, std::vector<int32_t>& ids, Memo* memo,
                    ThreadScratch& scratch, bool* truncated) const;
  bool normalize_word(std::string_view word, ThreadScratch& scratch) const;

  const std::vector<unsigned char> own_tables_;  // where the file has none
  PieceTable pieces_;
  SentencePieceType type_;
  bool byte_fallback_, lowercase_, cuts_allowed_;
  bool words_apart_ = false;
  int32_t cls_id_, sep_id_;  // -1: none is added
  size_t longest_piece_;     // bytes
  SentencePieceNormalizer normalizer_;
  std::array<bool, 256> plain_ = {};  // letters that only lower-casing changes in a word of such
  std::unique_ptr<Segmenter> segmenter_;                              // or
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;  // where that cannot do it
  mutable std::once_flag pairs_once_;
  mutable std::unordered_set<uint64_t> pairs_;  // neighbouring characters inside some piece
};

SentencePieceTokenizer::SentencePieceTokenizer(std::string_view blob,
                                               std::span<const unsigned char> tables,
                                               const ModelConfig& config)
    : own_tables_(tables.empty() ? make_tokenizer_tables(blob) : std::vector<unsigned char>()),
      pieces_(blob, tables.empty() ? std::span(own_tables_) : tables),
      type_(pieces_.settings().type),
      byte_fallback_(pieces_.settings().byte_fallback),
      lowercase_(config.lowercase),
      cls_id_(config.add_cls ? config.cls_id : -1),
      sep_id_(config.add_sep ? config.sep_id : -1),
      longest_piece_(pieces_.facts().longest),
      normalizer_(pieces_) {
  if (config.vocab_size < 0 || pieces_.size() > config.vocab_size) {
    throw Error(XSR_STATUS_BAD_FILE,
                "SentencePiece model: it has " + std::to_string(pieces_.size()) +
                    " pieces, but the model's vocab_size is " + std::to_string(config.vocab_size) +
                    "; is it another model's tokenizer?");
  }
  // A piece that is not text could begin inside a character; a piece that is there only to be taken
  // apart again is taken apart as it was last put together, wherever in the text that was.
  cuts_allowed_ =
      pieces_.all_utf8() && !(pieces_.facts().any_unused && type_ == SentencePieceType::kBpe);
  segmenter_ = Segmenter::make(pieces_);
  if (segmenter_ == nullptr && tables.empty()) processor_ = load_sentencepiece_library(blob);
  // With the dummy prefix all words begin alike, with U+2581.
  words_apart_ = segmenter_ != nullptr && cuts_allowed_ && !pieces_.space_inside() &&
                 pieces_.settings().add_dummy_prefix && normalizer_.words_apart();
  for (unsigned char c = 0; c < 0x80; ++c) {
    const bool upper = lowercase_ && c >= 'A' && c <= 'Z';
    plain_[c] = normalizer_.is_plain(upper ? static_cast<unsigned char>(c + ('a' - 'A')) : c);
  }
}

void SentencePieceTokenizer::collect_pairs() const {
  for (int32_t id = 0; id < pieces_.size(); ++id) {
    const PieceType type = pieces_[id].type;
    if (type == PieceType::kControl || type == PieceType::kUnknown || type == PieceType::kByte) {
      continue;
    }
    const std::string_view piece = pieces_.text(id);
    std::string_view left = character_at(piece, 0);
    for (size_t at = left.size(); at < piece.size();) {
      const std::string_view right = character_at(piece, at);
      pairs_.insert(pair_key(left, right));
      at += right.size();
      left = right;
    }
  }
}

/// A piece is a stretch of text of which every two neighbouring characters stand side by side in
/// some piece of the vocabulary. Where two characters never do, no piece, and no step on the way to
/// one, can span them: the text falls into independent parts there. U+2581 behind a letter is such
/// a place in most models, but not the only one, and a text without any space is full of them. The
/// word model looks up whole words, so only the space counts.
bool SentencePieceTokenizer::can_cut(std::string_view normalized, size_t at) const {
  const std::string_view right = character_at(normalized, at);
  if (type_ == SentencePieceType::kWord) return right == kSpaceSymbol;
  return !pairs_.count(pair_key(character_before(normalized, at), right));
}

/// The last place to cut behind *searched with something other than white space behind it (white
/// space at the end of the text is dropped, so it must not be given away before the end is known).
/// 0 when there is none, and then the next search need only look behind the new *searched.
size_t SentencePieceTokenizer::find_cut(std::string_view normalized, size_t* searched) const {
  size_t at = normalized.size();
  while (at > 0 && character_before(normalized, at) == kSpaceSymbol) at -= kSpaceSymbol.size();
  if (at == 0) return 0;
  const size_t last = at -= character_before(normalized, at).size();
  for (; at > *searched; at -= character_before(normalized, at).size()) {
    if (can_cut(normalized, at)) return at;
  }
  *searched = std::max(*searched, last);
  return 0;
}

void SentencePieceTokenizer::segment_part(std::string_view normalized, std::vector<int32_t>& ids,
                                          size_t first_id, ThreadScratch& scratch) const {
  const size_t first = ids.size();
  if (segmenter_ != nullptr) {
    scratch.padded.assign(normalized);
    scratch.padded.append(kTextPadding, '\0');
    segmenter_->segment({scratch.padded.data(), normalized.size()}, scratch.segmenter, ids);
  } else {
    const auto status = processor_->Encode(absl::string_view(normalized.data(), normalized.size()),
                                           &scratch.library_ids);
    if (!status.ok()) {
      // Its only reason with well-formed text: a control piece equals a character or word of it.
      throw Error(XSR_STATUS_BAD_FILE, std::string("SentencePiece model: ") +
                                           status.error_message() +
                                           " Is a control piece of the model a word of the text?");
    }
    ids.insert(ids.end(), scratch.library_ids.begin(), scratch.library_ids.end());
  }
  // A run of unknown characters has one id; a cut may have gone through the run.
  if (!byte_fallback_ && first > first_id && ids.size() > first && ids[first] == pieces_.unk_id() &&
      ids[first - 1] == pieces_.unk_id()) {
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(first));
  }
}

bool SentencePieceTokenizer::segment(std::string_view text, size_t limit, std::vector<int32_t>& ids,
                                     ThreadScratch& scratch) const {
  std::string& normalized = scratch.normalized;
  normalized.clear();
  const size_t first_id = ids.size();
  const size_t aim = type_ == SentencePieceType::kUnigram ? kUnigramSegmentBytes : kSegmentBytes;
  const size_t most =
      std::max(kMaxSegmentBytes, 2 * std::min<size_t>(limit, 65536) * longest_piece_);
  SentencePieceNormalizer::Stream stream(normalizer_, text);
  size_t searched = 0;
  size_t wanted = cuts_allowed_ ? aim : most;
  while (stream.append(wanted, normalized)) {
    size_t cut = 0;
    if (cuts_allowed_) {
      std::call_once(pairs_once_, [this] { collect_pairs(); });
      cut = find_cut(normalized, &searched);
    }
    if (cut == 0 && normalized.size() >= most) {
      cut = normalized.size() - character_before(normalized, normalized.size()).size();
    }
    if (cut == 0) {
      wanted = normalized.size() + aim;
      continue;
    }
    segment_part(std::string_view(normalized).substr(0, cut), ids, first_id, scratch);
    // The last id may still grow when it is the unknown one; one id more than the limit says that
    // the rest is cut.
    if (ids.size() - first_id > limit) break;
    normalized.erase(0, cut);
    searched = 0;
    wanted = cuts_allowed_ ? aim : most;
  }
  if (ids.size() - first_id <= limit && !normalized.empty())
    segment_part(normalized, ids, first_id, scratch);
  const bool more = ids.size() - first_id > limit;
  if (more) ids.resize(first_id + limit);
  return more;
}

Tokenizer::Result SentencePieceTokenizer::encode_text(std::string_view text, size_t limit,
                                                      std::vector<int32_t>& ids,
                                                      ThreadScratch& scratch) const {
  Result result;
  if (!is_valid_utf8(text)) {
    scratch.well_formed.clear();
    result.replaced_bytes = sanitize_utf8(text, scratch.well_formed);
    text = scratch.well_formed;
  }
  if (lowercase_) {
    scratch.lower.clear();
    append_lowercase(text, scratch.lower);
    text = scratch.lower;
  }
  result.truncated = segment(text, limit, ids, scratch);
  return result;
}

// ---- Word by word. In a text that ASCII spaces cut into words, a word's ids are a matter of its
// bytes alone where words_apart_ holds and normalize_word() says yes: a space ends a malformed
// sequence, and what a final sigma may look at; no rule of the normaliser goes across it; it makes
// one U+2581, however many there are, which is no piece's inside.

/// The word's part of the normalised text: U+2581 and its letters, into scratch.normalized (padded
/// as kTextPadding says, by more than its size), or nothing when no letter is left. False when that
/// could depend on what is around the word.
bool SentencePieceTokenizer::normalize_word(std::string_view word, ThreadScratch& scratch) const {
  std::string& out = scratch.normalized;
  out.assign(kSpaceSymbol);
  bool plain = true;
  for (char c : word) plain &= plain_[static_cast<unsigned char>(c)];
  if (plain) {
    if (lowercase_) {
      append_lowercase(word, out);
    } else {
      out.append(word);
    }
    out.append(kTextPadding, '\0');
    return true;
  }
  if (!is_valid_utf8(word)) return false;
  std::string& lower = scratch.lower;
  lower.clear();
  if (lowercase_) {
    append_lowercase(word, lower);
  } else {
    lower.assign(word);
  }
  // In the normalised text it could not be told from a space, which other spaces are dropped at.
  if (lower.find(kSpaceSymbol) != std::string::npos) return false;
  lower.push_back(' ');  // to see whether a rule goes on behind the word
  bool after_space = true;
  for (std::string_view rest = lower; rest.size() > 1;) {
    if (normalizer_.is_plain(static_cast<unsigned char>(rest[0])) &&
        static_cast<unsigned char>(rest[1]) < 0x80) {
      out.push_back(rest[0]);
      rest.remove_prefix(1);
      after_space = false;
      continue;
    }
    size_t consumed, seen;
    std::string_view piece = normalizer_.prefix(rest, &consumed, &seen);
    if (seen == rest.size()) return false;
    rest.remove_prefix(consumed);
    while (after_space && !piece.empty() && piece[0] == ' ') piece.remove_prefix(1);
    if (piece.empty()) continue;
    after_space = piece.back() == ' ';
    for (char c : piece) c == ' ' ? out.append(kSpaceSymbol) : out.append(1, c);
  }
  // The space behind the word, or the end of the text, takes one space away, but not two.
  if (after_space) out.resize(out.size() - kSpaceSymbol.size());
  if (out.size() >= kSpaceSymbol.size() && after_space &&
      character_before(out, out.size()) == kSpaceSymbol) {
    return false;
  }
  out.append(kTextPadding, '\0');
  return true;
}

/// Appends up to limit ids; *truncated when the text has more. False when the text has to be
/// encoded as a whole, and then ids is as it was.
bool SentencePieceTokenizer::encode_words(std::string_view text, size_t limit,
                                          std::vector<int32_t>& ids, Memo* memo,
                                          ThreadScratch& scratch, bool* truncated) const {
  const bool scored = type_ == SentencePieceType::kUnigram;
  // A run of unknown characters has one id, also across words (where U+2581 is unknown).
  const int32_t merged_id = byte_fallback_ ? -1 : pieces_.unk_id();
  constexpr size_t kSlack = WordMemo::kMaxIds;
  std::vector<int32_t>& out = scratch.ids;
  if (out.size() < 4 * kSlack) out.resize(256);
  size_t count = 0;
  double scores = 0;  // magnitudes of the scores of the words so far, added up
  WordReader reader(text);
  while (count <= limit && reader.next()) {
    if (out.size() - count < kSlack + 1) out.resize(2 * out.size());
    const WordMemo::Key& key = reader.key();
    const bool memorable = memo != nullptr && key.size <= WordMemo::kMaxBytes;
    if (memorable) {
      if (const WordMemo::Entry* entry = memo->words.find(key)) {
        if (scored) {
          if (!(scores < entry->rest.numbers[0])) return false;
          scores += entry->rest.numbers[1];
        }
        const size_t added = entry->num_ids;
        int32_t* to = out.data() + count;
        std::memcpy(to, entry->ids, sizeof entry->ids);
        std::memcpy(to + std::size(entry->ids), &entry->rest, sizeof entry->rest);
        if (count > 0 && to[-1] == merged_id && added > 0 && to[0] == merged_id) {
          std::memmove(to, to + 1, (kSlack - 1) * sizeof(int32_t));
          --count;
        }
        count += added;
        continue;
      }
    }
    if (key.size > kMaxWordBytes || !normalize_word(reader.word(), scratch)) return false;
    const std::string_view normalized(scratch.normalized.data(),
                                      scratch.normalized.size() - kTextPadding);
    std::vector<int32_t>& added = scratch.word_ids;
    added.clear();
    const Segmenter::Word word = segmenter_->segment_word(normalized, scratch.segmenter, added);
    if (memorable && added.size() <= (scored ? kSlack - 2 : kSlack)) {
      WordMemo::Entry& entry = memo->words.insert(key);
      entry.num_ids = static_cast<uint8_t>(added.size());
      for (size_t i = 0; i < added.size(); ++i) {
        (i < std::size(entry.ids) ? entry.ids[i] : entry.rest.ids[i - std::size(entry.ids)]) =
            added[i];
      }
      if (scored) {
        entry.rest.numbers[0] = word.max_score_before;
        entry.rest.numbers[1] = word.score_magnitude;
      }
    }
    if (scored) {
      if (!(scores < word.max_score_before)) return false;
      scores += word.score_magnitude;
    }
    if (added.empty()) continue;
    if (out.size() - count < added.size())
      out.resize(std::max(2 * out.size(), count + added.size()));
    if (count > 0 && out[count - 1] == merged_id && added[0] == merged_id) --count;
    std::copy(added.begin(), added.end(), out.begin() + static_cast<ptrdiff_t>(count));
    count += added.size();
  }
  if (count > limit) {
    // How many malformed bytes there are is asked of the whole text.
    if (!is_valid_utf8(reader.rest())) return false;
    *truncated = true;
    count = limit;
  }
  ids.insert(ids.end(), out.begin(), out.begin() + static_cast<ptrdiff_t>(count));
  return true;
}

std::unique_ptr<Tokenizer::State> SentencePieceTokenizer::make_state(size_t memo_bytes) const {
  if (!words_apart_) return nullptr;
  return std::make_unique<Memo>(memo_bytes);
}

Tokenizer::Result SentencePieceTokenizer::encode(std::string_view text, size_t max_tokens,
                                                 std::vector<int32_t>& ids, State* state) const {
  static thread_local ThreadScratch scratch;
  Result result;
  const size_t first_id = ids.size();
  const size_t specials = (cls_id_ >= 0) + (sep_id_ >= 0);
  const size_t limit = max_tokens > specials ? max_tokens - specials : 0;
  if (cls_id_ >= 0) ids.push_back(cls_id_);
  const size_t first_piece = ids.size();
  if (!words_apart_ ||
      !encode_words(text, limit, ids, static_cast<Memo*>(state), scratch, &result.truncated)) {
    result = encode_text(text, limit, ids, scratch);
  }
  if (text.size() > kKeptScratchBytes / 16) scratch.shrink();
  if (ids.size() == first_piece && !result.truncated) {
    ids.resize(first_id);  // an empty text has no special tokens either
  } else {
    if (sep_id_ >= 0) ids.push_back(sep_id_);
    if (ids.size() - first_id > max_tokens) ids.resize(first_id + max_tokens);
  }
  return result;
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string_view blob,
                                                        std::span<const unsigned char> tables,
                                                        const ModelConfig& config) {
  if (has_tokenizer_tables(tables)) {
    auto tokenizer = std::make_unique<SentencePieceTokenizer>(blob, tables, config);
    if (tokenizer->usable()) return tokenizer;
  }
  return std::make_unique<SentencePieceTokenizer>(blob, std::span<const unsigned char>(), config);
}

}  // namespace xsr
