#include "converter/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "converter/pytorch.h"
#include "converter/safetensors.h"
#include "kernels/storage.h"
#include "runtime/format/mapped_file.h"

namespace xsr {

static_assert(std::endian::native == std::endian::little, "checkpoints are read in place");

uint64_t scalar_size(ScalarType type) {
  switch (type) {
    case ScalarType::kF64:
    case ScalarType::kI64:
      return 8;
    case ScalarType::kF32:
    case ScalarType::kI32:
      return 4;
    case ScalarType::kF16:
    case ScalarType::kBF16:
    case ScalarType::kI16:
      return 2;
    case ScalarType::kI8:
    case ScalarType::kU8:
    case ScalarType::kBool:
      return 1;
  }
  throw Error(XSR_STATUS_INTERNAL, "unknown scalar type");
}

const char* to_string(ScalarType type) {
  switch (type) {
    case ScalarType::kF64:
      return "F64";
    case ScalarType::kF32:
      return "F32";
    case ScalarType::kF16:
      return "F16";
    case ScalarType::kBF16:
      return "BF16";
    case ScalarType::kI64:
      return "I64";
    case ScalarType::kI32:
      return "I32";
    case ScalarType::kI16:
      return "I16";
    case ScalarType::kI8:
      return "I8";
    case ScalarType::kU8:
      return "U8";
    case ScalarType::kBool:
      return "BOOL";
  }
  return "unknown";
}

bool is_floating(ScalarType type) {
  return type == ScalarType::kF64 || type == ScalarType::kF32 || type == ScalarType::kF16 ||
         type == ScalarType::kBF16;
}

namespace {

template <typename T>
T load(const unsigned char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// Calls visit(pointer to element) for every element in row-major order.
template <typename Visit>
void for_each_element(const CheckpointTensor& t, Visit visit) {
  const uint64_t size = scalar_size(t.dtype);
  if (t.strides.empty()) {
    for (uint64_t i = 0; i < t.numel; ++i) visit(t.data + i * size);
    return;
  }
  std::vector<uint64_t> at(t.shape.size(), 0);
  uint64_t offset = 0;  // in elements
  for (uint64_t i = 0; i < t.numel; ++i) {
    visit(t.data + offset * size);
    for (size_t d = t.shape.size(); d-- > 0;) {
      offset += t.strides[d];
      if (++at[d] < t.shape[d]) break;
      offset -= t.strides[d] * t.shape[d];
      at[d] = 0;
    }
  }
}

template <typename To>
std::vector<To> convert(const CheckpointTensor& t) {
  std::vector<To> out;
  out.reserve(t.numel);
  const auto with = [&](auto read) {
    for_each_element(t, [&](const unsigned char* p) { out.push_back(static_cast<To>(read(p))); });
  };
  switch (t.dtype) {
    case ScalarType::kF64:
      with(load<double>);
      break;
    case ScalarType::kF32:
      with(load<float>);
      break;
    case ScalarType::kF16:
      with([](const unsigned char* p) { return kernels::f32_from_f16(load<uint16_t>(p)); });
      break;
    case ScalarType::kBF16:
      with([](const unsigned char* p) { return kernels::f32_from_bf16(load<uint16_t>(p)); });
      break;
    case ScalarType::kI64:
      with(load<int64_t>);
      break;
    case ScalarType::kI32:
      with(load<int32_t>);
      break;
    case ScalarType::kI16:
      with(load<int16_t>);
      break;
    case ScalarType::kI8:
      with(load<int8_t>);
      break;
    case ScalarType::kU8:
      with(load<uint8_t>);
      break;
    case ScalarType::kBool:
      with([](const unsigned char* p) { return *p != 0 ? 1 : 0; });
      break;
  }
  return out;
}

bool starts_with(std::span<const unsigned char> bytes, std::string_view magic, size_t at = 0) {
  return bytes.size() >= at + magic.size() &&
         std::memcmp(bytes.data() + at, magic.data(), magic.size()) == 0;
}

}  // namespace

std::vector<unsigned char> CheckpointTensor::to_bytes() const {
  const uint64_t size = scalar_size(dtype);
  if (strides.empty()) return std::vector<unsigned char>(data, data + numel * size);
  std::vector<unsigned char> out;
  out.reserve(numel * size);
  for_each_element(*this, [&](const unsigned char* p) { out.insert(out.end(), p, p + size); });
  return out;
}

std::vector<float> CheckpointTensor::to_f32() const { return convert<float>(*this); }

std::vector<double> CheckpointTensor::to_f64() const { return convert<double>(*this); }

std::vector<int64_t> CheckpointTensor::to_i64() const {
  if (is_floating(dtype)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                fmt::format("{} is {}, expected integers", name, to_string(dtype)));
  }
  return convert<int64_t>(*this);
}

Checkpoint::~Checkpoint() = default;

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->name_ = path;
  checkpoint->mapping_ = std::make_unique<MappedFile>(path);
  checkpoint->file_ = checkpoint->mapping_->bytes();
  checkpoint->read();
  return checkpoint;
}

