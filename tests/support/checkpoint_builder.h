#pragma once
// Builds checkpoint files of every format byte by byte, sound or broken, for the tests of their
// readers.
#include <zlib.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xsr::test {

template <typename T>
std::string bytes_of(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

inline std::span<const unsigned char> as_span(const std::string& bytes) {
  return {reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()};
}

// ---- safetensors ----

struct NamedTensor {
  std::string name, dtype;
  std::vector<uint64_t> shape;
  std::string data;
};

/// A header as it stands and the data behind it.
inline std::string safetensors_file(const std::string& header, const std::string& data) {
  return bytes_of<uint64_t>(header.size()) + header + data;
}

inline std::string safetensors_file(const std::vector<NamedTensor>& tensors,
                                    const std::string& metadata = "") {
  std::string header = "{", data;
  if (!metadata.empty()) header += "\"__metadata__\":" + metadata;
  for (const auto& t : tensors) {
    if (header.size() > 1) header += ",";
    header += "\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":[";
    for (size_t i = 0; i < t.shape.size(); ++i) {
      if (i) header += ",";
      header += std::to_string(t.shape[i]);
    }
    header += "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + t.data.size()) + "]}";
    data += t.data;
  }
  return safetensors_file(header + "}", data);
}

// ---- pickle ----

/// Opcodes in a row; every function appends and returns the object.
class Pickle {
 public:
  explicit Pickle(int protocol = 2) {
    raw("\x80").raw(std::string(1, static_cast<char>(protocol)));
  }

