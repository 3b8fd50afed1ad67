#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "xsr/xsr.h"

namespace xsr {

/// The vectors of texts seen lately, by the text's exact bytes, in bounded memory: a sentence that
/// comes again need not be computed again.
///
/// Two generations: texts enter the young one; when it holds half of the memory it becomes the old
/// one and the old one is forgotten. A text found in the old one enters the young one again, so
/// what keeps coming stays. Not for several threads at once.
class VectorMemo {
 public:
  struct Entry {
    const float* vector;  // [columns]
    xsr_text_result result;
  };

  VectorMemo(size_t columns, size_t max_bytes);

  /// None when the text is not remembered. The vector lives until the next call.
  std::optional<Entry> find(std::string_view text);
  /// Remembers a copy of vector [columns]. A text too long to be worth its memory is passed over.
  void insert(std::string_view text, const float* vector, const xsr_text_result& result);

  /// Bytes held, at most max_bytes.
  size_t bytes() const { return young_.bytes + old_.bytes; }

 private:
  /// Texts, vectors and results in the order they came, and a hash table of their places with open
  /// addressing. Its memory is kept when it starts anew.
  class Generation {
    struct Text {
      size_t begin;  // in bytes_
      uint32_t size;
      uint64_t hash;
      xsr_text_result result;
    };
    struct Slot {
      uint32_t tag;    // upper half of the hash
      uint32_t place;  // + 1; 0 = empty
    };

   public:
    /// The text's place, or none.
    std::optional<size_t> find(std::string_view text, uint64_t hash) const;
    size_t add(std::string_view text, uint64_t hash, const float* vector, size_t columns,
               const xsr_text_result& result);
    Entry at(size_t place, size_t columns) const {
      return {&vectors_[place * columns], texts_[place].result};
    }
    /// So that it need not move as it grows; what is not used yet costs address space only.
    void reserve_vectors(size_t count, size_t columns) { vectors_.reserve(count * columns); }
    void clear();

    /// Of a text with its vector and what the table has for it at most.
    static size_t entry_bytes(size_t text_bytes, size_t columns) {
      return text_bytes + columns * sizeof(float) + sizeof(Text) + 4 * sizeof(Slot);
    }
    size_t bytes = 0;

   private:
    void enter(uint64_t hash, size_t place);
    void grow();

    std::string bytes_;           // of all texts
    std::vector<Text> texts_;     // [places]
    std::vector<float> vectors_;  // [places, columns]
    std::vector<Slot> slots_;     // a power of two, at most half of them taken
  };

  size_t entry_bytes(std::string_view text) const {
    return Generation::entry_bytes(text.size(), columns_);
  }
  Entry keep(std::string_view text, uint64_t hash, const float* vector,
             const xsr_text_result& result);

  size_t columns_, max_bytes_;
  Generation young_, old_;
  std::vector<float> moved_;  // from the old generation to the young one
};

}  // namespace xsr
