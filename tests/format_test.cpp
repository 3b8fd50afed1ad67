#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <limits>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <new>
#include <set>
#include <sstream>

#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/format/xsr_file.h"
#include "runtime/format/xsr_layout.h"
#include "runtime/text/tokenizer_tables.h"
#include "tests/support/file_size_limit.h"
#include "tests/support/system_calls.h"
#include "tests/support/temp_folder.h"

namespace xsr {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr uint64_t kTwoTo60 = uint64_t{1} << 60;
constexpr char kProvenance[] = R"({"source":"made by format_test","license":"none"})";
constexpr char kTokenizer[] =
    "these bytes stand for a SentencePiece model of some length, not a multiple of 64";

/// Of no revision that a build uses, so that nothing looks into them.
constexpr char kTables[] = "and these for tables made of it, of some other length";
std::span<const unsigned char> tables() {
  return {reinterpret_cast<const unsigned char*>(kTables), sizeof kTables - 1};
}

ModelConfig make_config() {
  ModelConfig c;
  c.num_layers = 2;
  c.hidden_size = 24;
  c.num_heads = 3;
  c.intermediate_size = 40;
  c.vocab_size = 100;
  c.num_positions = 33;
  c.position_offset = 1;
  c.num_token_types = 2;
  c.max_seq_len = 32;
  c.embedding_size = 16;
  c.activation = Activation::kGeluTanh;
  c.norm_placement = NormPlacement::kPre;
  c.pooling = Pooling::kCls;
  c.pooler_activation = Activation::kTanh;
  c.has_pooler = true;
  c.normalize = true;
  c.lowercase = true;
  c.layer_norm_eps = 1e-7;
  c.tokenizer = TokenizerKind::kSentencePiece;
  c.pad_id = 0;
  c.unk_id = 1;
  c.mask_id = 2;
  c.cls_id = 3;
  c.sep_id = 4;
  c.add_cls = true;
  c.add_sep = true;
  return c;
}

/// Tensors of every dtype and layout, with sizes on both sides of a multiple of 64 bytes.
class SampleTensors {
 public:
  SampleTensors() {
    add("embedding.token", DType::kF32, Layout::kRowMajor, {3, 5});
    add("layer.0.up.weight", DType::kF32, Layout::kPanels32, {40, 7});
    add("layer.0.down.weight", DType::kBF16, Layout::kPanels32, {33, 5});
    add("layer.0.up.bias", DType::kF16, Layout::kRowMajor, {32});
    add("layer.0.qkv.weight", DType::kI8, Layout::kPanels32, {5, 9});
    add("layer.1.qkv.weight", DType::kI8, Layout::kRowMajor, {16, 4});
    add("relative.table", DType::kF32, Layout::kRowMajor, {2, 1, 3, 2});
  }
  const std::vector<TensorSource>& sources() const { return sources_; }

 private:
  void add(const std::string& name, DType dtype, Layout layout, std::vector<uint64_t> dims) {
    const uint64_t size = tensor_bytes(dtype, layout, dims);
    // Bytes from 1 up, so that none of them looks like padding; then the panel padding is cleared.
    auto& bytes = data_.emplace_back(std::make_unique<std::vector<unsigned char>>(size));
    for (uint64_t i = 0; i < size; ++i) (*bytes)[i] = static_cast<unsigned char>(1 + i % 250);
    uint64_t damage;
    while ((damage = find_panel_damage(dtype, layout, dims, bytes->data(), size)) != size)
      (*bytes)[damage] = 0;
    auto& scales = scales_.emplace_back(std::make_unique<std::vector<float>>());
    for (uint64_t i = 0; dtype == DType::kI8 && i < dims[0]; ++i)
      scales->push_back(0.5f + static_cast<float>(i));
    sources_.push_back({name, dtype, layout, std::move(dims), bytes->data(),
                        scales->empty() ? nullptr : scales->data()});
  }

  std::vector<std::unique_ptr<std::vector<unsigned char>>> data_;
  std::vector<std::unique_ptr<std::vector<float>>> scales_;
  std::vector<TensorSource> sources_;
};

struct AlignedDelete {
  void operator()(unsigned char* bytes) const {
    ::operator delete[](bytes, std::align_val_t{kAlignment});
  }
};

/// The bytes of a file, to be spoiled. The buffer is exactly as long as the file, so that ASan sees
/// a read beyond it.
class Image {
 public:
  Image(const unsigned char* bytes, uint64_t size) { assign(bytes, size); }
  Image(const Image& other) { assign(other.data(), other.size()); }

  static const Image& sample() {
    static const Image image = [] {
      const SampleTensors tensors;
      size_t size = 0;
      const auto bytes = write_xsr_memory(make_config(), tensors.sources(), kTokenizer, kProvenance,
                                          &size, tables());
      return Image(bytes.get(), size);
    }();
    return image;
  }

  unsigned char* data() { return bytes_.get(); }
  const unsigned char* data() const { return bytes_.get(); }
  uint64_t size() const { return size_; }

  template <typename T>
  T get(uint64_t offset) const {
    T value;
    std::memcpy(&value, data() + offset, sizeof value);
    return value;
  }
  template <typename T>
  void put(uint64_t offset, T value) {
    std::memcpy(data() + offset, &value, sizeof value);
  }
  FileHeader header() const { return get<FileHeader>(0); }
  Section section(uint32_t index) const { return header().sections[index]; }
  uint64_t entry_offset(uint64_t i) const {
    return section(kTensorTableSection).offset + i * sizeof(TensorEntry);
  }
  TensorEntry entry(uint64_t i) const { return get<TensorEntry>(entry_offset(i)); }
  void put_entry(uint64_t i, const TensorEntry& entry) { put(entry_offset(i), entry); }

  void resize(uint64_t size) {
    const Image old(*this);
    assign(old.data(), std::min(size, old.size()), size);
  }
  /// Makes the header's checksum right again, so that the check behind it is the one that speaks.
  void seal() {
    const uint64_t end = section(kDataSection).offset;
    if (size_ < sizeof(FileHeader) || end < sizeof(FileHeader) || end > size_) return;
    put(offsetof(FileHeader, header_checksum), header_checksum(data(), end));
  }
  std::unique_ptr<XsrFile> open() const { return XsrFile::open_memory(data(), size_); }

 private:
  void assign(const unsigned char* bytes, uint64_t count, uint64_t size) {
    bytes_.reset(static_cast<unsigned char*>(
        ::operator new[](std::max<uint64_t>(size, 1), std::align_val_t{kAlignment})));
    size_ = size;
    std::memset(bytes_.get(), 0, size);
    if (count > 0) std::memcpy(bytes_.get(), bytes, count);
  }
  void assign(const unsigned char* bytes, uint64_t size) { assign(bytes, size, size); }

  std::unique_ptr<unsigned char[], AlignedDelete> bytes_;
  uint64_t size_ = 0;
};

/// A file that the reader must refuse, and how.
struct BrokenFile {
  std::string name;
  std::function<void(Image&)> spoil;
  xsr_status status = XSR_STATUS_BAD_FILE;
  std::string message;  // a part of it
  bool seal = true;
};

class BrokenFiles {
 public:
  BrokenFiles() {
    add_magic();
    add_header();
    add_sections();
    add_tables();
    add_config();
    add_entries();
    add_names_and_blobs();
    add_cuts();
    add_flipped_bits();
  }
  const std::vector<BrokenFile>& all() const { return all_; }

 private:
  void add(BrokenFile file) { all_.push_back(std::move(file)); }

  template <typename T>
  void add_value(const std::string& name, uint64_t offset, T value, const std::string& message,
                 xsr_status status = XSR_STATUS_BAD_FILE) {
    add({name, [=](Image& image) { image.put<T>(offset, value); }, status, message});
  }

  void add_magic() {
    const auto begin_with = [this](const std::string& name, const std::string& bytes,
                                   const std::string& message) {
      add({"magic " + name,
           [=](Image& image) { std::memcpy(image.data(), bytes.data(), bytes.size()); },
           XSR_STATUS_BAD_FILE, message});
    };
    begin_with("of a zip file", std::string("PK\x03\x04\0\0\x08\x08", 8),
               "converted by xsr-convert");
    begin_with("of a safetensors file", std::string("\x10\x20\0\0\0\0\0\0{", 9),
               "expected 89 58 53 52 0d 0a 1a 0a");
    begin_with("all zero", std::string(8, '\0'), "magic is 00 00 00 00 00 00 00 00");
    begin_with("all ones", std::string(8, '\xff'), "magic is ff ff ff ff ff ff ff ff");
    begin_with("without its last byte", std::string("\x89XSR\r\n\x1a\0", 8),
               "magic is 89 58 53 52 0d 0a 1a 00");
    begin_with("without CR", "\x89XSR\n\x1a\n", "copied in text mode");
    begin_with("with a CR more", "\x89XSR\r\r\n\x1a\r\n", "copied in text mode");
    begin_with("with CR before its last LF", "\x89XSR\r\n\x1a\r\n", "copied in text mode");
    begin_with("of a Git LFS pointer", "version https://git-lfs", "git lfs pull");
    begin_with("with the eighth bit cleared", "\tXSR\r\n\x1a\n", "copied in text mode");
  }

