#include "runtime/format/xsr_file.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "runtime/format/named_values.h"
#include "runtime/format/xsr_layout.h"
#include "runtime/text/tokenizer_tables.h"
#include "runtime/text/utf8.h"

namespace xsr {
namespace {

constexpr NamedValue<DType> kDTypes[] = {
    {DType::kF32, "f32"}, {DType::kF16, "f16"}, {DType::kBF16, "bf16"}, {DType::kI8, "i8"}};
constexpr NamedValue<Layout> kLayouts[] = {{Layout::kRowMajor, "row-major"},
                                           {Layout::kPanels32, "panels32"}};

// What to do about it. kDamaged stands where bytes have changed since they were written;
// XsrFile::parse() adds one of the others to a message that does not end in advice of its own.
constexpr const char* kDamaged = ". The file is damaged: copy it or convert the model again.";
constexpr const char* kTooNew =
    ". The file needs another version of xsr: upgrade xsr, or convert the model again.";
constexpr const char* kMiswritten =
    ". The file was written wrongly, not damaged later: convert the model again.";

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string number(uint64_t value) { return std::to_string(value); }

[[noreturn]] void bad_at(uint64_t offset, const std::string& message) {
  throw_bad_file("offset " + number(offset) + ": " + message);
}

[[noreturn]] void unsupported_at(uint64_t offset, const std::string& message) {
  throw Error(XSR_STATUS_UNSUPPORTED, "offset " + number(offset) + ": " + message);
}

uint64_t checked_product(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product))
    throw_bad_file("the product of its dimensions overflows 64 bits");
  return product;
}

