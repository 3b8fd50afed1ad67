#include "training/checkpoint.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <charconv>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "converter/json_text.h"
#include "runtime/error.h"
#include "training/tensor_file.h"

namespace xsr::training {
namespace {

constexpr char kFormat[] = "xsr-train checkpoint 1";
// In the header, where the checksum of the whole file goes; it counts as these zeros itself.
constexpr char kChecksumKey[] = "\"checksum\":\"";
constexpr char kNoChecksum[] = "0000000000000000";
constexpr size_t kChecksumDigits = sizeof kNoChecksum - 1;

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  throw Error(XSR_STATUS_BAD_FILE, path + ": " + what);
}

class Hash {
 public:
  Hash() : state_(XXH3_createState()) { XXH3_64bits_reset(state_); }
  ~Hash() { XXH3_freeState(state_); }
  Hash(const Hash&) = delete;
  Hash& operator=(const Hash&) = delete;
  void add(const void* data, size_t size) { XXH3_64bits_update(state_, data, size); }
  std::string hex() const { return fmt::format("{:016x}", XXH3_64bits_digest(state_)); }

 private:
  XXH3_state_t* state_;
};

}  // namespace

void write_checkpoint(const std::string& path, const ParameterTable& table,
                      const std::vector<CheckpointBuffer>& buffers,
                      const CheckpointFields& fields) {
  TensorFile file;
  for (const CheckpointBuffer& b : buffers) {
    for (const Parameter& p : table.parameters())
      file.add(b.prefix + p.name, "F32", p.shape, b.buffer->at(p), static_cast<size_t>(p.size));
  }
  std::vector<std::pair<std::string, std::string>> metadata = {{"checksum", kNoChecksum},
                                                               {"format", kFormat}};
  metadata.insert(metadata.end(), fields.begin(), fields.end());
  std::string head = file.head(metadata);
  Hash hash;
  hash.add(head.data(), head.size());
  for (const TensorFile::Tensor& t : file.tensors()) hash.add(t.data, t.size);
  head.replace(head.find(kChecksumKey) + sizeof kChecksumKey - 1, kChecksumDigits, hash.hex());
  file.write(path, head);
}

bool TrainingCheckpoint::recognize(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(XSR_STATUS_IO, path + ": cannot open the file");
  std::string start(256, '\0');
  in.read(start.data(), static_cast<std::streamsize>(start.size()));
  if (in.bad()) throw Error(XSR_STATUS_IO, path + ": cannot read the file; is it a folder?");
  return start.find("\"xsr-train checkpoint ") != std::string::npos;
}

TrainingCheckpoint::TrainingCheckpoint(const std::string& path) {
  if (!recognize(path)) bad(path, "is no checkpoint of xsr-train: its header does not say so");
  checkpoint_ = Checkpoint::open(path);
  if (field("format") != kFormat) {
    bad(path, fmt::format("has format \"{}\", expected \"{}\"", field("format"), kFormat));
  }
  const std::span<const unsigned char> file = checkpoint_->file();
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  const size_t at = bytes.substr(0, 256).find(kChecksumKey);
  const size_t digits = at + sizeof kChecksumKey - 1, behind = digits + kChecksumDigits;
  if (at == std::string_view::npos || behind > bytes.size()) {
    bad(path, "has no checksum where its header begins");
  }
  Hash hash;
  hash.add(bytes.data(), digits);
  hash.add(kNoChecksum, kChecksumDigits);
  hash.add(bytes.data() + behind, bytes.size() - behind);
  if (const std::string found = hash.hex(); found != field("checksum")) {
    bad(path, fmt::format("is damaged: its checksum is {}, its header says {}. Use the other "
                          "checkpoint of the run, or begin again.",
                          found, field("checksum")));
  }
}

const std::string& TrainingCheckpoint::field(const std::string& name) const {
  const auto it = fields().find(name);
  if (it == fields().end()) bad(path(), "has no field \"" + name + "\"");
  return it->second;
}

int64_t TrainingCheckpoint::integer(const std::string& name) const {
  const std::string& text = field(name);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    bad(path(), fmt::format("field \"{}\" is \"{}\", expected a whole number", name, text));
  }
  return value;
}

CheckpointFields TrainingCheckpoint::object(const std::string& name) const {
  try {
    return parse_json(field(name)).get<CheckpointFields>();
  } catch (const nlohmann::json::type_error&) {
    bad(path(), "field \"" + name + "\" is no JSON object of text");
  }
}

std::vector<CheckpointFields> TrainingCheckpoint::objects(const std::string& name) const {
  try {
    return parse_json(field(name)).get<std::vector<CheckpointFields>>();
  } catch (const nlohmann::json::type_error&) {
    bad(path(), "field \"" + name + "\" is no JSON list of objects of text");
  }
}

void TrainingCheckpoint::read(const ParameterTable& table, const std::string& prefix,
                              FlatBuffer& buffer) const {
  for (const Parameter& p : table.parameters()) {
    const CheckpointTensor* tensor = checkpoint_->find(prefix + p.name);
    if (tensor == nullptr) bad(path(), "has no tensor " + prefix + p.name);
    const std::vector<uint64_t> shape(p.shape.begin(), p.shape.end());
    if (tensor->dtype != ScalarType::kF32 || tensor->shape != shape) {
      bad(path(),
          fmt::format("{}{} is {} {}, expected F32 {}", prefix, p.name, to_string(tensor->dtype),
                      shape_string(tensor->shape), shape_string(shape)));
    }
    std::memcpy(buffer.at(p), tensor->data, static_cast<size_t>(p.size) * sizeof(float));
  }
}

}  // namespace xsr::training
