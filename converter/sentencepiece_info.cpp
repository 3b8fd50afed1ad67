#include "converter/sentencepiece_info.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "runtime/error.h"
#include "runtime/text/sentencepiece_library.h"
#include "runtime/text/tokenizer.h"

namespace xsr {

SentencePieceInfo sentencepiece_info(std::string_view blob, const std::string& name) {
  try {
    ModelConfig any;
    any.vocab_size = INT32_MAX;
    make_sentencepiece_tokenizer(blob, {}, any);
    const auto library = load_sentencepiece_library(blob);
    SentencePieceInfo info;
    info.vocab_size = library->GetPieceSize();
    info.pad_id = library->pad_id();
    info.unk_id = library->unk_id();
    const int mask = library->PieceToId("<MASK>");  // unk_id where there is no such piece
    if (library->IdToPiece(mask) == "<MASK>") info.mask_id = mask;
    return info;
  } catch (const Error& e) {
    throw Error(e.status(), fmt::format("{}: {}", name, e.what()));
  }
}

}  // namespace xsr
