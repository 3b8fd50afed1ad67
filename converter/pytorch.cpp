#include "converter/pytorch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <unordered_map>

#include "converter/pickle.h"
#include "converter/zip.h"

namespace xsr {
namespace {

using pickle::Data;
using pickle::Kind;
using pickle::Node;

constexpr size_t kMaxPickleBytes = 64 << 20;
constexpr int kMaxDepth = 16;  // of containers inside containers
constexpr size_t kMaxVisits =
    1 << 20;  // a shared container is walked once for every place it stands in
constexpr size_t kMaxNameBytes = 64 << 20;  // of all tensors together

/// Turns the pickle's description into tensors. storage gives the bytes of a storage node, checked
/// for their size.
class Collector {
 public:
  using StorageReader = std::function<std::span<const unsigned char>(const Node& storage)>;

  Collector(const Data& data, const std::string& where, StorageReader storage,
            CheckpointContents& contents)
      : data_(data), where_(where), storage_(std::move(storage)), contents_(contents) {}

  void collect() {
    const Node* root = &data_.root();
    if (root->kind != Kind::kDict) {
      bad(root->offset, fmt::format("the pickle holds {}, expected a dictionary of tensors",
                                    to_string(root->kind)));
    }
    // The model's own dictionary, through the boxes that trainers put around it.
    const Node* model = root;
    for (int depth = 0; depth < 4; ++depth) {
      const Node* inner = nullptr;
      for (const char* key : {"state_dict", "model_state_dict", "model"}) {
        const Node* candidate = data_.find(*model, key);
        if (candidate != nullptr && candidate->kind == Kind::kDict) {
          inner = candidate;
          break;
        }
      }
      if (inner == nullptr) break;
      model = inner;
    }
    model_ = model;
    walk(*model, "", contents_.tensors, true, 0);
    if (contents_.tensors.empty()) bad(model->offset, "the checkpoint holds no tensors");
    if (model != root) walk(*root, "", contents_.outside, false, 0);
    std::unordered_map<std::string_view, int> seen;
    for (const auto& t : contents_.tensors) {
      if (++seen[t.name] > 1) bad(model->offset, fmt::format("the tensor {} occurs twice", t.name));
    }
  }

 private:
  [[noreturn]] void bad(uint64_t offset, const std::string& what) const {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: byte {}: {}", where_, offset, what));
  }

  static std::string key_text(const Node& key) {
    switch (key.kind) {
      case Kind::kString:
        return std::string(key.text);
      case Kind::kInt:
        return std::to_string(key.integer);
      default:
        return fmt::format("({})", to_string(key.kind));
    }
  }

  void walk(const Node& container, const std::string& prefix, std::vector<CheckpointTensor>& out,
            bool in_model, int depth) {
    if (depth > kMaxDepth)
      bad(container.offset, fmt::format("containers are nested more than {} deep", kMaxDepth));
    const bool dict = container.kind == Kind::kDict;
    for (size_t i = 0; i < container.items.size(); i += dict ? 2 : 1) {
      if (++visits_ > kMaxVisits)
        bad(container.offset, fmt::format("the checkpoint has more than {} members", kMaxVisits));
      const Node& value = data_[container.items[dict ? i + 1 : i]];
      if (!in_model && &value == model_) continue;
      if (value.kind != Kind::kTensor && value.kind != Kind::kDict && value.kind != Kind::kList &&
          value.kind != Kind::kTuple) {
        if (dict && depth == 0) note(data_[container.items[i]], value);
        continue;
      }
      const std::string own = dict ? key_text(data_[container.items[i]]) : std::to_string(i);
      const std::string name = prefix.empty() ? own : prefix + "." + own;
      if (name.size() > 4096) bad(value.offset, "the name of a tensor is longer than 4096 bytes");
      if (value.kind == Kind::kTensor) {
        name_bytes_ += name.size();
        if (name_bytes_ > kMaxNameBytes) {
          bad(value.offset, fmt::format("the names of its tensors have more than {} bytes together",
                                        kMaxNameBytes));
        }
        out.push_back(tensor(value, name));
      } else {
        walk(value, name, out, in_model, depth + 1);
      }
    }
  }

