#include "converter/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

namespace xsr {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxTensors = 1 << 18;

struct Entry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;
};

/// The header is parsed by events, so that nesting, unknown keys and repeated names are refused
/// while they are read and nothing is built but what the format allows.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& file, std::map<std::string, std::string>& metadata)
      : file_(file), metadata_(metadata) {}

  std::vector<Entry> entries;

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return unexpected(fmt::format("the negative number {}", value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (state_ != State::kArray) return unexpected(fmt::format("the number {}", value));
    if (array_->size() == kMaxRank)
      fail(fmt::format("{} has more than {} numbers", where(), kMaxRank));
    array_->push_back(value);
    return true;
  }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected(fmt::format("the number {}", text));
  }
  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      if (!metadata_.emplace(key_, value).second)
        fail(fmt::format("__metadata__ has {} twice", key_));
      return true;
    }
    if (state_ == State::kTensor && key_ == "dtype") {
      entries.back().dtype = value;
      return true;
    }
    return unexpected(fmt::format("the string \"{:.40}\"", value));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }
  bool start_object(size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kRoot;
        return true;
      case State::kRoot:
        if (key_ == "__metadata__") {
          state_ = State::kMetadata;
        } else {
          if (entries.size() == kMaxTensors)
            fail(fmt::format("has more than {} tensors", kMaxTensors));
          entries.push_back({key_, {}, {}, {}});
          state_ = State::kTensor;
        }
        return true;
      default:
        return unexpected("an object");
    }
  }
  bool key(string_t& value) override {
    if (value.find('\0') != std::string::npos) fail("a name contains a NUL byte");
    key_ = value;
    if (state_ == State::kRoot && !names_.insert(key_).second) {
      fail(fmt::format("{} occurs twice", key_));
    }
    if (state_ == State::kTensor) {
      Entry& e = entries.back();
      const bool known = key_ == "dtype" || key_ == "shape" || key_ == "data_offsets";
      if (!known) {
        fail(fmt::format("{} has the field \"{:.40}\", expected dtype, shape and data_offsets only",
                         e.name, key_));
      }
      if ((key_ == "dtype" && e.dtype) || (key_ == "shape" && e.shape) ||
          (key_ == "data_offsets" && e.offsets)) {
        fail(fmt::format("{} has {} twice", e.name, key_));
      }
    }
    return true;
  }
  bool end_object() override {
    // An incomplete tensor is refused here, so that a large header of empty objects does not become
    // a large list.
    if (state_ == State::kTensor) {
      const Entry& e = entries.back();
      if (!e.dtype) fail(fmt::format("{} has no dtype", e.name));
      if (!e.shape) fail(fmt::format("{} has no shape", e.name));
      if (!e.offsets) fail(fmt::format("{} has no data_offsets", e.name));
    }
    state_ = state_ == State::kRoot ? State::kEnd : State::kRoot;
    return true;
  }
  bool start_array(size_t) override {
    if (state_ != State::kTensor || key_ == "dtype") return unexpected("an array");
    array_ = &(key_ == "shape" ? entries.back().shape : entries.back().offsets).emplace();
    state_ = State::kArray;
    return true;
  }
  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    fail(fmt::format("is no valid JSON at byte {} of the file, near \"{:.40}\"", position + 7,
                     printable(token)));
  }

 private:
  enum class State { kStart, kRoot, kMetadata, kTensor, kArray, kEnd };

  static std::string printable(std::string text) {
    for (char& c : text) {
      if (c < 0x20 || c > 0x7e) c = '?';
    }
    return text;
  }
  std::string where() const {
    switch (state_) {
      case State::kStart:
      case State::kEnd:
        return "the header";
      case State::kRoot:
        return key_.empty() ? "the header" : key_;
      case State::kMetadata:
        return fmt::format("__metadata__ {}", key_);
      case State::kTensor:
      case State::kArray:
        break;
    }
    return fmt::format("{}: {}", entries.back().name, key_);
  }
  bool unexpected(const std::string& found) {
    const char* expected = state_ == State::kStart      ? "an object"
                           : state_ == State::kRoot     ? "an object for every tensor"
                           : state_ == State::kMetadata ? "a string"
                           : state_ == State::kArray    ? "whole numbers from 0 up"
                           : key_ == "dtype"            ? "a string"
                                                        : "an array";
    fail(fmt::format("{} is {}, expected {}", where(), found, expected));
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: safetensors header: {}", file_, what));
  }

  const std::string& file_;
  std::map<std::string, std::string>& metadata_;
  State state_ = State::kStart;
  std::string key_;
  std::vector<uint64_t>* array_ = nullptr;
  std::unordered_set<std::string> names_;
};