uint64_t ceil_div(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

/// Inputs that stand side by side in a panel: one 32-bit lane of a dot-product instruction.
uint64_t panel_inputs(DType dtype) { return 4 / dtype_size(dtype); }

/// The first byte of [first, last) that is not zero; last when there is none.
uint64_t find_nonzero(const unsigned char* data, uint64_t first, uint64_t last) {
  while (first < last && data[first] == 0) ++first;
  return first;
}

void check_zero(const unsigned char* file, uint64_t first, uint64_t last, const std::string& what) {
  const uint64_t found = find_nonzero(file, first, last);
  if (found == last) return;
  bad_at(found, what + " holds byte " + number(file[found]) + ", expected 0");
}

// The checksum has held, so this is no damage: a later writer has put a feature there that this
// build does not know.
void check_reserved(const unsigned char* file, uint64_t first, uint64_t last,
                    const std::string& what) {
  const uint64_t found = find_nonzero(file, first, last);
  if (found == last) return;
  unsupported_at(found, "reserved byte of " + what + " is " + number(file[found]) +
                            ", expected 0 in format version 1");
}

/// Checks that `range` is what follows at `expected` inside the file; returns where the next range
/// begins.
uint64_t check_range(const Section& range, uint64_t expected, uint64_t file_size,
                     uint64_t field_offset, const std::string& what) {
  const std::string found = what + " begins at " + number(range.offset);
  if (range.offset % kAlignment != 0) bad_at(field_offset, found + ", expected a multiple of 64");
  if (range.offset > file_size || range.size > file_size - range.offset) {
    bad_at(field_offset, found + " and has " + number(range.size) +
                             " bytes, beyond the end of the file of " + number(file_size) +
                             " bytes");
  }
  if (range.offset < expected) {
    bad_at(field_offset,
           found + " and overlaps what stands before it, expected " + number(expected));
  }
  if (range.offset > expected) {
    bad_at(field_offset, found + " and leaves a hole before it, expected " + number(expected));
  }
  const uint64_t end = range.offset + range.size;
  return end + padding_after(end);  // file_size is a multiple of 64, so this is inside the file
}

void check_magic(const unsigned char* file, uint64_t size) {
  if (size >= sizeof kMagic && std::memcmp(file, kMagic, sizeof kMagic) == 0) return;
  const auto begins = [&](std::string_view text) {
    return size >= text.size() && std::memcmp(file, text.data(), text.size()) == 0;
  };
  if (begins(kGitLfsMagic)) {
    bad_at(0,
           "the file is a Git LFS pointer that stands for the model. Fetch the file itself (git "
           "lfs pull).");
  }
  // The first eight bytes after CR was dropped, a CR was added, or the eighth bit was cleared.
  if (begins("\x89XSR\n\x1a\n") || begins("\x89XSR\r\r\n") || begins("\x89XSR\r\n\x1a\r\n") ||
      begins("\tXSR\r\n\x1a\n")) {
    bad_at(0,
           "the file was copied in text mode, which has changed its bytes. Copy it again in binary "
           "mode.");
  }
  if (size < sizeof kMagic && std::memcmp(file, kMagic, size) == 0) {
    throw_bad_file("the file has " + number(size) + " bytes, a header has " +
                   number(sizeof(FileHeader)) + kDamaged);
  }
  const auto hex_bytes = [](const unsigned char* bytes, uint64_t count) {
    std::string text;
    for (uint64_t i = 0; i < count; ++i) {
      char byte[4];
      std::snprintf(byte, sizeof byte, i == 0 ? "%02x" : " %02x", bytes[i]);
      text += byte;
    }
    return text;
  };
  bad_at(0, "magic is " + hex_bytes(file, std::min<uint64_t>(size, sizeof kMagic)) + ", expected " +
                hex_bytes(kMagic, sizeof kMagic) +
                ". This is no .xsr file; checkpoints are converted by xsr-convert.");
}

ModelConfig parse_config(const unsigned char* file, uint64_t offset) {
  ConfigRecord r;
  std::memcpy(&r, file + offset, sizeof r);
  if ((r.flags & ~kKnownFlags) != 0) {
    unsupported_at(offset + offsetof(ConfigRecord, flags),
                   "config flags are " + hex(r.flags) + ", this build knows " + hex(kKnownFlags));
  }
  check_reserved(file, offset + offsetof(ConfigRecord, reserved), offset + sizeof(ConfigRecord),
                 "the config");
  ModelConfig c;
  c.family = static_cast<Family>(r.family);
  c.num_layers = r.num_layers;
  c.hidden_size = r.hidden_size;
  c.num_heads = r.num_heads;
  c.intermediate_size = r.intermediate_size;
  c.vocab_size = r.vocab_size;
  c.num_positions = r.num_positions;
  c.position_offset = r.position_offset;
  c.num_token_types = r.num_token_types;
  c.max_seq_len = r.max_seq_len;
  c.embedding_size = r.embedding_size;
  c.activation = static_cast<Activation>(r.activation);
  c.norm_placement = static_cast<NormPlacement>(r.norm_placement);
  c.pooling = static_cast<Pooling>(r.pooling);
  c.pooler_activation = static_cast<Activation>(r.pooler_activation);
  set_from_flags(r.flags, kConfigFlagBits, c);
  c.layer_norm_eps = r.layer_norm_eps;
  c.tokenizer = static_cast<TokenizerKind>(r.tokenizer);
  c.pad_id = r.pad_id;
  c.unk_id = r.unk_id;
  c.mask_id = r.mask_id;
  c.cls_id = r.cls_id;
  c.sep_id = r.sep_id;
  try {
    validate(c);
  } catch (const Error& error) {
    throw Error(error.status(), "config at offset " + number(offset) + ": " + error.what());
  }
  return c;
}

/// Names stand one after the other in the order of the table, each with a NUL behind it.
std::string_view parse_name(const unsigned char* file, const Section& names,
                            const TensorEntry& entry, uint64_t entry_offset, uint64_t expected,
                            const std::string& what) {
  if (entry.name_size < 1 || entry.name_size > kMaxNameSize) {
    bad_at(entry_offset + offsetof(TensorEntry, name_size),
           what + ": its name has " + number(entry.name_size) + " bytes, expected 1 to " +
               number(kMaxNameSize));
  }
  if (entry.name_offset != expected) {
    bad_at(
        entry_offset + offsetof(TensorEntry, name_offset),
        what + ": name_offset is " + number(entry.name_offset) + ", expected " + number(expected));
  }
  if (expected + entry.name_size + 1 > names.size) {
    bad_at(entry_offset + offsetof(TensorEntry, name_size),
           what + ": its name reaches to byte " + number(expected + entry.name_size + 1) +
               " of the names section, which has " + number(names.size));
  }
  const uint64_t first = names.offset + expected;
  for (uint64_t i = first; i < first + entry.name_size; ++i) {
    if (file[i] < 0x21 || file[i] > 0x7e) {
      bad_at(i, what + ": its name holds byte " + number(file[i]) +
                    ", expected printable ASCII without spaces");
    }
  }
  if (file[first + entry.name_size] != 0) {
    bad_at(first + entry.name_size, what + ": its name ends in byte " +
                                        number(file[first + entry.name_size]) + ", expected 0");
  }
  return {reinterpret_cast<const char*>(file + first), entry.name_size};
}

/// Everything of a table entry but its name and the place of its data.
TensorView parse_shape(const unsigned char* file, const TensorEntry& entry, uint64_t entry_offset,
                       const std::string& what) {
  TensorView tensor;
  tensor.dtype = static_cast<DType>(entry.dtype);
  tensor.layout = static_cast<Layout>(entry.layout);
  uint64_t field = entry_offset + offsetof(TensorEntry, dtype);
  try {
    check_known("dtype", kDTypes, tensor.dtype);
    field = entry_offset + offsetof(TensorEntry, layout);
    check_known("layout", kLayouts, tensor.layout);
  } catch (const Error& error) {
    unsupported_at(field, what + ": " + error.what());
  }
  if (entry.rank < 1 || entry.rank > kMaxRank) {
    bad_at(entry_offset + offsetof(TensorEntry, rank),
           what + ": rank is " + number(entry.rank) + ", expected 1 to " + number(kMaxRank));
  }
  const std::string reserved_of = "the table entry of " + what;
  check_reserved(file, entry_offset + offsetof(TensorEntry, reserved0),
                 entry_offset + offsetof(TensorEntry, dims), reserved_of);
  check_reserved(file, entry_offset + offsetof(TensorEntry, reserved),
                 entry_offset + sizeof(TensorEntry), reserved_of);
  for (uint32_t i = entry.rank; i < kMaxRank; ++i) {
    if (entry.dims[i] == 0) continue;
    bad_at(entry_offset + offsetof(TensorEntry, dims) + 8 * i,
           what + ": dimension " + number(i) + " is " + number(entry.dims[i]) +
               ", expected 0 beyond rank " + number(entry.rank));
  }
  tensor.dims.assign(entry.dims, entry.dims + entry.rank);
  uint64_t bytes = 0, scales_bytes = 0;
  try {
    bytes = tensor_bytes(tensor.dtype, tensor.layout, tensor.dims);
    if (tensor.dtype == DType::kI8) scales_bytes = checked_product(entry.dims[0], sizeof(float));
  } catch (const Error& error) {
    bad_at(entry_offset + offsetof(TensorEntry, dims), what + ": " + error.what());
  }
  if (entry.data_size != bytes) {
    bad_at(entry_offset + offsetof(TensorEntry, data_size),
           what + ": data_size is " + number(entry.data_size) + ", expected " + number(bytes) +
               " from its shape");
  }
  if (entry.scales_size != scales_bytes) {
    bad_at(entry_offset + offsetof(TensorEntry, scales_size),
           what + ": scales_size is " + number(entry.scales_size) + ", expected " +
               number(scales_bytes) + " for dtype " + to_string(tensor.dtype));
  }
  tensor.size = entry.data_size;
  tensor.offset = entry.data_offset;
  tensor.checksum = entry.checksum;
  return tensor;
}

void check_unique(const std::vector<TensorView>& tensors, uint64_t table_offset) {
  std::vector<size_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int compared = tensors[a].name.compare(tensors[b].name);
    return compared != 0 ? compared < 0 : a < b;
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const size_t first = order[i - 1], second = order[i];
    if (tensors[first].name != tensors[second].name) continue;
    bad_at(table_offset + second * sizeof(TensorEntry),
           "tensor " + number(second) + " has the name '" + std::string(tensors[second].name) +
               "' of tensor " + number(first) + ", expected a name of its own");
  }
}

}  // namespace

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
      return 1;
  }
  check_known("dtype", kDTypes, dtype);  // throws
  return 0;
}

