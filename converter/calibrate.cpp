#include "converter/calibrate.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "converter/provenance.h"
#include "runtime/device/isa_choice.h"
#include "runtime/encoder/encoder.h"
#include "runtime/encoder/model.h"
#include "runtime/error.h"

namespace xsr {

void calibrate(const ConvertedModel& wide, const PairFile& corpus, ConvertedModel& narrow) {
  if (wide.tokenizer.empty()) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "ranges are calibrated on text, and the model has no tokenizer: give --spm");
  }
  const PairLines lines = read_pairs(corpus);
  size_t bytes = 0;
  const auto file =
      write_xsr_memory(wide.config, wide.sources(), wide.tokenizer, wide.provenance, &bytes);
  const Model model(XsrFile::open_memory(file.get(), bytes));
  const ModelConfig& config = model.config();
  std::map<const LinearWeights*, kernels::InputRange> ranges;
  Encoder encoder{config, model.weights(), kernels::resolve_kernels(choose_isa(std::nullopt))};
  encoder.observer = [&](const LinearWeights& product, const float* input, int64_t stride,
                         int32_t num_tokens) {
    kernels::InputRange& range = ranges[&product];
    for (int32_t t = 0; t < num_tokens; ++t) {
      const auto [low, high] =
          std::minmax_element(input + t * stride, input + t * stride + product.weight.K);
      range.low = std::min(range.low, *low);
      range.high = std::max(range.high, *high);
    }
  };

  Workspace workspace(config, config.max_seq_len, 1, 1);
  std::vector<int32_t> ids;
  std::vector<float> embedding(config.embedding_size);
  int64_t sentences = 0;
  for (const auto* side : {&lines.first, &lines.second}) {
    for (const std::string& line : *side) {
      ids.clear();
      model.tokenizer()->encode(line, config.max_seq_len, ids);
      if (ids.empty()) continue;
      ++sentences;
      const auto size = static_cast<int32_t>(ids.size());
      for (int32_t t = 0; t < size; ++t) {
        workspace.token_ids[t] = ids[t];
        workspace.positions[t] = config.position_offset + t;
      }
      workspace.cu_seqlens[0] = 0;
      workspace.cu_seqlens[1] = size;
      encode_chunk(encoder, 1, workspace, nullptr, embedding.data());
    }
  }
  if (sentences == 0) throw Error(XSR_STATUS_BAD_FILE, corpus.first + ": no sentence has tokens");

  for (int32_t i = 0; i < config.num_layers; ++i) {
    const char* const* name = kProductNames;
    for (const LinearWeights* product : products(model.weights().layers[i])) {
      const kernels::InputRange& range = ranges.at(product);
      ConvertedModel::Tensor tensor;
      tensor.name = "layer." + std::to_string(i) + "." + *name++ + ".input_range";
      tensor.dims = {2};
      tensor.data.resize(sizeof range);
      std::memcpy(tensor.data.data(), &range, sizeof range);
      narrow.tensors.push_back(std::move(tensor));
    }
  }
  record(narrow, "calibration", {{"corpus", corpus.name}, {"sentences", sentences}});
}

}  // namespace xsr
