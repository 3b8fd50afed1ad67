#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace xsr {

/// What stands in for a file that Git LFS keeps elsewhere begins so.
inline constexpr std::string_view kGitLfsMagic = "version https://git-lfs";

/// A regular file mapped read-only for as long as the object lives.
///
/// Someone who cuts the file short while it is mapped makes the next access to the lost pages raise
/// SIGBUS. That cannot be caught here: replace a file in use by renaming a new one over it, as
/// write_xsr_file() does.
class MappedFile {
 public:
  /// what: what the file is to the reader, for messages ("cannot open" + what), e.g. " the model
  /// file". Throws Error(IO), or Error(OUT_OF_MEMORY) for want of memory to map it, naming the path
  /// and the system's reason; an empty file gives an empty span.
  explicit MappedFile(const std::string& path, const std::string& what = "");
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const unsigned char> bytes() const { return bytes_; }

 private:
  std::span<const unsigned char> bytes_;
};

/// The bytes of a file. Throws as MappedFile does.
std::string read_whole_file(const std::string& path, const std::string& what = "");

/// The bytes of the regular file that a text names; the text itself where it names none. Throws
/// Error(IO) where the system does not tell, and where a text that looks like a path (one word that
/// has a slash or ends in .txt or .md, and is no URL) names none.
std::string text_or_file(const std::string& text);

}  // namespace xsr