  void add_header() {
    const uint64_t version = offsetof(FileHeader, version);
    for (const uint32_t value : {0u, 2u, 0x01000000u, UINT32_MAX}) {
      add_value<uint32_t>(
          "version " + std::to_string(value), version, value,
          "offset 8: format version is " + std::to_string(value) + ", this build reads version 1",
          XSR_STATUS_UNSUPPORTED);
    }
    const uint64_t mark = offsetof(FileHeader, endian_mark);
    add_value<uint32_t>("endian mark swapped", mark, kSwappedEndianMark, "the file is big-endian",
                        XSR_STATUS_UNSUPPORTED);
    for (const uint32_t value : {0u, kEndianMark + 1, kEndianMark - 1, UINT32_MAX}) {
      add_value<uint32_t>("endian mark " + std::to_string(value), mark, value,
                          "offset 12: endian mark is");
    }
    const uint64_t size = Image::sample().size();
    for (const uint64_t value : {size + 1, size + 64, kTwoTo60, UINT64_MAX}) {
      add_value<uint64_t>(
          "file_size " + std::to_string(value), offsetof(FileHeader, file_size), value,
          "offset 16: file_size is " + std::to_string(value) + ", but the file has " +
              std::to_string(size) + " bytes. It was cut short");
    }
    for (const uint64_t value : {uint64_t{0}, size - 1, size - 64}) {
      add_value<uint64_t>("file_size " + std::to_string(value), offsetof(FileHeader, file_size),
                          value, "It has trailing bytes");
    }
    const uint64_t checksum = Image::sample().header().header_checksum;
    for (const uint64_t value : {uint64_t{0}, checksum + 1, checksum - 1, UINT64_MAX}) {
      add({"header checksum " + std::to_string(value),
           [=](Image& image) { image.put<uint64_t>(offsetof(FileHeader, header_checksum), value); },
           XSR_STATUS_BAD_FILE, "offset 24: header checksum is", false});
    }
    const uint32_t count = Image::sample().header().tensor_count;
    for (const uint32_t value : {0u, count - 1, count + 1, UINT32_MAX}) {
      add_value<uint32_t>("tensor_count " + std::to_string(value),
                          offsetof(FileHeader, tensor_count), value,
                          "offset 128: tensor_count is " + std::to_string(value));
    }
    for (const uint64_t i : {132, 135, 152, 160, 191}) {
      add_value<uint8_t>(
          "header reserved byte " + std::to_string(i), i, 1,
          "offset " + std::to_string(i) + ": reserved byte of the header is 1, expected 0",
          XSR_STATUS_UNSUPPORTED);
    }
  }

  void add_sections() {
    const Image& sample = Image::sample();
    const char* names[kNumSections] = {"config",     "tensor table", "names",
                                       "provenance", "tokenizer",    "data"};
    for (uint32_t i = 0; i < kNumSections; ++i) {
      const Section section = sample.section(i);
      const std::string name = std::string(names[i]) + " section ";
      const uint64_t offset_field = offsetof(FileHeader, sections) + i * sizeof(Section);
      const uint64_t size_field = offset_field + 8;
      const auto offset = [&](uint64_t value, const std::string& message) {
        add_value<uint64_t>(name + "offset " + std::to_string(value), offset_field, value, message);
      };
      const auto size = [&](uint64_t value, const std::string& message) {
        add_value<uint64_t>(name + "size " + std::to_string(value), size_field, value, message);
      };
      const bool data =
          i == kDataSection;  // its offset is checked before the checksum, which ends there
      const std::string at = "offset " + std::to_string(offset_field) + ": the " + names[i];
      offset(0, data ? "the data section begins at 0, expected 192 to"
                     : "overlaps what stands before it");
      offset(section.offset + 1,
             "begins at " + std::to_string(section.offset + 1) + ", expected a multiple of 64");
      offset(section.offset - 64,
             "overlaps what stands before it, expected " + std::to_string(section.offset));
      offset(section.offset + 64, data ? "beyond the end of the file" : "leaves a hole before it");
      offset(kTwoTo60,
             data ? "the data section begins at 1152921504606846976, expected 192 to" : at);
      offset(UINT64_MAX, data ? "the data section begins at 18446744073709551615, expected"
                              : "expected a multiple of 64");
      offset(UINT64_MAX - 63, data ? "the data section begins at" : "beyond the end of the file");
      offset(sample.size(), "beyond the end of the file");
      size(kTwoTo60, "beyond the end of the file of " + std::to_string(sample.size()) + " bytes");
      size(UINT64_MAX, "and has 18446744073709551615 bytes, beyond the end of the file");
      size(UINT64_MAX - section.offset + 1,
           "beyond the end of the file");  // offset + size wraps round to 0
      size(0, data ? "the data section has 0 bytes" : "leaves a hole before it");
      size(section.size + 64,
           data ? "beyond the end of the file" : "overlaps what stands before it");
    }
    const auto size = [&](uint32_t index, int64_t change, const std::string& message) {
      const Section section = sample.section(index);
      add_value<uint64_t>(std::string(names[index]) + " section size " + (change < 0 ? "-1" : "+1"),
                          offsetof(FileHeader, sections) + index * sizeof(Section) + 8,
                          section.size + change, message);
    };
    size(kConfigSection, -1, "the config section has 255 bytes, expected 256");
    size(kConfigSection, 1, "the tensor table begins at 448 and overlaps");
    size(kTensorTableSection, -1,
         "offset 128: tensor_count is 7, but the tensor table has 895 bytes");
    size(kTensorTableSection, 1, "the names section begins at 1344 and overlaps");
    size(kNamesSection, -1, "tensor 6: its name reaches to byte");
    size(kNamesSection, 1, "the names section has");
    size(kProvenanceSection, -1, "expected to hold one NUL, at its end");
    size(kProvenanceSection, 1, "expected to hold one NUL, at its end");
    size(kTokenizerSection, -1, "padding after the tokenizer section holds byte");
    size(kDataSection, -1, "the data section has");
    size(kDataSection, 1, "beyond the end of the file");
    add({"two sections exchanged",
         [](Image& image) {
           FileHeader header = image.header();
           std::swap(header.sections[kNamesSection], header.sections[kProvenanceSection]);
           image.put(0, header);
         },
         XSR_STATUS_BAD_FILE, "the names section begins at"});
    add({"no tensors but data",
         [](Image& image) {
           FileHeader header = image.header();
           header.tensor_count = 0;
           header.sections[kTensorTableSection].size = 0;
           image.put(0, header);
         },
         XSR_STATUS_BAD_FILE, "the names section begins at 1344 and leaves a hole"});
    add({"bytes behind the last tensor",
         [](Image& image) {
           FileHeader header = image.header();
           image.resize(image.size() + 64);
           header.file_size += 64;
           header.sections[kDataSection].size += 64;
           image.put(0, header);
         },
         XSR_STATUS_BAD_FILE, "trailing bytes"});
    add({"file size not a multiple of 64",
         [](Image& image) {
           image.resize(image.size() + 8);
           image.put<uint64_t>(offsetof(FileHeader, file_size), image.size());
         },
         XSR_STATUS_BAD_FILE, "expected a multiple of 64"});
    for (const uint32_t index : {kNamesSection, kProvenanceSection, kTokenizerSection}) {
      const Section section = sample.section(index);
      const uint64_t first = section.offset + section.size, last = first + padding_after(first) - 1;
      for (const uint64_t at : {first, last}) {
        add_value<uint8_t>(
            std::string("padding of the ") + names[index] + " section at " + std::to_string(at), at,
            7,
            "offset " + std::to_string(at) + ": padding after the " + names[index] +
                " section holds byte 7, expected 0");
      }
    }
  }

  void add_tables() {
    const Section section = Image::sample().header().tokenizer_tables;
    constexpr uint64_t kField = offsetof(FileHeader, tokenizer_tables);
    const auto place = [&](uint64_t offset, uint64_t size, const std::string& message) {
      add({"tokenizer tables at " + std::to_string(offset) + " of " + std::to_string(size),
           [=](Image& image) {
             image.put<uint64_t>(kField, offset);
             image.put<uint64_t>(kField + 8, size);
           },
           XSR_STATUS_BAD_FILE, message});
    };
    place(0, 0,
          "the data section begins at " + std::to_string(section.offset + 64) +
              " and leaves a hole before it");
    place(0, section.size, "the tokenizer tables section begins at 0 and overlaps");
    place(section.offset, 0, "leaves a hole before it");
    place(section.offset + 1, section.size, "expected a multiple of 64");
    place(section.offset - 64, section.size, "overlaps what stands before it");
    place(section.offset + 64, section.size, "leaves a hole before it");
    place(section.offset, section.size - 1,
          "padding after the tokenizer tables section holds byte");
    place(section.offset, section.size + 64, "overlaps what stands before it");
    place(section.offset, kTwoTo60, "beyond the end of the file");
    place(section.offset, UINT64_MAX - section.offset + 1, "beyond the end of the file");
    place(UINT64_MAX - 63, 64, "beyond the end of the file");
    add({"tokenizer tables of no bytes",
         [=](Image& image) {  // everything behind them moves up
           std::memmove(image.data() + section.offset, image.data() + section.offset + 64,
                        image.size() - section.offset - 64);
           image.resize(image.size() - 64);
           FileHeader header = image.header();
           header.file_size -= 64;
           header.tokenizer_tables.size = 0;
           header.sections[kDataSection].offset -= 64;
           image.put(0, header);
         },
         XSR_STATUS_BAD_FILE, "the tokenizer tables section has 0 bytes beside a tokenizer of"});
    add_value<uint8_t>("padding of the tokenizer tables", section.offset + section.size, 7,
                       "padding after the tokenizer tables section holds byte 7, expected 0");
  }

