// Our segmentation, word by word and with a memo, against the SentencePiece library.
#include "runtime/text/segmenter.h"

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <list>
#include <random>
#include <sstream>
#include <thread>
#include <unordered_map>

#include "runtime/format/xsr_file.h"
#include "runtime/text/lowercase.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"
#include "runtime/text/word_memo.h"
#include "tests/support/files.h"
#include "tests/support/paths.h"
#include "tests/support/text.h"

namespace xsr {
namespace {

namespace fs = std::filesystem;
using test::hex;
using test::read_file;
using test::read_lines;
using test::utf8;

// Builds beside the first, and sanitizers, take one text in this many (tests/CMakeLists.txt).
constexpr int kShare = XSR_TEST_SHARE;

const fs::path kData = fs::path(XSR_SOURCE_DIR) / "tests/data";
constexpr size_t kNoLimit = size_t{1} << 20;

// ---- Models made from others ----

struct OwnPiece {
  std::string text;
  PieceType type;
  float score;
};

/// A model file as its parts, to be changed and written again.
struct Recipe {
  explicit Recipe(std::string_view blob) {
    const SentencePieceModel m = parse_sentencepiece_model(blob);
    type = m.type;
    byte_fallback = m.byte_fallback;
    suffix = m.treat_whitespace_as_suffix;
    dummy_prefix = m.add_dummy_prefix;
    remove_extra = m.remove_extra_whitespaces;
    escape = m.escape_whitespaces;
    charsmap = m.charsmap;
    for (const auto& p : m.pieces) pieces.push_back({std::string(m.text(p)), p.type, p.score});
  }
  std::string write() const {
    std::string out;
    for (const OwnPiece& p : pieces) {
      std::string piece = field(1, p.text);
      piece += '\x15';
      piece.append(reinterpret_cast<const char*>(&p.score), 4);
      piece += number(3, static_cast<int>(p.type));
      out += field(1, piece);
    }
    out += field(
        2, number(3, static_cast<int>(type)) + number(24, suffix) + number(35, byte_fallback));
    out += field(3, field(2, charsmap) + number(3, dummy_prefix) + number(4, remove_extra) +
                        number(5, escape));
    return out;
  }

  SentencePieceType type;
  bool byte_fallback, suffix, dummy_prefix, remove_extra, escape;
  std::string charsmap;
  std::vector<OwnPiece> pieces;

 private:
  static std::string varint(uint64_t n) {
    std::string out;
    for (; n >= 128; n >>= 7) out += static_cast<char>((n & 127) | 128);
    return out += static_cast<char>(n);
  }
  static std::string field(int number, std::string_view bytes) {
    return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(bytes.size()) +
           std::string(bytes);
  }
  static std::string number(int number, int value) {
    return varint(static_cast<uint64_t>(number) << 3) + varint(static_cast<uint64_t>(value));
  }
};

struct Subject {
  Subject(std::string name, std::string bytes, bool lower)
      : name(std::move(name)), lower(lower), blob(std::move(bytes)) {
    EXPECT_TRUE(library.LoadFromSerializedProto({blob.data(), blob.size()}).ok()) << this->name;
    ModelConfig config;
    config.vocab_size = library.GetPieceSize();
    config.lowercase = lower;
    config.tokenizer = TokenizerKind::kSentencePiece;
    ours = make_tokenizer(blob, config);
    warm = ours->make_state();
    tiny = ours->make_state(1024);
    for (int id = 0; id < library.GetPieceSize(); ++id) pieces.push_back(library.IdToPiece(id));
  }

  std::vector<int32_t> expected(std::string_view text) const {
    std::string repaired, prepared;
    sanitize_utf8(text, repaired);
    if (lower) {
      append_lowercase(repaired, prepared);
    } else {
      prepared = repaired;
    }
    std::vector<int> ids;
    EXPECT_TRUE(library.Encode({prepared.data(), prepared.size()}, &ids).ok());
    return {ids.begin(), ids.end()};
  }