  /// Scalars beside the tensors (epoch, model_name, ...) are shown by --inspect.
  void note(const Node& key, const Node& value) {
    if (key.kind != Kind::kString) return;
    std::string text;
    switch (value.kind) {
      case Kind::kBool:
        text = value.integer ? "true" : "false";
        break;
      case Kind::kInt:
        text = std::to_string(value.integer);
        break;
      case Kind::kFloat:
        text = fmt::format("{}", value.real);
        break;
      case Kind::kString:
        text = value.text;
        break;
      default:
        return;
    }
    contents_.metadata.emplace(key.text, std::move(text));
  }

  CheckpointTensor tensor(const Node& node, const std::string& name) {
    const Node& storage = data_[node.items[0]];
    CheckpointTensor t;
    t.name = name;
    t.dtype = storage.dtype;
    const auto fail = [&](const std::string& what) {
      bad(node.offset, fmt::format("{}: {}", name, what));
    };
    t.numel = 1;
    for (const pickle::Ref d : data_[node.items[1]].items) {
      t.shape.push_back(static_cast<uint64_t>(data_[d].integer));
      if (__builtin_mul_overflow(t.numel, t.shape.back(), &t.numel)) {
        fail("its shape overflows 64 bits");
      }
    }
    for (const pickle::Ref s : data_[node.items[2]].items)
      t.strides.push_back(static_cast<uint64_t>(data_[s].integer));
    // The furthest element that the strides reach; every product may overflow in a hostile file.
    uint64_t last = static_cast<uint64_t>(node.integer);
    bool overflow = false;
    for (size_t d = 0; d < t.shape.size() && t.numel > 0; ++d) {
      uint64_t reach;
      overflow |= __builtin_mul_overflow(t.shape[d] - 1, t.strides[d], &reach);
      overflow |= __builtin_add_overflow(last, reach, &last);
    }
    const uint64_t available = static_cast<uint64_t>(storage.integer);
    if (overflow || (t.numel > 0 && last >= available)) {
      fail(fmt::format(
          "{} with strides {} from element {} reaches beyond its storage of {} elements",
          shape_string(t.shape), shape_string(t.strides), node.integer, available));
    }
    // Expanded tensors (stride 0) would let a few bytes claim any size; weights are never saved so.
    if (t.numel > available) {
      fail(
          fmt::format("{} has more elements than its storage ({}): an expanded tensor? Save a "
                      "contiguous() copy",
                      shape_string(t.shape), available));
    }
    const auto bytes = storage_(storage);
    t.data = bytes.data() +
             (t.numel > 0 ? static_cast<uint64_t>(node.integer) * scalar_size(t.dtype) : 0);
    bool contiguous = true;
    uint64_t expected = 1;
    for (size_t d = t.shape.size(); d-- > 0;) {
      contiguous = contiguous && (t.shape[d] == 1 || t.strides[d] == expected);
      expected *= t.shape[d];
    }
    if (contiguous || t.numel == 0) t.strides.clear();
    return t;
  }

  const Data& data_;
  const std::string& where_;
  StorageReader storage_;
  CheckpointContents& contents_;
  const Node* model_ = nullptr;
  size_t visits_ = 0, name_bytes_ = 0;
};

/// Bytes of a storage. Throws when the product overflows.
uint64_t storage_bytes(const Node& storage, const std::string& where) {
  uint64_t bytes;
  if (__builtin_mul_overflow(static_cast<uint64_t>(storage.integer), scalar_size(storage.dtype),
                             &bytes)) {
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: byte {}: storage {} of {} elements overflows 64 bits", where,
                            storage.offset, storage.text, storage.integer));
  }
  return bytes;
}

/// NAME/data.pkl, of an archive of which every entry lies in the folder NAME.
const ZipArchive::Entry& find_object(const ZipArchive& zip, const std::string& name) {
  const ZipArchive::Entry* object = nullptr;
  for (const auto& e : zip.entries()) {
    const size_t slash = e.name.find('/');
    if (slash != std::string::npos && e.name.substr(slash + 1) == "data.pkl") {
      if (object != nullptr) {
        throw Error(XSR_STATUS_BAD_FILE,
                    fmt::format("{}: both {} and {} are there, expected one data.pkl", name,
                                object->name, e.name));
      }
      object = &e;
    }
  }
  if (object == nullptr) {
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: the zip archive of {} entries has no NAME/data.pkl, so it is no "
                            "checkpoint of torch.save",
                            name, zip.entries().size()));
  }
  const std::string folder = object->name.substr(0, object->name.size() - std::strlen("data.pkl"));
  for (const auto& e : zip.entries()) {
    if (!e.name.starts_with(folder)) {
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}: zip entry {} lies outside the folder {}", name, e.name, folder));
    }
    if (e.name == folder + "constants.pkl" || e.name.starts_with(folder + "code/")) {
      throw Error(XSR_STATUS_UNSUPPORTED,
                  fmt::format("{}: zip entry {} belongs to a TorchScript program, expected a "
                              "checkpoint of torch.save",
                              name, e.name));
    }
  }
  return *object;
}