  void add_config() {
    const uint64_t config = Image::sample().section(kConfigSection).offset;
    const auto field = [&](const std::string& name, uint64_t offset, std::vector<int64_t> values,
                           xsr_status status = XSR_STATUS_BAD_FILE) {
      for (const int64_t value : values) {
        add_value<int32_t>(
            "config " + name + " " + std::to_string(value), config + offset,
            static_cast<int32_t>(value),
            "config at offset 192: " + name + " is " +
                (status == XSR_STATUS_UNSUPPORTED ? std::to_string(static_cast<uint32_t>(value))
                                                  : std::to_string(static_cast<int32_t>(value))),
            status);
      }
    };
    constexpr int64_t kMax = INT32_MAX, kMin = INT32_MIN;
    field("family", offsetof(ConfigRecord, family), {0, 5, kMax, -1}, XSR_STATUS_UNSUPPORTED);
    field("num_layers", offsetof(ConfigRecord, num_layers), {-1, kMin, kMax});
    field("hidden_size", offsetof(ConfigRecord, hidden_size), {0, -24, kMin, kMax});
    field("num_heads", offsetof(ConfigRecord, num_heads), {0, -3, 5, 25, kMin, kMax});
    field("intermediate_size", offsetof(ConfigRecord, intermediate_size), {0, -1, kMin, kMax});
    field("vocab_size", offsetof(ConfigRecord, vocab_size), {0, -1, kMin});
    field("num_positions", offsetof(ConfigRecord, num_positions), {0, -1, kMin, kMax});
    field("position_offset", offsetof(ConfigRecord, position_offset), {-1, 33, kMin, kMax});
    field("num_token_types", offsetof(ConfigRecord, num_token_types), {-1, kMin, kMax});
    field("max_seq_len", offsetof(ConfigRecord, max_seq_len), {0, -1, 2, 33, kMin, kMax});
    field("embedding_size", offsetof(ConfigRecord, embedding_size), {0, -1, kMin, kMax});
    field("activation", offsetof(ConfigRecord, activation), {6, kMax, -1}, XSR_STATUS_UNSUPPORTED);
    field("norm_placement", offsetof(ConfigRecord, norm_placement), {2, kMax, -1},
          XSR_STATUS_UNSUPPORTED);
    field("pooling", offsetof(ConfigRecord, pooling), {3, kMax, -1}, XSR_STATUS_UNSUPPORTED);
    field("pooler_activation", offsetof(ConfigRecord, pooler_activation), {6, kMax, -1},
          XSR_STATUS_UNSUPPORTED);
    field("tokenizer", offsetof(ConfigRecord, tokenizer), {3, kMax, -1}, XSR_STATUS_UNSUPPORTED);
    field("pad_id", offsetof(ConfigRecord, pad_id), {-2, 100, kMin, kMax});
    field("unk_id", offsetof(ConfigRecord, unk_id), {-2, 100, kMin, kMax});
    field("mask_id", offsetof(ConfigRecord, mask_id), {-2, 100, kMin, kMax});
    field("cls_id", offsetof(ConfigRecord, cls_id), {-1, -2, 100, kMin, kMax});
    field("sep_id", offsetof(ConfigRecord, sep_id), {-1, -2, 100, kMin, kMax});
    const double nan = std::numeric_limits<double>::quiet_NaN(),
                 infinity = std::numeric_limits<double>::infinity();
    for (const double value : {-1e-12, 1.0, infinity, -infinity, nan}) {
      add_value<double>("config layer_norm_eps " + std::to_string(value),
                        config + offsetof(ConfigRecord, layer_norm_eps), value,
                        "layer_norm_eps is");
    }
    const uint64_t flags = config + offsetof(ConfigRecord, flags);
    for (const uint32_t value : {uint32_t{kKnownFlags} + 1, 0x80000000u, UINT32_MAX}) {
      add_value<uint32_t>("config flags " + std::to_string(value), flags, value,
                          "offset 252: config flags are", XSR_STATUS_UNSUPPORTED);
    }
    add_value<uint32_t>("config without pooler, other embedding size", flags,
                        kKnownFlags & ~uint32_t{kFlagPooler},
                        "embedding_size is 16, expected hidden_size 24");
    add({"config without pooler, with its activation",
         [=](Image& image) {
           image.put<uint32_t>(flags, kKnownFlags & ~uint32_t{kFlagPooler});
           image.put<int32_t>(config + offsetof(ConfigRecord, embedding_size), 24);
         },
         XSR_STATUS_BAD_FILE, "pooler_activation is tanh, expected none"});
    add_value<uint32_t>(
        "config tokenizer none, blob there", config + offsetof(ConfigRecord, tokenizer), 0,
        "offset 264: the config's tokenizer is none, but the tokenizer section has 80 bytes");
    for (const uint64_t i : {96, 97, 180, 255}) {
      add_value<uint8_t>("config reserved byte " + std::to_string(i), config + i, 0xff,
                         "reserved byte of the config is 255, expected 0", XSR_STATUS_UNSUPPORTED);
    }
  }

  void change_entry(const std::string& name, uint64_t i, std::function<void(TensorEntry&)> change,
                    const std::string& message, xsr_status status = XSR_STATUS_BAD_FILE) {
    add({"entry " + std::to_string(i) + " " + name,
         [=](Image& image) {
           TensorEntry entry = image.entry(i);
           change(entry);
           image.put_entry(i, entry);
         },
         status, message});
  }

  void add_entries() {
    const Image& sample = Image::sample();
    const SampleTensors tensors;
    for (uint64_t i = 0; i < tensors.sources().size(); ++i) {
      const TensorSource& source = tensors.sources()[i];
      const TensorEntry entry = sample.entry(i);
      const std::string what = "tensor " + std::to_string(i);
      const std::string named = what + " '" + source.name + "': ";
      const auto change = [&](const std::string& name, std::function<void(TensorEntry&)> function,
                              const std::string& message, xsr_status status = XSR_STATUS_BAD_FILE) {
        change_entry(name, i, std::move(function), message, status);
      };
      change(
          "name_offset +1", [](TensorEntry& e) { ++e.name_offset; }, what + ": name_offset is");
      change(
          "name_offset max", [](TensorEntry& e) { e.name_offset = UINT32_MAX; },
          what + ": name_offset is 4294967295");
      if (i > 0)
        change(
            "name_offset 0", [](TensorEntry& e) { e.name_offset = 0; },
            what + ": name_offset is 0, expected");
      change(
          "name_size 0", [](TensorEntry& e) { e.name_size = 0; },
          what + ": its name has 0 bytes, expected 1 to 255");
      change(
          "name_size -1", [](TensorEntry& e) { --e.name_size; }, what + ": its name ends in byte");
      change(
          "name_size 255", [](TensorEntry& e) { e.name_size = 255; },
          what + ": its name reaches to byte");
      change(
          "name_size 256", [](TensorEntry& e) { e.name_size = 256; },
          what + ": its name has 256 bytes");
      change(
          "name_size max", [](TensorEntry& e) { e.name_size = UINT32_MAX; },
          what + ": its name has 4294967295 bytes");
      change(
          "dtype 4", [](TensorEntry& e) { e.dtype = 4; },
          named + "dtype is 4, this build knows 0 (f32)", XSR_STATUS_UNSUPPORTED);
      change(
          "dtype max", [](TensorEntry& e) { e.dtype = UINT32_MAX; }, named + "dtype is 4294967295",
          XSR_STATUS_UNSUPPORTED);
      change(
          "layout 2", [](TensorEntry& e) { e.layout = 2; },
          named + "layout is 2, this build knows 0 (row-major)", XSR_STATUS_UNSUPPORTED);
      change(
          "layout max", [](TensorEntry& e) { e.layout = UINT32_MAX; },
          named + "layout is 4294967295", XSR_STATUS_UNSUPPORTED);
      change(
          "rank 0", [](TensorEntry& e) { e.rank = 0; }, named + "rank is 0, expected 1 to 4");
      change(
          "rank 5", [](TensorEntry& e) { e.rank = 5; }, named + "rank is 5, expected 1 to 4");
      change(
          "rank max", [](TensorEntry& e) { e.rank = UINT32_MAX; }, named + "rank is 4294967295");
      change(
          "reserved0", [](TensorEntry& e) { e.reserved0 = 1; },
          "reserved byte of the table entry of " + what, XSR_STATUS_UNSUPPORTED);
      change(
          "reserved", [](TensorEntry& e) { e.reserved[31] = 1; },
          "reserved byte of the table entry of " + what, XSR_STATUS_UNSUPPORTED);
      if (entry.rank < 4) {
        change(
            "rank +1", [](TensorEntry& e) { ++e.rank; },
            named + "dimension " + std::to_string(entry.rank) + " is 0, expected at least 1");
        change(
            "dimension beyond rank", [](TensorEntry& e) { e.dims[3] = 1; },
            named + "dimension 3 is 1, expected 0 beyond rank");
      }
      if (entry.rank > 1)
        change(
            "rank -1", [](TensorEntry& e) { --e.rank; }, "expected 0 beyond rank");
      for (uint32_t d = 0; d < entry.rank; ++d) {
        const std::string dim = "dimension " + std::to_string(d);
        change(
            dim + " 0", [=](TensorEntry& e) { e.dims[d] = 0; },
            named + dim + " is 0, expected at least 1");
        change(
            dim + " * 64", [=](TensorEntry& e) { e.dims[d] *= 64; }, named + "data_size is");
        change(
            dim + " max", [=](TensorEntry& e) { e.dims[d] = UINT64_MAX; }, named);
        change(
            dim + " 2^60", [=](TensorEntry& e) { e.dims[d] = kTwoTo60; }, named);
      }
      if (entry.rank > 1) {
        change(
            "dimensions that wrap round to a small product",
            [](TensorEntry& e) { e.dims[0] = e.dims[1] = uint64_t{1} << 32; },
            named + "the product of its dimensions overflows 64 bits");
        change(
            "dimensions of 2^60", [](TensorEntry& e) { e.dims[0] = e.dims[1] = kTwoTo60; },
            named + "the product of its dimensions overflows 64 bits");
      }
      change(
          "data_size 0", [](TensorEntry& e) { e.data_size = 0; },
          named + "data_size is 0, expected");
      change(
          "data_size +1", [](TensorEntry& e) { ++e.data_size; }, named + "data_size is");
      change(
          "data_size -1", [](TensorEntry& e) { --e.data_size; }, named + "data_size is");
      change(
          "data_size 2^60", [](TensorEntry& e) { e.data_size = kTwoTo60; },
          named + "data_size is 1152921504606846976");
      change(
          "data_size max", [](TensorEntry& e) { e.data_size = UINT64_MAX; },
          named + "data_size is 1844674407370955161");
      change(
          "data_offset 0", [](TensorEntry& e) { e.data_offset = 0; },
          named + "its data begins at 0 and overlaps what stands before it, expected " +
              std::to_string(entry.data_offset));
      change(
          "data_offset in the header", [](TensorEntry& e) { e.data_offset = 192; },
          named + "its data begins at 192 and overlaps");
      change(
          "data_offset +1", [](TensorEntry& e) { ++e.data_offset; }, "expected a multiple of 64");
      change(
          "data_offset +4", [](TensorEntry& e) { e.data_offset += 4; },
          "expected a multiple of 64");
      change(
          "data_offset -64", [](TensorEntry& e) { e.data_offset -= 64; },
          named + "its data begins at");
      change(
          "data_offset 2^60", [](TensorEntry& e) { e.data_offset = kTwoTo60; },
          "beyond the end of the file");
      change(
          "data_offset max", [](TensorEntry& e) { e.data_offset = UINT64_MAX; },
          "expected a multiple of 64");
      change(
          "data_offset that wraps", [](TensorEntry& e) { e.data_offset = UINT64_MAX - 63; },
          "beyond the end of the file");
      if (i + 1 < tensors.sources().size()) {
        change(
            "data_offset of the next tensor",
            [next = sample.entry(i + 1).data_offset](TensorEntry& e) { e.data_offset = next; },
            named + "its data begins at");
      }
      if (source.dtype == DType::kI8) {
        change(
            "scales_size 0", [](TensorEntry& e) { e.scales_size = 0; },
            named + "scales_size is 0, expected");
        change(
            "scales_size +4", [](TensorEntry& e) { e.scales_size += 4; }, named + "scales_size is");
        change(
            "scales_size max", [](TensorEntry& e) { e.scales_size = UINT64_MAX; },
            named + "scales_size is");
        change(
            "scales_offset 0", [](TensorEntry& e) { e.scales_offset = 0; },
            named + "its scale vector begins at 0 and overlaps");
        change(
            "scales_offset = data_offset", [](TensorEntry& e) { e.scales_offset = e.data_offset; },
            named + "its scale vector begins at");
        change(
            "scales_offset +4", [](TensorEntry& e) { e.scales_offset += 4; },
            named + "its scale vector begins at");
        change(
            "scales_offset 2^60", [](TensorEntry& e) { e.scales_offset = kTwoTo60; },
            named + "its scale vector begins at");
        change(
            "scales_offset max", [](TensorEntry& e) { e.scales_offset = UINT64_MAX; },
            named + "its scale vector begins at");
      } else {
        change(
            "scales_offset 64", [](TensorEntry& e) { e.scales_offset = 64; },
            named + "scales_offset is 64, expected 0 for dtype");
        change(
            "scales_size 4", [](TensorEntry& e) { e.scales_size = 4; },
            named + "scales_size is 4, expected 0 for dtype");
      }
    }
    change_entry(
        "dtype f16 instead of f32", 0, [](TensorEntry& e) { e.dtype = 1; },
        "data_size is 60, expected 30 from its shape");
    change_entry(
        "panels32 of rank 4", 6, [](TensorEntry& e) { e.layout = 1; },
        "rank is 4, expected 2 for layout panels32");
    change_entry(
        "panels32 of rank 1", 3, [](TensorEntry& e) { e.layout = 1; },
        "rank is 1, expected 2 for layout panels32");
    change_entry(
        "2^42 bytes that the file has not", 3,
        [](TensorEntry& e) {
          e.dims[0] = uint64_t{1} << 41;
          e.data_size = uint64_t{1} << 42;
        },
        "and has 4398046511104 bytes, beyond the end of the file");
    change_entry(
        "i8 with 2^62 scales", 5,
        [](TensorEntry& e) {
          e.rank = 1;
          e.dims[0] = e.data_size = uint64_t{1} << 62;
          e.dims[1] = 0;
        },
        "the product of its dimensions overflows 64 bits");
    add({"two tensors with exchanged data",
         [](Image& image) {
           TensorEntry a = image.entry(0), b = image.entry(3);
           std::swap(a.data_offset, b.data_offset);
           image.put_entry(0, a);
           image.put_entry(3, b);
         },
         XSR_STATUS_BAD_FILE, "tensor 0 'embedding.token': its data begins at"});
    add({"two tensors on the same data",
         [](Image& image) {
           TensorEntry entry = image.entry(3);
           entry.data_offset = image.entry(2).data_offset;
           image.put_entry(3, entry);
         },
         XSR_STATUS_BAD_FILE, "tensor 3 'layer.0.up.bias': its data begins at"});
  }

