#include "converter/family.h"

namespace xsr {

// Names as the released XSR trainer saves them. The checkpoint holds the token table three times
// (input of the encoder, target_embedding, matrix of the decoder), tied during training.
const FamilyTable& family_xsr() {
  static const FamilyTable table = [] {
    const std::string embedding = "model.bert.embedding.", layer = "model.bert.encoder.layer.",
                      at = layer + "{}.";
    const std::string token = embedding + "word_embedding.embedding.weight";
    const std::string position = embedding + "position_embedding.position_embeddings.weight";
    const std::string self = at + "attention.self_attention.";
    constexpr Size V = Size::kVocab, P = Size::kPositions, C = Size::kHidden,
                   F = Size::kIntermediate, one = Size::kOne;
    constexpr Layout rows = Layout::kRowMajor, panels = Layout::kPanels32;
    FamilyTable t;
    t.family = Family::kXsr;
    t.model = {
        {"embedding.token", {token}, V, C, true, rows},
        {"embedding.position", {position}, P, C, true, rows},
        {"embedding.norm.weight", {embedding + "layer_norm.weight"}, C, one, false, rows},
        {"embedding.norm.bias", {embedding + "layer_norm.bias"}, C, one, false, rows},
    };
    t.layer = {
        {"layer.{}.qkv.weight",
         {self + "query.weight", self + "key.weight", self + "value.weight"},
         C,
         C,
         true,
         panels},
        {"layer.{}.qkv.bias",
         {self + "query.bias", self + "key.bias", self + "value.bias"},
         C,
         one,
         false,
         rows},
        {"layer.{}.attention_output.weight",
         {at + "attention.output.dense.weight"},
         C,
         C,
         true,
         panels},
        {"layer.{}.attention_output.bias",
         {at + "attention.output.dense.bias"},
         C,
         one,
         false,
         rows},
        {"layer.{}.attention_norm.weight",
         {at + "attention.output.LayerNorm.weight"},
         C,
         one,
         false,
         rows},
        {"layer.{}.attention_norm.bias",
         {at + "attention.output.LayerNorm.bias"},
         C,
         one,
         false,
         rows},
        {"layer.{}.up.weight", {at + "intermediate.dense.weight"}, F, C, true, panels},
        {"layer.{}.up.bias", {at + "intermediate.dense.bias"}, F, one, false, rows},
        {"layer.{}.down.weight", {at + "output.dense.weight"}, C, F, true, panels},
        {"layer.{}.down.bias", {at + "output.dense.bias"}, C, one, false, rows},
        {"layer.{}.output_norm.weight", {at + "output.LayerNorm.weight"}, C, one, false, rows},
        {"layer.{}.output_norm.bias", {at + "output.LayerNorm.bias"}, C, one, false, rows},
    };
    t.drop = {
        {"model.target_embedding.weight", token},
        {"model.decoder.decoder.weight", token},
    };
    const std::string transform = "model.transform.";
    t.head = {
        {"head.transform.weight", {transform + "dense.weight"}, C, C, true, rows},
        {"head.transform.bias", {transform + "dense.bias"}, C, one, false, rows},
        {"head.norm.gamma", {transform + "LayerNorm.weight"}, C, one, false, rows},
        {"head.norm.beta", {transform + "LayerNorm.bias"}, C, one, false, rows},
        {"head.output.bias", {"model.decoder.bias"}, V, one, false, rows},
    };
    t.layer_prefix = layer;
    t.vocab_from = token;
    t.positions_from = position;
    t.intermediate_from = layer + "0.intermediate.dense.weight";
    t.defaults.family = Family::kXsr;
    t.defaults.position_offset = 1;  // row 0 of the position table belongs to padding
    t.defaults.activation = Activation::kSwish;
    t.defaults.pooling = Pooling::kMean;
    t.defaults.lowercase = true;
    t.defaults.layer_norm_eps = 1e-12;
    return t;
  }();
  return table;
}

}  // namespace xsr
