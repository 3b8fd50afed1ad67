#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace xsr {

enum class VectorFormat {
  kNpy,  // NumPy format 1.0, shape (rows, columns), '<f4', C order
  kF32,  // raw little-endian f32, row after row
  kTsv,  // one row a line, columns separated by tabs, %.9g: the f32 values exactly
};

/// By the ending of the path: .npy, .f32, .tsv. "-" (standard output) is kF32, or kTsv where a
/// person reads it (a terminal). Throws Error(INVALID_ARGUMENT) for any other ending.
VectorFormat vector_format(const std::string& path);

/// Rows of a partial file, and its size up to their end.
struct KeptRows {
  uint64_t rows = 0, bytes = 0;
};

/// Writes rows of f32 to path.partial and renames it to path when whole; an existing path stays as
/// it was until then. A second process that wants to write the same path at the same time gets an
/// error. A path that is a symbolic link is replaced itself. With path "-" the rows go straight to
/// standard output. Not for several threads at once.
class VectorWriter {
 public:
  /// kept: of an earlier run's path.partial, behind which this one goes on; what stands there
  /// already goes. Throws Error(IO), before any row is computed where path is a folder, a pipe or a
  /// device, or path.partial has less than that.
  VectorWriter(const std::string& path, VectorFormat format, size_t columns, KeptRows kept = {});
  /// Closes the file. Without finish() or abandon() the partial file stays as it is.
  ~VectorWriter();
  VectorWriter(const VectorWriter&) = delete;
  VectorWriter& operator=(const VectorWriter&) = delete;

  /// Appends count rows: rows [count, columns]. Throws Error(IO); the message says how many rows
  /// are kept and where.
  void append(const float* rows, size_t count);
  /// Flushes the rows appended so far to the disk. Throws Error(IO), and again each time after it
  /// has failed once.
  void flush();
  /// Completes the header, flushes the file to the disk and gives it its name. Throws Error(IO).
  void finish();
  /// For a run that ends early: leaves a partial file that holds the whole rows written so far and
  /// is a valid file of its format, or none when there are no rows. Returns a sentence that says
  /// so, "" for standard output. Never throws.
  std::string abandon() noexcept;

  uint64_t rows() const { return rows_; }
  /// Size of the file up to its last whole row.
  uint64_t whole_bytes() const { return whole_bytes_; }

 private:
  size_t write(const char* data, size_t size);
  bool write_header();
  [[noreturn]] void fail(const char* what, int error);

  std::string path_, partial_;  // partial_ is empty for standard output and once renamed
  VectorFormat format_;
  size_t columns_;
  int fd_ = -1;
  bool abandoned_ = false;
  int flush_error_ = 0;  // errno of the first flush that failed
  uint64_t rows_ = 0;
  uint64_t whole_bytes_ = 0;
  std::string text_;  // of one append, for TSV
};

}  // namespace xsr
