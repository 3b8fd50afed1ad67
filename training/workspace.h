#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>

#include "training/parameters.h"

namespace xsr::training {

/// A 64-byte aligned buffer that grows to what was asked for most. Its contents do not survive the
/// growth.
class Workspace {
 public:
  float* floats(int64_t count) {
    if (buffer_ == nullptr || buffer_->size() < count) {
      buffer_.reset();
      buffer_ = std::make_unique<FlatBuffer>(std::max<int64_t>(count, 16));
    }
    return buffer_->data();
  }

 private:
  std::unique_ptr<FlatBuffer> buffer_;
};

/// Rows of `columns` floats (or pairs of bf16) that start on 64 bytes and fall into different cache
/// sets.
constexpr int64_t row_stride(int64_t columns) { return (columns + 15) / 16 * 16 + 16; }
/// The same of rows that stand in bf16 too.
constexpr int64_t bf16_row_stride(int64_t columns) { return 2 * row_stride((columns + 1) / 2); }

/// Tasks of `block` items.
constexpr int32_t block_count(int64_t items, int64_t block) {
  return static_cast<int32_t>((items + block - 1) / block);
}

/// Loads `count` rows of `bytes` bytes, `stride` bytes apart, into the cache, ahead of a step that
/// reads a little of many rows at a time and would wait for memory at each. Loads in order set a
/// processor's own prefetching going; prefetch instructions in their place gained nothing.
inline void read_ahead(const void* rows, int64_t stride, int64_t bytes, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    const char* row = static_cast<const char*>(rows) + i * stride;
    for (int64_t at = 0; at < bytes; at += 64) __asm__ volatile("" ::"r"(row[at]));
  }
}

}  // namespace xsr::training
