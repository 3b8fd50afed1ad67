#include "corpus/vector_memo.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

namespace xsr {
namespace {

// Long lines hardly ever come twice, and cost most to keep.
constexpr size_t kMaxTextBytes = 4096;
constexpr size_t kFewestSlots = 1024;

}  // namespace

// ---- one generation ----

std::optional<size_t> VectorMemo::Generation::find(std::string_view text, uint64_t hash) const {
  if (slots_.empty()) return std::nullopt;
  const size_t mask = slots_.size() - 1;
  for (size_t i = hash & mask; slots_[i].place != 0; i = (i + 1) & mask) {
    if (slots_[i].tag != hash >> 32) continue;
    const Text& there = texts_[slots_[i].place - 1];
    if (text == std::string_view(bytes_).substr(there.begin, there.size)) {
      return slots_[i].place - 1;
    }
  }
  return std::nullopt;
}

size_t VectorMemo::Generation::add(std::string_view text, uint64_t hash, const float* vector,
                                   size_t columns, const xsr_text_result& result) {
  if (2 * (texts_.size() + 1) > slots_.size()) grow();
  const size_t place = texts_.size();
  enter(hash, place);
  texts_.push_back({bytes_.size(), static_cast<uint32_t>(text.size()), hash, result});
  bytes_.append(text);
  vectors_.insert(vectors_.end(), vector, vector + columns);
  return place;
}

void VectorMemo::Generation::enter(uint64_t hash, size_t place) {
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  while (slots_[i].place != 0) i = (i + 1) & mask;
  slots_[i] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(place + 1)};
}

void VectorMemo::Generation::grow() {
  slots_.assign(std::max(2 * slots_.size(), kFewestSlots), Slot{});
  for (size_t place = 0; place < texts_.size(); ++place) enter(texts_[place].hash, place);
}

void VectorMemo::Generation::clear() {
  bytes = 0;
  bytes_.clear();
  texts_.clear();
  vectors_.clear();
  std::fill(slots_.begin(), slots_.end(), Slot{});
}

// ---- both ----

VectorMemo::VectorMemo(size_t columns, size_t max_bytes)
    : columns_(columns), max_bytes_(max_bytes) {
  for (Generation* generation : {&young_, &old_})
    generation->reserve_vectors(max_bytes / 2 / entry_bytes(""), columns);
}

std::optional<VectorMemo::Entry> VectorMemo::find(std::string_view text) {
  const uint64_t hash = XXH3_64bits(text.data(), text.size());
  if (const auto place = young_.find(text, hash)) return young_.at(*place, columns_);
  const auto place = old_.find(text, hash);
  if (!place) return std::nullopt;
  const Entry entry = old_.at(*place, columns_);
  moved_.assign(entry.vector, entry.vector + columns_);  // old_ may be forgotten now
  return keep(text, hash, moved_.data(), entry.result);
}

void VectorMemo::insert(std::string_view text, const float* vector, const xsr_text_result& result) {
  if (text.size() > kMaxTextBytes || entry_bytes(text) > max_bytes_ / 2) return;
  const uint64_t hash = XXH3_64bits(text.data(), text.size());
  if (!young_.find(text, hash)) keep(text, hash, vector, result);
}

VectorMemo::Entry VectorMemo::keep(std::string_view text, uint64_t hash, const float* vector,
                                   const xsr_text_result& result) {
  if (young_.bytes + entry_bytes(text) > max_bytes_ / 2) {
    std::swap(young_, old_);
    young_.clear();
  }
  young_.bytes += entry_bytes(text);
  return young_.at(young_.add(text, hash, vector, columns_, result), columns_);
}

}  // namespace xsr
