#include "runtime/device/page_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <limits>
#include <new>

namespace xsr {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t rounded_up(size_t bytes, size_t page) { return (bytes + page - 1) / page * page; }

char* map(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(data);
}

}  // namespace

PageMemory::PageMemory(size_t bytes, Pages pages) {
  if (bytes == 0) return;
  if (bytes > std::numeric_limits<size_t>::max() / 2) throw std::bad_alloc();
  bytes_ = rounded_up(bytes, static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  if (pages == kUsual || bytes < kHugePage) {
    data_ = map(bytes_);
    return;
  }
  // More than needed, cut down to what is aligned: beyond it nothing is to be paid for.
  char* const mapped = map(bytes_ + kHugePage);
  const size_t before = -reinterpret_cast<uintptr_t>(mapped) % kHugePage;
  if (before > 0) munmap(mapped, before);
  if (before < kHugePage) munmap(mapped + before + bytes_, kHugePage - before);
  data_ = mapped + before;
  madvise(data_, bytes_, MADV_HUGEPAGE);
}

PageMemory::~PageMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace xsr
