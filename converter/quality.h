#pragma once
#include <cstdint>
#include <string>

#include "converter/convert.h"
#include "input/pair_file.h"
#include "runtime/evaluation/retrieval.h"

namespace xsr {

/// What a narrow dtype costs: sentence embeddings of a model, computed as its dtype is meant to be,
/// beside those of the same checkpoint in f32, over the sentences of both sides of a corpus.
struct Quality {
  std::string corpus;         // the name of the pair file
  DType dtype = DType::kF32;  // of the weights
  std::string compute;        // "f32", "bf16", "int8": of the narrow model's session
  std::string isa;            // of its matrix products
  int64_t sentences = 0;      // that have tokens, and so a cosine
  double cosine_mean = 0, cosine_min = 0;
  double cosine_quantile = 0;  // the least cosine that at least 1 % of the sentences do not exceed
  RetrievalScore before, after;  // of f32, of the narrow model
};

/// `wide` is the checkpoint in f32, `narrow` in `dtype`; bf16 is computed in bf16, i8 in int8, f16
/// in f32. Throws Error: INVALID_ARGUMENT where the model has no tokenizer; IO and BAD_FILE of the
/// corpus, BAD_FILE too where no sentence has tokens.
Quality measure_quality(const ConvertedModel& wide, const ConvertedModel& narrow, DType dtype,
                        const PairFile& corpus);

/// One line for people.
std::string quality_text(const Quality& quality);
/// The same under "quality" in the model's provenance, replacing what was there.
void record_quality(const Quality& quality, ConvertedModel& model);

}  // namespace xsr
