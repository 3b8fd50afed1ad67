#include "runtime/text/word_memo.h"

#include <algorithm>
#include <bit>

namespace xsr {
namespace {

// 16 KiB to begin with: a session of a few sentences should not pay for more.
constexpr size_t kFirstSets = 64;

}  // namespace

WordMemo::WordMemo(size_t max_bytes)
    : max_sets_(std::bit_floor(std::max<size_t>(1, max_bytes / (kWays * sizeof(Entry))))) {
  const size_t sets = std::min(kFirstSets, max_sets_);
  entries_.resize(sets * kWays, Entry{});
  set_mask_ = sets - 1;
}

void WordMemo::grow() {
  const size_t sets = (set_mask_ + 1) * 4 > max_sets_ ? max_sets_ : (set_mask_ + 1) * 4;
  std::vector<Entry> old(sets * kWays, Entry{});  // where memory runs out all is as it was
  old.swap(entries_);
  set_mask_ = sets - 1;
  // The words of one set go to sets of their own, at most as many to each as there were.
  for (const Entry& entry : old) {
    if (entry.size == 0) continue;
    Key key;
    std::memcpy(key.words, entry.words, sizeof key.words);
    key.size = entry.size;
    Entry* place = &entries_[set_of(key)];
    while (place->size != 0) ++place;
    *place = entry;
  }
}

WordMemo::Entry& WordMemo::insert(const Key& key) {
  Entry* place = nullptr;
  while (place == nullptr) {
    Entry* set = &entries_[set_of(key)];
    for (size_t way = 0; way < kWays && place == nullptr; ++way) {
      if (set[way].size == 0) place = &set[way];
    }
    if (place != nullptr) break;
    if (set_mask_ + 1 < max_sets_) {
      grow();
      continue;
    }
    for (size_t tries = 0; tries < kWays; ++tries) {
      place = &set[hand_++ % kWays];
      if (!place->asked_for) break;
      place->asked_for = false;
    }
  }
  std::memcpy(place->words, key.words, sizeof place->words);
  place->size = static_cast<uint8_t>(key.size);
  place->asked_for = false;
  return *place;
}

}  // namespace xsr