  void add_names_and_blobs() {
    const Image& sample = Image::sample();
    const Section names = sample.section(kNamesSection);
    add({"duplicate names",
         [=](Image& image) {  // layer.0.qkv.weight becomes layer.1.qkv.weight
           image.put<char>(names.offset + image.entry(4).name_offset + 6, '1');
         },
         XSR_STATUS_BAD_FILE,
         "tensor 5 has the name 'layer.1.qkv.weight' of tensor 4, expected a name of its own"});
    for (const uint8_t byte : {0x00, 0x07, 0x0a, 0x20, 0x7f, 0x80, 0xc3, 0xff}) {
      for (const uint64_t i : {0, 3, 6}) {
        add_value<uint8_t>(
            "name with byte " + std::to_string(byte) + " in tensor " + std::to_string(i),
            names.offset + sample.entry(i).name_offset + 2, byte,
            "tensor " + std::to_string(i) + ": its name holds byte " + std::to_string(byte) +
                ", expected printable ASCII");
      }
    }
    add_value<char>("name without NUL", names.offset + sample.entry(0).name_size, 'x',
                    "tensor 0: its name ends in byte 120, expected 0");
    const Section provenance = sample.section(kProvenanceSection);
    add({"provenance of no bytes",
         [=](Image& image) {  // everything behind it moves up
           const uint64_t lost = provenance.size + padding_after(provenance.size);
           std::memmove(image.data() + provenance.offset, image.data() + provenance.offset + lost,
                        image.size() - provenance.offset - lost);
           image.resize(image.size() - lost);
           FileHeader header = image.header();
           header.file_size -= lost;
           header.sections[kProvenanceSection].size = 0;
           header.sections[kTokenizerSection].offset -= lost;
           header.tokenizer_tables.offset -= lost;
           header.sections[kDataSection].offset -= lost;
           image.put(0, header);
         },
         XSR_STATUS_BAD_FILE,
         "the provenance text of 0 bytes is expected to hold one NUL, at its end"});
    add_value<char>("NUL in the provenance", provenance.offset + 3, 0,
                    "expected to hold one NUL, at its end");
    add_value<char>("provenance that is not UTF-8", provenance.offset + 3, '\xff',
                    "expected to be UTF-8");
    add_value<char>("provenance without NUL", provenance.offset + provenance.size - 1, ' ',
                    "expected to hold one NUL, at its end");
  }

  void add_cuts() {
    const Image& sample = Image::sample();
    const auto cut = [&](const std::string& where, uint64_t size) {
      add({"cut " + where, [=](Image& image) { image.resize(size); }, XSR_STATUS_BAD_FILE,
           size == 0 ? "the file is empty"
           : size < sizeof(FileHeader)
               ? "the file has " + std::to_string(size) + " bytes, a header has 192"
               : "but the file has " + std::to_string(size) + " bytes. It was cut short",
           false});
    };
    for (const uint64_t size : {0, 1, 7, 8, 12, 16, 24, 128, 191, 192, 193})
      cut("to " + std::to_string(size), size);
    cut("by one byte", sample.size() - 1);
    cut("by 64 bytes", sample.size() - 64);
    for (uint32_t i = 1; i < kNumSections; ++i) {
      cut("before section " + std::to_string(i), sample.section(i).offset);
      cut("inside section " + std::to_string(i), sample.section(i).offset + 1);
    }
    for (uint64_t i = 1; i < sample.header().tensor_count; ++i)
      cut("before tensor " + std::to_string(i), sample.entry(i).data_offset);
    add({"one byte longer", [](Image& image) { image.resize(image.size() + 1); },
         XSR_STATUS_BAD_FILE, "It has trailing bytes"});
    add({"64 bytes longer", [](Image& image) { image.resize(image.size() + 64); },
         XSR_STATUS_BAD_FILE, "It has trailing bytes"});
  }

  void add_flipped_bits() {
    const Image& sample = Image::sample();
    const auto flip = [&](const std::string& where, uint64_t offset) {
      for (const int bit : {0, 7}) {
        add({"bit " + std::to_string(bit) + " of " + where,
             [=](Image& image) { image.data()[offset] ^= static_cast<unsigned char>(1 << bit); },
             XSR_STATUS_BAD_FILE, "offset 24: header checksum is 0x", false});
      }
    };
    flip("tensor_count", offsetof(FileHeader, tensor_count));
    flip("the header's reserved bytes", 150);
    for (uint32_t i = 0; i < kDataSection; ++i) {
      const Section section = sample.section(i);
      const std::string name = "section " + std::to_string(i);
      flip(name + " offset in the header", offsetof(FileHeader, sections) + i * sizeof(Section));
      flip(name + " first byte", section.offset);
      flip(name + " last byte", section.offset + section.size - 1);
    }
    flip("data section size in the header",
         offsetof(FileHeader, sections) + kDataSection * sizeof(Section) + 8);
    flip("the padding before the data", sample.section(kDataSection).offset - 1);
  }