std::unique_ptr<Checkpoint> Checkpoint::open_memory(std::span<const unsigned char> file,
                                                    const std::string& name) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->name_ = name;
  checkpoint->file_ = file;
  checkpoint->read();
  return checkpoint;
}

void Checkpoint::read() {
  if (file_.empty()) throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: the file is empty", name_));
  // safetensors before the pickle: the low byte of a header length may be any pickle opcode, but a
  // pickle of torch.save has 0xf9 of its magic number where the header's brace stands.
  if (file_.size() >= 9 && file_[8] == '{') {
    contents_ = read_safetensors(file_, name_);
  } else if (starts_with(file_, "PK\x03\x04") || starts_with(file_, "PK\x05\x06")) {
    contents_ = read_pytorch_zip(file_, name_);
  } else if (file_[0] == 0x80) {
    contents_ = read_pytorch_legacy(file_, name_);
  } else if (starts_with(file_, "ustar", 257)) {
    throw Error(
        XSR_STATUS_UNSUPPORTED,
        fmt::format(
            "{}: is a tar file, as PyTorch before 0.1.10 wrote; load it with an older PyTorch and "
            "save it again with torch.save",
            name_));
  } else if (starts_with(file_, "\x89XSR")) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                fmt::format("{}: is a .xsr file, expected a checkpoint", name_));
  } else if (starts_with(file_, kGitLfsMagic)) {
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: is a Git LFS pointer that stands for the checkpoint; fetch the "
                            "file itself (git lfs pull)",
                            name_));
  } else {
    throw Error(
        XSR_STATUS_BAD_FILE,
        fmt::format("{}: begins with bytes {:02x}, expected a safetensors header, a PyTorch zip "
                    "(50 4b 03 04) or an older PyTorch pickle (80 02)",
                    name_, fmt::join(file_.first(std::min<size_t>(file_.size(), 9)), " ")));
  }
  auto& tensors = contents_.tensors;
  unwrapped_ = !tensors.empty();
  for (const auto& t : tensors) unwrapped_ = unwrapped_ && t.name.starts_with(kWrapper);
  if (unwrapped_) {
    for (auto& t : tensors) t.name.erase(0, kWrapper.size());
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (const char c : tensors[i].name) {
      if (static_cast<unsigned char>(c) < 0x20 ||
          c == 0x7f) {  // would garble the terminal it is printed on
        throw Error(XSR_STATUS_BAD_FILE,
                    fmt::format("{}: the name of tensor {} contains the control character 0x{:02x}",
                                name_, i, static_cast<unsigned char>(c)));
      }
    }
    if (!index_.emplace(tensors[i].name, i).second) {
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}: the tensor {} occurs twice, expected every name once", name_,
                              tensors[i].name));
    }
  }
}

const CheckpointTensor* Checkpoint::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &contents_.tensors[it->second];
}

}  // namespace xsr
