#include <algorithm>
#include <cstring>
#include <new>

#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/format/xsr_file.h"
#include "runtime/format/xsr_layout.h"

namespace xsr {
namespace {

/// A run of bytes of the caller's, and where it goes.
struct Chunk {
  uint64_t offset;
  const void* data;
  uint64_t size;
};

/// A whole file: the bytes before the data section, then chunks in rising order with zeros between
/// and behind them.
struct Plan {
  std::vector<unsigned char> metadata;
  std::vector<Chunk> chunks;
  uint64_t file_size = 0;
};

/// Places `size` bytes at the next aligned offset at or after *end and moves *end behind them and
/// their padding.
Section place(uint64_t* end, uint64_t size) {
  const Section section{*end, size};
  uint64_t next;
  if (__builtin_add_overflow(*end, size, &next) ||
      __builtin_add_overflow(next, padding_after(next), &next)) {
    throw_invalid("the tensors together have more bytes than 64 bits can count");
  }
  *end = next;
  return section;
}

ConfigRecord to_record(const ModelConfig& c) {
  ConfigRecord r{};
  r.family = static_cast<uint32_t>(c.family);
  r.num_layers = c.num_layers;
  r.hidden_size = c.hidden_size;
  r.num_heads = c.num_heads;
  r.intermediate_size = c.intermediate_size;
  r.vocab_size = c.vocab_size;
  r.num_positions = c.num_positions;
  r.position_offset = c.position_offset;
  r.num_token_types = c.num_token_types;
  r.max_seq_len = c.max_seq_len;
  r.embedding_size = c.embedding_size;
  r.activation = static_cast<uint32_t>(c.activation);
  r.norm_placement = static_cast<uint32_t>(c.norm_placement);
  r.pooling = static_cast<uint32_t>(c.pooling);
  r.pooler_activation = static_cast<uint32_t>(c.pooler_activation);
  r.flags = flags_of(c, kConfigFlagBits);
  r.layer_norm_eps = c.layer_norm_eps;
  r.tokenizer = static_cast<uint32_t>(c.tokenizer);
  r.pad_id = c.pad_id;
  r.unk_id = c.unk_id;
  r.mask_id = c.mask_id;
  r.cls_id = c.cls_id;
  r.sep_id = c.sep_id;
  return r;
}

/// Places the tensor's data and scales behind *end and fills its entry, but for the name's offset.
TensorEntry place_tensor(const TensorSource& source, uint64_t* end, std::vector<Chunk>* chunks) {
  TensorEntry entry{};
  entry.name_size = static_cast<uint32_t>(std::min<size_t>(source.name.size(), UINT32_MAX));
  entry.dtype = static_cast<uint32_t>(source.dtype);
  entry.layout = static_cast<uint32_t>(source.layout);
  const uint64_t size = tensor_bytes(source.dtype, source.layout, source.dims);
  entry.rank = static_cast<uint32_t>(source.dims.size());
  std::copy(source.dims.begin(), source.dims.end(), entry.dims);
  if (source.data == nullptr) throw_invalid("its data is a null pointer");
  const bool has_scales = source.dtype == DType::kI8;
  if (has_scales != (source.scales != nullptr)) {
    throw_invalid(
        has_scales
            ? "its scales are a null pointer, expected one scale for each row of an i8 tensor"
            : std::string("it has scales, expected none for dtype ") + to_string(source.dtype));
  }
  if (find_panel_damage(source.dtype, source.layout, source.dims, source.data, size) != size) {
    throw_invalid("its panel padding is not zero");
  }
  const Section data = place(end, size);
  entry.data_offset = data.offset;
  entry.data_size = data.size;
  chunks->push_back({data.offset, source.data, data.size});
  if (has_scales) {
    const Section scales =
        place(end, source.dims[0] * sizeof(float));  // no overflow: size ≥ dims[0]
    entry.scales_offset = scales.offset;
    entry.scales_size = scales.size;
    chunks->push_back({scales.offset, source.scales, scales.size});
  }
  entry.checksum = tensor_checksum(source.data, entry.data_size, source.scales, entry.scales_size);
  return entry;
}

Plan make_plan(const ModelConfig& config, std::span<const TensorSource> tensors,
               std::string_view tokenizer, std::string_view provenance,
               std::span<const unsigned char> tokenizer_tables) {
  if (tensors.size() > UINT32_MAX) throw_invalid("a file holds at most 2^32 - 1 tensors");
  std::string names;
  std::vector<TensorEntry> table(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    table[i].name_offset = static_cast<uint32_t>(names.size());
    names.append(tensors[i].name).push_back('\0');
    if (names.size() > UINT32_MAX)
      throw_invalid("the tensors' names have more than 2^32 - 1 bytes");
  }

  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kFormatVersion;
  header.endian_mark = kEndianMark;
  header.tensor_count = static_cast<uint32_t>(tensors.size());
  uint64_t end = sizeof(FileHeader);
  Section* const sections = header.sections;
  sections[kConfigSection] = place(&end, sizeof(ConfigRecord));
  sections[kTensorTableSection] = place(&end, table.size() * sizeof(TensorEntry));
  sections[kNamesSection] = place(&end, names.size());
  sections[kProvenanceSection] = place(&end, provenance.size() + 1);  // with a NUL, for C
  sections[kTokenizerSection] = place(&end, tokenizer.size());
  if (!tokenizer_tables.empty()) header.tokenizer_tables = place(&end, tokenizer_tables.size());
  sections[kDataSection].offset = end;

  Plan plan;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint32_t name_offset = table[i].name_offset;
    try {
      table[i] = place_tensor(tensors[i], &end, &plan.chunks);
    } catch (const Error& error) {
      throw Error(error.status(),
                  "tensor " + std::to_string(i) + " '" + tensors[i].name + "': " + error.what());
    }
    table[i].name_offset = name_offset;
  }
  sections[kDataSection].size = end - sections[kDataSection].offset;
  header.file_size = plan.file_size = end;

