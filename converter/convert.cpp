#include "converter/convert.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "converter/family.h"
#include "converter/json_text.h"
#include "converter/sentencepiece_info.h"
#include "converter/sha256.h"
#include "kernels/gemm/gemm.h"
#include "kernels/storage.h"
#include "runtime/encoder/weights.h"
#include "runtime/format/mapped_file.h"

namespace xsr {

namespace {

constexpr uint64_t kMaxLayers = 1024;
constexpr size_t kMaxListed = 8;  // names in one message

const FamilyTable& family_table(Family family) {
  if (family == Family::kXsr) return family_xsr();
  throw Error(
      XSR_STATUS_UNSUPPORTED,
      fmt::format("family {} cannot be converted by this build, expected xsr", to_string(family)));
}

float rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return kernels::f32_from_bf16(kernels::bf16_from_f32(value));
    case DType::kF16:
      return kernels::f32_from_f16(kernels::f16_from_f32(value));
    default:
      return value;
  }
}

/// "[3, 17]" for element i of a row-major tensor.
std::string index_string(uint64_t i, std::span<const uint64_t> shape) {
  std::vector<uint64_t> index(shape.size());
  for (size_t d = shape.size(); d-- > 0;) {
    index[d] = i % shape[d];
    i /= shape[d];
  }
  return shape_string(index);
}

std::string converter_version() {
  return fmt::format("xsr-convert {}.{}.{}", XSR_VERSION_MAJOR, XSR_VERSION_MINOR,
                     XSR_VERSION_PATCH);
}

std::string base_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

class Conversion {
 public:
  Conversion(const Checkpoint& checkpoint, const ConvertOptions& options)
      : checkpoint_(checkpoint),
        options_(options),
        prefix_(options.prefix),
        table_(family_table(options.family)) {}

  ConvertedModel run() {
    if (const auto format = checkpoint_.metadata().find("format");
        format != checkpoint_.metadata().end() &&
        format->second.starts_with("xsr-train checkpoint")) {
      fail(
          "is a checkpoint of xsr-train, which writes its model.xsr itself when the run ends: "
          "xsr-train --resume RUN, or model.init for another run from these weights");
    }
    select_tensors();
    // Who names what was taken off has seen the names before.
    if (tensors_.empty() && checkpoint_.unwrapped() && prefix_.starts_with(Checkpoint::kWrapper)) {
      prefix_.erase(0, Checkpoint::kWrapper.size());
      select_tensors();
    }
    if (tensors_.empty()) {
      fail(fmt::format("no tensor has a name that begins with {}", options_.prefix));
    }
    read_sizes();
    list_rules();
    check_names();
    check_shapes();
    check_ties();
    fill_config();
    for (const auto& rule : rules_) emit(rule);
    model_.tokenizer = options_.sentencepiece;
    fill_provenance();
    return std::move(model_);
  }

 private:
  void select_tensors() {
    for (const CheckpointTensor& t : checkpoint_.tensors()) {
      if (t.name.starts_with(prefix_))
        tensors_.emplace(std::string_view(t.name).substr(prefix_.size()), &t);
    }
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: {}", checkpoint_.name(), what));
  }

  const CheckpointTensor* find(std::string_view name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : it->second;
  }

  /// The name as the file has it.
  std::string full(std::string_view name) const { return prefix_ + std::string(name); }

  const CheckpointTensor& matrix(const std::string& name) const {
    const CheckpointTensor* t = find(name);
    if (t == nullptr) {
      fail(fmt::format("{} is missing, so this is no checkpoint of family {}{}", full(name),
                       to_string(table_.family), nearest()));
    }
    if (t->shape.size() != 2 || t->numel == 0) {
      fail(fmt::format("{} is {}, expected a matrix", full(name), shape_string(t->shape)));
    }
    for (const uint64_t d : t->shape) {
      if (d > INT32_MAX)
        fail(fmt::format("{} is {}, a size beyond 2^31-1", full(name), shape_string(t->shape)));
    }
    return *t;
  }