  std::vector<BrokenFile> all_;
};

using test::TempFolder;

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_all(const std::string& path, const void* data, size_t size) {
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

/// The error that function throws; a test failure and XSR_STATUS_OK when it throws none.
template <typename F>
Error error_of(F function) {
  try {
    function();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(XSR_STATUS_OK, "");
}

void expect_same(const XsrFile& file, const ModelConfig& config,
                 const std::vector<TensorSource>& sources) {
  const ModelConfig& c = file.config();
  EXPECT_EQ(c.family, config.family);
  EXPECT_EQ(c.num_layers, config.num_layers);
  EXPECT_EQ(c.hidden_size, config.hidden_size);
  EXPECT_EQ(c.num_heads, config.num_heads);
  EXPECT_EQ(c.intermediate_size, config.intermediate_size);
  EXPECT_EQ(c.vocab_size, config.vocab_size);
  EXPECT_EQ(c.num_positions, config.num_positions);
  EXPECT_EQ(c.position_offset, config.position_offset);
  EXPECT_EQ(c.num_token_types, config.num_token_types);
  EXPECT_EQ(c.max_seq_len, config.max_seq_len);
  EXPECT_EQ(c.embedding_size, config.embedding_size);
  EXPECT_EQ(c.activation, config.activation);
  EXPECT_EQ(c.norm_placement, config.norm_placement);
  EXPECT_EQ(c.pooling, config.pooling);
  EXPECT_EQ(c.pooler_activation, config.pooler_activation);
  EXPECT_EQ(c.has_pooler, config.has_pooler);
  EXPECT_EQ(c.normalize, config.normalize);
  EXPECT_EQ(c.lowercase, config.lowercase);
  EXPECT_EQ(c.layer_norm_eps, config.layer_norm_eps);
  EXPECT_EQ(c.tokenizer, config.tokenizer);
  EXPECT_EQ(c.pad_id, config.pad_id);
  EXPECT_EQ(c.unk_id, config.unk_id);
  EXPECT_EQ(c.mask_id, config.mask_id);
  EXPECT_EQ(c.cls_id, config.cls_id);
  EXPECT_EQ(c.sep_id, config.sep_id);
  EXPECT_EQ(c.add_cls, config.add_cls);
  EXPECT_EQ(c.add_sep, config.add_sep);
  ASSERT_EQ(file.tensors().size(), sources.size());
  for (size_t i = 0; i < sources.size(); ++i) {
    SCOPED_TRACE(sources[i].name);
    const TensorView& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, sources[i].name);
    EXPECT_EQ(file.find(sources[i].name), &tensor);
    EXPECT_EQ(tensor.dtype, sources[i].dtype);
    EXPECT_EQ(tensor.layout, sources[i].layout);
    EXPECT_EQ(tensor.dims, sources[i].dims);
    ASSERT_EQ(tensor.size, tensor_bytes(tensor.dtype, tensor.layout, tensor.dims));
    EXPECT_EQ(std::memcmp(tensor.data, sources[i].data, tensor.size), 0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % 64, 0u);
    EXPECT_EQ(tensor.offset % 64, 0u);
    ASSERT_EQ(tensor.scales != nullptr, sources[i].scales != nullptr);
    if (tensor.scales) {
      EXPECT_EQ(std::memcmp(tensor.scales, sources[i].scales, tensor.dims[0] * sizeof(float)), 0);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.scales) % 64, 0u);
    } else {
      EXPECT_EQ(tensor.checksum, XXH3_64bits(sources[i].data, tensor.size));
    }
  }
  EXPECT_NO_THROW(file.verify());
}

TEST(Format, RoundTripInMemory) {
  const SampleTensors tensors;
  size_t size = 0;
  const auto bytes =
      write_xsr_memory(make_config(), tensors.sources(), kTokenizer, kProvenance, &size, tables());
  const auto file = XsrFile::open_memory(bytes.get(), size, "sample");
  expect_same(*file, make_config(), tensors.sources());
  EXPECT_EQ(file->name(), "sample");
  EXPECT_EQ(file->size(), size);
  EXPECT_EQ(file->tokenizer(), kTokenizer);
  EXPECT_THAT(file->tokenizer_tables(), testing::ElementsAreArray(tables()));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->tokenizer_tables().data()) % kAlignment, 0u);
  EXPECT_EQ(file->provenance(), kProvenance);
  EXPECT_STREQ(file->provenance().data(), kProvenance);  // NUL-terminated
  EXPECT_EQ(file->find("layer.0.up"), nullptr);
  EXPECT_EQ(file->find(""), nullptr);
}

TEST(Format, RoundTripThroughAFile) {
  const TempFolder folder;
  const SampleTensors tensors;
  const std::string path = folder / "model.xsr";
  write_xsr_file(path, make_config(), tensors.sources(), kTokenizer, kProvenance);
  EXPECT_EQ(folder.names(), std::set<std::string>{"model.xsr"});
  auto file = XsrFile::open(path);
  expect_same(*file, make_config(), tensors.sources());
  EXPECT_EQ(file->name(), path);
  EXPECT_EQ(file->size(), std::filesystem::file_size(path));
  EXPECT_THAT(read_all("/proc/self/maps"), HasSubstr(path));
  file.reset();
  EXPECT_THAT(read_all("/proc/self/maps"), Not(HasSubstr(path)));
}

TEST(Format, EveryConfigFieldKeepsItsValue) {
  ModelConfig plain;  // the defaults, and the opposite of make_config() in every flag
  plain.num_layers = plain.hidden_size = plain.num_heads = plain.intermediate_size =
      plain.vocab_size = 1;
  plain.num_positions = plain.max_seq_len = plain.embedding_size = 1;
  size_t size = 0;
  const auto bytes = write_xsr_memory(plain, {}, {}, {}, &size);
  const auto file = XsrFile::open_memory(bytes.get(), size);
  expect_same(*file, plain, {});
  EXPECT_EQ(file->tokenizer(), "");
  EXPECT_TRUE(file->tokenizer_tables().empty());
  EXPECT_STREQ(file->provenance().data(), "");
  // One field at a time, so that two that were exchanged show.
  const std::vector<std::function<void(ModelConfig&)>> changes = {
      [](ModelConfig& c) { c.family = Family::kXlmRoberta; },
      [](ModelConfig& c) { c.activation = Activation::kRelu; },
      [](ModelConfig& c) { c.norm_placement = NormPlacement::kPost; },
      [](ModelConfig& c) { c.pooling = Pooling::kMax; },
      [](ModelConfig& c) { c.pooler_activation = Activation::kNone; },
      [](ModelConfig& c) {
        c.has_pooler = false, c.embedding_size = 24, c.pooler_activation = Activation::kNone;
      },
      [](ModelConfig& c) { c.normalize = false; },
      [](ModelConfig& c) { c.lowercase = false; },
      [](ModelConfig& c) { c.add_cls = false; },
      [](ModelConfig& c) { c.add_sep = false; },
      [](ModelConfig& c) { c.tokenizer = TokenizerKind::kWordPiece; },
      [](ModelConfig& c) { c.pad_id = -1; },
      [](ModelConfig& c) { c.layer_norm_eps = 0; },
      [](ModelConfig& c) { c.vocab_size = INT32_MAX; },
  };
  for (const auto& change : changes) {
    ModelConfig config = make_config();
    change(config);
    const auto changed = write_xsr_memory(config, {}, kTokenizer, {}, &size);
    expect_same(*XsrFile::open_memory(changed.get(), size), config, {});
  }
}

TEST(Format, BytesAreAFunctionOfTheArguments) {
  const TempFolder folder;
  std::string first;
  for (int run = 0; run < 2; ++run) {
    const SampleTensors tensors;
    size_t size = 0;
    const auto bytes =
        write_xsr_memory(make_config(), tensors.sources(), kTokenizer, kProvenance, &size);
    const std::string path = folder / std::to_string(run);
    write_xsr_file(path, make_config(), tensors.sources(), kTokenizer, kProvenance);
    const std::string in_memory(reinterpret_cast<const char*>(bytes.get()), size);
    EXPECT_EQ(in_memory, read_all(path));
    if (run == 0) first = in_memory;
    EXPECT_EQ(in_memory, first);
  }
}

TEST(Format, TensorBytes) {
  const auto bytes = [](DType dtype, Layout layout, std::vector<uint64_t> dims) {
    return tensor_bytes(dtype, layout, dims);
  };
  EXPECT_EQ(bytes(DType::kF32, Layout::kRowMajor, {3, 5}), 60u);
  EXPECT_EQ(bytes(DType::kI8, Layout::kRowMajor, {2, 3, 5, 7}), 210u);
  EXPECT_EQ(bytes(DType::kF32, Layout::kPanels32, {32, 7}), 32u * 7 * 4);
  EXPECT_EQ(bytes(DType::kF32, Layout::kPanels32, {33, 7}), 64u * 7 * 4);
  EXPECT_EQ(bytes(DType::kBF16, Layout::kPanels32, {33, 7}), 64u * 8 * 2);
  EXPECT_EQ(bytes(DType::kF16, Layout::kPanels32, {1, 2}), 32u * 2 * 2);
  EXPECT_EQ(bytes(DType::kI8, Layout::kPanels32, {64, 9}), 64u * 12);
  for (const std::vector<uint64_t>& dims :
       std::vector<std::vector<uint64_t>>{{UINT64_MAX},
                                          {UINT64_MAX, UINT64_MAX},
                                          {kTwoTo60, 4},
                                          {uint64_t{1} << 32, uint64_t{1} << 32},
                                          {0},
                                          {4, 0},
                                          {},
                                          {1, 1, 1, 1, 1}}) {
    EXPECT_EQ(error_of([&] { bytes(DType::kF32, Layout::kRowMajor, dims); }).status(),
              XSR_STATUS_BAD_FILE);
    EXPECT_EQ(error_of([&] { bytes(DType::kF32, Layout::kPanels32, dims); }).status(),
              XSR_STATUS_BAD_FILE);
  }
  EXPECT_EQ(bytes(DType::kI8, Layout::kRowMajor, {UINT64_MAX}), UINT64_MAX);
}

TEST(Format, PanelPaddingIsFoundWhereItIsAndOnlyThere) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8}) {
    const uint64_t element = dtype_size(dtype), inputs = 4 / element;
    for (const uint64_t N : {1, 31, 32, 33, 64, 65}) {
      for (const uint64_t K : {1, 2, 3, 4, 5, 8}) {
        const std::vector<uint64_t> dims = {N, K};
        const uint64_t size = tensor_bytes(dtype, Layout::kPanels32, dims);
        std::vector<unsigned char> data(size, 0);
        ASSERT_EQ(find_panel_damage(dtype, Layout::kPanels32, dims, data.data(), size), size);
        const uint64_t rows = (K + inputs - 1) / inputs;
        for (uint64_t i = 0; i < size; ++i) {
          // [panel][row][32][inputs] elements
          const uint64_t index = i / element,
                         k = index / (32 * inputs) % rows * inputs + index % inputs;
          const uint64_t n = index / (32 * inputs * rows) * 32 + index / inputs % 32;
          data[i] = 1;
          ASSERT_EQ(find_panel_damage(dtype, Layout::kPanels32, dims, data.data(), size),
                    n < N && k < K ? size : i)
              << to_string(dtype) << " N=" << N << " K=" << K << " byte " << i;
          data[i] = 0;
        }
      }
    }
  }
}

