#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "runtime/format/flag_bits.h"
#include "runtime/format/xsr_file.h"

// The bytes of a .xsr file, as docs/FORMAT.md describes them. Internal: reader, writer and their
// tests.

namespace xsr {

// The structs below are copied to and from the file as they stand.
static_assert(std::endian::native == std::endian::little,
              "the .xsr format is little-endian; a big-endian host would have to swap every field");

/// As in PNG: a byte above 127 and both kinds of line end show a transfer that stripped bits or
/// changed line ends.
inline constexpr unsigned char kMagic[8] = {0x89, 'X', 'S', 'R', '\r', '\n', 0x1a, '\n'};
inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint32_t kEndianMark = 0x01020304;
inline constexpr uint32_t kSwappedEndianMark = 0x04030201;
/// Every section, tensor and scale vector begins at a multiple of this; the bytes in between are
/// zero.
inline constexpr uint64_t kAlignment = 64;
inline constexpr uint32_t kMaxRank = 4;
inline constexpr uint32_t kMaxNameSize = 255;  // bytes, without the NUL
inline constexpr uint64_t kPanelRows = 32;     // outputs of a weight panel

/// A byte range of the file. offset counts from the start of the file.
struct Section {
  uint64_t offset;
  uint64_t size;
};

/// The sections in the order in which they stand in the header and in the file. One more,
/// FileHeader::tokenizer_tables, may stand before the data.
enum SectionIndex : uint32_t {
  kConfigSection = 0,
  kTensorTableSection = 1,
  kNamesSection = 2,
  kProvenanceSection = 3,
  kTokenizerSection = 4,
  kDataSection = 5,
  kNumSections = 6
};

/// The first 24 bytes keep their meaning in every later version.
struct FileHeader {
  unsigned char magic[8];
  uint32_t version;
  uint32_t endian_mark;
  uint64_t file_size;        // bytes, exact
  uint64_t header_checksum;  // see header_checksum() below
  Section sections[kNumSections];
  uint32_t tensor_count;
  uint32_t reserved0;          // zero
  Section tokenizer_tables;    // between tokenizer and data; {0, 0} where there are none
  unsigned char reserved[40];  // zero
};
static_assert(sizeof(FileHeader) == 192 && sizeof(FileHeader) % kAlignment == 0);
static_assert(offsetof(FileHeader, version) == 8 && offsetof(FileHeader, endian_mark) == 12);
static_assert(offsetof(FileHeader, file_size) == 16);
static_assert(offsetof(FileHeader, header_checksum) == 24 && offsetof(FileHeader, sections) == 32);
static_assert(offsetof(FileHeader, tensor_count) == 128 && offsetof(FileHeader, reserved0) == 132);
static_assert(offsetof(FileHeader, tokenizer_tables) == 136 &&
              offsetof(FileHeader, reserved) == 152);
static_assert(std::is_trivially_copyable_v<FileHeader>);

/// Bits of ConfigRecord::flags.
enum ConfigFlag : uint32_t {
  kFlagPooler = 1u << 0,
  kFlagNormalize = 1u << 1,
  kFlagLowercase = 1u << 2,
  kFlagAddCls = 1u << 3,
  kFlagAddSep = 1u << 4,
  kKnownFlags = (1u << 5) - 1
};

inline constexpr FlagBit<ModelConfig> kConfigFlagBits[] = {
    {kFlagPooler, &ModelConfig::has_pooler},
    {kFlagNormalize, &ModelConfig::normalize},
    {kFlagLowercase, &ModelConfig::lowercase},
    {kFlagAddCls, &ModelConfig::add_cls},
    {kFlagAddSep, &ModelConfig::add_sep}};

/// ModelConfig in the file; the names and their meaning are those of model_config.h.
struct ConfigRecord {
  uint32_t family;
  int32_t num_layers;
  int32_t hidden_size;
  int32_t num_heads;
  int32_t intermediate_size;
  int32_t vocab_size;
  int32_t num_positions;
  int32_t position_offset;
  int32_t num_token_types;
  int32_t max_seq_len;
  int32_t embedding_size;
  uint32_t activation;
  uint32_t norm_placement;
  uint32_t pooling;
  uint32_t pooler_activation;
  uint32_t flags;
  double layer_norm_eps;
  uint32_t tokenizer;
  int32_t pad_id;
  int32_t unk_id;
  int32_t mask_id;
  int32_t cls_id;
  int32_t sep_id;
  unsigned char reserved[160];  // zero
};
static_assert(sizeof(ConfigRecord) == 256 && sizeof(ConfigRecord) % kAlignment == 0);
static_assert(offsetof(ConfigRecord, activation) == 44 && offsetof(ConfigRecord, flags) == 60);
static_assert(offsetof(ConfigRecord, layer_norm_eps) == 64);
static_assert(offsetof(ConfigRecord, tokenizer) == 72 && offsetof(ConfigRecord, sep_id) == 92);
static_assert(offsetof(ConfigRecord, reserved) == 96);
static_assert(std::is_trivially_copyable_v<ConfigRecord>);

struct TensorEntry {
  uint32_t name_offset;  // bytes from the start of the names section
  uint32_t name_size;    // bytes, without the NUL that follows
  uint32_t dtype;
  uint32_t layout;
  uint32_t rank;
  uint32_t reserved0;          // zero
  uint64_t dims[kMaxRank];     // zero beyond rank
  uint64_t data_offset;        // from the start of the file
  uint64_t data_size;          // bytes
  uint64_t scales_offset;      // from the start of the file; zero but for i8
  uint64_t scales_size;        // bytes; zero but for i8
  uint64_t checksum;           // XXH3-64 of the data, for i8 of data and scales one after the other
  unsigned char reserved[32];  // zero
};
static_assert(sizeof(TensorEntry) == 128 && sizeof(TensorEntry) % kAlignment == 0);
static_assert(offsetof(TensorEntry, rank) == 16 && offsetof(TensorEntry, dims) == 24);
static_assert(offsetof(TensorEntry, data_offset) == 56 && offsetof(TensorEntry, checksum) == 88);
static_assert(offsetof(TensorEntry, reserved) == 96);
static_assert(std::is_trivially_copyable_v<TensorEntry>);

/// XXH3-64 (seed 0) of the first metadata_size bytes of the file, those before the data section,
/// with the eight bytes of FileHeader::header_checksum taken as zero. metadata_size ≥
/// sizeof(FileHeader).
uint64_t header_checksum(const unsigned char* file, uint64_t metadata_size);

/// XXH3-64 (seed 0) of data, then of scales.
uint64_t tensor_checksum(const void* data, uint64_t size, const void* scales, uint64_t scales_size);

/// Offset, relative to data, of the first byte of panel padding (outputs beyond N, inputs beyond K)
/// that is not zero; `size` when there is none or the layout has no padding. size =
/// tensor_bytes(dtype, layout, dims).
uint64_t find_panel_damage(DType dtype, Layout layout, const std::vector<uint64_t>& dims,
                           const void* data, uint64_t size);

/// What the bytes before the data section say.
struct Metadata {
  ModelConfig config;
  std::vector<TensorView> tensors;  // data and scales are null: only offsets are known here
  std::vector<Section> scales;      // one per tensor, {0, 0} where it has none
  std::string_view tokenizer, provenance;
  std::span<const unsigned char> tokenizer_tables;
  uint64_t header_checksum = 0;
};

/// Checks everything but the data section itself, of which no byte is read; size is that of the
/// whole file. Throws Error(BAD_FILE, UNSUPPORTED); the message has no file name.
Metadata parse_metadata(const unsigned char* file, uint64_t size);

/// The number of bytes from value to the next multiple of kAlignment.
constexpr uint64_t padding_after(uint64_t value) {
  return (kAlignment - value % kAlignment) % kAlignment;
}

}  // namespace xsr