  std::string nearest() const {
    return fmt::format(
        " (its first tensor is {}). Use --prefix where the names have one, --family for another "
        "family",
        checkpoint_.tensors()[0].name);
  }

  void read_sizes() {
    const CheckpointTensor& token = matrix(table_.vocab_from);
    sizes_[Size::kOne] = 1;
    sizes_[Size::kVocab] = token.shape[0];
    sizes_[Size::kHidden] = token.shape[1];
    sizes_[Size::kPositions] = matrix(table_.positions_from).shape[0];
    sizes_[Size::kIntermediate] = matrix(table_.intermediate_from).shape[0];
    if (sizes_[Size::kPositions] <= static_cast<uint64_t>(table_.defaults.position_offset)) {
      fail(fmt::format("{} is {}, expected more than {} rows", full(table_.positions_from),
                       shape_string(matrix(table_.positions_from).shape),
                       table_.defaults.position_offset));
    }
    origin_[Size::kVocab] = origin_[Size::kHidden] = table_.vocab_from;
    origin_[Size::kPositions] = table_.positions_from;
    origin_[Size::kIntermediate] = table_.intermediate_from;
    for (const auto& [name, tensor] : tensors_) {
      if (!name.starts_with(table_.layer_prefix)) continue;
      const std::string_view rest = name.substr(table_.layer_prefix.size());
      uint64_t layer = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
      if (error != std::errc() || end == rest.data() + rest.size() || *end != '.')
        continue;  // unexpected, said below
      if (layer >= kMaxLayers)
        fail(fmt::format("{} is layer {}, expected fewer than {}", full(name), layer, kMaxLayers));
      num_layers_ = std::max(num_layers_, layer + 1);
    }
  }

  void list_rules() { rules_ = encoder_rules(table_, static_cast<int64_t>(num_layers_)); }

  void check_names() {
    std::unordered_set<std::string_view> known;
    std::vector<std::string> missing, unexpected;
    for (const auto& rule : rules_) {
      for (const auto& source : rule.sources) {
        known.insert(source);
        if (find(source) == nullptr) missing.push_back(full(source));
      }
    }
    const auto drop = [&](const std::string& source) {
      known.insert(source);
      if (find(source) != nullptr) model_.dropped.push_back(full(source));
    };
    for (const auto& rule : table_.drop) drop(rule.source);
    for (const auto& rule : table_.head) {
      for (const auto& source : rule.sources) drop(source);
    }
    for (const CheckpointTensor& t : checkpoint_.tensors()) {  // in file order
      if (!t.name.starts_with(prefix_)) continue;
      if (!known.contains(std::string_view(t.name).substr(prefix_.size())))
        unexpected.push_back(t.name);
    }
    if (missing.empty() && unexpected.empty()) return;
    const auto list = [](std::vector<std::string> names) {
      const size_t more = names.size() > kMaxListed ? names.size() - kMaxListed : 0;
      names.resize(names.size() - more);
      return fmt::format("{}{}", fmt::join(names, "\n  "),
                         more ? fmt::format("\n  and {} more", more) : "");
    };
    std::string what;
    if (!missing.empty())
      what += fmt::format("{} tensors are missing:\n  {}", missing.size(), list(missing));
    if (!unexpected.empty()) {
      what +=
          fmt::format("{}{} tensors are unexpected in family {}:\n  {}", what.empty() ? "" : "\n",
                      unexpected.size(), to_string(table_.family), list(unexpected));
    }
    fail(what);
  }

  void check_shapes() {
    for (const auto& rule : rules_) {
      std::vector<uint64_t> expected = {sizes_[rule.rows]};
      if (rule.columns != Size::kOne) expected.push_back(sizes_[rule.columns]);
      for (const auto& source : rule.sources) {
        const CheckpointTensor& t = *find(source);
        if (!is_floating(t.dtype)) {
          fail(fmt::format("{} is {}, expected F32, F16, BF16 or F64", full(source),
                           to_string(t.dtype)));
        }
        if (t.shape == expected) continue;
        // Blame the size that differs.
        Size size = rule.rows;
        if (t.shape.size() == expected.size() && t.shape[0] == expected[0]) size = rule.columns;
        fail(
            fmt::format("{} is {}, expected {}\n  ({} {} comes from {}). Is this a model with "
                        "layers of different sizes? "
                        "Those are not supported.",
                        full(source), shape_string(t.shape), shape_string(expected),
                        to_string(size), sizes_[size], full(origin_[size])));
      }
    }
  }

