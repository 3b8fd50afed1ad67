#include "input/text_file.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "runtime/error.h"
#include "runtime/text/line_reader.h"

namespace xsr {
namespace {

constexpr size_t kBlockBytes = 256 << 10;
constexpr int kZstdWindowLog = 27;  // zstd --long=27
// Of a frame to be skipped, with which pzstd begins a file; the byte before it is 0x50 to 0x5F.
constexpr std::string_view kSkippedMagic("\x2A\x4D\x18", 3);
constexpr const char* kCopyAgain = "is it whole? Let whatever writes it end, or copy it again";

/// A source in blocks of its own, for what unpacks it.
class PackedInput {
 public:
  PackedInput(std::unique_ptr<ByteSource> source, const std::atomic<bool>* stop)
      : source_(std::move(source)), stop_(stop), block_(kBlockBytes) {}

  const ByteSource& source() const { return *source_; }
  uint64_t bytes_read() const { return source_->bytes_read() - rest_.size(); }
  bool stopped() const { return stop_ != nullptr && stop_->load(std::memory_order_relaxed); }

  /// What was read and not skipped: at least a byte where the input has not ended.
  std::string_view rest() {
    if (rest_.empty()) rest_ = {block_.data(), fetch(block_.data(), block_.size())};
    return rest_;
  }
  void skip(size_t size) { rest_.remove_prefix(size); }
  /// Before any skip(): reads more behind rest(). False where there is none.
  bool extend() {
    const size_t size = rest_.size();
    const size_t more = fetch(block_.data() + size, block_.size() - size);
    rest_ = {block_.data(), size + more};
    return more > 0;
  }
  /// For plain text, which needs no block on its way.
  size_t read(char* to, size_t size) {
    if (rest_.empty()) {
      std::vector<char>().swap(block_);
      return fetch(to, size);
    }
    const size_t count = std::min(size, rest_.size());
    std::memcpy(to, rest_.data(), count);
    skip(count);
    return count;
  }

  /// An error of what the input holds.
  [[noreturn]] void bad(const std::string& what, const std::string& mend) const {
    const uint64_t total = source_->total_bytes();
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: {}, behind byte {}{}; {}", source_->name(), what, bytes_read(),
                            total == 0 ? "" : fmt::format(" of {}", total), mend));
  }

 private:
  /// The end is asked for once: a terminal would have to be told of it again.
  size_t fetch(char* to, size_t size) {
    const size_t count = ended_ ? 0 : source_->read(to, size);
    ended_ = count == 0;
    return count;
  }

  std::unique_ptr<ByteSource> source_;
  const std::atomic<bool>* stop_;
  bool ended_ = false;
  std::vector<char> block_;
  std::string_view rest_;  // of block_
};

class Unpacker {
 public:
  virtual ~Unpacker() = default;
  /// As ByteSource::read().
  virtual size_t read(PackedInput& in, char* to, size_t size) = 0;
};

[[noreturn]] void no_memory(const PackedInput& in) {
  throw Error(XSR_STATUS_OUT_OF_MEMORY, in.source().name() + ": no memory to unpack it");
}

class GzipUnpacker : public Unpacker {
 public:
  explicit GzipUnpacker(const PackedInput& in) {
    constexpr int kGzipWindow = 15 + 16;
    if (inflateInit2(&stream_, kGzipWindow) != Z_OK) no_memory(in);
  }
  ~GzipUnpacker() override { inflateEnd(&stream_); }
  GzipUnpacker(const GzipUnpacker&) = delete;
  GzipUnpacker& operator=(const GzipUnpacker&) = delete;

  size_t read(PackedInput& in, char* to, size_t size) override {
    stream_.next_out = reinterpret_cast<Bytef*>(to);
    stream_.avail_out = static_cast<uInt>(std::min<size_t>(size, 1 << 30));
    const uInt wanted = stream_.avail_out;
    while (stream_.avail_out == wanted) {
      const std::string_view bytes = in.rest();
      if (bytes.empty()) {
        if (in_member_ && !in.stopped()) in.bad("the gzip data ends early", kCopyAgain);
        return 0;
      }
      if (!in_member_) {
        if (std::exchange(any_, true)) {
          if (bytes[0] != kGzipMagic[0])
            in.bad("other data follows the gzip data", "cut it off, or pack the text again");
          inflateReset(&stream_);
        }
        in_member_ = true;
      }
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
      stream_.avail_in = static_cast<uInt>(bytes.size());
      const int result = inflate(&stream_, Z_NO_FLUSH);
      in.skip(bytes.size() - stream_.avail_in);
      if (result == Z_MEM_ERROR) no_memory(in);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        in.bad(fmt::format("the gzip data is damaged ({})",
                           stream_.msg != nullptr ? stream_.msg : zError(result)),
               "copy it again, or pack the text again");
      }
      in_member_ = result != Z_STREAM_END;
    }
    return wanted - stream_.avail_out;
  }

 private:
  z_stream stream_{};
  bool any_ = false, in_member_ = false;
};

