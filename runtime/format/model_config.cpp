#include "runtime/format/model_config.h"

#include <cmath>
#include <cstdio>

#include "runtime/error.h"
#include "runtime/format/named_values.h"

namespace xsr {
namespace {

constexpr NamedValue<Family> kFamilies[] = {{Family::kXsr, "xsr"},
                                            {Family::kEms, "ems"},
                                            {Family::kBert, "bert"},
                                            {Family::kXlmRoberta, "xlm-roberta"}};
constexpr NamedValue<Activation> kActivations[] = {
    {Activation::kNone, "none"},    {Activation::kSwish, "swish"},
    {Activation::kGeluErf, "gelu"}, {Activation::kGeluTanh, "gelu-tanh"},
    {Activation::kRelu, "relu"},    {Activation::kTanh, "tanh"}};
constexpr NamedValue<NormPlacement> kNormPlacements[] = {{NormPlacement::kPost, "post"},
                                                         {NormPlacement::kPre, "pre"}};
constexpr NamedValue<Pooling> kPoolings[] = {
    {Pooling::kMean, "mean"}, {Pooling::kMax, "max"}, {Pooling::kCls, "cls"}};
constexpr NamedValue<TokenizerKind> kTokenizerKinds[] = {
    {TokenizerKind::kNone, "none"},
    {TokenizerKind::kSentencePiece, "sentencepiece"},
    {TokenizerKind::kWordPiece, "wordpiece"}};

// Far above any encoder there is, and low enough that a product of three sizes and an element size
// fits 64 bits.
constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxHiddenSize = 1 << 16;
constexpr int32_t kMaxIntermediateSize = 1 << 20;
constexpr int32_t kMaxPositions = 1 << 20;

void check_range(const char* field, int32_t value, int32_t first, int32_t last) {
  if (value >= first && value <= last) return;
  throw_bad_file(std::string(field) + " is " + std::to_string(value) + ", expected " +
                 std::to_string(first) + " to " + std::to_string(last));
}

void check_id(const char* field, int32_t id, int32_t vocab_size) {
  if (id >= -1 && id < vocab_size) return;
  throw_bad_file(std::string(field) + " is " + std::to_string(id) +
                 ", expected -1 (none) or an id below vocab_size " + std::to_string(vocab_size));
}

}  // namespace

const char* to_string(Family value) { return name_of(kFamilies, value); }
const char* to_string(Activation value) { return name_of(kActivations, value); }
const char* to_string(NormPlacement value) { return name_of(kNormPlacements, value); }
const char* to_string(Pooling value) { return name_of(kPoolings, value); }
const char* to_string(TokenizerKind value) { return name_of(kTokenizerKinds, value); }

void validate(const ModelConfig& c) {
  check_known("family", kFamilies, c.family);
  check_known("activation", kActivations, c.activation);
  check_known("norm_placement", kNormPlacements, c.norm_placement);
  check_known("pooling", kPoolings, c.pooling);
  check_known("pooler_activation", kActivations, c.pooler_activation);
  check_known("tokenizer", kTokenizerKinds, c.tokenizer);

  check_range("num_layers", c.num_layers, 0, kMaxLayers);
  check_range("hidden_size", c.hidden_size, 1, kMaxHiddenSize);
  check_range("num_heads", c.num_heads, 1, c.hidden_size);
  if (c.hidden_size % c.num_heads != 0) {
    throw_bad_file("num_heads is " + std::to_string(c.num_heads) +
                   ", expected a divisor of hidden_size " + std::to_string(c.hidden_size));
  }
  check_range("intermediate_size", c.intermediate_size, 1, kMaxIntermediateSize);
  check_range("vocab_size", c.vocab_size, 1, INT32_MAX);
  check_range("num_positions", c.num_positions, 1, kMaxPositions);
  check_range("position_offset", c.position_offset, 0, c.num_positions - 1);
  check_range("num_token_types", c.num_token_types, 0, kMaxPositions);
  const int32_t positions = c.num_positions - c.position_offset;
  if (c.max_seq_len < 1 || c.max_seq_len > positions) {
    throw_bad_file("max_seq_len is " + std::to_string(c.max_seq_len) + ", expected 1 to " +
                   std::to_string(positions) + " (num_positions " +
                   std::to_string(c.num_positions) + " less position_offset " +
                   std::to_string(c.position_offset) + ")");
  }
  check_range("embedding_size", c.embedding_size, 1, kMaxIntermediateSize);
  if (!c.has_pooler && c.embedding_size != c.hidden_size) {
    throw_bad_file("embedding_size is " + std::to_string(c.embedding_size) +
                   ", expected hidden_size " + std::to_string(c.hidden_size) +
                   " in a model without a dense layer after pooling");
  }
  if (!c.has_pooler && c.pooler_activation != Activation::kNone) {
    throw_bad_file(std::string("pooler_activation is ") + to_string(c.pooler_activation) +
                   ", expected none in a model without a dense layer after pooling");
  }
  if (!(c.layer_norm_eps >= 0 && c.layer_norm_eps < 1)) {  // false for NaN too
    char text[32];
    std::snprintf(text, sizeof text, "%g", c.layer_norm_eps);
    throw_bad_file(std::string("layer_norm_eps is ") + text + ", expected a number in [0, 1)");
  }

  check_id("pad_id", c.pad_id, c.vocab_size);
  check_id("unk_id", c.unk_id, c.vocab_size);
  check_id("mask_id", c.mask_id, c.vocab_size);
  check_id("cls_id", c.cls_id, c.vocab_size);
  check_id("sep_id", c.sep_id, c.vocab_size);
  if (c.add_cls && c.cls_id < 0)
    throw_bad_file("cls_id is -1 (none), expected an id, because add_cls is set");
  if (c.add_sep && c.sep_id < 0)
    throw_bad_file("sep_id is -1 (none), expected an id, because add_sep is set");
  const int32_t special_tokens = (c.add_cls ? 1 : 0) + (c.add_sep ? 1 : 0);
  if (c.max_seq_len <= special_tokens) {
    throw_bad_file("max_seq_len is " + std::to_string(c.max_seq_len) + ", expected more than the " +
                   std::to_string(special_tokens) + " special tokens that every sentence gets");
  }
}

}  // namespace xsr