  void check_ties() {
    for (const auto& rule : table_.drop) {
      const CheckpointTensor* copy = find(rule.source);
      if (rule.tied_to.empty() || copy == nullptr) continue;
      const CheckpointTensor& original = *find(rule.tied_to);
      if (copy->shape != original.shape || copy->dtype != original.dtype) {
        fail(fmt::format("{} is {} {}, but it is tied to {}, which is {} {}", full(rule.source),
                         to_string(copy->dtype), shape_string(copy->shape), full(rule.tied_to),
                         to_string(original.dtype), shape_string(original.shape)));
      }
      if (copy->data == original.data && copy->strides == original.strides)
        continue;  // one storage
      const auto a = copy->to_bytes(), b = original.to_bytes();
      const auto differ = std::mismatch(a.begin(), a.end(), b.begin()).first;
      if (differ != a.end()) {
        const uint64_t element =
            static_cast<uint64_t>(differ - a.begin()) / scalar_size(copy->dtype);
        fail(
            fmt::format("{} differs from {} at {}, but the two are tied: the decoder was trained "
                        "apart from the encoder, or "
                        "one of them is damaged",
                        full(rule.source), full(rule.tied_to), index_string(element, copy->shape)));
      }
    }
  }

  void fill_config() {
    ModelConfig& c = model_.config;
    c = table_.defaults;
    const auto size = [&](Size s) { return static_cast<int32_t>(sizes_[s]); };
    c.num_layers = static_cast<int32_t>(num_layers_);
    c.hidden_size = c.embedding_size = size(Size::kHidden);
    c.intermediate_size = size(Size::kIntermediate);
    c.vocab_size = size(Size::kVocab);
    c.num_positions = size(Size::kPositions);
    c.max_seq_len = c.num_positions - c.position_offset;
    if (options_.activation) c.activation = *options_.activation;
    if (options_.lowercase) c.lowercase = *options_.lowercase;
    if (options_.pooling) c.pooling = *options_.pooling;
    if (options_.layer_norm_eps) c.layer_norm_eps = *options_.layer_norm_eps;
    if (options_.num_heads) {
      c.num_heads = *options_.num_heads;
      if (c.num_heads < 1 || c.hidden_size % c.num_heads != 0) {
        throw Error(XSR_STATUS_INVALID_ARGUMENT,
                    fmt::format("{}: --heads {} does not divide hidden_size {}", checkpoint_.name(),
                                c.num_heads, c.hidden_size));
      }
    } else if (c.hidden_size % 64 == 0) {
      c.num_heads = c.hidden_size / 64;
    } else {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  fmt::format("{}: hidden_size {} is no multiple of 64, so the number of heads "
                              "cannot be guessed and no tensor "
                              "tells it: give --heads",
                              checkpoint_.name(), c.hidden_size));
    }
    if (!options_.sentencepiece.empty()) {
      const SentencePieceInfo info =
          sentencepiece_info(options_.sentencepiece, options_.sentencepiece_name);
      if (info.vocab_size > c.vocab_size) {
        throw Error(
            XSR_STATUS_BAD_FILE,
            fmt::format(
                "{}: has {} pieces, but {} in {} has only {} rows: the tokenizer of another model?",
                options_.sentencepiece_name, info.vocab_size, full(table_.vocab_from),
                checkpoint_.name(), c.vocab_size));
      }
      c.tokenizer = TokenizerKind::kSentencePiece;
      c.pad_id = info.pad_id;
      c.unk_id = info.unk_id;
      c.mask_id = info.mask_id;
    }
    try {
      validate(c);
    } catch (const Error& e) {
      throw Error(e.status(), fmt::format("{}: {}", checkpoint_.name(), e.what()));
    }
  }

  void emit(const TensorRule& rule) {
    const DType dtype = rule.weight ? options_.dtype : DType::kF32;
    std::vector<float> values;
    for (const auto& source : rule.sources) {
      const CheckpointTensor& t = *find(source);
      const std::vector<float> part = t.to_f32();
      for (uint64_t i = 0; i < part.size(); ++i) {
        if (std::isfinite(rounded(part[i], dtype))) continue;
        const double found = t.dtype == ScalarType::kF64 ? t.to_f64()[i] : part[i];
        if (std::isfinite(found)) {
          fail(fmt::format("{} has {:g} at {}, which is beyond the range of {}", full(source),
                           found, index_string(i, t.shape), to_string(dtype)));
        }
        fail(fmt::format("{} has {} at {}, expected finite weights: did the training diverge?",
                         full(source), std::isnan(found) ? "NaN" : "infinity",
                         index_string(i, t.shape)));
      }
      values.insert(values.end(), part.begin(), part.end());
    }
    std::vector<uint64_t> dims = {sizes_[rule.rows] * rule.sources.size()};
    if (rule.columns != Size::kOne) dims.push_back(sizes_[rule.columns]);
    model_.tensors.push_back(pack_tensor(rule, std::move(dims), values, options_.dtype));
  }

  void fill_provenance() {
    nlohmann::json json;  // keys come out sorted, so the bytes depend on the values alone
    json["converter"] = converter_version();
    json["dtype"] = to_string(options_.dtype);
    json["license"] = options_.license;
    json["source"] = {{"file", base_name(checkpoint_.name())},
                      {"format", checkpoint_.format()},
                      {"sha256", sha256_hex(checkpoint_.file())}};
    if (!options_.sentencepiece.empty()) {
      const auto* data = reinterpret_cast<const unsigned char*>(options_.sentencepiece.data());
      json["tokenizer"] = {{"file", base_name(options_.sentencepiece_name)},
                           {"sha256", sha256_hex({data, options_.sentencepiece.size()})}};
    }
    model_.provenance = json_text(json);
  }

  const Checkpoint& checkpoint_;
  const ConvertOptions& options_;
  std::string prefix_;
  const FamilyTable& table_;
  std::unordered_map<std::string_view, const CheckpointTensor*> tensors_;  // by name without prefix
  std::unordered_map<Size, uint64_t> sizes_;
  std::unordered_map<Size, std::string> origin_;
  uint64_t num_layers_ = 0;
  std::vector<TensorRule> rules_;
  ConvertedModel model_;
};

}  // namespace

