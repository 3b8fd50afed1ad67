#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/types.h"
#include "runtime/format/model_config.h"

namespace xsr {

// The numbers are those of the .xsr file (docs/FORMAT.md).
using DType = kernels::Storage;
/// Row-major: [dims...]. Panels: a matrix [N, K] (N outputs, K inputs) packed as
/// kernels/gemm/gemm.h says: [ceil(N/32)][ceil(K/kp)][32][kp] with zeros in the padding; kp = 1
/// (f32), 2 (bf16, f16), 4 (i8).
enum class Layout : uint32_t { kRowMajor = 0, kPanels32 = 1 };

size_t dtype_size(DType);
const char* to_string(DType);
const char* to_string(Layout);
/// "[512, 1024]"; "[]" for a scalar.
std::string shape_string(std::span<const uint64_t> shape);
/// Bytes of a tensor's data in the file. Throws Error(BAD_FILE) when the product overflows.
uint64_t tensor_bytes(DType, Layout, std::span<const uint64_t> dims);

/// A tensor inside a mapped .xsr file; pointers live as long as the XsrFile.
struct TensorView {
  std::string_view name;
  DType dtype = DType::kF32;
  Layout layout = Layout::kRowMajor;
  std::vector<uint64_t> dims;     // logical shape, 1 to 4 dimensions
  const void* data = nullptr;     // 64-byte aligned
  uint64_t size = 0;              // bytes
  uint64_t offset = 0;            // bytes from the start of the file
  uint64_t checksum = 0;          // XXH3-64 of the data; i8: of data and scales in one run
  const float* scales = nullptr;  // i8 only: [N]
};

/// A .xsr file of format version 1, validated: magic, version, endian mark, sizes, every offset and
/// product, names, no holes, no overlaps, no trailing bytes, the header's checksum. The tensors'
/// checksums are checked by verify(). Immutable after opening; safe to share between threads.
class XsrFile {
 public:
  /// Maps the file read-only. Throws Error: IO, BAD_FILE, UNSUPPORTED; the message names path,
  /// offset, found, expected.
  static std::unique_ptr<XsrFile> open(const std::string& path);
  /// data must be 64-byte aligned and outlive the object.
  static std::unique_ptr<XsrFile> open_memory(const void* data, size_t size,
                                              const std::string& name = "memory");
  ~XsrFile();
  XsrFile(const XsrFile&) = delete;
  XsrFile& operator=(const XsrFile&) = delete;

  const ModelConfig& config() const { return config_; }
  std::span<const TensorView> tensors() const { return tensors_; }
  const TensorView* find(std::string_view name) const;  // null when there is none
  std::string_view tokenizer() const {
    return tokenizer_;
  }  // the tokenizer model's bytes, maybe empty
  /// What runtime/text/tokenizer_tables.h makes of the tokenizer model, maybe empty; 64-byte
  /// aligned.
  std::span<const unsigned char> tokenizer_tables() const { return tokenizer_tables_; }
  std::string_view provenance() const {
    return provenance_;
  }                                                  // JSON, NUL-terminated just past its end
  const std::string& name() const { return name_; }  // path, for messages
  uint64_t size() const { return size_; }
  uint64_t header_checksum() const { return header_checksum_; }
  /// Checks every tensor's checksum, that the padding behind and inside it is zero, and that the
  /// tokenizer tables are those of the tokenizer; reads the whole file. Throws Error(BAD_FILE)
  /// naming the first damaged tensor.
  void verify() const;

 private:
  XsrFile() = default;
  void parse();

  std::string name_;
  const unsigned char* data_ = nullptr;
  uint64_t size_ = 0;
  std::unique_ptr<class MappedFile> mapping_;  // null for a file in memory
  ModelConfig config_;
  std::vector<TensorView> tensors_;
  std::string_view tokenizer_, provenance_;
  std::span<const unsigned char> tokenizer_tables_;
  uint64_t header_checksum_ = 0;
};

/// One tensor to be written; data must stay valid until write() returns.
struct TensorSource {
  std::string name;
  DType dtype = DType::kF32;
  Layout layout = Layout::kRowMajor;
  std::vector<uint64_t> dims;
  const void* data = nullptr;
  const float* scales = nullptr;  // i8 only: [N]
};

/// Writes path.partial, fsyncs it and renames it to path when whole; on failure the partial file is
/// removed and an existing path is left as it was. Bytes are a function of the arguments alone.
/// Throws Error(IO, INVALID_ARGUMENT); the latter for whatever XsrFile::open() or verify() would
/// refuse, but for tokenizer_tables, which are written as they are: none, or those that
/// tokenizer_tables_for_file() makes of the tokenizer. Where files are limited (RLIMIT_FSIZE) the
/// caller must ignore SIGXFSZ to get an error instead of the signal.
void write_xsr_file(const std::string& path, const ModelConfig& config,
                    std::span<const TensorSource> tensors, std::string_view tokenizer,
                    std::string_view provenance_json,
                    std::span<const unsigned char> tokenizer_tables = {});
/// The same into memory (for tests and for models that live in memory only). 64-byte aligned
/// buffer.
std::shared_ptr<unsigned char[]> write_xsr_memory(
    const ModelConfig& config, std::span<const TensorSource> tensors, std::string_view tokenizer,
    std::string_view provenance_json, size_t* size,
    std::span<const unsigned char> tokenizer_tables = {});

}  // namespace xsr
