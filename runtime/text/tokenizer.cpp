#include "runtime/text/tokenizer.h"

#include <string>

#include "runtime/error.h"

namespace xsr {

std::unique_ptr<Tokenizer> make_tokenizer(std::string_view blob,
                                          std::span<const unsigned char> tables,
                                          const ModelConfig& config) {
  switch (config.tokenizer) {
    case TokenizerKind::kNone:
      return nullptr;
    case TokenizerKind::kSentencePiece:
      return make_sentencepiece_tokenizer(blob, tables, config);
    default:
      throw Error(
          XSR_STATUS_UNSUPPORTED,
          "tokenizer kind " + std::to_string(static_cast<uint32_t>(config.tokenizer)) +
              " is not known to this version of xsr, which knows 0 (none) and 1 (SentencePiece); "
              "a newer version may read this model");
  }
}

}  // namespace xsr
