// Tokenizer tables of a model of ours with arbitrary bytes put into them, which then encode a text.
#include <cstdint>
#include <cstring>

#include "runtime/text/tokenizer_tables.h"
#include "tests/fuzz/tokenizer.h"

namespace {

struct Model {
  explicit Model(const char* name)
      : blob(xsr::fuzz::read_model(name)), tables(xsr::make_tokenizer_tables(blob)) {}
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
  xsr::fuzz::encode_with(model.blob, tables, {reinterpret_cast<const char*>(data), size});
  return 0;
}
