#pragma once
#include "runtime/device/page_memory.h"

namespace xsr::bench {

/// Zeroed memory wholly on 2 MiB pages where the system grants them, so that a timing shows caches
/// and memory rather than page walks. 2 MiB aligned.
class HugeBuffer : public PageMemory {
 public:
  explicit HugeBuffer(size_t bytes) : PageMemory((bytes + kPage - 1) / kPage * kPage, kHuge) {}

 private:
  static constexpr size_t kPage = size_t{2} << 20;
};

}  // namespace xsr::bench
