#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace xsr::bench {

/// Zeroed memory on 2 MiB pages where the system grants them, so that a timing shows caches and
/// memory rather than page walks. 2 MiB aligned.
class HugeBuffer {
 public:
  explicit HugeBuffer(size_t bytes) {
    constexpr size_t kPage = size_t{2} << 20;
    size_ = (bytes + kPage - 1) / kPage * kPage + kPage;
    base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    const size_t skip = (kPage - reinterpret_cast<size_t>(base_) % kPage) % kPage;
    data_ = static_cast<char*>(base_) + skip;
    madvise(data_, size_ - kPage, MADV_HUGEPAGE);
  }
  ~HugeBuffer() { munmap(base_, size_); }
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  void* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  void* base_;
  char* data_;
  size_t size_;
};

}  // namespace xsr::bench
