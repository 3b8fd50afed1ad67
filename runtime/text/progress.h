#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace xsr {

/// 1204992 -> "1,204,992".
std::string with_separators(uint64_t number);
/// 83 -> "1:23", 3723 -> "1:02:03".
std::string clock_time(double seconds);
/// One line about work that is under way: share of the bytes (when their total is known), lines,
/// rate and the time left at the rate so far. total_bytes 0: unknown.
std::string progress_line(uint64_t done_bytes, uint64_t total_bytes, uint64_t lines,
                          double seconds);

/// The text as a line of the terminal `fd` that can be written over: cut to its width, for of a
/// line that wraps only the last part could be. Whole where `fd` is no terminal or tells no width.
std::string terminal_line(const std::string& text, int fd);

/// Tells how far the work is: on a terminal one line that is written over about twice a second,
/// elsewhere (a log file) a line every 10 s. The caller brings the time, in seconds since the
/// start. Not for several threads at once.
class Progress {
 public:
  /// out is usually stderr and is not closed. work: what every line begins with.
  Progress(std::FILE* out, bool terminal, uint64_t total_bytes, std::string work = "")
      : out_(out), terminal_(terminal), total_bytes_(total_bytes), work_(std::move(work)) {}

  void update(uint64_t done_bytes, uint64_t lines, double seconds);
  /// Takes the terminal's line away, so that other words can follow.
  void clear();

 private:
  std::FILE* out_;
  bool terminal_;
  uint64_t total_bytes_;
  std::string work_;
  double last_ = 0;  // seconds
  bool shown_ = false;
};

}  // namespace xsr
