#pragma once
// Calls of the system that a test sees. For one file of a test program: these definitions stand
// before the C library's.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <string>

namespace xsr::test {

/// Called with the name of a file or folder before it is flushed.
inline std::function<void(const std::string& name)> before_fsync;
/// errno of every fsync() of a folder; 0: none fails.
inline int folder_fsync_error = 0;
/// Called instead of flushing a file's data: 0, or errno.
inline std::function<int()> instead_of_fdatasync;
/// errno of every stat() of a name; 0: none fails.
inline int stat_error = 0;
/// Called before a file is locked.
inline std::function<void()> before_flock;
/// Called with how many bytes are to be written: how many of them are, or -1 with errno.
inline std::function<ssize_t(size_t size)> limit_write;

namespace detail {
inline ssize_t limited(size_t size) {
  return limit_write ? limit_write(size) : static_cast<ssize_t>(size);
}
}  // namespace detail

}  // namespace xsr::test

extern "C" int fsync(int fd) {
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  if (xsr::test::before_fsync)
    xsr::test::before_fsync(std::filesystem::read_symlink(link).string());
  if (xsr::test::folder_fsync_error != 0 && std::filesystem::is_directory(link)) {
    errno = xsr::test::folder_fsync_error;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

extern "C" int stat(const char* name, struct stat* status) noexcept {
  if (xsr::test::stat_error == 0)
    return static_cast<int>(::syscall(SYS_newfstatat, AT_FDCWD, name, status, 0));
  errno = xsr::test::stat_error;
  return -1;
}

extern "C" int fdatasync(int fd) {
  if (!xsr::test::instead_of_fdatasync) return static_cast<int>(::syscall(SYS_fdatasync, fd));
  const int error = xsr::test::instead_of_fdatasync();
  if (error == 0) return 0;
  errno = error;
  return -1;
}

extern "C" int flock(int fd, int operation) noexcept {
  if (const auto call = xsr::test::before_flock) call();
  return static_cast<int>(::syscall(SYS_flock, fd, operation));
}

extern "C" ssize_t write(int fd, const void* data, size_t size) {
  const ssize_t most = xsr::test::detail::limited(size);
  return most < 0 ? most : ::syscall(SYS_write, fd, data, static_cast<size_t>(most));
}

extern "C" ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  const ssize_t most = xsr::test::detail::limited(size);
  return most < 0 ? most : ::syscall(SYS_pwrite64, fd, data, static_cast<size_t>(most), offset);
}