  /// Ids, the truncation flag and the count of replaced bytes, without a state, with one that
  /// remembers, with one that hardly can, and cut at a limit.
  testing::AssertionResult same(std::string_view text, size_t limit) {
    const std::vector<int32_t> wanted = expected(text);
    std::string repaired;
    const uint32_t replaced = sanitize_utf8(text, repaired);
    const struct {
      const char* name;
      Tokenizer::State* state;
      size_t limit;
    } runs[] = {{"no state", nullptr, kNoLimit},       {"memo", warm.get(), kNoLimit},
                {"memo, again", warm.get(), kNoLimit}, {"tiny memo", tiny.get(), kNoLimit},
                {"no state, limit", nullptr, limit},   {"memo, limit", warm.get(), limit}};
    for (const auto& run : runs) {
      // Behind those of a text that ended unknown, which it has no part in.
      std::vector<int32_t> ids = {library.unk_id()};
      std::vector<int32_t> cut = ids;
      const Tokenizer::Result result = ours->encode(text, run.limit, ids, run.state);
      cut.insert(cut.end(), wanted.begin(),
                 wanted.begin() + static_cast<ptrdiff_t>(std::min(run.limit, wanted.size())));
      if (ids == cut && result.truncated == (wanted.size() > run.limit) &&
          result.replaced_bytes == replaced) {
        continue;
      }
      size_t first = 0;
      while (first < ids.size() && first < cut.size() && ids[first] == cut[first]) ++first;
      return testing::AssertionFailure()
             << name << ", " << run.name << ", limit " << run.limit << ": " << ids.size() - 1
             << " ids where the library has " << wanted.size() << ", first difference at " << first
             << "; truncated " << result.truncated << ", replaced " << result.replaced_bytes
             << " (expected " << replaced << "); text of " << text.size()
             << " bytes: " << text.substr(0, 300) << "  = " << hex(text.substr(0, 300));
    }
    return testing::AssertionSuccess();
  }

