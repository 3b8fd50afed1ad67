#pragma once
#include <cstdint>
#include <string>

#include "kernels/activation/activation.h"
#include "kernels/pooling/pooling.h"

namespace xsr {

// The numbers of these enums are those of the .xsr file (docs/FORMAT.md); they never change.
enum class Family : uint32_t { kXsr = 1, kEms = 2, kBert = 3, kXlmRoberta = 4 };
enum class NormPlacement : uint32_t { kPost = 0, kPre = 1 };
using kernels::Activation;
using kernels::Pooling;
enum class TokenizerKind : uint32_t { kNone = 0, kSentencePiece = 1, kWordPiece = 2 };

/// Everything about a model that is not a tensor. Sizes in elements; ids are -1 where the model has
/// none.
struct ModelConfig {
  Family family = Family::kXsr;
  int32_t num_layers = 0;
  int32_t hidden_size = 0;        // C
  int32_t num_heads = 0;          // H; head_dim D = C / H
  int32_t intermediate_size = 0;  // F
  int32_t vocab_size = 0;         // V
  int32_t num_positions = 0;      // rows of the position table
  int32_t position_offset = 0;    // the first token of a sentence takes this row (xsr: 1)
  int32_t num_token_types = 0;    // rows of the token-type table; 0 = none
  int32_t max_seq_len = 0;        // tokens, special tokens included
  int32_t embedding_size = 0;     // floats per sentence embedding
  Activation activation = Activation::kSwish;
  NormPlacement norm_placement = NormPlacement::kPost;
  Pooling pooling = Pooling::kMean;
  Activation pooler_activation = Activation::kNone;  // of a dense layer after pooling
  bool has_pooler = false;                           // a dense layer stands after pooling
  bool normalize = false;                            // L2-normalise the embedding
  bool lowercase = false;         // lower-case the text first, as Python's str.lower
  double layer_norm_eps = 1e-12;  // inside the square root
  TokenizerKind tokenizer = TokenizerKind::kNone;
  int32_t pad_id = -1, unk_id = -1, mask_id = -1, cls_id = -1, sep_id = -1;
  bool add_cls = false;  // cls_id before every sentence
  bool add_sep = false;  // sep_id after every sentence
};

const char* to_string(Family);
const char* to_string(Activation);
const char* to_string(NormPlacement);
const char* to_string(Pooling);
const char* to_string(TokenizerKind);

/// Throws Error(BAD_FILE) naming the field whose value is impossible (zero sizes, heads that do not
/// divide the hidden size, ids outside the vocabulary, max_seq_len beyond the position table, eps
/// not in [0, 1), ...).
void validate(const ModelConfig& config);

}  // namespace xsr
