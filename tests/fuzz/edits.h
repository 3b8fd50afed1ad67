#pragma once
// What the fuzzers of files with checksums share: an input is a list of edits of a sound file, so
// that it need not find the file's form first.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace xsr::fuzz {

inline void require(bool condition) {
  if (!condition) std::abort();
}

/// Every six bytes of edits are a place, modulo the file's size, how many bytes go there (the low
/// four bits), whether one comes (the next bit), and which.
inline std::string edited(std::string file, const uint8_t* edits, size_t size) {
  for (; size >= 6 && !file.empty(); edits += 6, size -= 6) {
    uint32_t at;
    std::memcpy(&at, edits, sizeof at);
    at %= static_cast<uint32_t>(file.size());
    file.replace(at, edits[4] & 15, edits[4] >> 4 & 1, static_cast<char>(edits[5]));
  }
  return file;
}

/// A file in memory that has a path.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) { require(fd_ >= 0); }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }
  void write(std::string_view bytes) const {
    require(::ftruncate(fd_, static_cast<off_t>(bytes.size())) == 0 &&
            ::pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  }

 private:
  int fd_;
};

}  // namespace xsr::fuzz