TEST(Format, HeaderChecksumIsXxh3WithItsOwnFieldZero) {
  Image image = Image::sample();
  const FileHeader header = image.header();
  image.put<uint64_t>(24, 0);
  EXPECT_EQ(header.header_checksum,
            XXH3_64bits(image.data(), header.sections[kDataSection].offset));
  EXPECT_EQ(Image::sample().open()->header_checksum(), header.header_checksum);
}

TEST(Format, ChecksumOfI8CoversDataThenScales) {
  const auto file = Image::sample().open();
  const TensorView* tensor = file->find("layer.1.qkv.weight");
  ASSERT_NE(tensor, nullptr);
  std::string bytes(static_cast<const char*>(tensor->data), tensor->size);
  bytes.append(reinterpret_cast<const char*>(tensor->scales), 16 * sizeof(float));
  EXPECT_EQ(tensor->checksum, XXH3_64bits(bytes.data(), bytes.size()));
}

TEST(Format, EveryBrokenFileIsRefusedForItsOwnReason) {
  const BrokenFiles files;
  std::set<std::string> names;
  const TempFolder folder;
  for (const BrokenFile& broken : files.all()) {
    SCOPED_TRACE(broken.name);
    EXPECT_TRUE(names.insert(broken.name).second) << "two cases of one name";
    Image image = Image::sample();
    broken.spoil(image);
    if (broken.seal) image.seal();
    const Error error = error_of([&] { image.open(); });
    EXPECT_EQ(error.status(), broken.status) << error.what();
    EXPECT_THAT(error.what(), StartsWith("memory: "));
    EXPECT_THAT(error.what(), HasSubstr(broken.message));
    EXPECT_EQ(std::string(error.what()).back(), '.') << "no advice: " << error.what();
    // Mapped, the same bytes are refused for the same reason.
    const std::string path = folder / "broken.xsr";
    write_all(path, image.data(), image.size());
    const Error mapped = error_of([&] { XsrFile::open(path); });
    EXPECT_EQ(mapped.status(), error.status());
    EXPECT_EQ(path + std::string(error.what()).substr(6), mapped.what());
  }
  EXPECT_GE(files.all().size(), 100u);
  RecordProperty("broken_files", static_cast<int>(files.all().size()));
}

TEST(Format, EverySingleFlippedBitBeforeTheDataIsRefused) {
  Image image = Image::sample();
  const uint64_t end = image.section(kDataSection).offset;
  const uint64_t data_field = offsetof(FileHeader, sections) + kDataSection * sizeof(Section);
  for (uint64_t bit = 0; bit < 8 * end; ++bit) {
    const uint64_t byte = bit / 8;
    const unsigned char mask = static_cast<unsigned char>(1u << bit % 8);
    image.data()[byte] ^= mask;
    const Error error = error_of([&] { image.open(); });
    const bool version = byte >= 8 && byte < 12;
    ASSERT_EQ(error.status(), version ? XSR_STATUS_UNSUPPORTED : XSR_STATUS_BAD_FILE)
        << "bit " << bit << ": " << error.what();
    if (byte >= 24 && (byte < data_field || byte >= data_field + 8)) {
      ASSERT_THAT(error.what(), HasSubstr("header checksum is 0x")) << "bit " << bit;
    }
    image.data()[byte] ^= mask;
  }
  EXPECT_NO_THROW(image.open());
}

TEST(Format, EveryShorterFileIsRefused) {
  const Image& sample = Image::sample();
  for (uint64_t size = 0; size < sample.size(); ++size) {
    Image image(sample.data(), size);
    ASSERT_EQ(error_of([&] { image.open(); }).status(), XSR_STATUS_BAD_FILE) << size;
    // Cut by someone who also set the size in the header right.
    if (size < sizeof(FileHeader)) continue;
    image.put<uint64_t>(offsetof(FileHeader, file_size), size);
    image.seal();
    ASSERT_EQ(error_of([&] { image.open(); }).status(), XSR_STATUS_BAD_FILE) << size;
  }
}

/// Reads every byte that an opened file offers; what is wrong shows under ASan.
uint64_t read_everything(const XsrFile& file) {
  uint64_t sum = file.provenance().size() + file.tokenizer().size();
  for (const unsigned char c : file.tokenizer_tables()) sum += c;
  for (const char c : file.provenance()) sum += static_cast<unsigned char>(c);
  for (const char c : file.tokenizer()) sum += static_cast<unsigned char>(c);
  for (const TensorView& tensor : file.tensors()) {
    for (uint64_t i = 0; i < tensor.size; ++i)
      sum += static_cast<const unsigned char*>(tensor.data)[i];
    for (uint64_t i = 0; tensor.scales && i < tensor.dims[0]; ++i) sum += tensor.scales[i] > 0;
  }
  return sum;
}

TEST(Format, AnyFieldWithAnyValueIsRefusedOrSafe) {
  const Image& sample = Image::sample();
  const uint64_t end = sample.section(kDataSection).offset;
  uint64_t refused = 0, accepted = 0;
  const auto try_open = [&](Image& image) {
    image.seal();
    try {
      const auto file = image.open();
      EXPECT_GT(read_everything(*file), 0u);
      ++accepted;
      file->verify();
    } catch (const Error& error) {
      ++refused;
      ASSERT_TRUE(error.status() == XSR_STATUS_BAD_FILE || error.status() == XSR_STATUS_UNSUPPORTED)
          << error.what();
    }
  };
  for (uint64_t offset = 8; offset + 4 <= end; offset += 4) {
    const uint32_t old = sample.get<uint32_t>(offset);
    for (const uint32_t value : {0u, 1u, 2u, 63u, 64u, old + 1, old - 1, old + 64, old - 64,
                                 old * 2, 0x7fffffffu, 0x80000000u, UINT32_MAX}) {
      Image image = sample;
      image.put<uint32_t>(offset, value);
      try_open(image);
    }
    if (offset % 8 != 0 || offset + 8 > end) continue;
    for (const uint64_t value : {uint64_t{1} << 32, uint64_t{1} << 33, kTwoTo60, uint64_t{1} << 62,
                                 uint64_t{1} << 63, UINT64_MAX - 63, UINT64_MAX}) {
      Image image = sample;
      image.put<uint64_t>(offset, value);
      try_open(image);
    }
  }
  EXPECT_GT(refused, 1000u);
  EXPECT_GT(accepted, 10u);  // other sizes in the config, other letters in a name
}