/// The pickles of a legacy file, one behind the other.
struct LegacyPickles {
  std::span<const unsigned char> file;
  const std::string& name;
  uint64_t at = 0;  // where the next one begins

  Data next() {
    const auto rest = file.subspan(at);
    Data data = pickle::parse(rest.first(std::min(rest.size(), kMaxPickleBytes)), name, at);
    at += data.end();
    return data;
  }
  [[noreturn]] void bad(uint64_t offset, const std::string& what) const {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: byte {}: {}", name, offset, what));
  }
};

/// Magic number, protocol and system.
void check_legacy_head(LegacyPickles& pickles) {
  // 0x1950a86a20f9469cfc6c, little-endian, as torch.save writes it first.
  static constexpr std::string_view kMagic = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
  const Data magic = pickles.next();
  if (magic.root().kind != Kind::kBigInt || magic.root().text != kMagic) {
    pickles.bad(0, fmt::format("the first pickle holds {}, expected the magic number of torch.save",
                               to_string(magic.root().kind)));
  }
  const uint64_t protocol_at = pickles.at;
  const Data protocol = pickles.next();
  if (protocol.root().kind != Kind::kInt) {
    pickles.bad(protocol_at, fmt::format("the protocol version is {}, expected a number",
                                         to_string(protocol.root().kind)));
  }
  if (protocol.root().integer != 1001) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                fmt::format("{}: byte {}: the protocol version is {}, expected 1001", pickles.name,
                            protocol_at, protocol.root().integer));
  }
  const uint64_t system_at = pickles.at;
  const Data system = pickles.next();
  if (system.root().kind != Kind::kDict) {
    pickles.bad(system_at, fmt::format("the system record is {}, expected a dictionary",
                                       to_string(system.root().kind)));
  }
  const Node* little = system.find(system.root(), "little_endian");
  if (little == nullptr || little->kind != Kind::kBool)
    pickles.bad(system_at, "the system record does not say little_endian");
  if (!little->integer) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                fmt::format("{}: byte {}: little_endian is False: written on a big-endian machine",
                            pickles.name, system_at));
  }
}

}  // namespace

CheckpointContents read_pytorch_zip(std::span<const unsigned char> file, const std::string& name) {
  const ZipArchive zip(file, name);
  const ZipArchive::Entry& object = find_object(zip, name);
  const std::string folder = object.name.substr(0, object.name.size() - std::strlen("data.pkl"));
  CheckpointContents contents;
  contents.format = zip.has_checksums() ? "PyTorch zip" : "PyTorch zip without checksums";
  if (const auto* order = zip.find(folder + "byteorder")) {
    std::vector<unsigned char> buffer;
    const auto text = zip.read(*order, buffer);
    if (std::string_view(reinterpret_cast<const char*>(text.data()), text.size()) != "little") {
      throw Error(XSR_STATUS_UNSUPPORTED,
                  fmt::format("{}: {} is not \"little\": written on a big-endian machine", name,
                              order->name));
    }
  }
  if (object.size > kMaxPickleBytes) {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: {} is {} bytes, the limit is {}", name,
                                                 object.name, object.size, kMaxPickleBytes));
  }
  std::vector<unsigned char> object_buffer;
  const auto object_bytes = zip.read(object, object_buffer);
  const std::string where = fmt::format("{}: {}", name, object.name);
  const Data data = pickle::parse(object_bytes, where, 0);
  if (data.end() != object_bytes.size()) {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: {} bytes follow the pickle's STOP", where,
                                                 object_bytes.size() - data.end()));
  }

  std::unordered_map<std::string_view, std::span<const unsigned char>> read;
  const auto storage = [&](const Node& node) {
    const uint64_t bytes = storage_bytes(node, where);
    auto it = read.find(node.text);
    if (it == read.end()) {
      const std::string entry_name = fmt::format("{}data/{}", folder, node.text);
      const auto* entry = zip.find(entry_name);
      if (entry == nullptr) {
        throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: byte {}: there is no zip entry {}", where,
                                                     node.offset, entry_name));
      }
      if (entry->size != bytes) {  // before anything is inflated
        throw Error(
            XSR_STATUS_BAD_FILE,
            fmt::format(
                "{}: zip entry {} is {} bytes, but the pickle says {} elements of {} ({} bytes)",
                name, entry_name, entry->size, node.integer, to_string(node.dtype), bytes));
      }
      auto buffer = std::make_unique<std::vector<unsigned char>>();
      it = read.emplace(node.text, zip.read(*entry, *buffer)).first;
      if (!buffer->empty()) contents.buffers.push_back(std::move(buffer));
    }
    if (it->second.size() != bytes) {
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}: byte {}: storage {} has {} bytes here and {} elsewhere", where,
                              node.offset, node.text, bytes, it->second.size()));
    }
    return it->second;
  };
  Collector(data, where, storage, contents).collect();
  return contents;
}

