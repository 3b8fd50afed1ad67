#include "training/data/parallel_text.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "input/pair_file.h"
#include "input/text_file.h"
#include "runtime/error.h"
#include "runtime/text/progress.h"
#include "runtime/text/utf8.h"
#include "training/data/log.h"

namespace xsr::training {
namespace {

constexpr size_t kBlockBytes = 256 << 10;

std::string hex(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

/// A regular file, hashed as it is read.
class HashedFile : public ByteSource {
 public:
  HashedFile(const std::string& path, const std::atomic<bool>* stop) : stop_(stop) {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::file_type type = fs::status(path, error).type();
    if (path == "-" || (type != fs::file_type::regular && type != fs::file_type::not_found)) {
      throw Error(XSR_STATUS_IO, path +
                                     ": is no regular file. The training data is read more than "
                                     "once, so it cannot come from a pipe or a folder; give the "
                                     "path of a file");
    }
    file_ = std::make_unique<FileSource>(path, stop);
    XXH3_128bits_reset(&hash_);
  }

  size_t read(char* to, size_t size) override {
    const size_t count = file_->read(to, size);
    XXH3_128bits_update(&hash_, to, count);
    return count;
  }
  const std::string& name() const override { return file_->name(); }
  uint64_t total_bytes() const override { return file_->total_bytes(); }
  uint64_t bytes_read() const override { return file_->bytes_read(); }

  ContentHash content_hash() const {
    return {hex(XXH3_128bits_digest(&hash_)), file_->bytes_read()};
  }
  bool stopped() const { return stop_ != nullptr && stop_->load(std::memory_order_relaxed); }

 private:
  const std::atomic<bool>* stop_;
  std::unique_ptr<FileSource> file_;
  XXH3_state_t hash_;
};

/// A file that has to be what `expected` was made of.
class KnownFile : public HashedFile {
 public:
  KnownFile(const std::string& path, const ContentHash& expected, const std::atomic<bool>* stop)
      : HashedFile(path, stop), expected_(expected) {}

  size_t read(char* to, size_t size) override {
    const size_t count = HashedFile::read(to, size);
    const uint64_t got = bytes_read();
    if (stopped() || (count > 0 && got <= expected_.size)) return count;
    const char* what = got < expected_.size          ? "shrank"
                       : got > expected_.size        ? "grew"
                       : content_hash() != expected_ ? "changed"
                                                     : nullptr;
    if (what == nullptr) return count;
    throw Error(
        XSR_STATUS_IO,
        fmt::format("{}: the file {} while it was being read: {} bytes at first, now {}{}. "
                    "Let whatever writes to it end, then start again",
                    name(), what, expected_.size, got > expected_.size ? "at least " : "", got));
  }

 private:
  ContentHash expected_;
};

bool is_space(char c) { return c == ' ' || c == '\r' || c == '\v' || c == '\f'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

int32_t expected_columns(const TextFile& file) {
  return file.num_columns > 0 ? file.num_columns : std::max(file.first_column, file.second_column);
}

int32_t count_columns(std::string_view line) {
  return 1 + static_cast<int32_t>(std::count(line.begin(), line.end(), '\t'));
}

}  // namespace

const char* to_string(DropReason reason) {
  switch (reason) {
    case DropReason::kFewColumns:
      return "fewer columns than expected";
    case DropReason::kManyColumns:
      return "more columns than expected";
    case DropReason::kEmptySide:
      return "an empty side";
    case DropReason::kLongLine:
      return "a line that is too long";
    case DropReason::kInvalidUtf8:
      return "malformed UTF-8";
    case DropReason::kNulByte:
      return "a NUL byte";
    case DropReason::kControlPiece:
      return "a control piece of the tokenizer in the text";
    case DropReason::kNoTokens:
      return "a side without tokens";
    case DropReason::kShort:
      return "a side shorter than min_tokens";
    case DropReason::kLong:
      return "a side longer than max_tokens";
    case DropReason::kRatio:
      return "lengths further apart than max_ratio";
    case DropReason::kKept:
      break;
  }
  return "kept";
}

uint64_t DropReport::dropped() const {
  uint64_t sum = 0;
  for (uint64_t count : counts) sum += count;
  return sum;
}

void DropReport::add(DropReason reason, const std::string& example) {
  const size_t i = static_cast<size_t>(reason);
  ++counts[i];
  if (examples[i].size() < kMaxExamples) examples[i].push_back(example);
}

void DropReport::add(DropReason reason, const TextFile& file, uint64_t number,
                     std::string_view line) {
  add(reason, examples[static_cast<size_t>(reason)].size() < kMaxExamples
                  ? fmt::format("{}:{}: {}", file.path, number, describe_drop(reason, line, file))
                  : std::string());
}

std::string DropReport::text() const {
  std::string out;
  for (size_t i = 0; i < kNumDropReasons; ++i) {
    if (counts[i] == 0) continue;
    out +=
        fmt::format("{}  {} line{}: {} ({}{})", out.empty() ? "" : "\n", with_separators(counts[i]),
                    counts[i] == 1 ? "" : "s", to_string(static_cast<DropReason>(i)),
                    fmt::join(examples[i], "; "), counts[i] > examples[i].size() ? "; ..." : "");
  }
  return out;
}

DropReason split_pair(std::string_view line, bool cut, const TextFile& file,
                      std::string_view sides[2]) {
  if (cut) return DropReason::kLongLine;
  if (line.find('\0') != line.npos) return DropReason::kNulByte;
  if (!is_valid_utf8(line)) return DropReason::kInvalidUtf8;
  const int32_t columns = count_columns(line), expected = expected_columns(file);
  if (columns < expected) return DropReason::kFewColumns;
  if (columns > expected) return DropReason::kManyColumns;
  for (int32_t column = 1; column <= columns; ++column) {
    const size_t end = std::min(line.find('\t'), line.size());
    if (column == file.first_column) sides[0] = trim(line.substr(0, end));
    if (column == file.second_column) sides[1] = trim(line.substr(0, end));
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  return sides[0].empty() || sides[1].empty() ? DropReason::kEmptySide : DropReason::kKept;
}

std::string describe_drop(DropReason reason, std::string_view line, const TextFile& file) {
  switch (reason) {
    case DropReason::kFewColumns:
    case DropReason::kManyColumns: {
      const int32_t columns = count_columns(line);
      return fmt::format("has {} column{}, expected {}", columns, columns == 1 ? "" : "s",
                         expected_columns(file));
    }
    case DropReason::kLongLine:
      return fmt::format("has more than {} bytes", line.size());
    case DropReason::kNulByte:
      return fmt::format("byte {} is NUL", line.find('\0') + 1);
    case DropReason::kInvalidUtf8: {
      std::string mended;
      sanitize_utf8(line, mended);
      const size_t at = static_cast<size_t>(
          std::mismatch(line.begin(), line.end(), mended.begin(), mended.end()).first -
          line.begin());
      return fmt::format("byte {} is 0x{:02X}, which is not UTF-8 there", at + 1,
                         static_cast<unsigned char>(at < line.size() ? line[at] : line.back()));
    }
    case DropReason::kEmptySide: {
      std::string_view sides[2];
      split_pair(line, false, file, sides);
      return fmt::format("column {} is empty",
                         sides[0].empty() ? file.first_column : file.second_column);
    }
    default:
      return to_string(reason);
  }
}

void throw_no_pair(const std::string& language, const DropReport& report) {
  const bool few_columns =
      report.lines > 0 &&
      report.counts[static_cast<size_t>(DropReason::kFewColumns)] == report.lines;
  throw Error(
      XSR_STATUS_BAD_FILE,
      fmt::format("{}: not one pair is left of {} lines; is it the right file, with columns "
                  "separated by TAB as data.columns and data.num_columns say?{}{}{}",
                  language, with_separators(report.lines),
                  few_columns
                      ? " Two files of one sentence a line become one by `paste FILE FILE > "
                        "PAIRS.tsv`."
                      : "",
                  report.dropped() > 0 ? "\n" : "", report.text()));
}

ContentHash hash_file(const std::string& path, const std::atomic<bool>* stop) {
  HashedFile file(path, stop);
  std::vector<char> block(kBlockBytes);
  while (file.read(block.data(), block.size()) > 0) {
  }
  if (file.stopped()) throw Stopped();
  return file.content_hash();
}

void hash_texts(std::span<LanguagePair> languages, const std::atomic<bool>* stop) {
  for (LanguagePair& language : languages) {
    for (TextFile& file : language.files) {
      check(file);
      if (file.hash.hex.empty()) file.hash = hash_file(file.path, stop);
    }
  }
}

std::unique_ptr<ByteSource> open_text(const std::string& path, const ContentHash& expected,
                                      const std::atomic<bool>* stop) {
  return unpack(std::make_unique<KnownFile>(path, expected, stop), stop);
}

std::vector<LanguagePair> parse_language_pairs(const std::vector<std::string>& files,
                                               const std::vector<int64_t>& columns,
                                               int32_t num_columns) {
  std::vector<LanguagePair> pairs;
  for (const std::string& text : files) {
    auto [name, path] = parse_named_file(text);
    TextFile file;
    file.path = path;
    file.first_column = static_cast<int32_t>(columns.at(0));
    file.second_column = static_cast<int32_t>(columns.at(1));
    file.num_columns = num_columns;
    if (name.empty()) {
      name = std::filesystem::path(path).filename();
      name = name.substr(0, name.find('.'));
    }
    if (name.empty() || name == "mean") {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  fmt::format("{}: {}; name its language pair otherwise, by NAME={}", path,
                              name.empty() ? "nothing stands before the first dot of its name"
                                           : "\"mean\" is the mean of all pairs in the metrics",
                              path));
    }
    const auto at = std::find_if(pairs.begin(), pairs.end(),
                                 [&name = name](const LanguagePair& p) { return p.name == name; });
    if (at == pairs.end()) {
      pairs.push_back({name, {file}});
    } else {
      at->files.push_back(file);
    }
  }
  return pairs;
}

void check(const TextFile& file) {
  if (file.first_column >= 1 && file.second_column >= 1 &&
      file.first_column != file.second_column &&
      expected_columns(file) >= std::max(file.first_column, file.second_column)) {
    return;
  }
  throw Error(
      XSR_STATUS_INVALID_ARGUMENT,
      fmt::format("{}: columns {} and {} of {} cannot be the two sides; expected two "
                  "different columns, counted from 1",
                  file.path, file.first_column, file.second_column, expected_columns(file)));
}

}  // namespace xsr::training