  std::string name;
  bool lower;
  std::string blob;
  sentencepiece::SentencePieceProcessor library;
  std::unique_ptr<Tokenizer> ours;
  std::unique_ptr<Tokenizer::State> warm, tiny;
  std::vector<std::string> pieces;
};

std::string shipped_model() { return (fs::path(XSR_SOURCE_DIR) / "models/xsr-multi.xsr").string(); }

/// The tiny models, and what can be different about a model, one at a time.
std::list<Subject> tiny_subjects() {
  std::list<Subject> subjects;
  const std::string rules = Recipe(read_file(kData / "tiny-rules.spm.model")).charsmap;
  const std::string space_rule = Recipe(read_file(kData / "tiny-space-rule.spm.model")).charsmap;
  const auto file = XsrFile::open(shipped_model());
  const std::string shipped = Recipe(file->tokenizer()).charsmap;
  for (const char* base : {"tiny-bpe", "tiny-unigram"}) {
    const std::string blob = read_file(kData / (std::string(base) + ".spm.model"));
    // Both have what rules out words by themselves: a symbol with a space, rules across spaces. So
    // that most of the changes below are seen word by word, they begin without.
    Recipe original(blob);
    original.charsmap = shipped;
    std::erase_if(original.pieces, [](const OwnPiece& p) { return p.text == "the lake"; });
    const auto add = [&](const char* what, auto change, bool lower = true) {
      Recipe recipe = original;
      change(recipe);
      subjects.emplace_back(std::string(base) + ", " + what, recipe.write(), lower);
    };
    const auto drop_bytes = [](Recipe& r) {
      r.byte_fallback = false;
      std::erase_if(r.pieces, [](const OwnPiece& p) { return p.type == PieceType::kByte; });
    };
    const auto add_bytes = [&](Recipe& r) {
      drop_bytes(r);
      r.byte_fallback = true;
      for (int byte = 0; byte < 256; ++byte) {
        char text[8];
        std::snprintf(text, sizeof text, "<0x%02X>", byte);
        r.pieces.push_back({text, PieceType::kByte, 0});
      }
    };
    const auto add_symbols = [](Recipe& r, std::initializer_list<const char*> symbols) {
      for (const char* text : symbols) {
        const auto same = [&](const OwnPiece& p) { return p.text == text; };
        const auto it = std::find_if(r.pieces.begin(), r.pieces.end(), same);
        if (it != r.pieces.end()) {
          it->type = PieceType::kUserDefined;
        } else {
          r.pieces.push_back({text, PieceType::kUserDefined, 0});
        }
      }
    };
    const auto round_scores = [](Recipe& r, float unit, float jitter) {
      int i = 0;
      for (OwnPiece& p : r.pieces) {
        p.score = std::round(p.score / unit) * unit + jitter * static_cast<float>(i++ % 7);
      }
    };
    subjects.emplace_back(base, blob, true);
    add("NFKC", [](Recipe&) {});
    add(
        "case kept", [](Recipe&) {}, false);
    add("byte fallback", add_bytes);
    add("no byte fallback", drop_bytes);
    add("user-defined symbols", [&](Recipe& r) {
      add_symbols(r, {"the", "th", "ill", "\u2603", "<x>", "\u2581s", "e\u0301", "A"});
    });
    add(
        "user-defined symbols, case kept",
        [&](Recipe& r) {
          add_symbols(r, {"the", "T", "ill", "<x>", "'"});
        },
        false);
    add("a user-defined symbol with a space", [&](Recipe& r) {
      add_symbols(r, {"r s", "t  i", "e"});  // of the latter's two spaces none is dropped
    });
    add("a user-defined symbol across words", [&](Recipe& r) {
      add_symbols(r, {"r\u2581s", "e\u2581t"});
    });
    add("pieces across words", [](Recipe& r) {
      r.pieces.push_back({"e\u2581", PieceType::kNormal, -1});
      r.pieces.push_back({"e\u2581t", PieceType::kNormal, -2});
    });
    add("runs of spaces", [](Recipe& r) {
      r.pieces.push_back({"\u2581\u2581", PieceType::kNormal, -1});
      r.pieces.push_back({"\u2581\u2581\u2581", PieceType::kNormal, -2});
    });
    add("runs of spaces kept", [](Recipe& r) {
      r.pieces.push_back({"\u2581\u2581", PieceType::kNormal, -1});
      r.remove_extra = false;
    });
    add("no dummy prefix", [](Recipe& r) { r.dummy_prefix = false; });
    add("spaces not escaped", [](Recipe& r) { r.escape = false; });
    add("space as suffix", [](Recipe& r) { r.suffix = true; });
    add("no rules", [](Recipe& r) { r.charsmap.clear(); });
    add(
        "rules across words", [&](Recipe& r) { r.charsmap = rules; }, false);
    add("rules across words, lower case", [&](Recipe& r) { r.charsmap = rules; });
    add("a rule that begins with a space", [&](Recipe& r) { r.charsmap = space_rule; });
    add("a rule that gives the space symbol", [&](Recipe& r) {
      const size_t at = r.charsmap.find(std::string("\0...\0", 5));  // for U+2026
      ASSERT_NE(at, std::string::npos);
      r.charsmap.replace(at + 1, 3, kSpaceSymbol);
    });
    add("unused pieces", [](Recipe& r) {
      for (size_t i = 3; i < r.pieces.size(); i += 3) {
        if (r.pieces[i].type == PieceType::kNormal) r.pieces[i].type = PieceType::kUnused;
      }
    });
    add("the space symbol unknown", [&](Recipe& r) {
      drop_bytes(r);
      std::erase_if(r.pieces, [](const OwnPiece& p) { return p.text == "\u2581"; });
    });
    add("the space symbol in no piece", [&](Recipe& r) {
      drop_bytes(r);
      std::erase_if(r.pieces,
                    [](const OwnPiece& p) { return p.text.find("\u2581") != std::string::npos; });
    });
    add("byte fallback, the space symbol unknown", [&](Recipe& r) {
      std::erase_if(r.pieces, [](const OwnPiece& p) { return p.text == "\u2581"; });
      add_bytes(r);
    });
    add("ties", [&](Recipe& r) { round_scores(r, 1, 0); });
    add("ties everywhere", [&](Recipe& r) { round_scores(r, 1e6f, 0); });
    add("near ties", [&](Recipe& r) { round_scores(r, 1, 1e-6f); });
    add("nearer ties", [&](Recipe& r) { round_scores(r, 0.5f, 2e-7f); });
    add("scores above zero", [&](Recipe& r) {
      add_symbols(r, {"the", "ill"});
      for (OwnPiece& p : r.pieces) p.score += 20;
    });
    add("a very long piece", [](Recipe& r) {
      r.pieces.push_back({std::string(63, 'a'), PieceType::kNormal, -1});
      r.pieces.push_back({std::string(70, 'a'), PieceType::kNormal, -1.5f});
      r.pieces.push_back({std::string(200, 'a'), PieceType::kNormal, -2});
    });
    // The library does these, whatever the reason.
    add("a reserved letter", [](Recipe& r) {
      std::erase_if(r.pieces, [](const OwnPiece& p) { return p.text == "\u2581t"; });
      r.pieces.push_back({"\u2581t", PieceType::kUnused, -1});
    });
    add("word model", [](Recipe& r) { r.type = SentencePieceType::kWord; });
    add("char model", [](Recipe& r) { r.type = SentencePieceType::kChar; });
  }
  subjects.emplace_back("tiny-rules", read_file(kData / "tiny-rules.spm.model"), false);
  subjects.emplace_back("tiny-space-rule", read_file(kData / "tiny-space-rule.spm.model"), true);
  return subjects;
}

/// The trained models, as far as they are at hand; the shipped one always is.
std::list<Subject> trained_subjects() {
  std::list<Subject> subjects;
  const auto file = XsrFile::open(shipped_model());
  subjects.emplace_back("xsr-multi", std::string(file->tokenizer()), file->config().lowercase);
  const fs::path shared = test::shared_folder() / "models/xsr-enfr-16k.spm.model";
  if (fs::exists(shared)) subjects.emplace_back("xsr-enfr-16k", read_file(shared), true);
  const fs::path unigram = test::golden_folder() / "families/xlm-roberta/sentencepiece.bpe.model";
  if (fs::exists(unigram)) subjects.emplace_back("xlm-roberta", read_file(unigram), false);
  return subjects;
}

// ---- Texts ----

class RandomText {
 public:
  RandomText(uint32_t seed, std::vector<std::string> corpus)
      : rng_(seed), corpus_(std::move(corpus)) {}