class ZstdUnpacker : public Unpacker {
 public:
  explicit ZstdUnpacker(const PackedInput& in) : stream_(ZSTD_createDCtx(), ZSTD_freeDCtx) {
    if (stream_ == nullptr ||
        ZSTD_isError(ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, kZstdWindowLog))) {
      no_memory(in);
    }
  }

  size_t read(PackedInput& in, char* to, size_t size) override {
    ZSTD_outBuffer out{to, size, 0};
    while (out.pos == 0) {
      const std::string_view bytes = in.rest();
      // What the library still holds comes out without more input.
      if (bytes.empty() && !in_frame_) return 0;
      ZSTD_inBuffer input{bytes.data(), bytes.size(), 0};
      const size_t result = ZSTD_decompressStream(stream_.get(), &out, &input);
      if (ZSTD_isError(result)) fail(in, result);
      any_ = true;
      in_frame_ = result != 0;
      in.skip(input.pos);
      if (bytes.empty() && out.pos == 0) {
        if (!in.stopped()) in.bad("the zstd data ends early", kCopyAgain);
        return 0;
      }
    }
    return out.pos;
  }

 private:
  [[noreturn]] void fail(const PackedInput& in, size_t result) const {
    switch (ZSTD_getErrorCode(result)) {
      case ZSTD_error_memory_allocation:
        no_memory(in);
      case ZSTD_error_frameParameter_windowTooLarge:
        in.bad(fmt::format("the zstd data needs a window beyond --long={}", kZstdWindowLog),
               fmt::format("pack the text again with --long={} or less", kZstdWindowLog));
      case ZSTD_error_prefix_unknown:
        if (any_ && !in_frame_)
          in.bad("other data follows the zstd data", "cut it off, or pack the text again");
        [[fallthrough]];
      default:
        in.bad(fmt::format("the zstd data is damaged ({})", ZSTD_getErrorName(result)),
               "copy it again, or pack the text again");
    }
  }

  std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> stream_;
  bool any_ = false, in_frame_ = false;
};

bool is_part_of(std::string_view magic, std::string_view text) {
  return text.size() < magic.size() && magic.starts_with(text);
}

/// Whether more bytes could make `text`, which is not empty, the beginning of packed data.
bool may_become_packed(std::string_view text) {
  return is_part_of(kGzipMagic, text) || is_part_of(kZstdMagic, text) ||
         ((text[0] & 0xF0) == 0x50 && is_part_of(kSkippedMagic, text.substr(1)));
}

/// What is cut within the first bytes is no text either: 0x1F is a control character, and no
/// character of UTF-8 begins with 0xB5.
bool is_gzip(std::string_view text) {
  return text.starts_with(kGzipMagic) || (!text.empty() && is_part_of(kGzipMagic, text));
}
bool is_zstd(std::string_view text) {
  return text.starts_with(kZstdMagic) || (text.size() > 1 && is_part_of(kZstdMagic, text)) ||
         (!text.empty() && (text[0] & 0xF0) == 0x50 && text.substr(1).starts_with(kSkippedMagic));
}

class TextSource : public ByteSource {
 public:
  TextSource(std::unique_ptr<ByteSource> source, const std::atomic<bool>* stop)
      : in_(std::move(source), stop) {}

  size_t read(char* to, size_t size) override {
    if (!begun_) begin();
    if (unpacker_ == nullptr) return in_.read(to, size);
    // A little packed data may be much text.
    return in_.stopped() ? 0 : unpacker_->read(in_, to, size);
  }
  const std::string& name() const override { return in_.source().name(); }
  uint64_t total_bytes() const override { return in_.source().total_bytes(); }
  uint64_t bytes_read() const override { return in_.bytes_read(); }

 private:
  void begin() {
    std::string_view text = in_.rest();
    // A pipe may give a byte at a time.
    while (!text.empty() && may_become_packed(text) && in_.extend()) text = in_.rest();
    for (const auto& [ending, magic] : {std::pair{".gz", kGzipMagic}, {".zst", kZstdMagic}}) {
      if (!name().ends_with(ending) || !is_part_of(magic, text) || in_.stopped()) continue;
      in_.skip(text.size());
      in_.bad("the packed data ends early", kCopyAgain);
    }
    if (is_gzip(text)) unpacker_ = std::make_unique<GzipUnpacker>(in_);
    if (is_zstd(text)) unpacker_ = std::make_unique<ZstdUnpacker>(in_);
    begun_ = true;
  }

  PackedInput in_;
  bool begun_ = false;
  std::unique_ptr<Unpacker> unpacker_;
};

}  // namespace

std::unique_ptr<ByteSource> unpack(std::unique_ptr<ByteSource> source,
                                   const std::atomic<bool>* stop) {
  return std::make_unique<TextSource>(std::move(source), stop);
}

std::unique_ptr<ByteSource> open_text_file(const std::string& path, const std::atomic<bool>* stop) {
  return unpack(std::make_unique<FileSource>(path, stop), stop);
}

std::vector<std::string> read_all_lines(const std::string& path) {
  LineReader reader(open_text_file(path));
  LineBatch batch;
  std::vector<std::string> lines;
  while (reader.read(1 << 16, 16 << 20, batch)) {
    for (size_t i = 0; i < batch.size(); ++i) lines.emplace_back(batch.line(i));
  }
  return lines;
}

}  // namespace xsr
