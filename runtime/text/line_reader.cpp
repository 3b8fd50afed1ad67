#include "runtime/text/line_reader.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/error.h"

namespace xsr {
namespace {

/// What files begin with that are no text; not one of these is UTF-8, or the beginning of a
/// sentence.
struct OtherData {
  std::string_view begin;
  const char *name, *mend;
};
constexpr OtherData kOtherData[] = {
    {kGzipMagic, "gzip data", "unpack it first (gunzip)"},
    {kZstdMagic, "Zstandard data", "unpack it first (unzstd)"},
    {"\xFD\x37zXZ", "xz data", "unpack it first (unxz)"},
    {"BZh91AY&SY", "bzip2 data", "unpack it first (bunzip2)"},
    {"PK\x03\x04", "a zip archive", "unpack it first (unzip)"},
    {"\xFF\xFE", "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"},
    {"\xFE\xFF", "UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"},
};

/// Bytes at the end of text[0, size) that belong to a character which goes on behind it.
size_t split_character_bytes(const char* text, size_t size) {
  for (size_t back = 1; back <= 3 && back <= size; ++back) {
    const unsigned char byte = static_cast<unsigned char>(text[size - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t length = byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    return length > back ? back : 0;
  }
  return 0;
}

}  // namespace

class LineReader::Hash {
 public:
  Hash() { XXH3_64bits_reset(&state_); }
  void add(const char* data, size_t size) { XXH3_64bits_update(&state_, data, size); }
  uint64_t value() const { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

LineReader::LineReader(std::unique_ptr<ByteSource> source, size_t max_line_bytes,
                       const std::atomic<bool>* stop, size_t block_bytes)
    : source_(std::move(source)),
      max_line_bytes_(max_line_bytes),
      stop_(stop),
      block_(std::max<size_t>(block_bytes, 1)),
      hash_(std::make_unique<Hash>()) {}

LineReader::LineReader(const std::string& path, size_t max_line_bytes,
                       const std::atomic<bool>* stop, size_t block_bytes)
    : LineReader(std::make_unique<FileSource>(path, stop), max_line_bytes, stop, block_bytes) {}

LineReader::~LineReader() = default;

void LineReader::consume(size_t bytes) {
  hash_->add(block_.data() + begin_, bytes);
  begin_ += bytes;
  consumed_ += bytes;
}

void LineReader::skip(uint64_t bytes, uint64_t lines, uint64_t text_hash,
                      const std::function<void(uint64_t)>& progress) {
  while (consumed_ < bytes && (begin_ < end_ || fill(false))) {
    consume(static_cast<size_t>(std::min<uint64_t>(end_ - begin_, bytes - consumed_)));
    if (progress) progress(consumed_);
  }
  if (consumed_ < bytes && stopped()) return;
  if (consumed_ < bytes || hash_->value() != text_hash) {
    throw Error(
        XSR_STATUS_INVALID_ARGUMENT,
        name() + ": " +
            (consumed_ < bytes ? "is shorter than"
                               : "differs in the first " + std::to_string(bytes) + " bytes from") +
            " the text whose first " + std::to_string(lines) + " lines are done");
  }
  lines_ = lines;
}

/// Reads the next block; false at the end of the input. An error names the last line where lines
/// are counted.
bool LineReader::fill(bool counts_lines) {
  begin_ = 0;
  end_ = 0;
  block_source_bytes_[0] = source_->bytes_read();
  try {
    end_ = source_->read(block_.data(), block_.size());
  } catch (const Error& error) {
    if (!counts_lines) throw;
    throw Error(error.status(),
                std::string(error.what()) + " (after line " + std::to_string(lines_) + ")");
  }
  block_source_bytes_[1] = source_->bytes_read();
  if (consumed_ == 0) {
    for (const OtherData& other : kOtherData) {
      if (!std::string_view(block_.data(), end_).starts_with(other.begin)) continue;
      throw Error(XSR_STATUS_BAD_FILE,
                  name() + ": is " + other.name + ", expected text in UTF-8; " + other.mend);
    }
  }
  return end_ > 0;
}

uint64_t LineReader::source_bytes() const {
  const auto [before, behind] = block_source_bytes_;
  if (begin_ == end_) return behind;
  return before + static_cast<uint64_t>(static_cast<double>(behind - before) *
                                        static_cast<double>(begin_) / static_cast<double>(end_));
}

bool LineReader::read(size_t max_lines, size_t max_bytes, LineBatch& batch) {
  batch.bytes.clear();
  batch.ends.clear();
  batch.cut.clear();
  batch.mid_line = false;
  batch.first_line = lines_ + 1;
  size_t line_begin = 0;
  uint64_t length = 0;  // of the line so far, what is not kept included
  bool any = false;     // a line has begun
  bool last_is_cr = false;
  const auto finish_line = [&](bool at_newline) {
    const uint64_t content = length - (at_newline && last_is_cr ? 1 : 0);
    const bool cut = content > max_line_bytes_;
    size_t kept = static_cast<size_t>(std::min<uint64_t>(content, max_line_bytes_));
    if (cut) kept -= split_character_bytes(batch.bytes.data() + line_begin, kept);
    line_begin += kept;
    batch.bytes.resize(line_begin);
    batch.ends.push_back(line_begin);
    batch.cut.push_back(cut);
    ++lines_;
    length = 0;
    any = last_is_cr = false;
  };
  while (any ||
         (batch.size() < max_lines && (batch.bytes.size() < max_bytes || batch.size() == 0))) {
    if (begin_ == end_ && !fill(true)) {
      batch.mid_line = any;
      if (any && stopped()) {
        batch.bytes.resize(line_begin);
      } else if (any) {
        finish_line(false);
      }
      break;
    }
    const char* from = block_.data() + begin_;
    const char* newline = static_cast<const char*>(std::memchr(from, '\n', end_ - begin_));
    const size_t size = newline ? static_cast<size_t>(newline - from) : end_ - begin_;
    consume(size + (newline ? 1 : 0));
    any = true;
    if (size > 0) {
      const size_t room = max_line_bytes_ - (batch.bytes.size() - line_begin);
      batch.bytes.append(from, std::min(size, room));
      length += size;
      last_is_cr = from[size - 1] == '\r';
    }
    if (newline) finish_line(true);
  }
  batch.bytes_consumed = consumed_;
  batch.text_hash = hash_->value();
  batch.source_bytes = source_bytes();
  return batch.size() > 0;
}

}  // namespace xsr
