#pragma once
#include <memory>
#include <string_view>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace xsr {

/// The SentencePiece library with a model that parse_sentencepiece_model() takes; text it is given
/// stays as it is, for the model's normaliser, whose rules the library takes on trust, is left out
/// (without_normalizer). It prints nothing. Throws Error(BAD_FILE) where it refuses the model.
std::unique_ptr<sentencepiece::SentencePieceProcessor> load_sentencepiece_library(
    std::string_view blob);

}  // namespace xsr
