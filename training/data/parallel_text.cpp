#include "training/data/parallel_text.h"

#include <fmt/format.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "runtime/error.h"
#include "runtime/evaluation/pair_file.h"
#include "runtime/text/progress.h"
#include "runtime/text/utf8.h"
#include "training/data/log.h"

namespace xsr::training {
namespace {

constexpr size_t kBlockBytes = 256 << 10;
constexpr int kZstdWindowLog = 27;  // zstd --long=27
// Of a frame to be skipped, with which pzstd begins a file; the byte before it is 0x50 to 0x5F.
constexpr std::string_view kSkippedMagic("\x2A\x4D\x18", 3);

std::string hex(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

/// A regular file in blocks, hashed as it is read.
class HashedFile {
 public:
  HashedFile(const std::string& path, const std::atomic<bool>* stop)
      : stop_(stop), block_(kBlockBytes) {
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

  /// The next block, empty at the end.
  std::string_view next() {
    const size_t size = file_->read(block_.data(), block_.size());
    XXH3_128bits_update(&hash_, block_.data(), size);
    return {block_.data(), size};
  }

  ContentHash content_hash() const {
    return {hex(XXH3_128bits_digest(&hash_)), file_->bytes_read()};
  }
  bool stopped() const { return stop_ != nullptr && stop_->load(std::memory_order_relaxed); }
  const FileSource& source() const { return *file_; }

 private:
  const std::atomic<bool>* stop_;
  std::unique_ptr<FileSource> file_;
  std::vector<char> block_;
  XXH3_state_t hash_;
};

/// The bytes of a file that has to be what `expected` was made of; the plain form, and what the
/// packed ones read from.
class InputFile : public ByteSource {
 public:
  InputFile(const std::string& path, const ContentHash& expected, const std::atomic<bool>* stop)
      : file_(path, stop), expected_(expected) {
    refill();
  }

  std::string_view rest() const { return rest_; }
  void skip(size_t size) {
    rest_.remove_prefix(size);
    if (rest_.empty()) refill();
  }

  size_t read(char* to, size_t size) override {
    const size_t count = std::min(size, rest_.size());
    if (count == 0) return 0;
    std::memcpy(to, rest_.data(), count);
    skip(count);
    return count;
  }
  const std::string& name() const override { return file_.source().name(); }
  uint64_t total_bytes() const override { return file_.source().total_bytes(); }
  uint64_t bytes_read() const override { return file_.source().bytes_read() - rest_.size(); }
  bool stopped() const { return file_.stopped(); }

  /// An error of what the file holds.
  [[noreturn]] void bad(const std::string& what) const {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: {} (at byte {} of {})", name(), what,
                                                 bytes_read(), total_bytes()));
  }

 private:
  void refill() {
    rest_ = file_.next();
    const uint64_t got = file_.source().bytes_read();
    if (file_.stopped() || (!rest_.empty() && got <= expected_.size)) return;
    const char* what = got < expected_.size                ? "shrank"
                       : got > expected_.size              ? "grew"
                       : file_.content_hash() != expected_ ? "changed"
                                                           : nullptr;
    if (what == nullptr) return;
    throw Error(
        XSR_STATUS_IO,
        fmt::format("{}: the file {} while it was being read: {} bytes at first, now {}{}. "
                    "Let whatever writes to it end, then start again",
                    name(), what, expected_.size, got > expected_.size ? "at least " : "", got));
  }

  HashedFile file_;
  ContentHash expected_;
  std::string_view rest_;
};

class GzipSource : public ByteSource {
 public:
  explicit GzipSource(std::unique_ptr<InputFile> file) : file_(std::move(file)) {
    constexpr int kGzipWindow = 15 + 16;
    if (inflateInit2(&stream_, kGzipWindow) != Z_OK)
      throw Error(XSR_STATUS_OUT_OF_MEMORY, name() + ": no memory to unpack it");
  }
  ~GzipSource() override { inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  size_t read(char* to, size_t size) override {
    stream_.next_out = reinterpret_cast<Bytef*>(to);
    stream_.avail_out = static_cast<uInt>(std::min<size_t>(size, 1 << 30));
    const uInt wanted = stream_.avail_out;
    while (stream_.avail_out == wanted) {
      const std::string_view in = file_->rest();
      if (in.empty()) {
        if (in_member_ && !file_->stopped()) file_->bad("the gzip data ends early; is it whole?");
        return 0;
      }
      if (!in_member_) {
        if (std::exchange(any_, true)) inflateReset(&stream_);
        in_member_ = true;
      }
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
      stream_.avail_in = static_cast<uInt>(in.size());
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        file_->bad(fmt::format("the gzip data is damaged: {}",
                               stream_.msg != nullptr ? stream_.msg : zError(result)));
      }
      in_member_ = result != Z_STREAM_END;
      file_->skip(in.size() - stream_.avail_in);
    }
    return wanted - stream_.avail_out;
  }
  const std::string& name() const override { return file_->name(); }
  uint64_t total_bytes() const override { return file_->total_bytes(); }
  uint64_t bytes_read() const override { return file_->bytes_read(); }