std::vector<TensorSource> ConvertedModel::sources() const {
  std::vector<TensorSource> out;
  for (const Tensor& t : tensors)
    out.push_back({t.name, t.dtype, t.layout, t.dims, t.data.data(),
                   t.scales.empty() ? nullptr : t.scales.data()});
  return out;
}

ConvertedModel::Tensor pack_tensor(const TensorRule& rule, std::vector<uint64_t> dims,
                                   std::span<const float> values, DType weight_dtype) {
  const DType dtype = rule.weight ? weight_dtype : DType::kF32;
  ConvertedModel::Tensor out;
  out.name = rule.target;
  out.dtype = dtype;
  out.layout = rule.layout;
  out.dims = std::move(dims);
  out.data.resize(tensor_bytes(dtype, rule.layout, out.dims));
  if (dtype == DType::kI8) {
    const auto N = static_cast<int32_t>(out.dims[0]), K = static_cast<int32_t>(out.dims[1]);
    auto* codes = reinterpret_cast<int8_t*>(out.data.data());
    out.scales.resize(N);
    if (rule.layout == Layout::kPanels32) {
      kernels::gemm_quantize_panels(values.data(), N, K, codes, out.scales.data());
    } else {
      for (int64_t n = 0; n < N; ++n)
        out.scales[n] = kernels::quantize_row_i8(values.data() + n * K, K, codes + n * K);
    }
  } else if (rule.layout == Layout::kPanels32) {
    kernels::gemm_pack_panels(values.data(), static_cast<int32_t>(out.dims[0]),
                              static_cast<int32_t>(out.dims[1]), dtype, out.data.data());
  } else if (dtype == DType::kF32) {
    std::memcpy(out.data.data(), values.data(), out.data.size());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = dtype == DType::kBF16 ? kernels::bf16_from_f32(values[i])
                                                  : kernels::f16_from_f32(values[i]);
      std::memcpy(out.data.data() + 2 * i, &bits, 2);
    }
  }
  return out;
}

