#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace xsr {

/// Opens path.partial, empty, or cut to its first `kept` bytes and with what is written next behind
/// them, to be written until it takes the place of path: locked, so that a
/// second process that wants to write the same file at the same time gets an error, for as long as
/// the descriptor is open (rename or remove the file before it is closed). Throws Error(IO), also
/// where path is a folder, which no file can take the place of, or a pipe or device, which none
/// shall: /dev/null would be gone; and where it has less than `kept` bytes. Where path is a
/// symbolic link the file takes the place of the link, as with mv and gcc -o, and what it points to
/// stays.
int open_partial_file(const std::string& path, uint64_t kept = 0);

/// Whether the file that was opened as fd has this name still: someone may have removed a partial
/// file, and what has its name now may be another process's.
bool has_name(int fd, const std::string& path);

/// Flushes the folder of a file that got its name a moment ago, so that a crash does not take it
/// back. Throws Error(IO); not where the file system, or a folder one may not read, does not let
/// it.
void flush_name(const std::string& path);

/// Throws Error(INVALID_ARGUMENT) where output, or its partial file, is one of the files `inputs`,
/// whose bytes would be lost.
void require_other_file(std::initializer_list<std::string> inputs, const std::string& output);

/// A file under the name path.partial that takes the place of path only once it is whole and on the
/// disk, so that a crash at any time leaves the old file or the whole new one. Removed again unless
/// it is committed. Locked as open_partial_file() says. Not for several threads at once.
class PartialFile {
 public:
  /// expected_size: bytes, for messages; 0 = not known. An older path.partial is written over.
  /// Every function throws Error(IO) naming the file, the place and the system's reason.
  explicit PartialFile(const std::string& path, uint64_t expected_size = 0);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  void write(const void* data, uint64_t size);
  /// Writes zeros up to the offset; nothing when it is behind.
  void pad_to(uint64_t offset);
  /// Replaces bytes that have been written: [offset, offset + size) of the first size().
  void overwrite(uint64_t offset, const void* data, uint64_t size);
  /// Flushes the data, then the name, to the disk.
  void commit();

  uint64_t size() const { return written_; }

 private:
  [[noreturn]] void fail(const std::string& what) const;

  const std::string path_, partial_;
  const uint64_t expected_size_;
  uint64_t written_ = 0;
  int fd_ = -1;
  bool renamed_ = false;
};

/// All of a file at once, through a PartialFile.
void write_whole_file(const std::string& path, std::string_view bytes);

}  // namespace xsr