const char* to_string(DType value) { return name_of(kDTypes, value); }
const char* to_string(Layout value) { return name_of(kLayouts, value); }

std::string shape_string(std::span<const uint64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + number(shape[i]);
  return text + "]";
}

uint64_t tensor_bytes(DType dtype, Layout layout, std::span<const uint64_t> dims) {
  check_known("layout", kLayouts, layout);
  if (dims.empty() || dims.size() > kMaxRank) {
    throw_bad_file("rank is " + number(dims.size()) + ", expected 1 to " + number(kMaxRank));
  }
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0) throw_bad_file("dimension " + number(i) + " is 0, expected at least 1");
  }
  uint64_t bytes = dtype_size(dtype);
  if (layout == Layout::kRowMajor) {
    for (const uint64_t dim : dims) bytes = checked_product(bytes, dim);
    return bytes;
  }
  if (dims.size() != 2)
    throw_bad_file("rank is " + number(dims.size()) + ", expected 2 for layout panels32");
  const uint64_t inputs = panel_inputs(dtype);
  bytes = checked_product(bytes * kPanelRows * inputs, ceil_div(dims[0], kPanelRows));
  return checked_product(bytes, ceil_div(dims[1], inputs));
}

uint64_t header_checksum(const unsigned char* file, uint64_t metadata_size) {
  constexpr uint64_t kField = offsetof(FileHeader, header_checksum);
  constexpr unsigned char kZero[sizeof(uint64_t)] = {};
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, file, kField);
  XXH3_64bits_update(&state, kZero, sizeof kZero);
  XXH3_64bits_update(&state, file + kField + sizeof kZero, metadata_size - kField - sizeof kZero);
  return XXH3_64bits_digest(&state);
}

