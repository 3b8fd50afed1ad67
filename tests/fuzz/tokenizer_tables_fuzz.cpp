// Tokenizer tables of a model of ours with arbitrary bytes put into them, which then encode a text.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/tokenizer_tables.h"

namespace {

struct Model {
  explicit Model(const char* name) {
    std::ifstream in(std::string(XSR_SOURCE_DIR "/tests/data/") + name, std::ios::binary);
    blob.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    tables = xsr::make_tokenizer_tables(blob);
  }
  std::string blob;
  std::vector<unsigned char> tables;
};

}  // namespace

/// The first byte chooses the model; then every five bytes are a place, modulo the tables' size,
/// and a byte for it.
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  static const Model models[] = {Model("tiny-bpe.spm.model"), Model("tiny-unigram.spm.model"),
                                 Model("tiny-rules.spm.model")};
  if (size == 0) return 0;
  const Model& model = models[data[0] % 3];
  std::vector<unsigned char> tables = model.tables;
  for (size_t i = 1; i + 5 <= size; i += 5) {
    uint32_t at;
    std::memcpy(&at, data + i, sizeof at);
    // The revision stays: tables of another are not read at all.
    tables[4 + at % (tables.size() - 4)] = data[i + 4];
  }
  xsr::ModelConfig config;
  config.vocab_size = 100000;
  config.lowercase = true;
  config.tokenizer = xsr::TokenizerKind::kSentencePiece;
  try {
    const auto tokenizer = xsr::make_tokenizer(model.blob, tables, config);
    std::vector<int32_t> ids;
    tokenizer->encode("The miller\u2026 e\u0301 \uFB01n\u00A0 <sep>x & the lake \u6F22\u5B57", 1000,
                      ids);
    tokenizer->encode({reinterpret_cast<const char*>(data), size}, 1000, ids);
    for (int32_t id : ids) {
      if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
    }
  } catch (const xsr::Error& e) {
    if (e.status() != XSR_STATUS_BAD_FILE) std::abort();
  }
  return 0;
}