  Pickle& raw(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  Pickle& op(unsigned char opcode) { return raw(std::string(1, static_cast<char>(opcode))); }
  Pickle& mark() { return raw("("); }
  Pickle& dict() { return raw("}"); }
  Pickle& list() { return raw("]"); }
  Pickle& tuple() { return raw("t"); }
  Pickle& set_items() { return raw("u"); }
  Pickle& append_items() { return raw("e"); }
  Pickle& none() { return raw("N"); }
  Pickle& boolean(bool value) { return op(value ? 0x88 : 0x89); }
  Pickle& string(std::string_view text) {
    return raw("X").raw(bytes_of<uint32_t>(static_cast<uint32_t>(text.size()))).raw(text);
  }
  Pickle& integer(int64_t value) {
    if (value >= 0 && value < 256)
      return raw("K").raw(bytes_of<uint8_t>(static_cast<uint8_t>(value)));
    if (value >= INT32_MIN && value <= INT32_MAX)
      return raw("J").raw(bytes_of<int32_t>(static_cast<int32_t>(value)));
    return raw("\x8a\x08").raw(bytes_of<int64_t>(value));
  }
  Pickle& real(double value) {
    std::string big = bytes_of(value);
    return raw("G").raw(std::string(big.rbegin(), big.rend()));
  }
  Pickle& global(std::string_view module, std::string_view name) {
    return raw("c").raw(module).raw("\n").raw(name).raw("\n");
  }
  Pickle& reduce() { return raw("R"); }
  Pickle& integers(const std::vector<int64_t>& values) {
    mark();
    for (const int64_t v : values) integer(v);
    return tuple();
  }
  /// A persistent id: ('storage', torch.TYPE, key, 'cpu', numel).
  Pickle& storage(std::string_view type, std::string_view key, int64_t numel, bool legacy = false) {
    mark().string("storage").global("torch", type).string(key).string("cpu").integer(numel);
    if (legacy) none();
    return tuple().raw("Q");
  }
  Pickle& tensor(std::string_view type, std::string_view key, int64_t numel, int64_t offset,
                 const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                 bool legacy = false) {
    global("torch._utils", "_rebuild_tensor_v2")
        .mark()
        .storage(type, key, numel, legacy)
        .integer(offset);
    integers(shape).integers(strides).boolean(false);
    return global("collections", "OrderedDict").raw(")").reduce().tuple().reduce();
  }
  Pickle& stop() { return raw("."); }
  const std::string& str() const { return bytes_; }

 private:
  std::string bytes_;
};

inline std::vector<int64_t> row_major(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

// ---- zip ----

struct ZipEntry {
  std::string name, data;
  bool deflate = false;
  bool zip64 = false;
  // What the archive says where it lies; nothing = the truth.
  std::map<std::string, uint64_t>
      say;  // "crc", "size", "compressed", "method", "flags", "comment", "offset", "local_method"
  std::string local_name;  // empty = name
};

struct ZipSay {
  std::map<std::string, uint64_t>
      end;  // "disk", "count", "count_on_disk", "size", "offset", "comment"
  std::string before, after,
      between;  // bytes before the archive, after it, between directory and end record
  bool zip64 = false;
};

inline std::string deflate_raw(const std::string& data) {
  z_stream z{};
  deflateInit2(&z, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&z, data.size()), '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  z.avail_in = static_cast<uInt>(data.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

inline uint64_t said(const std::map<std::string, uint64_t>& say, const std::string& field,
                     uint64_t truth) {
  const auto it = say.find(field);
  return it == say.end() ? truth : it->second;
}

inline std::string zip_file(const std::vector<ZipEntry>& entries, const ZipSay& say = {}) {
  std::string file = say.before, directory;
  const auto u16 = [](uint64_t v) { return bytes_of(static_cast<uint16_t>(v)); };
  const auto u32 = [](uint64_t v) { return bytes_of(static_cast<uint32_t>(v)); };
  const auto u64 = [](uint64_t v) { return bytes_of(v); };
  for (const auto& e : entries) {
    const std::string packed = e.deflate ? deflate_raw(e.data) : e.data;
    const uint64_t crc = said(
        e.say, "crc", crc32_z(0, reinterpret_cast<const Bytef*>(e.data.data()), e.data.size()));
    const uint64_t method = said(e.say, "method", e.deflate ? 8 : 0),
                   flags = said(e.say, "flags", 0x800);
    const uint64_t size = said(e.say, "size", e.data.size()),
                   compressed = said(e.say, "compressed", packed.size());
    const uint64_t offset = said(e.say, "offset", file.size());
    const std::string& local_name = e.local_name.empty() ? e.name : e.local_name;
    file += "PK\x03\x04" + u16(20) + u16(flags) + u16(said(e.say, "local_method", method)) +
            u32(0) + u32(crc) + u32(compressed) + u32(size) + u16(local_name.size()) + u16(0) +
            local_name + packed;
    const std::string extra =
        e.zip64 ? u16(1) + u16(24) + u64(size) + u64(compressed) + u64(offset) : "";
    const uint64_t ones = 0xffffffff;
    directory += "PK\x01\x02" + u16(20) + u16(20) + u16(flags) + u16(method) + u32(0) + u32(crc) +
                 u32(e.zip64 ? ones : compressed) + u32(e.zip64 ? ones : size) +
                 u16(e.name.size()) + u16(extra.size()) + u16(said(e.say, "comment", 0)) + u16(0) +
                 u16(0) + u32(0) + u32(e.zip64 ? ones : offset) + e.name + extra;
  }
  const uint64_t at = said(say.end, "offset", file.size()),
                 size = said(say.end, "size", directory.size());
  const uint64_t count = said(say.end, "count", entries.size()),
                 on_disk = said(say.end, "count_on_disk", count);
  const uint64_t disk = said(say.end, "disk", 0);
  file += directory + say.between;
  if (say.zip64) {
    const uint64_t end64 = said(say.end, "end64", file.size());
    file += "PK\x06\x06" + u64(said(say.end, "record64", 44)) + u16(45) + u16(45) + u32(disk) +
            u32(disk) + u64(on_disk) + u64(count) + u64(size) + u64(at);
    file += "PK\x06\x07" + u32(0) + u64(end64) + u32(said(say.end, "disks64", 1));
    file += "PK\x05\x06" + u16(0xffff) + u16(0xffff) + u16(0xffff) + u16(0xffff) + u32(0xffffffff) +
            u32(0xffffffff) + u16(0);
  } else {
    file += "PK\x05\x06" + u16(disk) + u16(disk) + u16(on_disk) + u16(count) + u32(size) + u32(at) +
            u16(said(say.end, "comment", 0));
  }
  return file + say.after;
}

/// A checkpoint of torch.save: the pickle and a storage for each key.
inline std::string torch_zip(const std::string& pickle,
                             const std::vector<std::pair<std::string, std::string>>& storages,
                             bool deflate = false) {
  std::vector<ZipEntry> entries = {{"archive/data.pkl", pickle, deflate, false, {}, ""}};
  for (const auto& [key, data] : storages)
    entries.push_back({"archive/data/" + key, data, deflate, false, {}, ""});
  entries.push_back({"archive/version", "3\n", false, false, {}, ""});
  return zip_file(entries);
}

// ---- the container before the zip ----

inline std::string legacy_magic() {
  return "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
}
inline std::string legacy_protocol() { return "\x80\x02M\xe9\x03."; }
inline std::string legacy_system(bool little = true) {
  return Pickle()
      .dict()
      .mark()
      .string("protocol_version")
      .integer(1001)
      .string("little_endian")
      .boolean(little)
      .set_items()
      .stop()
      .str();
}
inline std::string legacy_keys(const std::vector<std::string>& keys) {
  Pickle p;
  p.list().mark();
  for (const auto& k : keys) p.string(k);
  return p.append_items().stop().str();
}

struct LegacyStorage {
  std::string key, data;
  int64_t numel;
};

inline std::string torch_legacy(const std::string& pickle,
                                const std::vector<LegacyStorage>& storages) {
  std::vector<std::string> keys;
  for (const auto& s : storages) keys.push_back(s.key);
  std::string file =
      legacy_magic() + legacy_protocol() + legacy_system() + pickle + legacy_keys(keys);
  for (const auto& s : storages) file += bytes_of(s.numel) + s.data;
  return file;
}

}  // namespace xsr::test