TEST(Format, VerifyNamesTheDamagedTensor) {
  const Image& sample = Image::sample();
  for (uint64_t i = 0; i < sample.header().tensor_count; ++i) {
    const TensorEntry entry = sample.entry(i);
    const std::string name = "tensor '" + std::string(sample.open()->tensors()[i].name) + "'";
    SCOPED_TRACE(name);
    std::vector<std::pair<uint64_t, const char*>> places = {
        {entry.data_offset, "its data gives checksum"},
        {entry.data_offset + entry.data_size / 2, "its data gives checksum"},
        {entry.data_offset + entry.data_size - 1, "its data gives checksum"}};
    const uint64_t end = entry.data_offset + entry.data_size;
    if (padding_after(end) > 0) {
      places.push_back({end, "the padding behind it holds byte 16"});
      places.push_back({end + padding_after(end) - 1, "the padding behind it holds byte 16"});
    }
    if (entry.scales_size > 0) {
      places.push_back({entry.scales_offset, "its data gives checksum"});
      const uint64_t scales_end = entry.scales_offset + entry.scales_size;
      if (padding_after(scales_end) > 0)
        places.push_back({scales_end, "the padding behind it holds byte 16"});
    }
    for (const auto& [offset, message] : places) {
      Image image = sample;
      image.data()[offset] ^= 16;
      const auto file = image.open();  // the data is not looked at
      const Error error = error_of([&] { file->verify(); });
      EXPECT_EQ(error.status(), XSR_STATUS_BAD_FILE);
      EXPECT_THAT(error.what(), HasSubstr(name));
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
    Image image = sample;
    image.put<uint64_t>(image.entry_offset(i) + offsetof(TensorEntry, checksum),
                        entry.checksum + 1);
    image.seal();
    EXPECT_THAT(error_of([&] { image.open()->verify(); }).what(), HasSubstr(name));
  }
}

TEST(Format, VerifyFindsPanelPaddingThatIsNotZero) {
  Image image = Image::sample();
  TensorEntry entry =
      image.entry(1);  // f32 [40, 7]: the last 24 of the second panel's 32 outputs are padding
  const uint64_t at = entry.data_offset + entry.data_size - 1;
  image.data()[at] = 1;
  entry.checksum = XXH3_64bits(image.data() + entry.data_offset, entry.data_size);
  image.put_entry(1, entry);
  image.seal();
  const Error error = error_of([&] { image.open()->verify(); });
  EXPECT_EQ(error.status(), XSR_STATUS_BAD_FILE);
  EXPECT_THAT(error.what(),
              HasSubstr("tensor 'layer.0.up.weight': its panel padding is not zero at offset " +
                        std::to_string(at)));
}

TEST(Format, VerifyFindsTablesThatAreNotOfTheTokenizer) {
  const std::string blob = read_all(XSR_SOURCE_DIR "/tests/data/tiny-bpe.spm.model");
  std::vector<unsigned char> made = make_tokenizer_tables(blob);
  for (const bool damaged : {false, true}) {
    if (damaged) made.back() ^= 1;
    size_t size = 0;
    const auto bytes = write_xsr_memory(make_config(), {}, blob, kProvenance, &size, made);
    const auto file = XsrFile::open_memory(bytes.get(), size, "model.xsr");
    if (!damaged) {
      EXPECT_NO_THROW(file->verify());
      continue;
    }
    const Error error = error_of([&] { file->verify(); });
    EXPECT_EQ(error.status(), XSR_STATUS_BAD_FILE);
    EXPECT_THAT(error.what(), StartsWith("model.xsr: tokenizer tables: byte " +
                                         std::to_string(made.size() - 1) + " of "));
  }
}

TEST(Format, OpeningDoesNotTouchTheData) {
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::vector<float> weights(1 << 20, 1.0f);
  const std::vector<TensorSource> sources = {
      {"a", DType::kF32, Layout::kRowMajor, {1 << 10, 1 << 9}, weights.data(), nullptr},
      {"b", DType::kF32, Layout::kRowMajor, {1 << 20}, weights.data(), nullptr}};
  // A tokenizer of such a length that the data section begins on a page of its own.
  ModelConfig config = make_config();
  const uint64_t before = 192 + 256 + 2 * 128 + 64 + 64;
  const std::string tokenizer(page - before % page, 'x');
  size_t size = 0;
  const auto bytes = write_xsr_memory(config, sources, tokenizer, kProvenance, &size);
  const uint64_t data = Image(bytes.get(), sizeof(FileHeader)).section(kDataSection).offset;
  ASSERT_EQ(data % page, 0u);
  const uint64_t mapped_size = (size + page - 1) / page * page;
  void* memory =
      ::mmap(nullptr, mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::memcpy(memory, bytes.get(), size);
  // A read of the data would end the process here.
  ASSERT_EQ(::mprotect(static_cast<char*>(memory) + data, mapped_size - data, PROT_NONE), 0);
  {
    const auto file = XsrFile::open_memory(memory, size);
    EXPECT_EQ(file->tensors().size(), 2u);
    ASSERT_EQ(::mprotect(static_cast<char*>(memory) + data, mapped_size - data, PROT_READ), 0);
    EXPECT_NO_THROW(file->verify());
  }
  ::munmap(memory, mapped_size);
}

TEST(Format, OpenMemoryChecksItsArguments) {
  Image image = Image::sample();
  image.resize(image.size() + 64);
  EXPECT_EQ(error_of([] { XsrFile::open_memory(nullptr, 0); }).status(),
            XSR_STATUS_INVALID_ARGUMENT);
  for (const size_t offset : {1, 32}) {
    const Error error =
        error_of([&] { XsrFile::open_memory(image.data() + offset, image.size() - 64, "model"); });
    EXPECT_EQ(error.status(), XSR_STATUS_INVALID_ARGUMENT);
    EXPECT_THAT(error.what(), HasSubstr("model: the model's memory is not 64-byte aligned"));
  }
}

TEST(Format, OpenNamesWhatTheSystemRefused) {
  const TempFolder folder;
  const Error missing = error_of([&] { XsrFile::open(folder / "missing.xsr"); });
  EXPECT_EQ(missing.status(), XSR_STATUS_IO);
  EXPECT_THAT(missing.what(), HasSubstr("missing.xsr: cannot open the model file: No such file"));
  const Error directory = error_of([&] { XsrFile::open(folder / ""); });
  EXPECT_EQ(directory.status(), XSR_STATUS_IO);
  EXPECT_THAT(directory.what(), HasSubstr("is no regular file"));
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(error_of([&] { XsrFile::open(pipe); }).what(), HasSubstr("is no regular file"));
}

TEST(Format, WriterRefusesWhatTheReaderWould) {
  const SampleTensors tensors;
  const float one[64] = {1};
  struct BadTensor {
    std::string message;
    TensorSource source;
  };
  const std::vector<BadTensor> bad = {
      {"its name has 0 bytes", {"", DType::kF32, Layout::kRowMajor, {1}, one, nullptr}},
      {"its name has 256 bytes",
       {std::string(256, 'n'), DType::kF32, Layout::kRowMajor, {1}, one, nullptr}},
      {"its name holds byte 32", {"a b", DType::kF32, Layout::kRowMajor, {1}, one, nullptr}},
      {"its name holds byte 0",
       {std::string("a\0b", 3), DType::kF32, Layout::kRowMajor, {1}, one, nullptr}},
      {"has the name 'embedding.token' of tensor 0",
       {"embedding.token", DType::kF32, Layout::kRowMajor, {1}, one, nullptr}},
      {"rank is 0", {"a", DType::kF32, Layout::kRowMajor, {}, one, nullptr}},
      {"rank is 5", {"a", DType::kF32, Layout::kRowMajor, {1, 1, 1, 1, 1}, one, nullptr}},
      {"dimension 1 is 0", {"a", DType::kF32, Layout::kRowMajor, {1, 0}, one, nullptr}},
      {"overflows 64 bits",
       {"a", DType::kF32, Layout::kRowMajor, {kTwoTo60, kTwoTo60}, one, nullptr}},
      {"more bytes than 64 bits can count",
       {"a", DType::kF32, Layout::kRowMajor, {kTwoTo60 * 4 - 1}, one, nullptr}},
      {"expected 2 for layout panels32", {"a", DType::kF32, Layout::kPanels32, {64}, one, nullptr}},
      {"its data is a null pointer", {"a", DType::kF32, Layout::kRowMajor, {1}, nullptr, nullptr}},
      {"its scales are a null pointer", {"a", DType::kI8, Layout::kRowMajor, {1}, one, nullptr}},
      {"it has scales, expected none for dtype f32",
       {"a", DType::kF32, Layout::kRowMajor, {1}, one, one}},
      {"dtype is 9, this build knows",
       {"a", static_cast<DType>(9), Layout::kRowMajor, {1}, one, nullptr}},
      {"layout is 9, this build knows",
       {"a", DType::kF32, static_cast<Layout>(9), {1}, one, nullptr}},
  };
  const TempFolder folder;
  const std::string path = folder / "model.xsr";
  const auto expect_refused =
      [&](const ModelConfig& config, const std::vector<TensorSource>& sources,
          std::string_view tokenizer, std::string_view provenance, const std::string& message) {
        SCOPED_TRACE(message);
        const Error error =
            error_of([&] { write_xsr_file(path, config, sources, tokenizer, provenance); });
        EXPECT_EQ(error.status(), XSR_STATUS_INVALID_ARGUMENT);
        EXPECT_THAT(error.what(), StartsWith(path + ": not written"));
        EXPECT_THAT(error.what(), HasSubstr(message));
        EXPECT_TRUE(folder.names().empty());
      };
  for (const BadTensor& tensor : bad) {
    std::vector<TensorSource> sources = tensors.sources();
    sources.push_back(tensor.source);
    expect_refused(make_config(), sources, kTokenizer, kProvenance, tensor.message);
  }
  const std::vector<float> ones(64, 1.0f);
  expect_refused(make_config(),
                 {{"a", DType::kF32, Layout::kPanels32, {1, 2}, ones.data(), nullptr}}, kTokenizer,
                 kProvenance, "tensor 0 'a': its panel padding is not zero");
  ModelConfig config = make_config();
  config.num_heads = 5;
  expect_refused(config, {}, kTokenizer, kProvenance,
                 "num_heads is 5, expected a divisor of hidden_size 24");
  config = make_config();
  config.family = static_cast<Family>(77);
  expect_refused(config, {}, kTokenizer, kProvenance, "family is 77, this build knows 1 (xsr)");
  expect_refused(make_config(), {}, "", kProvenance,
                 "the config's tokenizer is sentencepiece, but the tokenizer section has 0 bytes");
  expect_refused(make_config(), {}, kTokenizer, "\xc3(", "expected to be UTF-8");
  expect_refused(make_config(), {}, kTokenizer, std::string_view("a\0b", 3),
                 "expected to hold one NUL");
}

TEST(Format, AFullDiskLeavesTheOldFileAndNoPartialOne) {
  const TempFolder folder;
  const SampleTensors tensors;
  const std::string path = folder / "model.xsr";
  write_xsr_file(path, make_config(), tensors.sources(), kTokenizer, kProvenance);
  const std::string old = read_all(path);
  ModelConfig other = make_config();
  other.pooling = Pooling::kMax;
  for (const uint64_t limit :
       {uint64_t{1}, uint64_t{100}, uint64_t{2000}, uint64_t{old.size()} - 1}) {
    const Error error = error_of([&] {
      const test::FileSizeLimit full(limit);
      write_xsr_file(path, other, tensors.sources(), kTokenizer, kProvenance);
    });
    EXPECT_EQ(error.status(), XSR_STATUS_IO);
    EXPECT_THAT(error.what(),
                HasSubstr("model.xsr.partial: cannot write after " + std::to_string(limit) +
                          " of " + std::to_string(old.size()) + " bytes: File too large"));
    EXPECT_THAT(error.what(), HasSubstr("Free some space or raise the limit"));
    EXPECT_EQ(folder.names(), std::set<std::string>{"model.xsr"});
    EXPECT_EQ(read_all(path), old);
  }
  const test::FileSizeLimit enough(old.size());
  EXPECT_NO_THROW(write_xsr_file(path, other, tensors.sources(), kTokenizer, kProvenance));
  EXPECT_EQ(XsrFile::open(path)->config().pooling, Pooling::kMax);
}

TEST(Format, TheBytesAreFlushedBeforeTheNameAndTheNameAfterwards) {
  const TempFolder folder;
  const std::string path = folder / "file";
  write_all(path, "old", 3);
  std::vector<std::pair<std::string, std::string>> flushed;  // with what the file holds by then
  test::before_fsync = [&](const std::string& name) { flushed.emplace_back(name, read_all(path)); };
  write_whole_file(path, "new");
  test::before_fsync = nullptr;
  EXPECT_THAT(flushed, testing::ElementsAre(
                           testing::Pair(path + ".partial", "old"),
                           testing::Pair(std::filesystem::path(path).parent_path(), "new")));
  std::filesystem::create_symlink("/dev/null", path + ".partial");
  const Error error = error_of([&] { write_whole_file(path, "newer"); });
  EXPECT_EQ(error.status(), XSR_STATUS_IO);
  EXPECT_THAT(error.what(), HasSubstr("file.partial: cannot flush the file to disk: Invalid"));
  EXPECT_EQ(read_all(path), "new");
}

TEST(Format, ANameThatCannotBeFlushedIsToldUnlessTheFileSystemNeverDoesIt) {
  const TempFolder folder;
  const std::string path = folder / "file";
  const auto written = [&](int folder_error, const char* bytes) {
    test::folder_fsync_error = folder_error;
    std::string message;
    try {
      write_whole_file(path, bytes);
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), XSR_STATUS_IO);
      message = error.what();
    }
    test::folder_fsync_error = 0;
    EXPECT_EQ(read_all(path), bytes);
    EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
    return message;
  };
  EXPECT_THAT(written(EIO, "one"),
              HasSubstr("file: written, but its folder cannot be flushed to disk: Input/output"));
  for (const int none : {EINVAL, ENOTSUP, EROFS}) EXPECT_EQ(written(none, "other"), "") << none;
}