  const ConfigRecord record = to_record(config);
  plan.metadata.assign(sections[kDataSection].offset, 0);
  unsigned char* const bytes = plan.metadata.data();
  const auto put = [&](const Section& section, const void* data, size_t size) {
    if (size > 0) std::memcpy(bytes + section.offset, data, size);
  };
  put(sections[kConfigSection], &record, sizeof record);
  put(sections[kTensorTableSection], table.data(), table.size() * sizeof(TensorEntry));
  put(sections[kNamesSection], names.data(), names.size());
  put(sections[kProvenanceSection], provenance.data(), provenance.size());
  put(sections[kTokenizerSection], tokenizer.data(), tokenizer.size());
  put(header.tokenizer_tables, tokenizer_tables.data(), tokenizer_tables.size());
  std::memcpy(bytes, &header, sizeof header);
  header.header_checksum = header_checksum(bytes, plan.metadata.size());
  std::memcpy(bytes, &header, sizeof header);

  // The reader's own checks of names, config and shapes: what it would refuse is not written.
  parse_metadata(bytes, plan.file_size);
  return plan;
}

Plan make_plan_or_invalid(const std::string& name, const ModelConfig& config,
                          std::span<const TensorSource> tensors, std::string_view tokenizer,
                          std::string_view provenance,
                          std::span<const unsigned char> tokenizer_tables) {
  try {
    return make_plan(config, tensors, tokenizer, provenance, tokenizer_tables);
  } catch (const Error& error) {
    throw_invalid(name + ": not written, the reader would refuse it: " + error.what());
  }
}

}  // namespace

void write_xsr_file(const std::string& path, const ModelConfig& config,
                    std::span<const TensorSource> tensors, std::string_view tokenizer,
                    std::string_view provenance_json,
                    std::span<const unsigned char> tokenizer_tables) {
  const Plan plan =
      make_plan_or_invalid(path, config, tensors, tokenizer, provenance_json, tokenizer_tables);
  PartialFile file(path, plan.file_size);
  file.write(plan.metadata.data(), plan.metadata.size());
  for (const Chunk& chunk : plan.chunks) {
    file.pad_to(chunk.offset);
    file.write(chunk.data, chunk.size);
  }
  file.pad_to(plan.file_size);
  file.commit();
}

std::shared_ptr<unsigned char[]> write_xsr_memory(const ModelConfig& config,
                                                  std::span<const TensorSource> tensors,
                                                  std::string_view tokenizer,
                                                  std::string_view provenance_json, size_t* size,
                                                  std::span<const unsigned char> tokenizer_tables) {
  const Plan plan =
      make_plan_or_invalid("memory", config, tensors, tokenizer, provenance_json, tokenizer_tables);
  constexpr std::align_val_t kAlign{kAlignment};
  std::shared_ptr<unsigned char[]> memory(
      static_cast<unsigned char*>(::operator new[](plan.file_size, kAlign)),
      [](unsigned char* bytes) { ::operator delete[](bytes, kAlign); });
  std::memset(memory.get(), 0, plan.file_size);
  std::memcpy(memory.get(), plan.metadata.data(), plan.metadata.size());
  for (const Chunk& chunk : plan.chunks)
    std::memcpy(memory.get() + chunk.offset, chunk.data, chunk.size);
  *size = plan.file_size;
  return memory;
}

}  // namespace xsr
