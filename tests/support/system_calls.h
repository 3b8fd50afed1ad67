#pragma once
// Calls of the system that a test sees. For one file of a test program: these definitions stand
// before the C library's.
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>

namespace xsr::test {

/// Called with the name of a file or folder before it is flushed.
inline std::function<void(const std::string& name)> before_fsync;
/// Called before a file is locked.
inline std::function<void()> before_flock;

}  // namespace xsr::test

extern "C" int fsync(int fd) {
  if (xsr::test::before_fsync) {
    xsr::test::before_fsync(
        std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string());
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

extern "C" int flock(int fd, int operation) noexcept {
  if (const auto call = xsr::test::before_flock) call();
  return static_cast<int>(::syscall(SYS_flock, fd, operation));
}