  uint32_t below(uint32_t n) { return rng_() % n; }

  /// Some words; what a word is made of is drawn anew for each.
  std::string operator()(const std::vector<std::string>& pieces) {
    std::string text;
    for (uint32_t words = below(9); words > 0; --words) {
      switch (below(8)) {
        case 0:
        case 1:
          text += part_of_line();
          break;
        case 2:
        case 3:
          for (uint32_t n = 1 + below(5); n > 0; --n) {
            const std::string& piece = pieces[below(static_cast<uint32_t>(pieces.size()))];
            const bool spaced = piece.rfind("\u2581", 0) == 0;
            if (spaced && below(20) != 0) text += ' ';
            text += spaced && below(20) != 0 ? piece.substr(3) : piece;
          }
          break;
        case 4:
          for (uint32_t n = 1 + below(12); n > 0; --n) text += utf8(scalar(0x250));
          break;
        case 5:
          for (uint32_t n = 1 + below(6); n > 0; --n) text += utf8(scalar(0x110000));
          break;
        case 6:
          for (uint32_t n = 1 + below(8); n > 0; --n) text += odd();
          break;
        default: {
          const char letter = static_cast<char>('a' + below(26));
          text.append(1 + below(below(20) == 0 ? 300 : 6), letter);
        }
      }
      if (below(30) == 0) text += static_cast<char>(rng_());  // malformed half of the time
      if (below(6) != 0) text.append(below(12) == 0 ? 1 + below(4) : 1, ' ');
    }
    return text;
  }