TEST(Format, APipeInTheWayOfAFileIsNotWaitedFor) {
  const TempFolder folder;
  const std::string path = folder / "file";
  ASSERT_EQ(0, ::mkfifo((path + ".partial").c_str(), 0600));
  const auto refused = [&](const char* what) {
    const Error error = error_of([&] { write_whole_file(path, "new"); });
    EXPECT_EQ(error.status(), XSR_STATUS_IO);
    EXPECT_THAT(error.what(), HasSubstr(std::string("file.partial: ") + what));
  };
  refused("cannot create the file: No such device");
  const int reader = ::open((path + ".partial").c_str(), O_RDONLY | O_NONBLOCK);
  refused("is a pipe; remove it");
  ::close(reader);
}

TEST(Format, AFileThatAnotherProcessRenamesMeanwhileIsNotWrittenTo) {
  for (const bool third_process : {false, true}) {
    const TempFolder folder;
    const std::string path = folder / "file", partial = path + ".partial";
    write_all(partial, "theirs", 6);
    test::before_flock = [&] {  // between open() and the lock
      test::before_flock = nullptr;
      std::filesystem::rename(partial, path);
      if (third_process) write_all(partial, "", 0);
    };
    PartialFile file(path);
    EXPECT_EQ(read_all(path), "theirs");
    file.write("mine", 4);
    EXPECT_EQ(read_all(path), "theirs");
    file.commit();
    EXPECT_EQ(read_all(path), "mine");
  }
}

/// It was opened again and again, without end.
TEST(Format, AFileThatTheSystemTellsNothingOfIsWrittenAllTheSame) {
  const TempFolder folder;
  const std::string path = folder / "file";
  test::stat_error = EIO;
  write_whole_file(path, "bytes");
  test::stat_error = 0;
  EXPECT_EQ(read_all(path), "bytes");
}

TEST(Format, AFileWhosePartialFileIsRemovedTouchesNoOther) {
  const TempFolder folder;
  const std::string path = folder / "file", partial = path + ".partial";
  auto first = std::make_unique<PartialFile>(path);
  std::filesystem::remove(partial);
  auto second = std::make_unique<PartialFile>(path);
  std::filesystem::remove(partial);
  PartialFile third(path);
  third.write("mine", 4);
  const Error error = error_of([&] { first->commit(); });
  EXPECT_EQ(error.status(), XSR_STATUS_IO);
  EXPECT_THAT(error.what(), HasSubstr("file.partial: cannot rename it to " + path + ": No such"));
  first.reset();
  second.reset();
  EXPECT_EQ(folder.names(), std::set<std::string>{"file.partial"});
  third.commit();
  EXPECT_EQ(read_all(path), "mine");
}

TEST(Format, WritingWhereItCannotBeRenamedLeavesNothing) {
  const TempFolder folder;
  std::filesystem::create_directories(folder / "model.xsr/in the way");
  const Error error = error_of(
      [&] { write_xsr_file(folder / "model.xsr", make_config(), {}, kTokenizer, kProvenance); });
  EXPECT_EQ(error.status(), XSR_STATUS_IO);
  EXPECT_THAT(
      error.what(),
      HasSubstr("model.xsr: is a folder, which the file would take the place of; give the path"));
  // It would take the place of /dev/null just as well.
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const Error device = error_of([&] { write_whole_file(pipe, "bytes"); });
  EXPECT_EQ(device.status(), XSR_STATUS_IO);
  EXPECT_THAT(device.what(), HasSubstr("pipe: is a pipe or device, which"));
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  ::unlink(pipe.c_str());
  const Error late = error_of([&] {
    PartialFile file(folder / "late.xsr");
    std::filesystem::create_directories(folder / "late.xsr/in the way");
    file.commit();
  });
  EXPECT_EQ(late.status(), XSR_STATUS_IO);
  EXPECT_THAT(late.what(), HasSubstr("cannot rename it to"));
  EXPECT_EQ(folder.names(), (std::set<std::string>{"late.xsr", "model.xsr"}));
  const Error missing = error_of([&] {
    write_xsr_file(folder / "no folder/model.xsr", make_config(), {}, kTokenizer, kProvenance);
  });
  EXPECT_EQ(missing.status(), XSR_STATUS_IO);
  EXPECT_THAT(missing.what(),
              HasSubstr("no folder/model.xsr.partial: cannot create the file: No such file"));
}

TEST(Format, WritingReplacesALinkAndLeavesWhatItPointsTo) {
  const TempFolder folder;
  write_all(folder / "old", "old", 3);
  for (const char* target : {"old", "missing"}) {
    std::filesystem::create_symlink(target, folder / "link");
    write_whole_file(folder / "link", target);
    EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(folder / "link")));
    EXPECT_EQ(read_all(folder / "link"), target);
    std::filesystem::remove(folder / "link");
  }
  EXPECT_EQ(read_all(folder / "old"), "old");
  EXPECT_EQ(folder.names(), std::set<std::string>{"old"});
}

TEST(Format, WritingReplacesALeftoverPartialFileAndAnOpenModelLivesOn) {
  const TempFolder folder;
  const SampleTensors tensors;
  const std::string path = folder / "model.xsr";
  write_all(path + ".partial", std::string(100000, 'x').data(), 100000);
  write_xsr_file(path, make_config(), tensors.sources(), kTokenizer, kProvenance);
  const auto open = XsrFile::open(path);
  ModelConfig other = make_config();
  other.num_layers = 3;
  write_xsr_file(path, other, {}, kTokenizer, kProvenance);
  EXPECT_EQ(folder.names(), std::set<std::string>{"model.xsr"});
  EXPECT_NO_THROW(open->verify());
  EXPECT_EQ(open->config().num_layers, 2);
  EXPECT_EQ(XsrFile::open(path)->config().num_layers, 3);
}

/// The file that docs/FORMAT.md shows byte by byte.
std::vector<unsigned char> documented_file() {
  ModelConfig c;
  c.num_layers = 2;
  c.hidden_size = 4;
  c.num_heads = 2;
  c.intermediate_size = 8;
  c.vocab_size = 10;
  c.num_positions = 21;
  c.position_offset = 1;
  c.max_seq_len = 20;
  c.embedding_size = 4;
  c.lowercase = true;
  c.pad_id = 0;
  c.unk_id = 1;
  c.mask_id = 2;
  const float bias[4] = {1.0f, -2.0f, 0.5f, 0.0f};
  const std::vector<TensorSource> sources = {
      {"layer.0.out.bias", DType::kF32, Layout::kRowMajor, {4}, bias, nullptr}};
  size_t size = 0;
  const auto bytes = write_xsr_memory(c, sources, {}, R"({"license":"CC0-1.0"})", &size);
  return {bytes.get(), bytes.get() + size};
}

TEST(Format, FuzzSeedsAreFilesOfToday) {
  size_t size = 0;
  const auto empty = write_xsr_memory(make_config(), {}, kTokenizer, kProvenance, &size);
  const std::string no_tensors(reinterpret_cast<const char*>(empty.get()), size);
  const Image& sample = Image::sample();
  const std::string all_kinds(reinterpret_cast<const char*>(sample.data()), sample.size());
  const std::vector<unsigned char> documented = documented_file();
  const std::string one_tensor(documented.begin(), documented.end());
  // The byte in front tells the fuzz target whether to make the header's checksum right.
  const std::vector<std::pair<std::string, std::string>> seeds = {
      {"no_tensors", "\1" + no_tensors},
      {"one_tensor", "\1" + one_tensor},
      {"all_kinds", "\1" + all_kinds},
      {"one_tensor_as_it_stands", std::string(1, '\0') + one_tensor}};
  for (const auto& [name, bytes] : seeds) {
    const std::string path =
        std::string(XSR_SOURCE_DIR) + "/tests/fuzz/seeds/xsr_file_fuzz/" + name;
    if (std::getenv("XSR_UPDATE_SEEDS")) write_all(path, bytes.data(), bytes.size());
    EXPECT_TRUE(read_all(path) == bytes)
        << path << " is not what the writer writes now; XSR_UPDATE_SEEDS=1 writes it again";
  }
}

std::string hexdump(const std::vector<unsigned char>& bytes) {
  std::ostringstream out;
  std::string last;
  bool squeezed = false;
  char text[24];
  for (size_t line = 0; line < bytes.size(); line += 16) {
    std::string hex, plain;
    for (size_t i = line; i < line + 16; ++i) {
      std::snprintf(text, sizeof text, "%s%02x", i % 8 == 0 ? "  " : " ", bytes[i]);
      hex += text;
      plain += bytes[i] >= 0x20 && bytes[i] < 0x7f ? static_cast<char>(bytes[i]) : '.';
    }
    if (hex == last) {
      if (!squeezed) out << "*\n";
      squeezed = true;
      continue;
    }
    squeezed = false;
    last = hex;
    std::snprintf(text, sizeof text, "%08zx", line);
    out << text << hex << "  |" << plain << "|\n";
  }
  std::snprintf(text, sizeof text, "%08zx", bytes.size());
  out << text << "\n";
  return out.str();
}

TEST(Format, DocumentationShowsTheBytesThatAreWritten) {
  const std::string path = std::string(XSR_SOURCE_DIR) + "/docs/FORMAT.md";
  const std::string document = read_all(path);
  const std::string fence = "\n```hexdump\n";
  const size_t begin = document.find(fence);
  ASSERT_NE(begin, std::string::npos) << path << ": no hexdump there";
  const size_t first = begin + fence.size();
  EXPECT_EQ(document.substr(first, document.find("```\n", first) - first),
            hexdump(documented_file()))
      << path;
}

}  // namespace
}  // namespace xsr
