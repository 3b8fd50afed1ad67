// Arbitrary bytes as text. The first byte chooses: bit 0 the tiny model (bpe, unigram), the others,
// when they are 1, that the text is repeated up to 1,500 bytes (long texts are cut; slow).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "runtime/text/lowercase.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"
#include "tests/fuzz/tokenizer.h"

namespace {

#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                        \
    }                                                                      \
  } while (0)

struct Model {
  explicit Model(const char* name)
      : blob(xsr::fuzz::read_model(name)),
        tokenizer(xsr::make_tokenizer(blob, xsr::fuzz::tokenizer_config())) {}
  std::string blob;
  std::unique_ptr<xsr::Tokenizer> tokenizer;
};

void check(const xsr::Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> all, some;
  const auto whole = tokenizer.encode(text, 1000000, all);
  REQUIRE(!whole.truncated);
  for (int32_t id : all) REQUIRE(id >= 0 && id < tokenizer.vocab_size());
  const auto part = tokenizer.encode(text, 5, some);
  REQUIRE(part.truncated == (all.size() > 5));
  REQUIRE(part.replaced_bytes == whole.replaced_bytes);
  all.resize(std::min<size_t>(all.size(), 5));
  REQUIRE(some == all);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  static const Model models[] = {Model("tiny-bpe.spm.model"), Model("tiny-unigram.spm.model")};
  if (size == 0) return 0;
  const unsigned char mode = data[0];
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::string repaired, lower, again;
  const uint32_t replaced = xsr::sanitize_utf8(bytes, repaired);
  REQUIRE(xsr::is_valid_utf8(repaired));
  REQUIRE(xsr::is_valid_utf8(bytes) == (replaced == 0));
  REQUIRE(xsr::sanitize_utf8(repaired, again) == 0 && again == repaired);
  xsr::append_lowercase(repaired, lower);
  REQUIRE(xsr::is_valid_utf8(lower));
  again.clear();
  xsr::append_lowercase(bytes, again);  // malformed text gives some result, never a crash

  std::string text(bytes);
  const size_t length = mode >> 1 == 1 ? 1500 : 0;
  while (!bytes.empty() && text.size() < length) text += bytes;
  check(*models[mode & 1].tokenizer, text);
  return 0;
}