 private:
  char32_t scalar(uint32_t end) {
    const char32_t c = rng_() % end;
    return c >= 0xD800 && c <= 0xDFFF ? 0x20 : c;
  }
  std::string part_of_line() {
    const std::string& line = corpus_[below(static_cast<uint32_t>(corpus_.size()))];
    if (line.empty()) return line;
    const size_t begin = below(static_cast<uint32_t>(line.size()));
    return line.substr(begin, 1 + below(40));  // perhaps in the middle of a character
  }
  std::string odd() {
    static const char* const kOdd[] = {
        "\u00A0", "\u3000",   "\uFB01",       "\u2026",        "\uFDFA",       "\u2581",  "  ",
        "\t",     "\n",       "\u200B",       "\u00A8",        "\u2581\u2581", "<unk>",   "<s>",
        "<x>",    "<0x41>",   "e\u0301",      "\u0130",        "\u03A3",       "\u03A3'", "'\u03A3",
        "\r",     "A\u03A3.", "\u03A3\u0301", "\u2019",        "\u00AB",       "\u00BB",  "\u202F",
        "e n",    "t ",       "s\u0301 x",    "\u00E9 \u0301", "f i",          "g\u0301", " \u00E9",
        "\u2603", "\u2604",   "\u2605",       "\u2606",        "the",          "r s",     "ill",
        "\u1E9E", "\uAC00",   "\u1112\u1161", "\uFF21",        "\u0301",       ".",       ","};
    return kOdd[below(static_cast<uint32_t>(std::size(kOdd)))];
  }

