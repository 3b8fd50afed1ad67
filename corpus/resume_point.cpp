#include "corpus/resume_point.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <charconv>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "input/text_file.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"

namespace xsr {
namespace {

constexpr std::string_view kFirstLine = "xsr-embed resume point 1";

using Number = std::pair<const char*, uint64_t ResumePoint::*>;
constexpr Number kNumbers[] = {
    {"rows", &ResumePoint::rows},
    {"row_bytes", &ResumePoint::row_bytes},
    {"text_bytes", &ResumePoint::text_bytes},
    {"text_hash", &ResumePoint::text_hash},
    {"tokens", &ResumePoint::tokens},
    {"truncated", &ResumePoint::truncated},
    {"empty", &ResumePoint::empty},
    {"replaced_bytes", &ResumePoint::replaced_bytes},
    {"repeated", &ResumePoint::repeated},
};

std::string checksum_line(std::string_view before) {
  return fmt::format("checksum {:016x}", XXH3_64bits(before.data(), before.size()));
}

}  // namespace

std::string resume_path(const std::string& output) { return output + ".resume"; }

void save_resume_point(const std::string& path, const ResumePoint& point) {
  std::string text = fmt::format("{}\nrun {}\n", kFirstLine, point.run);
  for (const auto& [name, number] : kNumbers) text += fmt::format("{} {}\n", name, point.*number);
  text += checksum_line(text) + "\n";
  write_whole_file(path, text);
}

std::optional<ResumePoint> load_resume_point(const std::string& path) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  const std::vector<std::string> lines = read_all_lines(path);
  size_t at = 0;
  // The rest of the next line behind its name.
  const auto take = [&](std::string_view name) {
    if (at < lines.size() && lines[at].starts_with(name)) {
      return std::string_view(lines[at++]).substr(name.size());
    }
    throw Error(
        XSR_STATUS_BAD_FILE,
        fmt::format("{}:{}: expected \"{}\"; remove the file to begin anew", path, at + 1, name));
  };
  ResumePoint point;
  take(kFirstLine);
  point.run = take("run ");
  for (const auto& [name, number] : kNumbers) {
    const std::string_view digits = take(std::string(name) + " ");
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), point.*number);
    if (error != std::errc() || end != digits.data() + digits.size()) {
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}:{}: \"{}\" is no number; remove the file to begin anew", path, at,
                              digits));
    }
  }
  std::string text;
  for (size_t i = 0; i < at; ++i) text += lines[i] + '\n';
  take(checksum_line(text));
  return point;
}

}  // namespace xsr