ConvertedModel convert_checkpoint(const Checkpoint& checkpoint, const ConvertOptions& options) {
  return Conversion(checkpoint, options).run();
}

std::vector<float> row_major_values(const TensorView& t) {
  uint64_t count = 1;
  for (const uint64_t d : t.dims) count *= d;
  std::vector<float> values(count);
  if (t.layout == Layout::kRowMajor) {
    for (uint64_t i = 0; i < count; ++i)
      values[i] = kernels::load_storage(t.data, t.dtype, static_cast<int64_t>(i));
    return values;
  }
  const auto N = static_cast<int32_t>(t.dims[0]), K = static_cast<int32_t>(t.dims[1]);
  float* value = values.data();
  for (int32_t n = 0; n < N; ++n) {
    for (int32_t k = 0; k < K; ++k)
      *value++ = kernels::gemm_packed_element({t.data, t.dtype, N, K}, n, k);
  }
  return values;
}

bool is_xsr_file(const std::string& path) {
  const MappedFile file(path);
  return file.bytes().size() >= 4 && std::memcmp(file.bytes().data(), "\x89XSR", 4) == 0;
}

FinishedModel::FinishedModel(const std::string& path) : file_(XsrFile::open(path)) {
  file_->verify();
  bind_weights(*file_);  // refuses a file whose tensors are not those of its configuration
  sha256_ = sha256_hex(MappedFile(path).bytes());
}

ConvertedModel FinishedModel::retyped(DType dtype) const {
  const std::string& path = file_->name();
  ConvertedModel model;
  model.config = file_->config();
  model.tokenizer = file_->tokenizer();
  std::unordered_set<std::string_view> known;
  const auto rules = encoder_rules(family_table(model.config.family), model.config.num_layers);
  for (const TensorRule& rule : rules) {
    known.insert(rule.target);
    const TensorView& found = *file_->find(rule.target);
    if (found.dtype == DType::kI8) {
      throw Error(
          XSR_STATUS_UNSUPPORTED,
          fmt::format("{}: {} is i8, expected f32, f16 or bf16: take the file that this one "
                      "was made from",
                      path, rule.target));
    }
    const std::vector<float> values = row_major_values(found);
    const DType wanted = rule.weight ? dtype : DType::kF32;
    for (uint64_t i = 0; i < values.size(); ++i) {
      if (std::isfinite(rounded(values[i], wanted))) continue;
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}: {} has {} at {}, which is not finite in {}", path, rule.target,
                              values[i], index_string(i, found.dims), to_string(wanted)));
    }
    model.tensors.push_back(pack_tensor(rule, found.dims, values, dtype));
  }
  for (const TensorView& t : file_->tensors()) {
    if (known.contains(t.name)) continue;
    throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: tensor {} is unexpected in family {}", path,
                                                 t.name, to_string(model.config.family)));
  }
  auto json = parse_json(file_->provenance());
  if (!json.is_object()) json = {{"original", std::string(file_->provenance())}};
  json.erase("quality");
  json["dtype"] = to_string(dtype);
  if (!json["retyped"].is_array()) json["retyped"] = nlohmann::json::array();
  json["retyped"].push_back({{"converter", converter_version()},
                             {"dtype", to_string(dtype)},
                             {"source", {{"file", base_name(path)}, {"sha256", sha256_}}}});
  model.provenance = json_text(json);
  return model;
}

}  // namespace xsr
