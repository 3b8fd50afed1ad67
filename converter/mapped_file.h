#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace xsr {

/// A file mapped read-only for as long as the object lives.
class MappedFile {
 public:
  /// Throws Error(IO) naming the path and the system's reason; an empty file gives an empty span.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const unsigned char> bytes() const { return bytes_; }

 private:
  std::span<const unsigned char> bytes_;
};

}  // namespace xsr
