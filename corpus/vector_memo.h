#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "xsr/xsr.h"

namespace xsr {

/// The vectors of texts seen lately, by the text's exact bytes, in bounded memory: a sentence that
/// comes again need not be computed again.
///
/// Two generations: texts enter the young one; when it holds half of the memory it becomes the old
/// one and the old one is forgotten. A text found in the old one moves to the young one, so what
/// keeps coming stays. Not for several threads at once.
class VectorMemo {
 public:
  struct Entry {
    std::unique_ptr<float[]> vector;  // [columns]
    xsr_text_result result = {};
  };

  VectorMemo(size_t columns, size_t max_bytes);

  /// Null when the text is not remembered. The entry lives until the next call.
  const Entry* find(std::string_view text);
  /// Remembers a copy of vector [columns]. A text too long to be worth its memory is passed over.
  void insert(std::string_view text, const float* vector, const xsr_text_result& result);

  /// Bytes held, an estimate of the containers' own included; at most max_bytes.
  size_t bytes() const { return young_.bytes + old_.bytes; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  struct Generation {
    std::unordered_map<std::string, Entry, Hash, std::equal_to<>> entries;
    size_t bytes = 0;
  };

  size_t entry_bytes(std::string_view text) const;
  const Entry* keep(std::string text, Entry entry);

  size_t columns_, max_bytes_;
  Generation young_, old_;
};

}  // namespace xsr