uint64_t tensor_checksum(const void* data, uint64_t size, const void* scales,
                         uint64_t scales_size) {
  if (scales_size == 0) return XXH3_64bits(data, size);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, data, size);
  XXH3_64bits_update(&state, scales, scales_size);
  return XXH3_64bits_digest(&state);
}

uint64_t find_panel_damage(DType dtype, Layout layout, const std::vector<uint64_t>& dims,
                           const void* data, uint64_t size) {
  if (layout != Layout::kPanels32) return size;
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  const uint64_t element = dtype_size(dtype), inputs = panel_inputs(dtype);
  const uint64_t N = dims[0], K = dims[1];
  const uint64_t lane = inputs * element;  // bytes of one output's inputs in a row of the panel
  const uint64_t row = kPanelRows * lane;
  const uint64_t rows = ceil_div(K, inputs), panels = ceil_div(N, kPanelRows);
  const uint64_t outputs_in_last = N - (panels - 1) * kPanelRows;
  const uint64_t inputs_in_last = K - (rows - 1) * inputs;
  for (uint64_t i = 0; i < rows; ++i) {  // outputs beyond N, in the last panel
    const uint64_t begin = ((panels - 1) * rows + i) * row;
    const uint64_t found = find_nonzero(bytes, begin + outputs_in_last * lane, begin + row);
    if (found != begin + row) return found;
  }
  for (uint64_t panel = 0; inputs_in_last < inputs && panel < panels;
       ++panel) {  // inputs beyond K, in the last row
    const uint64_t begin = (panel * rows + rows - 1) * row;
    for (uint64_t output = 0; output < kPanelRows; ++output) {
      const uint64_t end = begin + (output + 1) * lane;
      const uint64_t found =
          find_nonzero(bytes, begin + output * lane + inputs_in_last * element, end);
      if (found != end) return found;
    }
  }
  return size;
}

