#pragma once
#include <array>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "runtime/format/xsr_file.h"

namespace xsr {

struct NormWeights {
  const float* gamma = nullptr;  // [C]
  const float* beta = nullptr;   // [C]
};

struct LinearWeights {
  kernels::PackedMatrix weight;  // [N, K]
  const float* bias = nullptr;   // [N]
  // Of the inputs where they are quantised; null: each row by its own range
  const kernels::InputRange* input_range = nullptr;
  kernels::SplitMatrix split = {};  // the weight again, of DerivedWeights for bf16x3
};

/// Outputs [32 · first_panel, 32 · last_panel) of a matrix that has no `steps`, as one by
/// themselves.
LinearWeights outputs(const LinearWeights& linear, int32_t first_panel, int32_t last_panel);

struct LayerWeights {
  LinearWeights qkv;               // [3C, C]: Q, K, V one under the other
  LinearWeights attention_output;  // [C, C]
  NormWeights attention_norm;
  LinearWeights up;    // [F, C]
  LinearWeights down;  // [C, F]
  NormWeights output_norm;
};

/// The products of a layer in the order they are computed, and their tensors' names.
template <typename Layer>
auto products(Layer& layer) {
  return std::array{&layer.qkv, &layer.attention_output, &layer.up, &layer.down};
}
constexpr const char* kProductNames[] = {"qkv", "attention_output", "up", "down"};

/// The tensors of a model, as pointers into its mapped file. Nothing is copied or widened: the
/// kernels read the file's bytes. (DerivedWeights has the exceptions.)
struct EncoderWeights {
  kernels::Storage table_storage = kernels::Storage::kF32;
  const void* token = nullptr;             // [V, C]
  const void* position = nullptr;          // [P, C]
  const float* token_scales = nullptr;     // [V], of kI8 tables
  const float* position_scales = nullptr;  // [P], of kI8 tables
  const float* token_type = nullptr;       // [C], row 0 of the token-type table; null without one
  NormWeights embedding_norm;
  std::vector<LayerWeights> layers;
  LinearWeights pooler;  // [embedding_size, C]; without data when the model has none
};

/// Sets `streamed` of the layers' matrices, as they are multiplied with: whether together they are
/// more than caches hold.
void mark_streamed(EncoderWeights& weights);

/// Finds every tensor the configuration asks for and checks its shape, dtype and layout. Throws
/// Error(BAD_FILE) naming the tensor, what was found and what was expected; UNSUPPORTED for a model
/// this build cannot run.
EncoderWeights bind_weights(const XsrFile& file);

}  // namespace xsr
