#pragma once
#include <string>
#include <vector>

#include "runtime/format/xsr_file.h"

namespace xsr {

/// The sizes that shapes of a family are made of; each comes from a tensor.
enum class Size : uint8_t { kOne, kVocab, kPositions, kHidden, kIntermediate };
const char* to_string(Size);

/// One tensor of the .xsr file and where it comes from. "{}" in a name stands for the number of the
/// layer.
struct TensorRule {
  std::string target;
  std::vector<std::string> sources;  // stacked along their rows in this order
  Size rows = Size::kOne;  // of each source: [rows, columns], or [rows] where columns is kOne
  Size columns = Size::kOne;
  bool weight = false;  // stored in the chosen dtype; others (biases, norms) are always f32
  Layout layout = Layout::kRowMajor;
};

/// A tensor of the checkpoint that the encoder does not need.
struct DropRule {
  std::string source;
  std::string tied_to;  // where not empty: must equal that tensor bit for bit
};

/// Everything that is particular to a model family. Reader, checks and writer are one for all.
struct FamilyTable {
  Family family = Family::kXsr;
  std::vector<TensorRule> model;  // once
  std::vector<TensorRule> layer;  // for every layer
  std::vector<TensorRule> head;   // what training alone needs; not in the .xsr file
  std::vector<DropRule> drop;
  std::string layer_prefix;  // what stands before the number of a layer
  std::string vocab_from, positions_from,
      intermediate_from;  // rows of these tensors; hidden_size: columns of the first
  ModelConfig defaults;   // what tensors cannot tell
};

const FamilyTable& family_xsr();

/// The encoder's tensors in the order of the .xsr file: `model`, then `layer` for each of the
/// layers, with its number in the names.
std::vector<TensorRule> encoder_rules(const FamilyTable& table, int64_t num_layers);
/// What a size is in a model.
int64_t value_of(Size size, const ModelConfig& config);

}  // namespace xsr
