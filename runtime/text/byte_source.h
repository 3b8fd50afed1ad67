#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace xsr {

/// What packed data begins with. Neither is UTF-8. (Zstandard's skippable frames begin otherwise.)
inline constexpr std::string_view kGzipMagic("\x1F\x8B"), kZstdMagic("\x28\xB5\x2F\xFD");

/// A stream of bytes, as LineReader reads it: a file, or what is packed in one. Not for several
/// threads at once.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Puts 1 … size bytes at `to` and returns how many; 0 at the end of the input only. Throws
  /// Error.
  virtual size_t read(char* to, size_t size) = 0;
  /// For messages.
  virtual const std::string& name() const = 0;
  /// Bytes of the file as it is stored, 0 when it has no size (a pipe, a terminal), and how many of
  /// them have been read.
  virtual uint64_t total_bytes() const = 0;
  virtual uint64_t bytes_read() const = 0;
};

/// A file or standard input ("-", named "standard input"), as it is.
class FileSource : public ByteSource {
 public:
  /// stop, when given, ends the input early once it is set, even while waiting for more. Throws
  /// Error(IO).
  explicit FileSource(const std::string& path, const std::atomic<bool>* stop = nullptr);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  /// Throws Error(IO) also where a file ends before the size that it had when it was opened.
  size_t read(char* to, size_t size) override;
  const std::string& name() const override { return name_; }
  uint64_t total_bytes() const override { return total_bytes_; }
  uint64_t bytes_read() const override { return bytes_read_; }

 private:
  std::string name_;
  int fd_ = -1;
  const std::atomic<bool>* stop_;
  uint64_t total_bytes_ = 0, bytes_read_ = 0;
};

}  // namespace xsr
