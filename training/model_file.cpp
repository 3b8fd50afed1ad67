#include "training/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "converter/checkpoint.h"
#include "converter/family.h"
#include "kernels/storage.h"
#include "runtime/text/tokenizer_tables.h"
#include "training/initialization.h"

namespace xsr::training {
namespace {

/// A tensor of the .xsr file as row-major f32.
void widen(const std::string& path, const TensorView& found, const Parameter& p, float* values) {
  const std::vector<uint64_t> expected(p.shape.begin(), p.shape.end());
  if (found.dims != expected) {
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: tensor {} is {}, expected {} from the file's configuration", path,
                            p.name, shape_string(found.dims), shape_string(expected)));
  }
  if (found.dtype == DType::kI8) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                fmt::format("{}: tensor {} is i8, training starts from f32, f16 or bf16: take the "
                            "file that this one was made from",
                            path, found.name));
  }
  const std::vector<float> numbers = row_major_values(found);
  std::copy(numbers.begin(), numbers.end(), values);
}

/// True where the file has the whole generative head, false where it has nothing of it.
bool read_head(const Checkpoint& checkpoint, const std::string& prefix, const ParameterTable& table,
               FlatBuffer& values) {
  std::string found, missing;
  for (const TensorRule& rule : family_xsr().head) {
    const std::string name = prefix + rule.sources.at(0);
    const CheckpointTensor* tensor = checkpoint.find(name);
    if (tensor == nullptr) {
      missing = name;
      continue;
    }
    found = name;
    const Parameter& p = table.at(rule.target);
    const std::vector<uint64_t> expected(p.shape.begin(), p.shape.end());
    if (tensor->shape != expected) {
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}: {} is {}, expected {}", checkpoint.name(), name,
                              shape_string(tensor->shape), shape_string(expected)));
    }
    const std::vector<float> numbers = tensor->to_f32();
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (!std::isfinite(numbers[i])) {
        throw Error(XSR_STATUS_BAD_FILE,
                    fmt::format("{}: {} is not finite at element {}: did the training diverge?",
                                checkpoint.name(), name, i));
      }
    }
    std::copy(numbers.begin(), numbers.end(), values.at(p));
  }
  if (!found.empty() && !missing.empty()) {
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: has {} but not {}: a generative head is taken whole or not at all",
                            checkpoint.name(), found, missing));
  }
  return !found.empty();
}

void read_encoder(const XsrFile& file, const std::string& path, const ParameterTable& table,
                  FlatBuffer& values) {
  for (const Parameter& p : table.parameters()) {
    if (p.name.starts_with("head.")) continue;
    const TensorView* tensor = file.find(p.name);
    if (tensor == nullptr) {
      throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: tensor {} is missing", path, p.name));
    }
    widen(path, *tensor, p, values.at(p));
  }
}

}  // namespace

InitialModel read_initial_model(const std::string& path, const ConvertOptions& options,
                                uint64_t seed) {
  InitialModel model;
  std::unique_ptr<Checkpoint> checkpoint;
  std::shared_ptr<unsigned char[]> memory;
  std::unique_ptr<XsrFile> file;
  if (is_xsr_file(path)) {
    file = XsrFile::open(path);
    file->verify();
  } else {
    checkpoint = Checkpoint::open(path);
    ConvertOptions exact = options;
    exact.dtype = DType::kF32;
    const ConvertedModel converted = convert_checkpoint(*checkpoint, exact);
    size_t size = 0;
    memory = write_xsr_memory(converted.config, converted.sources(), converted.tokenizer,
                              converted.provenance, &size);
    file = XsrFile::open_memory(memory.get(), size, path);
  }
  model.config = file->config();
  model.tokenizer = file->tokenizer();
  const ParameterTable table(model.config);
  model.values = std::make_unique<FlatBuffer>(table.size());
  read_encoder(*file, path, table, *model.values);
  model.has_head =
      checkpoint != nullptr && read_head(*checkpoint, options.prefix, table, *model.values);
  if (!model.has_head) initialize_head(model.config, table, seed, *model.values);
  return model;
}

InitialModel with_layers(InitialModel model, int32_t num_layers, uint64_t seed) {
  if (model.config.num_layers >= num_layers) return model;
  InitialModel grown;
  grown.config = model.config;
  grown.config.num_layers = num_layers;
  grown.tokenizer = std::move(model.tokenizer);
  grown.has_head = model.has_head;
  const ParameterTable before(model.config), table(grown.config);
  grown.values = std::make_unique<FlatBuffer>(table.size());
  initialize_parameters(grown.config, table, seed, *grown.values);
  for (int32_t layer = model.config.num_layers; layer < num_layers; ++layer) {
    for (const char* branch : {"attention_output.", "down."}) {
      for (const char* part : {"weight", "bias"}) {
        const Parameter& p = table.at(fmt::format("layer.{}.{}{}", layer, branch, part));
        std::fill_n(grown.values->at(p), p.size, 0.0f);
      }
    }
  }
  for (const Parameter& p : before.parameters())
    std::copy_n(model.values->at(p), p.size, grown.values->at(table.at(p.name)));
  return grown;
}

void check_same_vocabulary(const std::string& path, const ModelConfig& file,
                           const ModelConfig& run) {
  if (file.vocab_size == run.vocab_size) return;
  throw Error(XSR_STATUS_INVALID_ARGUMENT,
              fmt::format("{}: vocab_size is {}, the run has {}; train with the tokenizer that the "
                          "model was trained with",
                          path, file.vocab_size, run.vocab_size));
}

void write_model(const std::string& path, const ModelConfig& config, const FlatBuffer& values,
                 DType dtype, std::string_view tokenizer, std::string_view provenance_json) {
  const ParameterTable table(config);
  std::vector<ConvertedModel::Tensor> tensors;
  for (const TensorRule& rule : encoder_rules(family_xsr(), config.num_layers)) {
    const Parameter& p = table.at(rule.target);
    tensors.push_back(pack_tensor(rule, {p.shape.begin(), p.shape.end()},
                                  {values.at(p), static_cast<size_t>(p.size)}, dtype));
    const ConvertedModel::Tensor& packed = tensors.back();
    const int64_t count =
        static_cast<int64_t>(packed.data.size()) / kernels::storage_size(packed.dtype);
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(kernels::load_storage(packed.data.data(), packed.dtype, i))) {
        throw Error(XSR_STATUS_BAD_FILE,
                    fmt::format("{}: not written: {} has a value that is not finite in {}; go on "
                                "with --resume and another train.dtype",
                                path, packed.name, xsr::to_string(packed.dtype)));
      }
    }
  }
  std::vector<TensorSource> sources;
  for (const ConvertedModel::Tensor& t : tensors)
    sources.push_back({t.name, t.dtype, t.layout, t.dims, t.data.data(), nullptr});
  write_xsr_file(path, config, sources, tokenizer, provenance_json,
                 tokenizer_tables_for_file(tokenizer));
}

}  // namespace xsr::training
