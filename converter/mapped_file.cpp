#include "converter/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/error.h"

namespace xsr {
namespace {

[[noreturn]] void io_error(const std::string& path, const char* what, int error) {
  throw Error(XSR_STATUS_IO, fmt::format("{}: {}: {}", path, what, std::strerror(error)));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) io_error(path, "cannot open", errno);
  struct stat st;
  if (::fstat(fd, &st) != 0) {
    const int error = errno;
    ::close(fd);
    io_error(path, "cannot stat", error);
  }
  if (!S_ISREG(st.st_mode)) {
    ::close(fd);
    throw Error(XSR_STATUS_IO,
                fmt::format("{}: is {}, expected a regular file", path,
                            S_ISDIR(st.st_mode) ? "a directory" : "no regular file"));
  }
  if (st.st_size > 0) {
    const size_t size = static_cast<size_t>(st.st_size);
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      io_error(path, "cannot map", error);
    }
    bytes_ = {static_cast<const unsigned char*>(data), size};
  }
  ::close(fd);
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<unsigned char*>(bytes_.data()), bytes_.size());
}

}  // namespace xsr
