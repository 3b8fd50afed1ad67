#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/error.h"
#include "runtime/format/xsr_file.h"

namespace xsr {

/// Element types that checkpoints hold; the names are those of safetensors ("F32", "BF16", ...).
enum class ScalarType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

uint64_t scalar_size(ScalarType);  // bytes
const char* to_string(ScalarType);
bool is_floating(ScalarType);

/// One named tensor. data points into the Checkpoint, unaligned, little-endian.
struct CheckpointTensor {
  std::string name;
  ScalarType dtype = ScalarType::kF32;
  std::vector<uint64_t> shape;    // empty for a scalar
  std::vector<uint64_t> strides;  // in elements; empty when the tensor is contiguous and row-major
  uint64_t numel = 0;             // product of the shape
  const unsigned char* data = nullptr;  // the first element

  /// The elements in row-major order, still in the source type.
  std::vector<unsigned char> to_bytes() const;
  /// Any type; F64 and integers are rounded to the nearest float.
  std::vector<float> to_f32() const;
  std::vector<double> to_f64() const;
  /// Integers and BOOL only: Error(INVALID_ARGUMENT) for floating types.
  std::vector<int64_t> to_i64() const;
};

/// What a reader finds in a file. Readers fill it, Checkpoint owns it.
struct CheckpointContents {
  std::string format;                     // "safetensors", "PyTorch zip", "PyTorch legacy"
  std::vector<CheckpointTensor> tensors;  // the model's, in file order
  std::vector<CheckpointTensor> outside;  // beside the model, e.g. optimizer.state.0.exp_avg
  std::map<std::string, std::string>
      metadata;  // safetensors' __metadata__; a pickle's own scalars as text
  std::vector<std::unique_ptr<std::vector<unsigned char>>>
      buffers;  // inflated data that tensors point to
};

/// A checkpoint file of any format this project reads, validated; nothing in it is ever executed.
/// Immutable after opening, so safe to share between threads.
class Checkpoint {
 public:
  /// Maps the file read-only and finds its format from its first bytes. Throws Error: IO, BAD_FILE
  /// (damaged), or UNSUPPORTED (sound, but asking for what is not read); the message names the
  /// file, the place and the mend.
  static std::unique_ptr<Checkpoint> open(const std::string& path);
  /// The same from memory that outlives the object.
  static std::unique_ptr<Checkpoint> open_memory(std::span<const unsigned char> file,
                                                 const std::string& name = "memory");
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  /// What data-parallel wrappers put before every name: taken off where every name has it.
  static constexpr std::string_view kWrapper = "module.";
  bool unwrapped() const { return unwrapped_; }

  const std::string& name() const { return name_; }  // path, for messages
  const std::string& format() const { return contents_.format; }
  std::span<const CheckpointTensor> tensors() const { return contents_.tensors; }
  std::span<const CheckpointTensor> outside() const { return contents_.outside; }
  const std::map<std::string, std::string>& metadata() const { return contents_.metadata; }
  const CheckpointTensor* find(std::string_view name) const;  // null when there is none
  std::span<const unsigned char> file() const { return file_; }

 private:
  Checkpoint() = default;
  void read();

  std::string name_;
  std::span<const unsigned char> file_;
  std::unique_ptr<class MappedFile> mapping_;
  CheckpointContents contents_;
  std::unordered_map<std::string_view, size_t> index_;
  bool unwrapped_ = false;
};

}  // namespace xsr
