#include "runtime/format/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "runtime/error.h"

namespace xsr {

MappedFile::MappedFile(const std::string& path, const std::string& what) {
  const auto io_error = [&](const char* failed) {
    // Of addresses, by a limit on the process: `ulimit -v`.
    return Error(errno == ENOMEM ? XSR_STATUS_OUT_OF_MEMORY : XSR_STATUS_IO,
                 path + ": " + failed + what + ": " + std::generic_category().message(errno));
  };
  int fd;
  do {
    // O_NONBLOCK: a named pipe would otherwise wait here for a writer. It means nothing to a file.
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) throw io_error("cannot open");
  // The mapping outlives the descriptor.
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat status;
  if (::fstat(fd, &status) != 0) throw io_error("cannot read the size of");
  if (!S_ISREG(status.st_mode)) {
    throw Error(XSR_STATUS_IO, path + ": is no regular file" +
                                   (S_ISDIR(status.st_mode) ? " (it is a directory)" : "") +
                                   ", so it cannot be mapped; give the path of a file");
  }
  if (status.st_size > 0) {  // an empty file cannot be mapped
    const size_t size = static_cast<size_t>(status.st_size);
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) throw io_error("cannot map");
    bytes_ = {static_cast<const unsigned char*>(data), size};
  }
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<unsigned char*>(bytes_.data()), bytes_.size());
}

std::string read_whole_file(const std::string& path, const std::string& what) {
  const MappedFile file(path, what);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

namespace {

/// Whether nobody writes such a text but as the path of a file.
bool looks_like_path(const std::string& text) {
  if (text.find_first_of(" \t\r\n") != std::string::npos) return false;
  if (text.find("://") != std::string::npos) return false;
  return text.find('/') != std::string::npos || text.ends_with(".txt") || text.ends_with(".md");
}

}  // namespace

std::string text_or_file(const std::string& text) {
  std::error_code error;
  const auto type = std::filesystem::status(text, error).type();
  // Terms of some lines are too long for a name. Any other error may hide a file.
  if (type == std::filesystem::file_type::none && error != std::errc::filename_too_long) {
    throw Error(XSR_STATUS_IO,
                text + ": cannot tell whether this names a file: " + error.message());
  }
  if (type == std::filesystem::file_type::regular) return read_whole_file(text);
  if (looks_like_path(text))
    throw Error(XSR_STATUS_IO,
                text + ": no such file; give the path of one, or a text with a space");
  return text;
}

}  // namespace xsr
