#include "runtime/format/partial_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "runtime/error.h"

namespace xsr {

namespace {

/// errno's reason, and the mend where there is one.
[[noreturn]] void fail_at(const std::string& file, const std::string& what) {
  const int error = errno;
  const char* mend =
      error == ENOSPC || error == EDQUOT || error == EFBIG
          ? ". Free some space or raise the limit and write it again; an older file is as it was."
          : "";
  throw Error(XSR_STATUS_IO,
              file + ": " + what + ": " + std::system_category().message(error) + mend);
}

/// Whether the file has this name; taken for granted where the system does not tell.
bool is_named(const struct stat& file, const std::string& path) {
  struct stat named;
  if (::stat(path.c_str(), &named) != 0) return errno != ENOENT;
  return file.st_ino == named.st_ino && file.st_dev == named.st_dev;
}

}  // namespace

bool has_name(int fd, const std::string& path) {
  struct stat opened;
  return ::fstat(fd, &opened) != 0 || is_named(opened, path);
}

int open_partial_file(const std::string& path, uint64_t kept) {
  const std::string partial = path + ".partial";
  struct stat opened, named;
  if (::stat(path.c_str(), &named) == 0 && !S_ISREG(named.st_mode)) {
    throw Error(XSR_STATUS_IO,
                path + (S_ISDIR(named.st_mode) ? ": is a folder" : ": is a pipe or device") +
                    ", which the file would take the place of; give the path of a file");
  }
  // Opened again where the one that held the lock has renamed it meanwhile.
  int fd;
  for (;;) {
    do {
      // Not to wait for who reads a pipe that has this name.
      fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) fail_at(partial, "cannot create the file");
    const bool held = ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    const bool known = ::fstat(fd, &opened) == 0;
    if (known && !held && is_named(opened, partial)) break;
    const int error = errno;
    ::close(fd);
    errno = error;
    if (!known) fail_at(partial, "cannot tell what it is");
    if (held) {
      throw Error(XSR_STATUS_IO, partial +
                                     ": another process is writing it; let it end, or give "
                                     "this one another path");
    }
  }
  if (S_ISFIFO(opened.st_mode)) {
    ::close(fd);
    throw Error(XSR_STATUS_IO, partial + ": is a pipe; remove it, or give another path");
  }
  if (kept > 0 && static_cast<uint64_t>(opened.st_size) < kept) {
    if (opened.st_size == 0) ::unlink(partial.c_str());  // it was not there
    ::close(fd);
    throw Error(XSR_STATUS_IO, partial + ": has " + std::to_string(opened.st_size) +
                                   " bytes, fewer than the " + std::to_string(kept) +
                                   " that were written; remove it to begin anew");
  }
  const off_t size = static_cast<off_t>(kept);
  if (S_ISREG(opened.st_mode) &&
      (::ftruncate(fd, size) != 0 || ::lseek(fd, size, SEEK_SET) != size)) {
    const int error = errno;
    ::close(fd);
    errno = error;
    fail_at(partial, kept > 0 ? "cannot cut the file to its whole rows" : "cannot empty the file");
  }
  return fd;
}

void flush_name(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int folder_fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd < 0)
    return;  // a folder one may write to but not read: its entry reaches the disk in its own time
  const int result = ::fsync(folder_fd);
  const int error = errno;
  ::close(folder_fd);
  if (result != 0 && error != EINVAL && error != ENOTSUP &&
      error != EROFS) {  // some file systems cannot do it
    throw Error(XSR_STATUS_IO, path + ": written, but its folder cannot be flushed to disk: " +
                                   std::system_category().message(error) +
                                   "; a crash may bring the old file back");
  }
}

void require_other_file(std::initializer_list<std::string> inputs, const std::string& output) {
  for (const std::string& written : {output, output + ".partial"}) {
    for (const std::string& input : inputs) {
      std::error_code ignored;
      if (std::filesystem::equivalent(input, written, ignored)) {
        throw Error(XSR_STATUS_INVALID_ARGUMENT,
                    written + ": is an input too, which would be overwritten; give another output");
      }
    }
  }
}

PartialFile::PartialFile(const std::string& path, uint64_t expected_size)
    : path_(path),
      partial_(path + ".partial"),
      expected_size_(expected_size),
      fd_(open_partial_file(path)) {}

PartialFile::~PartialFile() {
  if (!renamed_ && has_name(fd_, partial_)) ::unlink(partial_.c_str());  // under the lock
  if (fd_ >= 0) ::close(fd_);
}

void PartialFile::write(const void* data, uint64_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::write(fd_, bytes, std::min<uint64_t>(size, uint64_t{1} << 30));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      fail("cannot write after " + std::to_string(written_) +
           (expected_size_ > 0 ? " of " + std::to_string(expected_size_) : std::string()) +
           " bytes");
    }
    bytes += count;
    size -= static_cast<uint64_t>(count);
    written_ += static_cast<uint64_t>(count);
  }
}

void PartialFile::pad_to(uint64_t offset) {
  static constexpr unsigned char kZero[64] = {};
  while (written_ < offset) write(kZero, std::min<uint64_t>(sizeof kZero, offset - written_));
}

void PartialFile::overwrite(uint64_t offset, const void* data, uint64_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::pwrite(fd_, bytes, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot write at offset " + std::to_string(offset));
    bytes += count;
    offset += static_cast<uint64_t>(count);
    size -= static_cast<uint64_t>(count);
  }
}

void PartialFile::commit() {
  // The data reaches the disk before the name does.
  if (::fsync(fd_) != 0) fail("cannot flush the file to disk");
  const bool named = has_name(fd_, partial_);
  if (!named) errno = ENOENT;
  if (!named || std::rename(partial_.c_str(), path_.c_str()) != 0) {
    fail("cannot rename it to " + path_);
  }
  renamed_ = true;
  ::close(std::exchange(fd_, -1));
  flush_name(path_);
}

void PartialFile::fail(const std::string& what) const { fail_at(partial_, what); }

void write_whole_file(const std::string& path, std::string_view bytes) {
  PartialFile file(path, bytes.size());
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace xsr
