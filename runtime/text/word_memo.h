#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime/text/piece_table.h"

namespace xsr {

/// Remembers the ids of words, in bounded memory: sets of a few places, each one cache line, that
/// grow in number up to the bound; then a new word takes the place of one that was not asked for
/// since the last search for a place. For one thread. A look-up takes bounded time whatever the
/// words are.
class WordMemo {
 public:
  static constexpr size_t kMaxBytes = 32;  // of a word
  static constexpr size_t kMaxIds = 6;

  /// A word's bytes, zeros behind them, and how many they are (1 to kMaxBytes).
  struct Key {
    uint64_t words[kMaxBytes / 8] = {};
    size_t size = 0;
  };
  struct alignas(64) Entry {
    uint64_t words[kMaxBytes / 8];
    uint8_t size;  // 0: free
    uint8_t num_ids;
    bool asked_for;
    uint8_t spare;
    int32_t ids[kMaxIds - 2];
    /// Either two more ids, or the two numbers of Segmenter::Word.
    union Rest {
      int32_t ids[2];
      float numbers[2];
    } rest;
  };
  static_assert(sizeof(Entry) == 64);

  explicit WordMemo(size_t max_bytes);

  /// Null when the word is not there. The entry stays where it is until the next insertion.
  const Entry* find(const Key& key) {
    Entry* set = &entries_[set_of(key)];
    for (size_t way = 0; way < kWays; ++way) {
      Entry& entry = set[way];
      if (entry.words[0] != key.words[0] || entry.size != key.size) continue;
      if (key.size > 8 && std::memcmp(entry.words + 1, key.words + 1, kMaxBytes - 8) != 0) continue;
      // Written only when it changes, so that words in use do not make their lines dirty.
      if (!entry.asked_for) entry.asked_for = true;
      return &entry;
    }
    return nullptr;
  }
  /// A place for a word that is not there: its key is filled in, the rest is for the caller to do.
  Entry& insert(const Key& key);

  size_t bytes() const { return entries_.size() * sizeof(Entry); }

 private:
  static constexpr size_t kWays = 4;

  size_t set_of(const Key& key) const {
    uint64_t h = mix_u64(key.words[0] ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u + key.size);
    if (key.size > 8) {
      for (size_t i = 1; i < kMaxBytes / 8; ++i) h = mix_u64(key.words[i] ^ h, 0xA0761D6478BD642Fu);
    }
    return (static_cast<size_t>(h) & set_mask_) * kWays;
  }
  void grow();

  std::vector<Entry> entries_;
  size_t set_mask_ = 0;  // number of sets - 1
  size_t max_sets_;
  size_t hand_ = 0;
};

}  // namespace xsr
