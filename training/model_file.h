#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "converter/convert.h"
#include "runtime/format/xsr_file.h"
#include "training/parameters.h"

namespace xsr::training {

/// A model that training can start from.
struct InitialModel {
  ModelConfig config;
  std::string tokenizer;               // the tokenizer model's bytes; empty = the file has none
  std::unique_ptr<FlatBuffer> values;  // over ParameterTable(config)
  bool has_head = false;               // false: the file has no generative head, it was initialised
};

/// Reads a .xsr file, or a checkpoint as the converter reads it with `options` (heads, tokenizer,
/// prefix; a .xsr file has its own). Every dtype is widened to f32. A file without a generative
/// head gets one from `seed`. Throws Error as XsrFile::open, Checkpoint::open and
/// convert_checkpoint do; BAD_FILE for tensors that do not fit, UNSUPPORTED for a model this build
/// cannot train.
InitialModel read_initial_model(const std::string& path, const ConvertOptions& options,
                                uint64_t seed);

/// The model with layers put behind its last until there are num_layers. They are initialised as
/// initialize_parameters does, but what each of their two branches adds to the residual stream is
/// zero: at first such a layer is two layer norms.
InitialModel with_layers(InitialModel model, int32_t num_layers, uint64_t seed);

/// Throws Error(INVALID_ARGUMENT) where a run's vocabulary is not that of the model in `path`.
void check_same_vocabulary(const std::string& path, const ModelConfig& file,
                           const ModelConfig& run);

/// Writes the encoder (without the generative head) as a .xsr file, through the converter's table
/// and the one writer; weights and tables in dtype (f32, bf16 or f16), the rest in f32. Throws
/// Error(BAD_FILE) naming a tensor with a value that is not finite in dtype; Error(IO) as
/// write_xsr_file.
void write_model(const std::string& path, const ModelConfig& config, const FlatBuffer& values,
                 DType dtype, std::string_view tokenizer, std::string_view provenance_json);

}  // namespace xsr::training
