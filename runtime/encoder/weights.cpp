#include "runtime/encoder/weights.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace xsr {
namespace {

class Binder {
 public:
  explicit Binder(const XsrFile& file) : file_(file) {}

  const TensorView& tensor(const std::string& name, std::initializer_list<int64_t> shape,
                           Layout layout) const {
    const TensorView* found = file_.find(name);
    const std::vector<uint64_t> expected(shape.begin(), shape.end());
    if (found == nullptr) {
      throw Error(XSR_STATUS_BAD_FILE, file_.name() + ": tensor " + name + " " +
                                           shape_string(expected) +
                                           " is missing; convert the model again");
    }
    if (found->dims != expected || found->layout != layout) {
      throw Error(XSR_STATUS_BAD_FILE,
                  file_.name() + ": tensor " + name + " is " + shape_string(found->dims) + " " +
                      to_string(found->layout) + ", expected " + shape_string(expected) + " " +
                      to_string(layout) + " from the file's configuration");
    }
    return *found;
  }

  const float* vector(const std::string& name, int64_t size) const {
    const TensorView& found = tensor(name, {size}, Layout::kRowMajor);
    if (found.dtype != DType::kF32) {
      throw Error(XSR_STATUS_UNSUPPORTED, file_.name() + ": tensor " + name + " is " +
                                              to_string(found.dtype) +
                                              ", vectors are expected in f32");
    }
    return static_cast<const float*>(found.data);
  }

  NormWeights norm(const std::string& name, int64_t size) const {
    return {vector(name + ".weight", size), vector(name + ".bias", size)};
  }

  LinearWeights linear(const std::string& name, int32_t N, int32_t K) const {
    const TensorView& found = tensor(name + ".weight", {N, K}, Layout::kPanels32);
    return {{found.data, found.dtype, N, K, found.scales},
            vector(name + ".bias", N),
            input_range(name + ".input_range")};
  }

  /// Null where the file has none.
  const kernels::InputRange* input_range(const std::string& name) const {
    if (file_.find(name) == nullptr) return nullptr;
    const auto* range = reinterpret_cast<const kernels::InputRange*>(vector(name, 2));
    if (!(range->low <= 0 && range->high >= 0 && std::isfinite(range->low) &&
          std::isfinite(range->high))) {
      throw Error(XSR_STATUS_BAD_FILE, file_.name() + ": tensor " + name + " is from " +
                                           std::to_string(range->low) + " to " +
                                           std::to_string(range->high) +
                                           ", expected a finite range that holds 0");
    }
    return range;
  }

 private:
  const XsrFile& file_;
};

}  // namespace

EncoderWeights bind_weights(const XsrFile& file) {
  const ModelConfig& config = file.config();
  if (config.family != Family::kXsr || config.norm_placement != NormPlacement::kPost) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                file.name() + ": family " + to_string(config.family) + " with " +
                    to_string(config.norm_placement) +
                    " layer norm; this version runs family xsr with post layer norm");
  }
  const Binder bind(file);
  const int32_t C = config.hidden_size, F = config.intermediate_size;
  EncoderWeights weights;
  const TensorView& token =
      bind.tensor("embedding.token", {config.vocab_size, C}, Layout::kRowMajor);
  const TensorView& position =
      bind.tensor("embedding.position", {config.num_positions, C}, Layout::kRowMajor);
  weights.table_storage = token.dtype;
  if (position.dtype != token.dtype) {
    throw Error(XSR_STATUS_BAD_FILE, file.name() + ": embedding.position is " +
                                         to_string(position.dtype) + ", embedding.token is " +
                                         to_string(token.dtype) + "; they must agree");
  }
  weights.token = token.data;
  weights.position = position.data;
  weights.token_scales = token.scales;
  weights.position_scales = position.scales;
  if (config.num_token_types > 0) {
    const TensorView& types =
        bind.tensor("embedding.token_type", {config.num_token_types, C}, Layout::kRowMajor);
    if (types.dtype != DType::kF32) {
      throw Error(XSR_STATUS_UNSUPPORTED, file.name() + ": embedding.token_type is " +
                                              to_string(types.dtype) + ", expected f32");
    }
    weights.token_type = static_cast<const float*>(types.data);
  }
  weights.embedding_norm = bind.norm("embedding.norm", C);
  for (int32_t i = 0; i < config.num_layers; ++i) {
    const std::string at = "layer." + std::to_string(i) + ".";
    LayerWeights layer;
    layer.qkv = bind.linear(at + "qkv", 3 * C, C);
    layer.attention_output = bind.linear(at + "attention_output", C, C);
    layer.attention_norm = bind.norm(at + "attention_norm", C);
    layer.up = bind.linear(at + "up", F, C);
    layer.down = bind.linear(at + "down", C, F);
    layer.output_norm = bind.norm(at + "output_norm", C);
    weights.layers.push_back(layer);
  }
  if (config.has_pooler) weights.pooler = bind.linear("pooler", config.embedding_size, C);
  mark_streamed(weights);
  return weights;
}

void mark_streamed(EncoderWeights& weights) {
  // Twice the 32 MiB that the cores of a complex share on Zen 3 to 5.
  constexpr int64_t kCachedBytes = 64 << 20;
  int64_t bytes = 0;
  for (const LayerWeights& layer : weights.layers) {
    for (const LinearWeights* linear : products(layer)) {
      const kernels::PackedMatrix& w = linear->weight;
      bytes += kernels::packed_elements(w.N, w.K, w.storage) * kernels::storage_size(w.storage);
    }
  }
  for (LayerWeights& layer : weights.layers) {
    for (LinearWeights* linear : products(layer)) linear->weight.streamed = bytes > kCachedBytes;
  }
}

LinearWeights outputs(const LinearWeights& linear, int32_t first_panel, int32_t last_panel) {
  const int32_t first = first_panel * kernels::kPanelColumns;
  const int32_t last = std::min(last_panel * kernels::kPanelColumns, linear.weight.N);
  LinearWeights some = linear;
  kernels::PackedMatrix& w = some.weight;
  w.N = some.split.N = last - first;
  w.data = static_cast<const char*>(w.data) +
           kernels::packed_elements(first, w.K, w.storage) * kernels::storage_size(w.storage);
  if (w.scales != nullptr) w.scales += first;
  if (w.sums != nullptr) w.sums += first;
  if (some.bias != nullptr) some.bias += first;
  if (some.split.data != nullptr) some.split.data += kernels::split_elements(first, some.split.K);
  return some;
}

}  // namespace xsr