namespace {

/// Where the header has a section's offset; its size follows.
uint64_t section_field(uint32_t index) {
  return offsetof(FileHeader, sections) + index * sizeof(Section);
}

/// The header of a file whose checksum holds.
FileHeader parse_header(const unsigned char* file, uint64_t size) {
  if (size == 0) throw_bad_file(std::string("the file is empty") + kDamaged);
  check_magic(file, size);
  if (size < sizeof(FileHeader)) {
    throw_bad_file("the file has " + number(size) + " bytes, a header has " +
                   number(sizeof(FileHeader)) + kDamaged);
  }
  FileHeader header;
  std::memcpy(&header, file, sizeof header);

  // Byte order and version come before the checksum: a later version may lay out what follows in
  // another way.
  if (header.endian_mark == kSwappedEndianMark) {
    unsupported_at(
        offsetof(FileHeader, endian_mark),
        "the file is big-endian, this build reads little-endian files. Convert the model again.");
  }
  if (header.endian_mark != kEndianMark) {
    bad_at(offsetof(FileHeader, endian_mark), "endian mark is " + hex(header.endian_mark) +
                                                  ", expected " + hex(kEndianMark) + kDamaged);
  }
  if (header.version != kFormatVersion) {
    unsupported_at(offsetof(FileHeader, version), "format version is " + number(header.version) +
                                                      ", this build reads version " +
                                                      number(kFormatVersion));
  }
  if (header.file_size != size) {
    bad_at(offsetof(FileHeader, file_size),
           "file_size is " + number(header.file_size) + ", but the file has " + number(size) +
               " bytes" +
               (size < header.file_size ? ". It was cut short: copy it again."
                                        : ". It has trailing bytes: copy it again."));
  }
  const Section& data = header.sections[kDataSection];
  if (data.offset < sizeof(FileHeader) || data.offset > size) {
    bad_at(section_field(kDataSection), "the data section begins at " + number(data.offset) +
                                            ", expected " + number(sizeof(FileHeader)) + " to " +
                                            number(size) + kDamaged);
  }
  const uint64_t checksum = header_checksum(file, data.offset);
  if (checksum != header.header_checksum) {
    bad_at(offsetof(FileHeader, header_checksum),
           "header checksum is " + hex(header.header_checksum) + ", but the first " +
               number(data.offset) + " bytes give " + hex(checksum) + kDamaged);
  }
  return header;
}

/// Checks where the sections stand, what stands between them, and the sizes that are known.
void check_sections(const FileHeader& header, const unsigned char* file, uint64_t size) {
  // From here on the bytes are what the writer wrote, by accident or design; every field is checked
  // all the same.
  if (size % kAlignment != 0) {
    bad_at(offsetof(FileHeader, file_size),
           "file_size is " + number(size) + ", expected a multiple of 64");
  }
  check_reserved(file, offsetof(FileHeader, reserved0), offsetof(FileHeader, tokenizer_tables),
                 "the header");
  check_reserved(file, offsetof(FileHeader, reserved), sizeof(FileHeader), "the header");
  static constexpr const char* kSectionNames[kNumSections] = {
      "the config section",     "the tensor table",      "the names section",
      "the provenance section", "the tokenizer section", "the data section"};
  struct Placed {
    Section section;
    uint64_t field;  // where the header says so
    const char* name;
  };
  std::vector<Placed> placed;
  for (uint32_t i = 0; i < kNumSections; ++i) {
    const Section& tables = header.tokenizer_tables;
    if (i == kDataSection && (tables.offset != 0 || tables.size != 0)) {
      placed.push_back(
          {tables, offsetof(FileHeader, tokenizer_tables), "the tokenizer tables section"});
    }
    placed.push_back({header.sections[i], section_field(i), kSectionNames[i]});
  }
  uint64_t expected = sizeof(FileHeader);
  for (const Placed& p : placed) expected = check_range(p.section, expected, size, p.field, p.name);
  for (size_t i = 0; i + 1 < placed.size(); ++i) {
    check_zero(file, placed[i].section.offset + placed[i].section.size,
               placed[i + 1].section.offset, std::string("padding after ") + placed[i].name);
  }
  const Section& data = header.sections[kDataSection];
  if (expected != size || data.size % kAlignment != 0) {
    bad_at(section_field(kDataSection) + sizeof(uint64_t),
           "the data section has " + number(data.size) + " bytes, expected " +
               number(size - data.offset) + " up to the end of the file");
  }

  const Section& config = header.sections[kConfigSection];
  if (config.size != sizeof(ConfigRecord)) {
    bad_at(section_field(kConfigSection) + sizeof(uint64_t),
           "the config section has " + number(config.size) + " bytes, expected " +
               number(sizeof(ConfigRecord)));
  }
  const Section& table = header.sections[kTensorTableSection];
  if (table.size != uint64_t{header.tensor_count} * sizeof(TensorEntry)) {
    bad_at(offsetof(FileHeader, tensor_count),
           "tensor_count is " + number(header.tensor_count) + ", but the tensor table has " +
               number(table.size) + " bytes, expected " + number(sizeof(TensorEntry)) +
               " for each tensor");
  }
}

void parse_texts(const FileHeader& header, const unsigned char* file, Metadata& metadata) {
  const Section& provenance = header.sections[kProvenanceSection];
  const char* provenance_text = reinterpret_cast<const char*>(file + provenance.offset);
  if (provenance.size == 0 ||
      std::memchr(provenance_text, 0, provenance.size) != provenance_text + provenance.size - 1) {
    bad_at(provenance.offset, "the provenance text of " + number(provenance.size) +
                                  " bytes is expected to hold one NUL, at its end");
  }
  metadata.provenance = {provenance_text, provenance.size - 1};
  if (!is_valid_utf8(metadata.provenance)) {
    bad_at(provenance.offset, "the provenance text is expected to be UTF-8 and is not");
  }

  const Section& tokenizer = header.sections[kTokenizerSection];
  metadata.tokenizer = {reinterpret_cast<const char*>(file + tokenizer.offset), tokenizer.size};
  if ((metadata.config.tokenizer == TokenizerKind::kNone) != metadata.tokenizer.empty()) {
    bad_at(header.sections[kConfigSection].offset + offsetof(ConfigRecord, tokenizer),
           std::string("the config's tokenizer is ") + to_string(metadata.config.tokenizer) +
               ", but the tokenizer section has " + number(tokenizer.size) + " bytes");
  }
  const Section& tables = header.tokenizer_tables;
  metadata.tokenizer_tables = {file + tables.offset, tables.size};
  if (tables.offset != 0 && (tables.size == 0 || metadata.tokenizer.empty())) {
    bad_at(offsetof(FileHeader, tokenizer_tables),
           "the tokenizer tables section has " + number(tables.size) +
               " bytes beside a tokenizer of " + number(tokenizer.size) +
               ", expected some of both");
  }
}

void parse_tensors(const FileHeader& header, const unsigned char* file, uint64_t size,
                   Metadata& metadata) {
  const Section& table = header.sections[kTensorTableSection];
  metadata.tensors.reserve(header.tensor_count);
  metadata.scales.reserve(header.tensor_count);
  const Section& names = header.sections[kNamesSection];
  uint64_t name_offset = 0;
  uint64_t expected = header.sections[kDataSection].offset;
  for (uint64_t i = 0; i < header.tensor_count; ++i) {
    const uint64_t entry_offset = table.offset + i * sizeof(TensorEntry);
    TensorEntry entry;
    std::memcpy(&entry, file + entry_offset, sizeof entry);
    std::string what = "tensor " + number(i);
    const std::string_view name = parse_name(file, names, entry, entry_offset, name_offset, what);
    name_offset += name.size() + 1;
    what += " '" + std::string(name) + "'";
    TensorView tensor = parse_shape(file, entry, entry_offset, what);
    tensor.name = name;
    expected = check_range({entry.data_offset, entry.data_size}, expected, size,
                           entry_offset + offsetof(TensorEntry, data_offset), what + ": its data");
    Section scales{entry.scales_offset, entry.scales_size};
    if (tensor.dtype == DType::kI8) {
      expected =
          check_range(scales, expected, size, entry_offset + offsetof(TensorEntry, scales_offset),
                      what + ": its scale vector");
    } else if (scales.offset != 0) {
      bad_at(entry_offset + offsetof(TensorEntry, scales_offset),
             what + ": scales_offset is " + number(scales.offset) + ", expected 0 for dtype " +
                 to_string(tensor.dtype));
    }
    metadata.tensors.push_back(std::move(tensor));
    metadata.scales.push_back(scales);
  }
  if (name_offset != names.size) {
    bad_at(section_field(kNamesSection) + sizeof(uint64_t),
           "the names section has " + number(names.size) + " bytes, expected " +
               number(name_offset) + " for the names in the table");
  }
  if (expected != size) {
    bad_at(expected, "the last tensor ends here, but the file has " + number(size) +
                         " bytes: trailing bytes");
  }
  check_unique(metadata.tensors, table.offset);
}

}  // namespace

