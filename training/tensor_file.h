#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace xsr::training {

/// A safetensors file to be written: the tensors that are added, one behind the other. Their data
/// is read where it lies, when the file is written.
class TensorFile {
 public:
  struct Tensor {
    std::string name;
    const char* dtype;  // as safetensors spells it: "F32"
    std::vector<int64_t> shape;
    const void* data;  // row-major
    uint64_t size;     // bytes
  };

  template <typename T>
  void add(std::string name, const char* dtype, std::vector<int64_t> shape, const T* data,
           size_t count) {
    tensors_.push_back({std::move(name), dtype, std::move(shape), data, count * sizeof(T)});
  }
  template <typename T>
  void add(std::string name, const char* dtype, const std::vector<T>& data) {
    add(std::move(name), dtype, {static_cast<int64_t>(data.size())}, data.data(), data.size());
  }
  const std::vector<Tensor>& tensors() const { return tensors_; }

  /// What stands before the data: the size of the header and the header, with `metadata` first, in
  /// this order. Padded with spaces so that the data begins at a multiple of 64.
  std::string head(const std::vector<std::pair<std::string, std::string>>& metadata) const;
  /// Writes head and data, flushed to the disk before they take the name: at any time, and on a
  /// full disk, path is the old file or the new one, whole. Throws Error(IO).
  void write(const std::string& path, const std::string& head) const;

 private:
  std::vector<Tensor> tensors_;
};

}  // namespace xsr::training
