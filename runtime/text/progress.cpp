#include "runtime/text/progress.h"

#include <sys/ioctl.h>

#include <algorithm>

namespace xsr {
namespace {

constexpr double kTerminalSeconds = 0.5;
constexpr double kLogSeconds = 10;

}  // namespace

std::string with_separators(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t at = digits.size(); at > 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string clock_time(double seconds) {
  const uint64_t s = static_cast<uint64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  const auto two_digits = [](uint64_t n) { return (n < 10 ? ":0" : ":") + std::to_string(n); };
  return s < 3600 ? std::to_string(s / 60) + two_digits(s % 60)
                  : std::to_string(s / 3600) + two_digits(s / 60 % 60) + two_digits(s % 60);
}

std::string progress_line(uint64_t done_bytes, uint64_t total_bytes, uint64_t lines,
                          double seconds) {
  const double rate = seconds > 0 ? static_cast<double>(lines) / seconds : 0;
  std::string text = with_separators(lines) + " lines, " +
                     with_separators(static_cast<uint64_t>(rate + 0.5)) + " lines/s";
  if (total_bytes == 0) return text + ", " + clock_time(seconds) + " so far";
  // A file may grow while it is read.
  const double share =
      std::min(1.0, static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  char percent[16];
  std::snprintf(percent, sizeof percent, "%.1f %%, ", 100 * share);
  text = percent + text;
  if (share > 0) text += ", " + clock_time(seconds / share - seconds) + " left";
  return text;
}

std::string terminal_line(const std::string& text, int fd) {
  winsize size = {};
  // Behind a character in the last column \x1B[K would take that away.
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return text;
  return text.substr(0, size.ws_col - 1u);
}

void Progress::update(uint64_t done_bytes, uint64_t lines, double seconds) {
  if (seconds - last_ < (terminal_ ? kTerminalSeconds : kLogSeconds)) return;
  last_ = seconds;
  const std::string line = terminal_line(
      work_ + progress_line(done_bytes, total_bytes_, lines, seconds), ::fileno(out_));
  // \x1B[K takes away what a longer line left behind.
  std::fprintf(out_, terminal_ ? "\r%s\x1B[K" : "%s\n", line.c_str());
  std::fflush(out_);
  shown_ = terminal_;
}

void Progress::clear() {
  if (!shown_) return;
  std::fputs("\r\x1B[K", out_);
  std::fflush(out_);
  shown_ = false;
}

}  // namespace xsr