Metadata parse_metadata(const unsigned char* file, uint64_t size) {
  const FileHeader header = parse_header(file, size);
  check_sections(header, file, size);
  Metadata metadata;
  metadata.header_checksum = header.header_checksum;
  metadata.config = parse_config(file, header.sections[kConfigSection].offset);
  parse_texts(header, file, metadata);
  parse_tensors(header, file, size, metadata);
  return metadata;
}

std::unique_ptr<XsrFile> XsrFile::open(const std::string& path) {
  std::unique_ptr<XsrFile> file(new XsrFile);
  file->name_ = path;
  file->mapping_ = std::make_unique<MappedFile>(path, " the model file");
  file->data_ = file->mapping_->bytes().data();
  file->size_ = file->mapping_->bytes().size();
  file->parse();
  return file;
}

std::unique_ptr<XsrFile> XsrFile::open_memory(const void* data, size_t size,
                                              const std::string& name) {
  if (data == nullptr)
    throw Error(XSR_STATUS_INVALID_ARGUMENT, name + ": the model's memory is a null pointer");
  if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT, name + ": the model's memory is not 64-byte aligned");
  }
  std::unique_ptr<XsrFile> file(new XsrFile);
  file->name_ = name;
  file->data_ = static_cast<const unsigned char*>(data);
  file->size_ = size;
  file->parse();
  return file;
}

