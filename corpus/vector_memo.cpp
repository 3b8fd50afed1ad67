#include "corpus/vector_memo.h"

#include <cstring>
#include <utility>

namespace xsr {
namespace {

// Long lines hardly ever come twice, and cost most to keep.
constexpr size_t kMaxTextBytes = 4096;
// Node, string, bucket and the allocator's headers of one entry.
constexpr size_t kEntryOverhead = 128;

}  // namespace

VectorMemo::VectorMemo(size_t columns, size_t max_bytes)
    : columns_(columns), max_bytes_(max_bytes) {}

size_t VectorMemo::entry_bytes(std::string_view text) const {
  return text.size() + columns_ * sizeof(float) + kEntryOverhead;
}

const VectorMemo::Entry* VectorMemo::find(std::string_view text) {
  if (const auto found = young_.entries.find(text); found != young_.entries.end()) {
    return &found->second;
  }
  const auto found = old_.entries.find(text);
  if (found == old_.entries.end()) return nullptr;
  auto node = old_.entries.extract(found);
  old_.bytes -= entry_bytes(node.key());
  return keep(std::move(node.key()), std::move(node.mapped()));
}

void VectorMemo::insert(std::string_view text, const float* vector, const xsr_text_result& result) {
  if (text.size() > kMaxTextBytes || entry_bytes(text) > max_bytes_ / 2) return;
  Entry entry{std::make_unique_for_overwrite<float[]>(columns_), result};
  std::memcpy(entry.vector.get(), vector, columns_ * sizeof(float));
  keep(std::string(text), std::move(entry));
}

const VectorMemo::Entry* VectorMemo::keep(std::string text, Entry entry) {
  const size_t bytes = entry_bytes(text);
  if (young_.bytes + bytes > max_bytes_ / 2) {
    old_ = std::move(young_);
    young_ = {};
  }
  const auto [place, inserted] = young_.entries.try_emplace(std::move(text), std::move(entry));
  if (inserted) young_.bytes += bytes;
  return &place->second;
}

}  // namespace xsr