CheckpointContents read_pytorch_legacy(std::span<const unsigned char> file,
                                       const std::string& name) {
  LegacyPickles pickles{file, name};
  check_legacy_head(pickles);
  const Data data = pickles.next();
  const uint64_t keys_at = pickles.at;
  const Data keys = pickles.next();
  if (keys.root().kind != Kind::kList) {
    pickles.bad(keys_at, fmt::format("the storage keys are {}, expected a list",
                                     to_string(keys.root().kind)));
  }

  // The sizes that the object pickle gives to its storages say how many bytes follow for each key.
  std::unordered_map<std::string_view, const Node*> described;
  for (size_t i = 0; i < data.size(); ++i) {
    const Node& node = data[static_cast<pickle::Ref>(i)];
    if (node.kind != Kind::kStorage) continue;
    const auto [it, fresh] = described.emplace(node.text, &node);
    if (!fresh && storage_bytes(*it->second, name) != storage_bytes(node, name)) {
      pickles.bad(node.offset,
                  fmt::format("storage {} has {} bytes here and {} elsewhere", node.text,
                              storage_bytes(node, name), storage_bytes(*it->second, name)));
    }
  }
  std::unordered_map<std::string_view, std::span<const unsigned char>> storages;
  uint64_t at = pickles.at;
  for (const pickle::Ref ref : keys.root().items) {
    const Node& key = keys[ref];
    if (key.kind != Kind::kString)
      pickles.bad(keys_at,
                  fmt::format("a storage key is {}, expected a string", to_string(key.kind)));
    const auto it = described.find(key.text);
    if (it == described.end())
      pickles.bad(keys_at, fmt::format("the storage key {:.40} belongs to no tensor", key.text));
    const uint64_t bytes = storage_bytes(*it->second, name);
    if (file.size() - at < 8) {
      pickles.bad(at, fmt::format("storage {} has no size, only {} bytes follow: truncated?",
                                  key.text, file.size() - at));
    }
    int64_t numel;
    std::memcpy(&numel, file.data() + at, 8);
    if (numel != it->second->integer) {
      pickles.bad(at, fmt::format("storage {} has {} elements, but the pickle says {}", key.text,
                                  numel, it->second->integer));
    }
    at += 8;
    if (file.size() - at < bytes) {
      pickles.bad(at, fmt::format("storage {} has {} bytes, but only {} follow: truncated?",
                                  key.text, bytes, file.size() - at));
    }
    if (!storages.emplace(key.text, file.subspan(at, bytes)).second) {
      pickles.bad(keys_at, fmt::format("the storage key {} occurs twice", key.text));
    }
    at += bytes;
  }
  if (at != file.size())
    pickles.bad(at,
                fmt::format("{} bytes follow the last storage, expected none", file.size() - at));

  CheckpointContents contents;
  contents.format = "PyTorch legacy";
  const auto storage = [&](const Node& node) {
    const auto it = storages.find(node.text);
    if (it == storages.end())
      pickles.bad(node.offset,
                  fmt::format("storage {} is not in the list of storage keys", node.text));
    return it->second;
  };
  Collector(data, name, storage, contents).collect();
  return contents;
}

}  // namespace xsr