XsrFile::~XsrFile() = default;

void XsrFile::parse() {
  try {
    Metadata metadata = parse_metadata(data_, size_);
    config_ = metadata.config;
    tensors_ = std::move(metadata.tensors);
    tokenizer_ = metadata.tokenizer;
    tokenizer_tables_ = metadata.tokenizer_tables;
    provenance_ = metadata.provenance;
    header_checksum_ = metadata.header_checksum;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      tensors_[i].data = data_ + tensors_[i].offset;
      if (metadata.scales[i].size > 0) {
        tensors_[i].scales = reinterpret_cast<const float*>(data_ + metadata.scales[i].offset);
      }
    }
  } catch (const Error& error) {
    std::string message = name_ + ": " + error.what();
    if (!message.ends_with('.')) {
      message += error.status() == XSR_STATUS_UNSUPPORTED ? kTooNew : kMiswritten;
    }
    throw Error(error.status(), message);
  }
}

const TensorView* XsrFile::find(std::string_view name) const {
  for (const TensorView& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

void XsrFile::verify() const {
  try {
    verify_tokenizer_tables(tokenizer_, tokenizer_tables_);
  } catch (const Error& error) {
    throw Error(error.status(), name_ + ": " + error.what());
  }
  for (const TensorView& tensor : tensors_) {
    const std::string what = name_ + ": offset " + number(tensor.offset) + ": tensor '" +
                             std::string(tensor.name) + "': ";
    const uint64_t scales_size = tensor.scales ? tensor.dims[0] * sizeof(float) : 0;
    const uint64_t checksum = tensor_checksum(tensor.data, tensor.size, tensor.scales, scales_size);
    if (checksum != tensor.checksum) {
      throw_bad_file(what + "its data gives checksum " + hex(checksum) + ", expected " +
                     hex(tensor.checksum) + kDamaged);
    }
    uint64_t end = tensor.offset + tensor.size;
    uint64_t found = find_nonzero(data_, end, end + padding_after(end));
    if (found == end + padding_after(end) && tensor.scales) {
      end = static_cast<uint64_t>(reinterpret_cast<const unsigned char*>(tensor.scales) - data_) +
            scales_size;
      found = find_nonzero(data_, end, end + padding_after(end));
    }
    if (found != end + padding_after(end)) {
      throw_bad_file(what + "the padding behind it holds byte " + number(data_[found]) +
                     " at offset " + number(found) + ", expected 0" + kDamaged);
    }
    const uint64_t damage =
        find_panel_damage(tensor.dtype, tensor.layout, tensor.dims, tensor.data, tensor.size);
    if (damage != tensor.size) {
      throw_bad_file(what + "its panel padding is not zero at offset " +
                     number(tensor.offset + damage) + ". Convert the model again.");
    }
  }
}

}  // namespace xsr
