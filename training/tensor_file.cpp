#include "training/tensor_file.h"

#include <nlohmann/json.hpp>

#include "converter/json_text.h"
#include "runtime/format/partial_file.h"

namespace xsr::training {

std::string TensorFile::head(
    const std::vector<std::pair<std::string, std::string>>& metadata) const {
  nlohmann::ordered_json header;
  for (const auto& [name, value] : metadata) header["__metadata__"][name] = value;
  uint64_t offset = 0;
  for (const Tensor& t : tensors_) {
    header[t.name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {offset, offset + t.size}}};
    offset += t.size;
  }
  std::string text = json_text(header);
  text.resize((text.size() + sizeof(uint64_t) + 63) / 64 * 64 - sizeof(uint64_t), ' ');
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + text;
}

void TensorFile::write(const std::string& path, const std::string& head) const {
  uint64_t size = head.size();
  for (const Tensor& t : tensors_) size += t.size;
  PartialFile file(path, size);
  file.write(head.data(), head.size());
  for (const Tensor& t : tensors_) file.write(t.data, t.size);
  file.commit();
}

}  // namespace xsr::training
