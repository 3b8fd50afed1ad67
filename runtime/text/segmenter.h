#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/text/piece_table.h"

namespace xsr {

/// Scratch buffers above this size are given back after a call.
constexpr size_t kKeptScratchBytes = 1 << 20;
template <typename Buffer>
void shrink_scratch(Buffer& buffer) {
  if (buffer.capacity() * sizeof(typename Buffer::value_type) > kKeptScratchBytes)
    Buffer().swap(buffer);
}

/// SentencePiece's segmentation of normalised text into pieces, BPE and unigram, the ids the same
/// as those of the library's (0.1.97). Immutable; any number of threads at once, each with a
/// Scratch of its own.
class Segmenter {
 public:
  /// Memory that calls reuse; what it holds between them says nothing.
  struct Scratch {
    struct Symbol {
      size_t begin = 0, size = 0;      // size 0: merged into the one before
      int32_t previous = 0, next = 0;  // -1: none
      int32_t id = -1;                 // of a merged one
      bool user_defined = false;
    };
    struct Merge {
      float score = 0;
      int32_t left = 0, right = 0;  // symbols
      int32_t id = 0;
      size_t size = 0;  // bytes of both when the merge was found: another size, another symbol
    };
    /// The best segmentation of the text up to here: its score, and its last piece.
    struct Node {
      float score = 0;
      int32_t id = 0;
      uint32_t begin = 0;
    };
    /// The same for a word: and how much worse the second best last piece is.
    struct WordNode {
      double score = 0, gap = 0;
      int32_t id = 0;
      uint32_t begin = 0;
    };
    std::vector<Symbol> symbols;
    std::vector<Merge> merges;  // a heap
    std::vector<Node> nodes;
    std::vector<WordNode> word_nodes;
    std::vector<std::pair<uint32_t, int32_t>> path;  // begin, id, last first
    std::unordered_map<int32_t, size_t> unused;      // bytes of the left part, by piece
    /// Gives back what a long text has made large.
    void shrink();
  };

  /// A word's segmentation by itself. In a whole text the unigram model adds up scores in float
  /// from the text's first byte, so near ties may round otherwise there.
  struct Word {
    /// The word is segmented like this wherever the magnitudes of the scores before it add up to
    /// less; negative: perhaps nowhere.
    float max_score_before = 0;
    float score_magnitude = 0;  // what it adds to that sum
  };

  /// Null when the model has what this does not do, and the library is needed: word and character
  /// models, pieces that are not UTF-8, reserved pieces that text could be taken for, scores that
  /// are no finite numbers. pieces must outlive the result.
  static std::unique_ptr<Segmenter> make(const PieceTable& pieces);

  /// Appends the ids of a text (padded as kTextPadding says). Of unknown characters in a run
  /// together one id, of each byte one with byte_fallback.
  void segment(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  /// The same for a word.
  Word segment_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  explicit Segmenter(const PieceTable& pieces);
  void note_sizes();

  size_t symbol_at(std::string_view text, size_t at, bool* user_defined) const;
  void append_id(int32_t id, std::string_view text, size_t first, std::vector<int32_t>& ids) const;
  void append_symbol(int32_t id, std::string_view text, const Scratch& scratch, size_t first,
                     std::vector<int32_t>& ids) const;

  void merge(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;

  template <typename Visit>
  void for_each_piece_at(std::string_view text, size_t at, Visit&& visit) const;
  double score_of(int32_t id) const;
  void viterbi(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const;

  const PieceTable& pieces_;
  SentencePieceType type_;
  bool byte_fallback_;
  bool has_unused_;
  float min_score_, max_score_;
  std::array<bool, 256> begins_symbol_ = {};  // user-defined ones, by first byte
  // Unigram: which sizes pieces have that begin with these bytes; bit n: n bytes, the highest bit:
  // that many or more. Short pieces by their first byte, others by a hash of their first four.
  static constexpr size_t kShortPiece = 4;
  std::array<uint8_t, 256> short_sizes_ = {};
  std::vector<uint64_t> long_sizes_;
  std::vector<size_t> very_long_sizes_;  // 63 bytes and more, in order
};

}  // namespace xsr
