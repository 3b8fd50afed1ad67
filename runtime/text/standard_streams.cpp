#include "runtime/text/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <system_error>

namespace xsr {
namespace {

void occupy_closed_standard_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) != -1) continue;
    // Opened for the other direction, and open() takes the lowest number that is free.
    if (::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return;
  }
}

/// Allocates nothing: memory may be what has run out. Control characters but line ends become '?':
/// names out of a file may hold them, and would act on the terminal.
void tell_failure(const char* name, const char* what, const char* reason = "",
                  const char* mend = "") {
  char text[4096];
  size_t size = 0;
  for (const char* part : {name, ": ", what, reason, mend, "\n"}) {
    for (; *part != '\0'; ++part) {
      const bool control = static_cast<unsigned char>(*part) < 0x20 || *part == 0x7f;
      text[size++] = control && *part != '\n' ? '?' : *part;
      if (size < sizeof text) continue;
      tell({text, size});
      size = 0;
    }
  }
  tell({text, size});
}

}  // namespace

void tell(std::string_view text) noexcept {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

int run_tool(const char* name, const std::function<int()>& body) noexcept {
  occupy_closed_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);
  int status = 1;
  try {
    status = body();
  } catch (const std::bad_alloc&) {
    tell_failure(name, "out of memory");
  } catch (const std::system_error& e) {
    if (e.code() == std::errc::resource_unavailable_try_again) {  // a std::thread's
      tell_failure(name, "cannot start a thread: ", e.what(), "; ask for fewer threads");
    } else {
      tell_failure(name, e.what());
    }
  } catch (const std::exception& e) {
    tell_failure(name, e.what());
  }
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return status;
  tell_failure(name, "standard output: cannot write; is it closed, or its disk full?");
  return 1;
}

}  // namespace xsr
