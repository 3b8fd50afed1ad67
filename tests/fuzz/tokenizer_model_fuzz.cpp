// Arbitrary bytes as a SentencePiece model, which then encodes a text of ours and its own bytes.
#include "tests/fuzz/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  xsr::fuzz::encode_with(bytes, {}, bytes);
  return 0;
}
