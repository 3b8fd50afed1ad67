#include "runtime/text/byte_source.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/error.h"

namespace xsr {
namespace {

constexpr int kStopPollMilliseconds = 100;

[[noreturn]] void fail(const std::string& name, const char* what) {
  const int error = errno;
  throw Error(XSR_STATUS_IO, name + ": cannot " + what + ": " + std::strerror(error));
}

}  // namespace

FileSource::FileSource(const std::string& path, const std::atomic<bool>* stop)
    : name_(path == "-" ? "standard input" : path), stop_(stop) {
  if (path == "-") {
    fd_ = STDIN_FILENO;
  } else {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) fail(name_, "open");
  }
  struct stat status;
  if (::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode)) {
    const off_t at = ::lseek(fd_, 0, SEEK_CUR);  // standard input may stand in the middle of a file
    total_bytes_ =
        static_cast<uint64_t>(std::max<off_t>(0, status.st_size - std::max<off_t>(0, at)));
  }
}

FileSource::~FileSource() {
  if (fd_ > STDIN_FILENO) ::close(fd_);
}

size_t FileSource::read(char* to, size_t size) {
  for (;;) {
    if (stop_ && stop_->load(std::memory_order_relaxed)) return 0;
    if (stop_) {
      pollfd waiting{fd_, POLLIN, 0};
      const int ready = ::poll(&waiting, 1, kStopPollMilliseconds);
      if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
    }
    const ssize_t got = ::read(fd_, to, size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(name_, "read");
    if (got == 0 && bytes_read_ < total_bytes_) {
      throw Error(XSR_STATUS_IO, name_ + ": the file shrank while it was being read: " +
                                     std::to_string(total_bytes_) + " bytes at first, now " +
                                     std::to_string(bytes_read_) +
                                     ". Let whatever writes to it end, then start again");
    }
    bytes_read_ += static_cast<uint64_t>(got);
    return static_cast<size_t>(got);
  }
}

}  // namespace xsr