  std::mt19937 rng_;
  std::vector<std::string> corpus_;
};

size_t random_limit(RandomText& random) {
  return random.below(2) == 0 ? random.below(6) : random.below(60);
}

// ---- Tests ----

TEST(Segmenter, SameIdsOnEveryKindOfModel) {
  const std::vector<std::string> corpus = read_lines(kData / "tiny-corpus.txt");
  std::list<Subject> subjects = tiny_subjects();
  RandomText random(3, corpus);
  size_t by_words = 0;
  for (Subject& subject : subjects) {
    SCOPED_TRACE(subject.name);
    by_words += subject.warm != nullptr;
    for (const std::string& line : corpus) ASSERT_TRUE(subject.same(line, random_limit(random)));
    for (const char* text : {"the\u2026", "the\u2026 lake", "\u2026 the \u2026", "\u2026"})
      ASSERT_TRUE(subject.same(text, 20));
    for (size_t i = 0; i + 1 < corpus.size(); ++i) {
      ASSERT_TRUE(subject.same(corpus[i] + corpus[i + 1] + "  " + corpus[0], 20));
    }
    // Many words: sums of scores where floats are far apart.
    std::string text;
    for (int i = 0; i < 20; ++i) {
      for (const std::string& line : corpus) text += line + (i % 2 == 0 ? " " : "");
    }
    ASSERT_TRUE(subject.same(std::string_view(text).substr(0, 30000), 200));
  }
  EXPECT_GE(by_words, 36u);
  EXPECT_LE(by_words, subjects.size() - 16);
}

TEST(Segmenter, NearTiesRoundAsInTheWholeText) {
  Recipe recipe(read_file(kData / "tiny-unigram.spm.model"));
  recipe.charsmap.clear();
  std::erase_if(recipe.pieces, [](const OwnPiece& p) {
    return p.type == PieceType::kNormal || p.type == PieceType::kUserDefined;
  });
  // In exact numbers "ab" beats "a", "b" by little; in the sums of a text it depends on the sum.
  for (const auto& [text, score] : std::initializer_list<std::pair<const char*, float>>{
           {"\u2581", -2.1f}, {"\u2581w", -3.37f}, {"a", -1.1f}, {"b", -1.3f}, {"ab", -2.4f}}) {
    recipe.pieces.push_back({text, PieceType::kNormal, score});
  }
  Subject subject("near ties", recipe.write(), false);
  ASSERT_NE(subject.warm, nullptr);
  const int32_t ab = subject.library.PieceToId("ab");
  int joined = 0, apart = 0;
  std::string text;
  for (int words = 0; words < 300; ++words) {
    text += "w ";
    ASSERT_TRUE(subject.same(text + "ab", 1000)) << words;
    ASSERT_TRUE(subject.same(text + "ab w ab", 1000)) << words;
    (subject.expected(text + "ab").back() == ab ? joined : apart) += 1;
  }
  EXPECT_GT(joined, 10);
  EXPECT_GT(apart, 10);

  // Where it beats them by more, the word alone decides up to some sum, remembered words counted.
  for (OwnPiece& p : recipe.pieces)
    if (p.text == "ab") p.score = -2.39994f;
  Subject wider("wider ties", recipe.write(), false);
  ASSERT_NE(wider.warm, nullptr);
  joined = apart = 0;
  text.clear();
  for (int words = 0; words < 3000; ++words) {
    text += "w ";
    if (words % 10 != 0) continue;
    ASSERT_TRUE(wider.same(text + "ab", 10000)) << words;
    (wider.expected(text + "ab").back() == ab ? joined : apart) += 1;
  }
  EXPECT_GT(joined, 10);
  EXPECT_GT(apart, 10);
}

TEST(Segmenter, SameIdsOnFuzzedStrings) {
  const char* wanted = std::getenv("XSR_FUZZ_STRINGS");
  const int64_t count = wanted != nullptr ? std::atoll(wanted) : 200000 / kShare;
  const char* seed = std::getenv("XSR_FUZZ_SEED");
  std::list<Subject> subjects = tiny_subjects();
  subjects.splice(subjects.end(), trained_subjects());
  RandomText random(seed != nullptr ? static_cast<uint32_t>(std::atoll(seed)) : 29,
                    read_lines(kData / "tiny-corpus.txt"));
  const int64_t each = count / static_cast<int64_t>(subjects.size()) + 1;
  for (Subject& subject : subjects) {
    for (int64_t i = 0; i < each; ++i) {
      ASSERT_TRUE(subject.same(random(subject.pieces), random_limit(random))) << i;
    }
  }
  std::printf("  %zu models, %lld strings each\n", subjects.size(), static_cast<long long>(each));
}

TEST(Segmenter, SameIdsOnRealText) {
  std::vector<fs::path> files;
  for (const char* folder : {"data/eval/tatoeba", "data/eval/flores200"}) {
    const fs::path path = test::shared_folder() / folder;
    if (!fs::exists(path)) {
      GTEST_SKIP() << "no " << path << "; XSR_SHARED names the folder above";
    }
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  std::list<Subject> subjects = trained_subjects();
  const size_t trained = subjects.size();
  subjects.splice(subjects.end(), tiny_subjects());
  size_t lines = 0, in_file = 0, tokens = 0;
  for (const fs::path& file : files) {
    in_file = 0;
    for (const std::string& line : read_lines(file)) {
      ++lines;
      ++in_file;
      size_t at = 0;
      for (Subject& subject : subjects) {
        // Every line for the trained models, a few for each of the others.
        const size_t step = at < trained ? 1 : 400;
        if ((in_file + at++) % (step * kShare) != 0) continue;
        ASSERT_TRUE(subject.same(line, 1 + in_file % 40)) << file << ":" << in_file;
        if (at == 1) tokens += subject.expected(line).size();
      }
    }
  }
  EXPECT_GT(lines, 177000u);
  std::printf("  %zu files, %zu lines, %zu tokens of the first of %zu + %zu models\n", files.size(),
              lines, tokens, trained, subjects.size() - trained);
}

TEST(Segmenter, ManyThreadsEachWithAState) {
  const std::vector<std::string> corpus = read_lines(kData / "tiny-corpus.txt");
  Recipe recipe(read_file(kData / "tiny-unigram.spm.model"));
  std::erase_if(recipe.pieces, [](const OwnPiece& p) { return p.type == PieceType::kUserDefined; });
  recipe.charsmap.clear();
  const Subject subject("tiny-unigram", recipe.write(), true);
  ASSERT_NE(subject.warm, nullptr);
  std::vector<std::vector<int32_t>> expected;
  for (const std::string& line : corpus) expected.push_back(subject.expected(line));
  std::vector<std::thread> threads;
  std::vector<int> same(4, 1);
  for (size_t t = 0; t < same.size(); ++t) {
    threads.emplace_back([&, t] {
      const auto state = subject.ours->make_state(t % 2 == 0 ? 2048 : 1 << 20);
      for (int pass = 0; pass < 50; ++pass) {
        for (size_t i = 0; i < corpus.size(); ++i) {
          std::vector<int32_t> ids;
          subject.ours->encode(corpus[i], kNoLimit, ids, state.get());
          same[t] &= ids == expected[i];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(same, std::vector<int>(4, 1));
}

WordMemo::Key key_of(std::string_view word) {
  WordMemo::Key key;
  std::memcpy(key.words, word.data(), word.size());
  key.size = word.size();
  return key;
}

TEST(WordMemo, RemembersWhatItWasToldWithinItsBound) {
  for (const size_t max_bytes :
       {size_t{0}, size_t{256}, size_t{1000}, size_t{1} << 16, size_t{3} << 20}) {
    WordMemo memo(max_bytes);
    std::unordered_map<std::string, int32_t> told;
    std::mt19937 rng(1);
    size_t found = 0;
    for (int32_t i = 0; i < 200000; ++i) {
      std::string word = std::to_string(rng() % (i % 3 == 0 ? 200000 : 60));
      word.insert(0, rng() % 4 * 8, '\0');  // NULs count
      const WordMemo::Key key = key_of(word);
      const WordMemo::Entry* entry = memo.find(key);
      if (entry != nullptr) {
        ++found;
        ASSERT_TRUE(told.count(word));
        ASSERT_EQ(entry->num_ids, 1);
        ASSERT_EQ(entry->ids[0], told[word]);
      } else {
        WordMemo::Entry& place = memo.insert(key);
        place.num_ids = 1;
        place.ids[0] = told[word] = i;
        ASSERT_EQ(memo.find(key), &place);
      }
    }
    EXPECT_LE(memo.bytes(), std::max<size_t>(max_bytes, 256));
    if (max_bytes >= 1 << 16) {
      EXPECT_GT(found, 100000u) << max_bytes;
    }
  }
}

TEST(WordMemo, StartsSmallAndKeepsAllWhileThereIsRoom) {
  WordMemo memo(Tokenizer::kDefaultMemoBytes);
  EXPECT_LE(memo.bytes(), 16384u);
  // A quarter of its places: it may forget a word where five fall together, not more.
  const int32_t count = static_cast<int32_t>(Tokenizer::kDefaultMemoBytes / 64 / 4);
  for (int32_t i = 0; i < count; ++i) {
    WordMemo::Entry& entry = memo.insert(key_of(std::to_string(i)));
    entry.num_ids = 1;
    entry.ids[0] = i;
  }
  int32_t kept = 0;
  for (int32_t i = 0; i < count; ++i) {
    const WordMemo::Entry* entry = memo.find(key_of(std::to_string(i)));
    if (entry == nullptr) continue;
    ASSERT_EQ(entry->ids[0], i);
    ++kept;
  }
  EXPECT_GT(kept, count - count / 100);
  EXPECT_LE(memo.bytes(), Tokenizer::kDefaultMemoBytes);
}

}  // namespace
}  // namespace xsr
