#pragma once
#include <cstdint>
#include <optional>
#include <string>

namespace xsr {

/// How far a run of xsr-embed has come for sure: the rows that its partial file holds on the disk,
/// and the text they are of.
struct ResumePoint {
  /// All that the rows' bits depend on beside the text: the rows of another run cannot go on.
  std::string run;
  uint64_t rows = 0;                       // of the output, and lines of the text
  uint64_t row_bytes = 0;                  // of the partial file up to the end of the last row
  uint64_t text_bytes = 0, text_hash = 0;  // LineBatch::bytes_consumed, text_hash
  // For the words at the end:
  uint64_t tokens = 0, truncated = 0, empty = 0, replaced_bytes = 0, repeated = 0;

  bool operator==(const ResumePoint&) const = default;
};

/// OUT.resume, beside OUT.partial.
std::string resume_path(const std::string& output);
/// Writes it so that a crash leaves the point before or this one. Throws Error(IO).
void save_resume_point(const std::string& path, const ResumePoint& point);
/// None where there is no such file. Throws Error(IO), Error(BAD_FILE).
std::optional<ResumePoint> load_resume_point(const std::string& path);

}  // namespace xsr