 private:
  std::unique_ptr<InputFile> file_;
  z_stream stream_{};
  bool any_ = false, in_member_ = false;
};

class ZstdSource : public ByteSource {
 public:
  explicit ZstdSource(std::unique_ptr<InputFile> file)
      : file_(std::move(file)), stream_(ZSTD_createDCtx(), ZSTD_freeDCtx) {
    if (stream_ == nullptr ||
        ZSTD_isError(ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, kZstdWindowLog))) {
      throw Error(XSR_STATUS_OUT_OF_MEMORY, name() + ": no memory to unpack it");
    }
  }

  size_t read(char* to, size_t size) override {
    ZSTD_outBuffer out{to, size, 0};
    while (out.pos == 0) {
      const std::string_view in = file_->rest();
      // What the library still holds comes out without more input.
      if (in.empty() && !in_frame_) return 0;
      ZSTD_inBuffer input{in.data(), in.size(), 0};
      const size_t result = ZSTD_decompressStream(stream_.get(), &out, &input);
      if (ZSTD_isError(result)) {
        file_->bad(
            fmt::format("the zstd data is damaged, or made with a window beyond --long={}: {}",
                        kZstdWindowLog, ZSTD_getErrorName(result)));
      }
      in_frame_ = result != 0;
      if (!in.empty()) {
        file_->skip(input.pos);
      } else if (out.pos == 0) {
        if (!file_->stopped()) file_->bad("the zstd data ends early; is it whole?");
        return 0;
      }
    }
    return out.pos;
  }
  const std::string& name() const override { return file_->name(); }
  uint64_t total_bytes() const override { return file_->total_bytes(); }
  uint64_t bytes_read() const override { return file_->bytes_read(); }

 private:
  std::unique_ptr<InputFile> file_;
  std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> stream_;
  bool in_frame_ = false;
};

bool is_zstd(std::string_view bytes) {
  return bytes.starts_with(kZstdMagic) || (!bytes.empty() && (bytes[0] & 0xF0) == 0x50 &&
                                           bytes.substr(1).starts_with(kSkippedMagic));
}

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
  throw Error(
      XSR_STATUS_BAD_FILE,
      fmt::format("{}: not one pair is left of {} lines; is it the right file, with columns "
                  "separated by TAB as data.columns and data.num_columns say?{}{}",
                  language, with_separators(report.lines), report.dropped() > 0 ? "\n" : "",
                  report.text()));
}

ContentHash hash_file(const std::string& path, const std::atomic<bool>* stop) {
  HashedFile file(path, stop);
  while (!file.next().empty()) {
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
  auto file = std::make_unique<InputFile>(path, expected, stop);
  if (file->rest().starts_with(kGzipMagic)) return std::make_unique<GzipSource>(std::move(file));
  if (is_zstd(file->rest())) return std::make_unique<ZstdSource>(std::move(file));
  return file;
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
