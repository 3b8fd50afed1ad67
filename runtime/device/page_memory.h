#pragma once
#include <cstddef>
#include <utility>

namespace xsr {

/// Fresh pages from the system: zeroed, page-aligned, and paid for only when touched.
class PageMemory {
 public:
  /// Huge: aligned to 2 MiB, and whole pieces of that size on pages of it where the system grants
  /// them.
  enum Pages { kUsual, kHuge };

  PageMemory() = default;
  /// Throws std::bad_alloc.
  explicit PageMemory(size_t bytes, Pages pages = kUsual);
  ~PageMemory();
  PageMemory(PageMemory&& other) noexcept { swap(other); }
  PageMemory& operator=(PageMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

 private:
  void swap(PageMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace xsr
