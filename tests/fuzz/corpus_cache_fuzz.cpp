// Edits of a corpus cache of xsr-train (edits.h): it is refused, or all of it can be read. The
// first bit of the input says whether sizes and hashes are made right behind the edits; where they
// are not, what is read is what was written.
#include <xxhash.h>

#include <atomic>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "tests/fuzz/edits.h"
#include "tests/fuzz/tokenizer.h"
#include "tests/support/temp_folder.h"
#include "training/data/tokenized_corpus.h"

namespace {

using namespace xsr::training;

class Cache {
 public:
  Cache() : tokenizer_(xsr::fuzz::read_model("tiny-bpe.spm.model")) {
    std::ofstream(folder_ / "a.tsv") << "the miller\tle meunier\n\nthe lake\tle lac\n";
    std::ofstream(folder_ / "b.tsv") << "a stone\tune pierre\n";
    languages_ = {{"en-fr", {{folder_ / "a.tsv"}, {folder_ / "b.tsv"}}},
                  {"en-de", {{folder_ / "b.tsv"}}}};
    hash_texts(languages_);
    config_ = xsr::fuzz::tokenizer_config();
    config_.vocab_size = 1000;
    config_.max_seq_len = 40;
    sound_contents_ = contents(*open());
    sound_ = xsr::read_whole_file(folder_ / "cache");
    stop_ = true;  // from now on what cannot be opened is not made again
  }

  void try_edits(bool sealed, const uint8_t* edits, size_t size) {
    std::string file = xsr::fuzz::edited(sound_, edits, size);
    if (sealed) seal(file);
    std::ofstream(folder_ / "cache", std::ios::binary) << file;
    try {
      const std::string found = contents(*open());
      xsr::fuzz::require(sealed || found == sound_contents_);
    } catch (const Stopped&) {
      xsr::fuzz::require(file != sound_);
    }
  }

 private:
  std::shared_ptr<const TokenizedCorpus> open() {
    DataLog log;
    log.stop = &stop_;
    return TokenizedCorpus::open_or_build(folder_ / "cache", languages_, config_, tokenizer_, {},
                                          pool_, log);
  }

  static std::string contents(const TokenizedCorpus& corpus) {
    std::string text;
    std::vector<int32_t> ids;
    for (uint64_t pair = 0; pair < corpus.num_pairs(); ++pair) {
      text += corpus.place(pair) + ':';
      for (int side : {0, 1}) {
        ids.clear();
        corpus.append_ids(pair, side, ids);
        xsr::fuzz::require(static_cast<int32_t>(ids.size()) == corpus.length(pair, side));
        for (const int32_t id : ids) {
          xsr::fuzz::require(id >= 0 && id < corpus.vocab_size());
          text += ' ' + std::to_string(id);
        }
        text += ' ' + std::to_string(corpus.sentence_hash(pair, side));
      }
    }
    for (const TokenizedCorpus::Part& part : corpus.parts()) text += part.name + part.drops.text();
    return text;
  }

  /// The header is 18 words of 64 bits (training/data/tokenized_corpus.cpp).
  static void seal(std::string& file) {
    enum { kFileSize = 2, kPairs = 7, kTokens, kTokensAt = 10, kRecordsAt, kTextAt, kTextSize };
    enum { kTokensHash = 14, kRecordsHash, kTextHash, kHeaderHash, kWords };
    uint64_t h[kWords];
    if (file.size() < sizeof h) return;
    std::memcpy(h, file.data(), sizeof h);
    h[kFileSize] = file.size();
    const auto hash = [&](uint64_t at, uint64_t size, uint64_t& to) {
      if (at <= file.size() && size <= file.size() - at) to = XXH3_64bits(file.data() + at, size);
    };
    hash(h[kTokensAt], h[kTokens] * sizeof(uint16_t), h[kTokensHash]);
    hash(h[kRecordsAt], h[kPairs] * 16, h[kRecordsHash]);
    hash(h[kTextAt], h[kTextSize], h[kTextHash]);
    h[kHeaderHash] = 0;
    h[kHeaderHash] = XXH3_64bits(h, sizeof h);
    std::memcpy(file.data(), h, sizeof h);
  }

  const xsr::test::TempFolder folder_;
  const std::string tokenizer_;
  xsr::ModelConfig config_;
  std::vector<LanguagePair> languages_;
  std::atomic<bool> stop_{false};
  xsr::ThreadPool pool_{1};
  std::string sound_, sound_contents_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
  static Cache cache;
  if (size > 0) cache.try_edits(input[0] & 1, input + 1, size - 1);
  return 0;
}