std::optional<ScalarType> scalar_type(const std::string& name) {
  for (const ScalarType type :
       {ScalarType::kF64, ScalarType::kF32, ScalarType::kF16, ScalarType::kBF16, ScalarType::kI64,
        ScalarType::kI32, ScalarType::kI16, ScalarType::kI8, ScalarType::kU8, ScalarType::kBool}) {
    if (name == to_string(type)) return type;
  }
  return {};
}

}  // namespace

CheckpointContents read_safetensors(std::span<const unsigned char> file, const std::string& name) {
  const auto fail = [&](const std::string& what) {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: {}", name, what));
  };
  if (file.size() < 8) {
    fail(fmt::format(
        "is {} bytes long, expected at least the 8 bytes of a safetensors header length",
        file.size()));
  }
  uint64_t header_size;
  std::memcpy(&header_size, file.data(), 8);
  if (header_size > kMaxHeaderBytes) {
    fail(fmt::format("safetensors header length is {} bytes, the limit is {}", header_size,
                     kMaxHeaderBytes));
  }
  if (header_size > file.size() - 8) {
    fail(fmt::format("safetensors header length is {} bytes, but only {} follow: truncated?",
                     header_size, file.size() - 8));
  }
  CheckpointContents contents;
  contents.format = "safetensors";
  HeaderReader reader(name, contents.metadata);
  const auto header = file.subspan(8, header_size);
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);

  const uint64_t data_size = file.size() - 8 - header_size;
  struct Range {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Range> ranges;
  contents.tensors.reserve(reader.entries.size());
  for (const Entry& e : reader.entries) {
    const auto bad = [&](const std::string& what) { fail(fmt::format("{}: {}", e.name, what)); };
    if (e.name.empty()) fail("a tensor has an empty name");
    const auto type = scalar_type(*e.dtype);
    if (!type) {
      throw Error(XSR_STATUS_UNSUPPORTED, fmt::format("{}: {}: dtype is {:.20}, expected F64, F32, "
                                                      "F16, BF16, I64, I32, I16, I8, U8 or BOOL",
                                                      name, e.name, *e.dtype));
    }
    if (e.offsets->size() != 2)
      bad(fmt::format("data_offsets has {} numbers, expected 2", e.offsets->size()));
    uint64_t numel = 1, bytes = 0;
    bool overflow = false;
    for (const uint64_t d : *e.shape) overflow |= __builtin_mul_overflow(numel, d, &numel);
    overflow |= __builtin_mul_overflow(numel, scalar_size(*type), &bytes);
    if (overflow) bad(fmt::format("the shape {} overflows 64 bits", shape_string(*e.shape)));
    const uint64_t begin = (*e.offsets)[0], end = (*e.offsets)[1];
    if (begin > end) bad(fmt::format("data_offsets [{}, {}] run backwards", begin, end));
    if (end > data_size) {
      bad(fmt::format("data_offsets [{}, {}] reach beyond the {} bytes of data: truncated?", begin,
                      end, data_size));
    }
    if (end - begin != bytes) {
      bad(fmt::format("data_offsets [{}, {}] are {} bytes, but {} {} needs {}", begin, end,
                      end - begin, *e.dtype, shape_string(*e.shape), bytes));
    }
    ranges.push_back({begin, end, &e.name});
    CheckpointTensor t;
    t.name = e.name;
    t.dtype = *type;
    t.shape = *e.shape;
    t.numel = numel;
    t.data = file.data() + 8 + header_size + begin;
    contents.tensors.push_back(std::move(t));
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = 0;
  for (const Range& r : ranges) {
    if (r.begin < at)
      fail(fmt::format("{}: its data overlaps the tensor before it at byte {}", *r.name, r.begin));
    if (r.begin > at) {
      fail(fmt::format("{}: there is a hole of {} bytes before its data at byte {}", *r.name,
                       r.begin - at, r.begin));
    }
    at = r.end;
  }
  if (at != data_size)
    fail(fmt::format("{} bytes follow the last tensor, expected none", data_size - at));
  return contents;
}

}  // namespace xsr
