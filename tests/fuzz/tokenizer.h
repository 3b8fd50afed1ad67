#pragma once
// What the fuzzers of tokenizers share.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"
#include "runtime/text/tokenizer.h"

namespace xsr::fuzz {

inline ModelConfig tokenizer_config() {
  ModelConfig c;
  c.vocab_size = 100000;
  c.lowercase = true;
  c.tokenizer = TokenizerKind::kSentencePiece;
  return c;
}

/// A model of tests/data.
inline std::string read_model(const char* name) {
  std::ifstream in(std::string(XSR_SOURCE_DIR "/tests/data/") + name, std::ios::binary);
  if (!in) std::abort();
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// Encodes a text of ours and `text` with a tokenizer that may be damaged: it gives ids of its
/// vocabulary, or the file is at fault.
inline void encode_with(std::string_view blob, std::span<const unsigned char> tables,
                        std::string_view text) {
  try {
    const auto tokenizer = make_tokenizer(blob, tables, tokenizer_config());
    std::vector<int32_t> ids;
    tokenizer->encode("The miller\u2026 e\u0301 \uFB01n\u00A0 <sep>x & the lake \u6F22\u5B57", 1000,
                      ids);
    tokenizer->encode(text, 1000, ids);
    for (int32_t id : ids) {
      if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
    }
  } catch (const Error& e) {
    if (e.status() != XSR_STATUS_BAD_FILE) std::abort();
  }
}

}  // namespace xsr::fuzz
