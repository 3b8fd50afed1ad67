#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/byte_source.h"

namespace xsr {

/// Consecutive lines of a text, without their line ends, one behind the other in one buffer.
struct LineBatch {
  std::string bytes;
  std::vector<size_t> ends;     // line i is bytes[ends[i - 1], ends[i]); the first begins at 0
  std::vector<uint8_t> cut;     // 1: the line was longer than the reader keeps
  uint64_t first_line = 1;      // number of the first line in the file, from 1
  uint64_t bytes_consumed = 0;  // of the text, line ends included, up to the last line's end
  uint64_t text_hash = 0;       // XXH3-64 of those bytes
  uint64_t source_bytes = 0;    // LineReader::source_bytes() there
  // Those bytes end within a line: one that it was stopped in, which does not count, or the text's
  // last, which has no line end and may yet grow.
  bool mid_line = false;

  size_t size() const { return ends.size(); }
  std::string_view line(size_t i) const {
    const size_t begin = i == 0 ? 0 : ends[i - 1];
    return std::string_view(bytes).substr(begin, ends[i] - begin);
  }
};

/// Reads a file, standard input or another source line by line in fixed blocks; memory depends on
/// the longest line kept alone.
///
/// A line ends with LF or CRLF; the last one may have no end. An empty file has no lines; a file
/// that ends with a line end has no empty line behind it. NUL bytes are bytes like any other. Of a
/// line longer than max_line_bytes the first max_line_bytes are kept (less a UTF-8 character that
/// the cut would split). Bytes are read as the source gives them: what is packed by gzip or
/// Zstandard is text where the source unpacks it (input/text_file.h). Input whose first block
/// begins as packed data (gzip, Zstandard, xz, bzip2, zip) or UTF-16 does is refused: its lines
/// would be none. Not for several threads at once.
class LineReader {
 public:
  /// stop, when given, is the source's too: once it is set the input ends, and a line that was not
  /// read to its end does not count.
  explicit LineReader(std::unique_ptr<ByteSource> source, size_t max_line_bytes = 16 << 20,
                      const std::atomic<bool>* stop = nullptr, size_t block_bytes = 1 << 20);
  /// A FileSource of the path, which is not unpacked. Throws Error(IO).
  explicit LineReader(const std::string& path, size_t max_line_bytes = 16 << 20,
                      const std::atomic<bool>* stop = nullptr, size_t block_bytes = 1 << 20);
  ~LineReader();

  /// Replaces batch by the next lines: at least one, then until max_lines or max_bytes are reached.
  /// False when there are none left. Throws the source's Error, with the last whole line's number,
  /// and Error(BAD_FILE) for what is no text.
  bool read(size_t max_lines, size_t max_bytes, LineBatch& batch);

  /// Instead of a first read(): passes over the text's first `bytes`, `lines` lines. Throws
  /// Error(INVALID_ARGUMENT) where the text is shorter or has another hash, and as read() does; not
  /// where it was stopped on the way.
  void skip(uint64_t bytes, uint64_t lines, uint64_t text_hash);

  const ByteSource& source() const { return *source_; }
  /// Of the source, as it is stored, up to where lines have been read or passed over; within a
  /// block of packed text about so.
  uint64_t source_bytes() const;
  uint64_t total_bytes() const { return source_->total_bytes(); }
  const std::string& name() const { return source_->name(); }

 private:
  class Hash;
  bool fill(bool counts_lines);
  /// Counts bytes of the unread part of block_ as consumed.
  void consume(size_t bytes);
  bool stopped() const { return stop_ != nullptr && stop_->load(std::memory_order_relaxed); }

  std::unique_ptr<ByteSource> source_;
  size_t max_line_bytes_;
  const std::atomic<bool>* stop_;
  std::vector<char> block_;
  size_t begin_ = 0, end_ = 0;               // unread part of block_
  uint64_t block_source_bytes_[2] = {0, 0};  // bytes_read() before and behind block_
  uint64_t consumed_ = 0, lines_ = 0;
  std::unique_ptr<Hash> hash_;  // of what was consumed
};

}  // namespace xsr
