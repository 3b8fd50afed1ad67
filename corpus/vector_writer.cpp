#include "corpus/vector_writer.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/text/progress.h"

namespace xsr {
namespace {

static_assert(std::endian::native == std::endian::little, "f32 and npy files are little-endian");

// NumPy wants the data at a multiple of 64; the header is padded to this size so that the row
// count, unknown until the end, can be written over it.
constexpr size_t kNpyHeaderBytes = 128;

std::string npy_header(uint64_t rows, size_t columns) {
  std::string header = "\x93NUMPY\x01";
  header += '\0';
  const size_t length = kNpyHeaderBytes - 10;
  header += static_cast<char>(length & 0xFF);
  header += static_cast<char>(length >> 8);
  header +=
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  header.resize(kNpyHeaderBytes - 1, ' ');
  header += '\n';
  return header;
}

bool ends_with(const std::string& text, const char* end) {
  const size_t size = std::strlen(end);
  return text.size() > size && text.compare(text.size() - size, size, end) == 0;
}

std::string reason(int error) {
  std::string text = std::strerror(error);
  if (!text.empty() && text[0] >= 'A' && text[0] <= 'Z')
    text[0] = static_cast<char>(text[0] + ('a' - 'A'));
  return text;
}

}  // namespace

VectorFormat vector_format(const std::string& path) {
  if (path == "-") return ::isatty(STDOUT_FILENO) ? VectorFormat::kTsv : VectorFormat::kF32;
  if (ends_with(path, ".npy")) return VectorFormat::kNpy;
  if (ends_with(path, ".f32")) return VectorFormat::kF32;
  if (ends_with(path, ".tsv")) return VectorFormat::kTsv;
  throw Error(XSR_STATUS_INVALID_ARGUMENT, path +
                                               ": the ending names the format, and this is none of "
                                               ".npy, .f32 and .tsv (or - for standard "
                                               "output)");
}

VectorWriter::VectorWriter(const std::string& path, VectorFormat format, size_t columns,
                           KeptRows kept)
    : path_(path), format_(format), columns_(columns), rows_(kept.rows), whole_bytes_(kept.bytes) {
  if (path == "-") {
    path_ = "standard output";
    fd_ = STDOUT_FILENO;
  } else {
    partial_ = path + ".partial";
    fd_ = open_partial_file(path, kept.bytes);
  }
  if (format_ == VectorFormat::kNpy && kept.bytes == 0) {
    const std::string header = npy_header(0, columns_);
    if (write(header.data(), header.size()) != header.size()) fail("write", errno);
    whole_bytes_ = header.size();
  }
}

VectorWriter::~VectorWriter() {
  if (!partial_.empty() && fd_ >= 0) ::close(fd_);
}

void VectorWriter::fail(const char* what, int error) {
  const uint64_t rows = rows_;
  const std::string kept = abandon();
  std::string message = path_ + ": ";
  // "No space left on device after 1,204,992 rows." says all; the other errors also need to say
  // during what.
  if (error != ENOSPC && error != EDQUOT) message += std::string("cannot ") + what + ": ";
  message += reason(error) + " after " + with_separators(rows) + " rows.";
  if (!kept.empty()) message += " " + kept;
  throw Error(XSR_STATUS_IO, message);
}

/// Bytes written: size, or less with errno saying why.
size_t VectorWriter::write(const char* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t put = ::write(fd_, data + done, size - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno == EAGAIN) {  // standard output may be set not to block
      pollfd full{fd_, POLLOUT, 0};
      ::poll(&full, 1, -1);
      continue;
    }
    if (put < 0) break;
    done += static_cast<size_t>(put);
  }
  return done;
}

void VectorWriter::append(const float* rows, size_t count) {
  const size_t row_bytes = columns_ * sizeof(float);
  const char* data = reinterpret_cast<const char*>(rows);
  size_t size = count * row_bytes;
  if (format_ == VectorFormat::kTsv) {
    text_.clear();
    char number[32];
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = 0; j < columns_; ++j) {
        const int length = std::snprintf(number, sizeof number, "%.9g",
                                         static_cast<double>(rows[i * columns_ + j]));
        text_.append(number, static_cast<size_t>(length));
        text_ += j + 1 == columns_ ? '\n' : '\t';
      }
    }
    data = text_.data();
    size = text_.size();
  }
  const size_t written = write(data, size);
  const int error = errno;
  if (written == size) {
    rows_ += count;
    whole_bytes_ += size;
    return;
  }
  // What has come to the disk as a whole row stays.
  if (format_ == VectorFormat::kTsv) {
    const size_t last_end = text_.rfind('\n', written == 0 ? 0 : written - 1);
    const size_t whole = written == 0 || last_end == std::string::npos ? 0 : last_end + 1;
    rows_ += static_cast<uint64_t>(std::count(data, data + whole, '\n'));
    whole_bytes_ += whole;
  } else {
    rows_ += written / row_bytes;
    whole_bytes_ += written / row_bytes * row_bytes;
  }
  fail("write", error);
}

void VectorWriter::flush() {
  if (partial_.empty()) return;
  if (!has_name(fd_, partial_)) fail("find its partial file", ENOENT);
  // Of what it could not write the system tells once, and holds it for written afterwards.
  if (flush_error_ == 0 && ::fdatasync(fd_) != 0) flush_error_ = errno;
  if (flush_error_ != 0) fail("flush", flush_error_);
}

/// Writes the header again, now with the row count; false with errno saying why not.
bool VectorWriter::write_header() {
  const std::string header = npy_header(rows_, columns_);
  for (size_t at = 0; at < header.size();) {
    const ssize_t put =
        ::pwrite(fd_, header.data() + at, header.size() - at, static_cast<off_t>(at));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    at += static_cast<size_t>(put);
  }
  return true;
}

void VectorWriter::finish() {
  if (partial_.empty()) return;
  if (format_ == VectorFormat::kNpy && !write_header()) fail("write the header", errno);
  if (::fsync(fd_) != 0) fail("flush", flush_error_ = errno);
  if (!has_name(fd_, partial_)) fail("find its partial file", ENOENT);
  // Under the lock: once it is given back another process may write to the partial file.
  if (std::rename(partial_.c_str(), path_.c_str()) != 0) fail("rename its partial file", errno);
  partial_.clear();
  ::close(std::exchange(fd_, -1));
  flush_name(path_);
}

std::string VectorWriter::abandon() noexcept {
  try {
    if (partial_.empty() || abandoned_) return "";
    abandoned_ = true;
    if (!has_name(fd_, partial_)) return partial_ + " has been removed, and the rows with it.";
    if (rows_ == 0) {
      ::unlink(partial_.c_str());  // under the lock
      ::close(std::exchange(fd_, -1));
      return "";
    }
    // A failed append may have left part of a row behind.
    if (::ftruncate(fd_, static_cast<off_t>(whole_bytes_)) != 0) {
      return "The rows written are in " + partial_ + ", perhaps with part of another behind them.";
    }
    if (format_ == VectorFormat::kNpy && !write_header()) {
      return "The rows written are in " + partial_ + ", whose header gives no row count.";
    }
    return "The rows written are kept in " + partial_ + ".";
  } catch (...) {
    return "";
  }
}

}  // namespace xsr
