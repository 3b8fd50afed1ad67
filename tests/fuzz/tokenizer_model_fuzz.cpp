// Arbitrary bytes as a SentencePiece model, which then encodes a text of ours and its own bytes.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  xsr::ModelConfig config;
  config.vocab_size = 100000;
  config.lowercase = true;
  config.tokenizer = xsr::TokenizerKind::kSentencePiece;
  try {
    const auto tokenizer = xsr::make_tokenizer(bytes, config);
    std::vector<int32_t> ids;
    tokenizer->encode("The miller\u2026 e\u0301 \uFB01n\u00A0 <sep>x & the lake \u6F22\u5B57", 1000,
                      ids);
    tokenizer->encode(bytes, 1000, ids);
    for (int32_t id : ids) {
      if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
    }
  } catch (const xsr::Error& e) {
    if (e.status() != XSR_STATUS_BAD_FILE) std::abort();
  }
  return 0;
}
