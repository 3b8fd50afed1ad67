#include <sentencepiece_processor.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <string>
#include <unordered_set>

#include "runtime/error.h"
#include "runtime/text/lowercase.h"
#include "runtime/text/sentencepiece_model.h"
#include "runtime/text/sentencepiece_normalizer.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

// In the library but not in its installed header: its messages go to stderr, and xsr never prints.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace xsr {
namespace {

constexpr int kOnlyFatal = 3;
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

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
// Scratch buffers above this size are given back after the call.
constexpr size_t kKeptBytes = 1 << 20;

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

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view blob, const ModelConfig& config)
      : SentencePieceTokenizer(parse_sentencepiece_model(blob), config) {}

  Result encode(std::string_view text, size_t max_tokens, std::vector<int32_t>& ids) const override;
  int32_t vocab_size() const override { return processor_.GetPieceSize(); }

 private:
  SentencePieceTokenizer(SentencePieceModel&& model, const ModelConfig& config);

  /// Appends up to limit ids of the well-formed text; true when it has more.
  bool segment(std::string_view text, size_t limit, std::vector<int32_t>& ids) const;
  void segment_part(std::string_view normalized, std::vector<int32_t>& ids, size_t first_id) const;
  /// True when the segmentations of normalized[0, at) and of the rest, side by side, are the
  /// segmentation of the whole.
  bool can_cut(std::string_view normalized, size_t at) const;
  size_t find_cut(std::string_view normalized, size_t* searched) const;
  void collect_pairs() const;

  SentencePieceType type_;
  bool byte_fallback_, lowercase_, cuts_allowed_ = true;
  int32_t cls_id_, sep_id_;  // -1: none is added
  int32_t unk_id_ = 0;
  size_t longest_piece_ = 0;  // bytes
  SentencePieceNormalizer normalizer_;
  sentencepiece::SentencePieceProcessor processor_;
  mutable std::once_flag pairs_once_;
  mutable std::unordered_set<uint64_t> pairs_;  // neighbouring characters inside some piece
};

SentencePieceTokenizer::SentencePieceTokenizer(SentencePieceModel&& model,
                                               const ModelConfig& config)
    : type_(model.type),
      byte_fallback_(model.byte_fallback),
      lowercase_(config.lowercase),
      cls_id_(config.add_cls ? config.cls_id : -1),
      sep_id_(config.add_sep ? config.sep_id : -1),
      normalizer_(model) {
  static std::once_flag quiet;
  std::call_once(quiet, [] { sentencepiece::logging::SetMinLogLevel(kOnlyFatal); });
  if (config.vocab_size < 0 || model.pieces.size() > static_cast<size_t>(config.vocab_size)) {
    throw Error(XSR_STATUS_BAD_FILE,
                "SentencePiece model: it has " + std::to_string(model.pieces.size()) +
                    " pieces, but the model's vocab_size is " + std::to_string(config.vocab_size) +
                    "; is it another model's tokenizer?");
  }
  std::string problem;
  try {
    const auto status = processor_.LoadFromSerializedProto(
        absl::string_view(model.segmenter.data(), model.segmenter.size()));
    if (!status.ok()) problem = status.error_message();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {  // its trie builder throws
    problem = e.what();
  }
  if (!problem.empty()) throw Error(XSR_STATUS_BAD_FILE, "SentencePiece model: " + problem);
  unk_id_ = processor_.unk_id();
  for (const auto& p : model.pieces) {
    longest_piece_ = std::max(longest_piece_, p.text.size());
    // A piece that is not text could begin inside a character; a piece that is there only to be
    // taken apart again is taken apart as it was last put together, wherever in the text that was.
    if (!is_valid_utf8(p.text)) cuts_allowed_ = false;
    if (p.type == PieceType::kUnused && type_ == SentencePieceType::kBpe) cuts_allowed_ = false;
  }
}

void SentencePieceTokenizer::collect_pairs() const {
  for (int id = 0; id < processor_.GetPieceSize(); ++id) {
    if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsByte(id)) continue;
    const std::string& piece = processor_.IdToPiece(id);
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
                                          size_t first_id) const {
  static thread_local std::vector<int> part;
  const auto status =
      processor_.Encode(absl::string_view(normalized.data(), normalized.size()), &part);
  if (!status.ok()) {
    // Its only reason with well-formed text: a control piece equals a character or word of it.
    throw Error(XSR_STATUS_BAD_FILE, std::string("SentencePiece model: ") + status.error_message() +
                                         " Is a control piece of the model a word of the text?");
  }
  auto begin = part.begin();
  // The library gives one id for a run of unknown characters; a cut may have gone through the run.
  if (!byte_fallback_ && !part.empty() && part.front() == unk_id_ && ids.size() > first_id &&
      ids.back() == unk_id_) {
    ++begin;
  }
  ids.insert(ids.end(), begin, part.end());
  if (part.capacity() * sizeof(int) > kKeptBytes) std::vector<int>().swap(part);
}

bool SentencePieceTokenizer::segment(std::string_view text, size_t limit,
                                     std::vector<int32_t>& ids) const {
  static thread_local std::string normalized;
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
    segment_part(std::string_view(normalized).substr(0, cut), ids, first_id);
    // The last id may still grow when it is the unknown one; one id more than the limit says that
    // the rest is cut.
    if (ids.size() - first_id > limit) break;
    normalized.erase(0, cut);
    searched = 0;
    wanted = cuts_allowed_ ? aim : most;
  }
  if (ids.size() - first_id <= limit && !normalized.empty())
    segment_part(normalized, ids, first_id);
  if (normalized.capacity() > kKeptBytes) std::string().swap(normalized);
  const bool more = ids.size() - first_id > limit;
  if (more) ids.resize(first_id + limit);
  return more;
}

Tokenizer::Result SentencePieceTokenizer::encode(std::string_view text, size_t max_tokens,
                                                 std::vector<int32_t>& ids) const {
  static thread_local std::string well_formed, lower;
  Result result;
  if (!is_valid_utf8(text)) {
    well_formed.clear();
    result.replaced_bytes = sanitize_utf8(text, well_formed);
    text = well_formed;
  }
  if (lowercase_) {
    lower.clear();
    append_lowercase(text, lower);
    text = lower;
  }
  const size_t first_id = ids.size();
  const size_t specials = (cls_id_ >= 0) + (sep_id_ >= 0);
  const size_t limit = max_tokens > specials ? max_tokens - specials : 0;
  if (cls_id_ >= 0) ids.push_back(cls_id_);
  const size_t first_piece = ids.size();
  result.truncated = segment(text, limit, ids);
  if (ids.size() == first_piece && !result.truncated) {
    ids.resize(first_id);  // an empty text has no special tokens either
  } else {
    if (sep_id_ >= 0) ids.push_back(sep_id_);
    if (ids.size() - first_id > max_tokens) ids.resize(first_id + max_tokens);
  }
  if (well_formed.capacity() > kKeptBytes) std::string().swap(well_formed);
  if (lower.capacity() > kKeptBytes) std::string().swap(lower);
  return result;
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string_view blob,
                                                        const ModelConfig& config) {
  return std::make_unique<SentencePieceTokenizer>(blob, config);
}

}  // namespace xsr
