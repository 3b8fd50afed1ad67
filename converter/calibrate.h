#pragma once
#include <cstdint>
#include <string>

#include "converter/convert.h"
#include "input/pair_file.h"

namespace xsr {

/// Static ranges for products in int8: runs `wide`, a model in f32, over the sentences of both
/// sides of a corpus and adds to `narrow`, the same checkpoint in i8, a tensor
/// layer.<i>.<product>.input_range for each product of each layer: the least and the largest value
/// of its input, 0 included. Names the corpus in the provenance. Throws Error: INVALID_ARGUMENT
/// where the model has no tokenizer; IO and BAD_FILE of the corpus, BAD_FILE too where no sentence
/// has tokens.
void calibrate(const ConvertedModel& wide, const PairFile& corpus, ConvertedModel& narrow);

}  // namespace xsr
