#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sys/resource.h>
#include <algorithm>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <sstream>
#include <thread>

#include "runtime/error.h"
#include "runtime/text/lowercase.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/tokenizer_tables.h"
#include "runtime/text/utf8.h"
#include "tests/support/files.h"
#include "tests/support/paths.h"
#include "tests/support/text.h"

namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using xsr::test::hex;
using xsr::test::read_file;
using xsr::test::shared_folder;
using xsr::test::utf8;
using namespace std::string_literals;

// Builds beside the first, and sanitizers, take one text in this many (tests/CMakeLists.txt).
constexpr int kShare = XSR_TEST_SHARE;

const fs::path kData = fs::path(XSR_SOURCE_DIR) / "tests/data";

std::string lowercase(std::string_view text) {
  std::string out;
  xsr::append_lowercase(text, out);
  return out;
}

std::string sanitize(std::string_view text) {
  std::string out;
  xsr::sanitize_utf8(text, out);
  return out;
}

// ---- UTF-8 ----

struct MalformedCase {
  std::string text;
  std::string expected;  // ? stands for U+FFFD
  uint32_t replaced;
};

// Expected values are Python's bytes.decode("utf-8", errors="replace").
const MalformedCase kMalformed[] = {
    {"", "", 0},
    {"plain ASCII, long enough for the wide loop", "plain ASCII, long enough for the wide loop", 0},
    {"a\0b"s, "a\0b"s, 0},
    {"\x80", "?", 1},
    {"\xBF\xBF", "??", 2},
    {"\xC0\x80", "??", 2},        // overlong NUL
    {"\xC1\xBF", "??", 2},        // overlong
    {"\xC2", "?", 1},             // truncated
    {"\xC2\x80", "\xC2\x80", 0},  // U+0080
    {"\xC2z", "?z", 1},
    {"\xE0\x80\x80", "???", 3},  // overlong
    {"\xE0\x9F\xBF", "???", 3},  // overlong
    {"\xE0\xA0\x80", "\xE0\xA0\x80", 0},
    {"\xE2\x82", "?", 2},  // truncated: one maximal subpart
    {"\xE2\x82z", "?z", 2},
    {"\xE2\x28\xA1", "?(?", 2},
    {"\xED\x9F\xBF", "\xED\x9F\xBF", 0},
    {"\xED\xA0\x80", "???", 3},  // surrogate U+D800
    {"\xED\xBF\xBF", "???", 3},  // surrogate U+DFFF
    {"\xEE\x80\x80", "\xEE\x80\x80", 0},
    {"\xEF\xBF\xBD", "\xEF\xBF\xBD", 0},  // U+FFFD itself is well-formed
    {"\xEF\xBF\xBF", "\xEF\xBF\xBF", 0},  // so are noncharacters
    {"\xF0\x80\x80\x80", "????", 4},      // overlong
    {"\xF0\x8F\xBF\xBF", "????", 4},
    {"\xF0\x90\x80\x80", "\xF0\x90\x80\x80", 0},
    {"\xF0\x9F\x98", "?", 3},
    {"\xF0\x9F\x98\xF0\x9F\x98\x80", "?\xF0\x9F\x98\x80", 3},
    {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF", 0},  // U+10FFFF
    {"\xF4\x90\x80\x80", "????", 4},              // above
    {"\xF5\x80\x80\x80", "????", 4},
    {"\xFE\xFF", "??", 2},
    {"\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64", "a???b?c??d",
     9},  // Unicode 15, table 3-8
    {"sixteen bytes ok\xC3(", "sixteen bytes ok?(", 1},
    {"1234567\xE9 89abcdef 0123456", "1234567? 89abcdef 0123456", 1},
};

TEST(Utf8, ReplacesMaximalSubparts) {
  for (const auto& c : kMalformed) {
    std::string expected;
    for (char b : c.expected) b == '?' ? expected += "\xEF\xBF\xBD" : expected += b;
    // At every offset in a longer text, so that the wide loop's edges are passed everywhere.
    for (size_t before = 0; before < 18; ++before) {
      for (size_t after : {0, 1, 7, 16, 40}) {
        const std::string left(before, 'l'), right(after, 'r');
        std::string out = "kept";
        EXPECT_EQ(xsr::sanitize_utf8(left + c.text + right, out), c.replaced) << hex(c.text);
        EXPECT_EQ(out, "kept" + left + expected + right) << hex(c.text);
        EXPECT_EQ(xsr::is_valid_utf8(left + c.text + right), c.replaced == 0) << hex(c.text);
        EXPECT_TRUE(xsr::is_valid_utf8(out)) << hex(c.text);
      }
    }
  }
}

TEST(Utf8, AcceptsEveryScalarValueAndNothingElse) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    ASSERT_EQ(xsr::is_valid_utf8(utf8(c)), !surrogate) << std::hex << static_cast<uint32_t>(c);
  }
}

// ---- Lower case ----

struct Golden {
  std::vector<std::pair<std::string, std::string>> texts;
  std::map<char32_t, std::string> letters;
  std::string version;
};

Golden read_golden() {
  Golden golden;
  std::ifstream in(kData / "lowercase_golden.txt");
  EXPECT_TRUE(in);
  for (std::string line; std::getline(in, line);) {
    if (line[0] == '#') {
      if (const size_t at = line.find("Unicode "); at != line.npos && line.back() == '.') {
        golden.version = line.substr(at + 8, line.size() - at - 9);
      }
      continue;
    }
    std::istringstream words(line);
    std::string sides[2], word;
    int side = 0, count = 0;
    char32_t first = 0;
    while (words >> word) {
      if (word == ">") {
        side = 1;
        continue;
      }
      const char32_t c = static_cast<char32_t>(std::stoul(word, nullptr, 16));
      if (side == 0 && count++ == 0) first = c;
      sides[side] += utf8(c);
    }
    if (count == 1) golden.letters[first] = sides[1];
    golden.texts.emplace_back(sides[0], sides[1]);
  }
  return golden;
}

TEST(Lowercase, EveryCodePointAsInPython) {
  const Golden golden = read_golden();
  EXPECT_GT(golden.letters.size(), 1300u);
  EXPECT_EQ(golden.version, xsr::kLowercaseUnicodeVersion);
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    const auto it = golden.letters.find(c);
    ASSERT_EQ(lowercase(utf8(c)), it == golden.letters.end() ? utf8(c) : it->second)
        << "U+" << std::hex << static_cast<uint32_t>(c);
  }
}

TEST(Lowercase, FinalSigmaAsInPython) {
  const Golden golden = read_golden();
  EXPECT_GT(golden.texts.size(), 1900u);
  for (const auto& [text, expected] : golden.texts) {
    EXPECT_EQ(lowercase(text), expected) << hex(text);
    // The wide ASCII loop must leave the same knowledge behind as the slow one.
    EXPECT_EQ(lowercase("ABCDEFGHIJ. " + text), "abcdefghij. " + expected) << hex(text);
  }
  EXPECT_EQ(lowercase("ABCDEFGH\u03A3"), "abcdefgh\u03C2");
  EXPECT_EQ(lowercase("ABCDEFG.\u03A3"), "abcdefg.\u03C2");  // a full stop is case-ignorable
  EXPECT_EQ(lowercase("ABCDEFG1\u03A3"), "abcdefg1\u03C3");
  EXPECT_EQ(lowercase("A.......\u03A3"), "a.......\u03C2");
  EXPECT_EQ(lowercase("1.......\u03A3"), "1.......\u03C3");
}

TEST(Lowercase, AsciiInEveryPosition) {
  for (int c = 0; c < 0x80; ++c) {
    for (size_t before = 0; before < 17; ++before) {
      std::string text(before, 'X'), expected(before, 'x');
      text += static_cast<char>(c);
      expected += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
      text += "YZ@[`{";
      expected += "yz@[`{";
      ASSERT_EQ(lowercase(text), expected) << c << " at " << before;
    }
  }
}

TEST(Lowercase, AppendsAndTakesLinearTime) {
  std::string out = "Kept ";
  xsr::append_lowercase("GOES Behind", out);
  EXPECT_EQ(out, "Kept goes behind");
  // Sigmas and case-ignorable letters for a megabyte: looking around every one of them would take
  // hours.
  std::string text = "A";
  while (text.size() < 1 << 20) text += "\u03A3'''";
  const auto start = std::chrono::steady_clock::now();
  const std::string lower = lowercase(text);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_EQ(lower.substr(lower.size() - 5), "\u03C2'''");
  EXPECT_EQ(lower.substr(0, 6), "a\u03C3'''");
}

// ---- Tokenizer ----

xsr::ModelConfig config_for(int32_t vocab_size, bool lower) {
  xsr::ModelConfig config;
  config.vocab_size = vocab_size;
  config.lowercase = lower;
  config.tokenizer = xsr::TokenizerKind::kSentencePiece;
  return config;
}

constexpr size_t kUnlimited = 1 << 20;

struct Subject {
  Subject(const std::string& name, const fs::path& path, bool lower)
      : name(name), lower(lower), blob(read_file(path)) {
    EXPECT_TRUE(library.LoadFromSerializedProto({blob.data(), blob.size()}).ok());
    ours = xsr::make_tokenizer(blob, config_for(library.GetPieceSize(), lower));
  }
  std::vector<int> expected(std::string_view text) const {
    std::string prepared = sanitize(text);
    if (lower) prepared = lowercase(prepared);
    std::vector<int> ids;
    EXPECT_TRUE(library.Encode({prepared.data(), prepared.size()}, &ids).ok());
    return ids;
  }
  std::string name;
  bool lower;
  std::string blob;
  sentencepiece::SentencePieceProcessor library;
  std::unique_ptr<xsr::Tokenizer> ours;
};

Subject tiny_bpe() { return {"tiny-bpe", kData / "tiny-bpe.spm.model", true}; }
Subject tiny_unigram() { return {"tiny-unigram", kData / "tiny-unigram.spm.model", false}; }
fs::path shared_model();

/// The tiny models, and the trained one where it is at hand.
std::list<Subject> all_subjects() {
  std::list<Subject> subjects;
  subjects.emplace_back("tiny-bpe", kData / "tiny-bpe.spm.model", true);
  subjects.emplace_back("tiny-unigram", kData / "tiny-unigram.spm.model", false);
  if (fs::exists(shared_model())) subjects.emplace_back("xsr-enfr-16k", shared_model(), true);
  return subjects;
}

fs::path shared_model() { return shared_folder() / "models/xsr-enfr-16k.spm.model"; }

/// Ids and the truncation flag for a few limits against the library's ids of the whole text.
testing::AssertionResult same_ids(const Subject& subject, std::string_view text) {
  const std::vector<int> expected = subject.expected(text);
  for (size_t limit : {kUnlimited, size_t{200}, size_t{3}, expected.size()}) {
    std::vector<int32_t> ids = {-7};
    const auto result = subject.ours->encode(text, limit, ids);
    std::vector<int32_t> wanted = {-7};
    wanted.insert(wanted.end(), expected.begin(),
                  expected.begin() + static_cast<ptrdiff_t>(std::min(limit, expected.size())));
    if (ids != wanted || result.truncated != (expected.size() > limit)) {
      size_t first = 0;
      while (first < ids.size() && first < wanted.size() && ids[first] == wanted[first]) ++first;
      return testing::AssertionFailure()
             << subject.name << ", limit " << limit << ": " << ids.size() - 1
             << " ids where the library gives " << expected.size() << " (first difference at "
             << first << "), truncated " << result.truncated << ", text of " << text.size()
             << " bytes: " << hex(text.substr(0, 200));
    }
  }
  return testing::AssertionSuccess();
}

class RandomText {
 public:
  explicit RandomText(uint32_t seed) : rng_(seed) {}

  std::string operator()(size_t characters) {
    std::string text;
    while (characters--) {
      switch (rng_() % 12) {
        case 0:
          text += ' ';
          break;
        case 1:
          text += utf8(scalar(0x110000));
          break;
        case 2:
          text += utf8(0x300 + rng_() % 0x70);  // combining marks
          break;
        case 3:
          text += utf8(0x2000 + rng_() % 0x70);  // spaces, joiners, dashes
          break;
        case 4:
          text += utf8(scalar(0x3000));
          break;
        case 5:
          text +=
              pick({"\u00A0",   "\u3000", "\uFB01",  "\u2026",       "\uFDFA", "\u2581", "  ",
                    "\t",       "\u200B", "\u00A8",  "\u2581\u2581", "<MASK>", "<sep>",  "<sep>x",
                    "the lake", " & ",    "e\u0301", "\u0130",       "\u03A3", "\r",     "\0"});
          break;
        case 6:
          text += static_cast<char>(rng_());  // malformed more often than not
          break;
        default:
          text += static_cast<char>('a' + rng_() % 26 - (rng_() % 4 == 0 ? 32 : 0));
      }
    }
    return text;
  }
  uint32_t below(uint32_t n) { return rng_() % n; }

 private:
  char32_t scalar(uint32_t end) {
    const char32_t c = rng_() % end;
    return c >= 0xD800 && c <= 0xDFFF ? 0x20 : c;
  }
  const char* pick(std::initializer_list<const char*> texts) {
    return texts.begin()[rng_() % texts.size()];
  }

  std::mt19937 rng_;
};

TEST(Tokenizer, SameIdsOnItsCorpusAndOnRandomUnicode) {
  const Subject subjects[] = {tiny_bpe(), tiny_unigram()};
  for (const Subject& subject : subjects) {
    std::ifstream in(kData / "tiny-corpus.txt");
    for (std::string line; std::getline(in, line);) ASSERT_TRUE(same_ids(subject, line));
    RandomText random(11);
    for (int i = 0; i < 20000 / kShare; ++i)
      ASSERT_TRUE(same_ids(subject, random(random.below(40))));
  }
}

TEST(Tokenizer, EdgeCases) {
  const Subject subjects[] = {tiny_bpe(), tiny_unigram()};
  for (const Subject& subject : subjects) {
    for (const std::string& text :
         {""s, " "s, "\t\r\n"s, "\0"s, "\0\0a\0"s, "\u200B"s, "\u3000 \u00A0"s, "\u2581"s,
          "a\u2581\u2581"s, " a"s, "a "s, "\xFF"s, "\u2603\u2603\u2603"s, "the lake"s, "the  lake"s,
          "<sep>x<sep>"s, "\u00A8"s, "fin\u0301"s}) {
      EXPECT_TRUE(same_ids(subject, text));
    }
    std::vector<int32_t> ids;
    const auto result = subject.ours->encode("a\xE2\x82z\xFF", 100, ids);
    EXPECT_EQ(result.replaced_bytes, 3u);
    ids.clear();
    EXPECT_FALSE(subject.ours->encode(" \t ", 100, ids).truncated);
    EXPECT_TRUE(ids.empty());
    EXPECT_TRUE(subject.ours->encode("word", 0, ids).truncated);
    EXPECT_TRUE(ids.empty());
  }
}

TEST(Tokenizer, SpecialTokensCountAndEmptyTextHasNone) {
  const Subject subject = tiny_bpe();
  xsr::ModelConfig config = config_for(400, true);
  config.cls_id = 2;
  config.sep_id = 3;
  config.add_cls = config.add_sep = true;
  const auto tokenizer = xsr::make_tokenizer(subject.blob, config);
  const std::vector<int> inner = subject.expected("The miller's cat");
  ASSERT_GE(inner.size(), 4u);
  std::vector<int32_t> ids;
  EXPECT_FALSE(tokenizer->encode("The miller's cat", inner.size() + 2, ids).truncated);
  std::vector<int32_t> wanted = {2};
  wanted.insert(wanted.end(), inner.begin(), inner.end());
  wanted.push_back(3);
  EXPECT_EQ(ids, wanted);
  ids.clear();
  EXPECT_TRUE(tokenizer->encode("The miller's cat", 4, ids).truncated);
  EXPECT_EQ(ids, (std::vector<int32_t>{2, inner[0], inner[1], 3}));
  ids.clear();
  EXPECT_FALSE(tokenizer->encode("  ", 4, ids).truncated);
  EXPECT_TRUE(ids.empty());
  for (size_t limit : {0, 1, 2}) {
    ids.clear();
    EXPECT_TRUE(tokenizer->encode("cat", limit, ids).truncated) << limit;
    EXPECT_LE(ids.size(), limit);
  }
}

TEST(Tokenizer, LongTextsAreCutExactly) {
  const auto subjects = all_subjects();
  std::string corpus = read_file(kData / "tiny-corpus.txt");
  for (char& c : corpus) c = c == '\n' ? ' ' : c;
  for (const Subject& subject : subjects) {
    // Near the sizes of the segments, where the cuts are found or not.
    RandomText random(5);
    for (int i = 0; i < 30; ++i) {
      std::string text;
      const size_t size = 500 + random.below(i % 2 ? 3000 : 20000);
      while (text.size() < size) {
        const size_t begin = random.below(static_cast<uint32_t>(corpus.size()) - 100);
        text += corpus.substr(begin, 1 + random.below(90));
        if (random.below(3) == 0) text += random(random.below(30));
        if (random.below(20) == 0) text.append(random.below(3000), ' ');
        if (random.below(40) == 0) {
          for (uint32_t n = random.below(1500); n > 0; --n) text += "\u2603";  // unknown
        }
        if (random.below(40) == 0) {
          for (uint32_t n = random.below(2000); n > 0; --n) text += "\u2581";
        }
      }
      ASSERT_TRUE(same_ids(subject, text)) << i;
    }
    std::string no_spaces;
    for (char c : corpus) {
      if (c != ' ') no_spaces += c;
    }
    std::string text;
    while (text.size() < 40000) text += no_spaces;
    EXPECT_TRUE(same_ids(subject, text));
    if (subject.name == "tiny-unigram") {
      while (text.size() < 150000) text += corpus;  // more than one of its segments
    }
    EXPECT_TRUE(same_ids(subject, text));
    EXPECT_TRUE(same_ids(subject, std::string(30000, 'a')));
    EXPECT_TRUE(same_ids(subject, std::string(30000, ' ')));
    EXPECT_TRUE(same_ids(subject, std::string(30000, ' ') + "word" + std::string(30000, ' ')));
  }
}

TEST(Tokenizer, TenMegabytesTakeBoundedTime) {
  const auto subjects = all_subjects();
  constexpr size_t kSize = 10'000'000 / kShare;
  const auto repeat = [](std::string_view part) {
    std::string text;
    while (text.size() < kSize) text += part;
    return text;
  };
  const std::pair<const char*, std::string> texts[] = {
      {"words", repeat("the miller's cat sleeps on the warm stones. ")},
      {"one word", repeat("themillerscatsleepsonthewarmstones")},
      {"one letter", repeat("a")},
      {"unknown letters", repeat("\u6F22\u5B57")},
      {"white space", repeat(" \u3000")},
      {"malformed", repeat("\xFF")},
      {"sigmas", repeat("\u03A3'")},
  };
  for (const Subject& subject : subjects) {
    for (const auto& [name, text] : texts) {
      std::vector<int32_t> ids;
      const auto start = std::chrono::steady_clock::now();
      const auto result = subject.ours->encode(text, 200, ids);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      rusage usage;
      getrusage(RUSAGE_SELF, &usage);
      std::printf("  %-13s %-16s %3zu ids, truncated %d, %.3f s, peak RSS %ld MiB\n",
                  subject.name.c_str(), name, ids.size(), result.truncated, seconds.count(),
                  usage.ru_maxrss / 1024);
      // Generous: sanitizers and busy machines. Unbounded work here is minutes to hours.
      EXPECT_LT(seconds.count(), 60) << subject.name << " " << name;
      if (name == "words"s || name == "one word"s) {
        EXPECT_TRUE(result.truncated);
        std::vector<int> expected = subject.expected(std::string_view(text).substr(0, 20000));
        expected.resize(200);
        EXPECT_EQ(ids, expected) << subject.name << " " << name;
      }
      if (name == "white space"s) {
        EXPECT_TRUE(ids.empty());
      }
      if (name == "malformed"s) {
        EXPECT_EQ(result.replaced_bytes, kSize);
      }
    }
  }
}

TEST(Tokenizer, ManyThreadsAtOnce) {
  const Subject subject = tiny_bpe();
  const std::string text = read_file(kData / "tiny-corpus.txt") +
                           read_file(kData / "tiny-corpus.txt") +
                           read_file(kData / "tiny-corpus.txt");
  const std::vector<int> expected = subject.expected(text);
  std::vector<std::thread> threads;
  std::vector<int> same(4, 1);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        std::vector<int32_t> ids;
        subject.ours->encode(text, kUnlimited, ids);
        same[t] &= ids == expected;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_THAT(same, testing::Each(1));
}

// ---- Against the trained model and the evaluation set ----

TEST(SharedTokenizer, TatoebaAndRandomUnicode) {
  const fs::path folder = shared_folder() / "data/eval/tatoeba";
  if (!fs::exists(folder) || !fs::exists(shared_model())) {
    GTEST_SKIP() << "no " << folder << " or " << shared_model()
                 << "; XSR_SHARED names their folder";
  }
  const Subject subject("xsr-enfr-16k", shared_model(), true);
  size_t files = 0, lines = 0, tokens = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().rfind("tatoeba.", 0) != 0) continue;
    ++files;
    std::ifstream in(entry.path(), std::ios::binary);
    for (std::string line; std::getline(in, line); ++lines) {
      if (lines % kShare != 0) continue;
      const std::vector<int> expected = subject.expected(line);
      std::vector<int32_t> ids;
      ASSERT_EQ(subject.ours->encode(line, kUnlimited, ids).replaced_bytes, 0u)
          << entry.path() << ":" << lines;
      ASSERT_EQ(ids, expected) << entry.path() << ": " << line;
      tokens += ids.size();
    }
  }
  EXPECT_GT(files, 200u);
  RandomText random(99);
  for (int i = 0; i < 100000 / kShare; ++i) {
    const std::string text = random(random.below(30));
    std::vector<int32_t> ids;
    subject.ours->encode(text, kUnlimited, ids);
    ASSERT_EQ(ids, subject.expected(text)) << hex(text);
  }
  std::printf("  %zu files, %zu lines, %zu tokens, %d random texts\n", files, lines, tokens,
              100000 / kShare);
}

TEST(SharedTokenizer, ExpectedIdsOfTheTrainedModel) {
  const fs::path path = shared_folder() / "models/xsr-enfr-16k.expected.safetensors";
  if (!fs::exists(path)) GTEST_SKIP() << "no " << path << "; XSR_SHARED names its folder";
  const Subject subject("xsr-enfr-16k", shared_model(), true);
  const std::string bytes = read_file(path);
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), 8);
  const auto header = nlohmann::json::parse(bytes.substr(8, header_size));
  const auto texts = nlohmann::json::parse(header["__metadata__"]["texts"].get<std::string>());
  const auto numbers = [&](const char* name) {
    const auto& t = header[name];
    EXPECT_EQ(t["dtype"], "I32") << name;
    const size_t begin = t["data_offsets"][0], end = t["data_offsets"][1];
    std::vector<int32_t> values((end - begin) / 4);
    std::memcpy(values.data(), bytes.data() + 8 + header_size + begin, end - begin);
    return values;
  };
  const std::vector<int32_t> ids = numbers("ids"), lens = numbers("lens");
  const size_t width = header["ids"]["shape"][1];
  ASSERT_EQ(texts.size(), lens.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<int32_t> got;
    subject.ours->encode(texts[i].get<std::string>(), 200, got);
    const auto row = ids.begin() + static_cast<ptrdiff_t>(i * width);
    EXPECT_EQ(got, std::vector<int32_t>(row, row + lens[i])) << i << ": " << texts[i];
  }
}

// ---- Broken models ----

std::string field(int number, std::string_view bytes) {
  std::string out(1, static_cast<char>(number << 3 | 2));
  for (size_t n = bytes.size();; n >>= 7) {
    out += static_cast<char>(n < 128 ? n : (n & 127) | 128);
    if (n < 128) break;
  }
  return out += bytes;
}
std::string number_field(int number, int value) {
  std::string tag;
  if (number < 16) {
    tag = std::string(1, static_cast<char>(number << 3));
  } else {
    tag = std::string{static_cast<char>((number << 3 & 127) | 128), static_cast<char>(number >> 4)};
  }
  return tag + static_cast<char>(value);
}
std::string piece(std::string_view text, int type = 1) {
  return field(1, field(1, text) + number_field(3, type));
}

TEST(TokenizerModel, BrokenOnesAreNamed) {
  const std::string unk = piece("<unk>", 2), bpe = field(2, number_field(3, 2));
  std::string nested = unk + bpe, charsmap(4, '\0');
  for (int i = 1; i < 70; ++i) nested += piece(std::string(i, 'x'), 4);
  charsmap[0] = 5;
  const std::pair<std::string, const char*> cases[] = {
      {"", "there are no pieces"},
      {"not a model at all", "SentencePiece model"},
      {"\x0A\xFF\x01"s, "a field of 255 bytes where 0 are left"},
      {"\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"s, "more than 10 bytes"},
      {"\x0B"s, "wire type 3"},
      {"\x02\x00"s, "field number 0"},
      {"\x08\x01"s, "expected bytes"},
      {field(1, field(1, "")), "0 bytes"},
      {unk + piece(std::string(5000, 'a')), "5000 bytes"},
      {unk + piece("a\0b"s), "piece 1 contains a NUL byte"},
      {unk + piece("a", 9), "type 9"},
      {unk + piece("a") + field(2, number_field(3, 7)), "model_type is 7"},
      {nested, "user-defined symbols"},
      {piece("a"), "unk is not defined"},
      {unk + piece("a") + piece("a"), "already defined"},
      {unk + piece("a") + field(3, field(2, charsmap)), "precompiled_charsmap"},
      {unk + piece("a") + field(2, number_field(35, 1)), "byte"},
  };
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  for (const auto& [blob, message] : cases) {
    try {
      xsr::make_tokenizer(blob, config_for(1000, false));
      ADD_FAILURE() << "accepted: " << hex(blob) << " (" << message << ")";
    } catch (const xsr::Error& e) {
      EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE) << message;
      EXPECT_THAT(e.what(), HasSubstr(message));
    }
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
}

// SentencePiece refuses such texts; found by tokenizer_model_fuzz.
TEST(TokenizerModel, AControlPieceInTheWayOfTextIsTheFilesFault) {
  const std::string chars = field(2, number_field(3, 4));
  const std::string blob = piece("<unk>", 2) + piece("a") + piece("l", 3) + chars;
  const auto tokenizer = xsr::make_tokenizer(blob, config_for(1000, false));
  std::vector<int32_t> ids;
  tokenizer->encode("a", kUnlimited, ids);
  EXPECT_FALSE(ids.empty());
  try {
    tokenizer->encode("al", kUnlimited, ids);
    ADD_FAILURE() << "accepted";
  } catch (const xsr::Error& e) {
    EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE);
    EXPECT_THAT(e.what(), HasSubstr("control piece"));
  }
}

TEST(TokenizerModel, DamagedOnesNeverCrash) {
  const std::string text =
      "The miller\u2026 e\u0301 \uFB01n\u00A0 <sep>x & the lake \u6F22\u5B57 " +
      std::string(300, 'a');
  testing::internal::CaptureStderr();
  for (const char* name : {"tiny-bpe.spm.model", "tiny-unigram.spm.model"}) {
    const std::string whole = read_file(kData / name);
    const auto attempt = [&](const std::string& blob) {
      try {
        const auto tokenizer = xsr::make_tokenizer(blob, config_for(1000, true));
        std::vector<int32_t> ids;
        tokenizer->encode(text, kUnlimited, ids);
        for (int32_t id : ids)
          ASSERT_LT(static_cast<uint32_t>(id), static_cast<uint32_t>(tokenizer->vocab_size()));
      } catch (const xsr::Error& e) {
        ASSERT_EQ(e.status(), XSR_STATUS_BAD_FILE) << e.what();
      }
    };
    for (size_t size = 0; size < whole.size(); size += 13) attempt(whole.substr(0, size));
    std::mt19937 rng(17);
    for (int i = 0; i < 1500; ++i) {
      std::string damaged = whole;
      for (uint32_t n = 1 + rng() % 3; n > 0; --n)
        damaged[rng() % damaged.size()] ^= static_cast<char>(1 + rng() % 255);
      attempt(damaged);
    }
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

// ---- Tables ready-made in a file ----

/// Tables of a model, to be spoiled; 64-byte aligned as in a file, and exactly as long, so that
/// ASan sees a read beyond them.
class Tables {
 public:
  explicit Tables(const std::vector<unsigned char>& bytes)
      : size_(bytes.size()),
        bytes_(static_cast<unsigned char*>(::operator new[](size_, std::align_val_t{64}))) {
    std::copy(bytes.begin(), bytes.end(), bytes_.get());
  }
  explicit Tables(std::string_view model) : Tables(xsr::make_tokenizer_tables(model)) {}

  std::span<const unsigned char> span() const { return {bytes_.get(), size_}; }
  unsigned char& operator[](size_t at) { return bytes_.get()[at]; }
  size_t size() const { return size_; }
  xsr::TokenizerTablesHead& head() {
    return *reinterpret_cast<xsr::TokenizerTablesHead*>(bytes_.get());
  }
  xsr::SentencePieceModel::Piece* pieces() {
    return reinterpret_cast<xsr::SentencePieceModel::Piece*>(bytes_.get() + layout().pieces);
  }
  xsr::PieceSlot* slots() {
    return reinterpret_cast<xsr::PieceSlot*>(bytes_.get() + layout().slots);
  }

 private:
  struct Delete {
    void operator()(unsigned char* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  xsr::TokenizerTablesLayout layout() { return xsr::TokenizerTablesLayout(head()); }
  size_t size_;
  std::unique_ptr<unsigned char, Delete> bytes_;
};

std::vector<int32_t> ids_of(const xsr::Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  tokenizer.encode(text, kUnlimited, ids);
  return ids;
}

TEST(TokenizerTables, AreUsedWhereTheyAreOfThisRevision) {
  const Subject subject = tiny_bpe();
  const xsr::ModelConfig config = config_for(400, true);
  Tables tables(subject.blob);
  const std::string text = "The miller's cat sleeps by the mill.";
  const std::vector<int32_t> wanted = ids_of(*subject.ours, text);
  EXPECT_EQ(ids_of(*xsr::make_tokenizer(subject.blob, tables.span(), config), text), wanted);
  EXPECT_NO_THROW(xsr::verify_tokenizer_tables(subject.blob, tables.span()));
  // Every place that holds the second id now holds the first.
  for (uint32_t i = 0; i < tables.head().num_slots; ++i) {
    if (tables.slots()[i].id == wanted[1]) tables.slots()[i].id = wanted[0];
  }
  EXPECT_NE(ids_of(*xsr::make_tokenizer(subject.blob, tables.span(), config), text), wanted);
  EXPECT_THROW(xsr::verify_tokenizer_tables(subject.blob, tables.span()), xsr::Error);
  ++tables.head().revision;
  EXPECT_EQ(ids_of(*xsr::make_tokenizer(subject.blob, tables.span(), config), text), wanted);
  EXPECT_NO_THROW(xsr::verify_tokenizer_tables(subject.blob, tables.span()));
}

TEST(TokenizerTables, AFunctionOfTheModelAlone) {
  for (const char* name : {"tiny-bpe", "tiny-unigram", "tiny-rules", "tiny-space-rule"}) {
    const std::string blob = read_file(kData / (std::string(name) + ".spm.model"));
    const std::vector<unsigned char> tables = xsr::make_tokenizer_tables(blob);
    EXPECT_EQ(xsr::make_tokenizer_tables(std::string(blob)), tables) << name;
    EXPECT_EQ(xsr::tokenizer_tables_for_file(blob), tables) << name;
  }
  EXPECT_THAT(xsr::tokenizer_tables_for_file("no model at all"), testing::IsEmpty());
}

// A char model is the library's to encode; it may see only what was parsed.
TEST(TokenizerTables, ModelsForTheLibraryHaveNone) {
  const std::string blob =
      piece("<unk>", 2) + piece("a") + piece("b") + field(2, number_field(3, 4));
  EXPECT_THAT(xsr::tokenizer_tables_for_file(blob), testing::IsEmpty());
  const Tables forced(blob);
  const xsr::ModelConfig config = config_for(3, false);
  const auto wanted = ids_of(*xsr::make_tokenizer(blob, config), "abba");
  EXPECT_EQ(ids_of(*xsr::make_tokenizer(blob, forced.span(), config), "abba"), wanted);
  EXPECT_EQ(wanted.size(), 5u);
  // Tables of another model lead to the parser too.
  EXPECT_THROW(xsr::make_tokenizer("not a model", forced.span(), config), xsr::Error);
}

TEST(TokenizerTables, BrokenOnesAreNamed) {
  const Subject subject = tiny_bpe();
  const auto expect_error = [&](const std::function<void(Tables&)>& spoil, const char* message) {
    Tables tables(subject.blob);
    spoil(tables);
    try {
      xsr::make_tokenizer(subject.blob, tables.span(), config_for(400, true));
      ADD_FAILURE() << "accepted: " << message;
    } catch (const xsr::Error& e) {
      EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE);
      EXPECT_THAT(e.what(), HasSubstr(message));
    }
  };
  const auto cut = [&](size_t size) {
    return [size](Tables& t) {
      t = Tables(std::vector<unsigned char>(t.span().begin(),
                                            t.span().begin() + static_cast<ptrdiff_t>(size)));
    };
  };
  expect_error(cut(4), "4 bytes, expected a head of 64");
  expect_error(cut(Tables(subject.blob).size() - 1), "do not go with their");
  expect_error([](Tables& t) { t.head().num_pieces = 0; }, "0 pieces");
  expect_error([](Tables& t) { t.head().num_pieces = 0xFFFFFFFF; }, "4294967295 pieces");
  expect_error([](Tables& t) { t.head().num_slots = 0; }, "0 and");
  expect_error([](Tables& t) { t.head().num_slots -= 8; }, "do not go with their");
  expect_error([](Tables& t) { t.head().text_bytes += 1; }, "do not go with their");
  expect_error([](Tables& t) { t.head().type = 5; }, "type 5");
  expect_error([](Tables& t) { t.head().flags |= 1u << 31; }, "flags");
  expect_error([](Tables& t) { t.head().charsmap_size = 0x7FFFFFFF; }, "reach beyond");
  expect_error([](Tables& t) { t.head().charsmap_begin = 0xFFFFFFFF; }, "reach beyond");
  expect_error([](Tables& t) { t.slots()[5].id = 400; }, "a place holds piece 400, expected -1 to");
  expect_error([](Tables& t) { t.slots()[5].id = -2; }, "a place holds piece -2");
  expect_error(
      [](Tables& t) {
        for (uint32_t i = 0; i < t.head().num_slots; ++i) t.slots()[i].id = 7;
      },
      "no place is empty");
  expect_error([](Tables& t) { t.pieces()[9].size = 0; }, "piece 9 has 0 bytes");
  expect_error([](Tables& t) { t.pieces()[9].begin = 0xFFFFFFFF; }, "from 4294967295 on");
  expect_error([](Tables& t) { t.pieces()[399].size += 1; }, "piece 399 has");
  expect_error([](Tables& t) { t.pieces()[9].type = static_cast<xsr::PieceType>(9); },
               "piece 9 has type 9");
  expect_error([](Tables& t) { t.pieces()[9].type = xsr::PieceType::kUnknown; },
               "unk is already defined");
  expect_error([](Tables& t) { t.head().flags |= xsr::kTablesByteFallback; }, "no byte piece");
}

// Pieces of the type unused are taken apart again one in another: their length bounds how deep.
TEST(TokenizerTables, PiecesAreNoLongerThanThoseOfAModel) {
  const std::string blob = piece("<unk>", 2) + piece("a") + piece(std::string(4096, 'a'), 5) +
                           piece("b") + field(2, number_field(3, 2));
  Tables tables(blob);
  EXPECT_NO_THROW(xsr::make_tokenizer(blob, tables.span(), config_for(4, false)));
  ++tables.pieces()[2].size;
  try {
    xsr::make_tokenizer(blob, tables.span(), config_for(4, false));
    ADD_FAILURE();
  } catch (const xsr::Error& e) {
    EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE);
    EXPECT_THAT(e.what(), HasSubstr("piece 2 has 4097 bytes"));
  }
}

TEST(TokenizerTables, DamagedOnesNeverCrash) {
  const std::string text =
      "The miller\u2026 e\u0301 \uFB01n\u00A0 <sep>x & the lake \u6F22\u5B57 " +
      std::string(300, 'a');
  for (const char* name : {"tiny-bpe.spm.model", "tiny-unigram.spm.model"}) {
    const std::string blob = read_file(kData / name);
    const std::vector<unsigned char> whole = xsr::make_tokenizer_tables(blob);
    std::mt19937 rng(17);
    for (int i = 0; i < 3000; ++i) {
      Tables damaged(whole);
      const bool in_head = i % 3 == 0;
      for (uint32_t n = 1 + rng() % 3; n > 0; --n) {
        const size_t at = in_head ? 4 + rng() % 60 : 4 + rng() % (damaged.size() - 4);
        damaged[at] ^= static_cast<unsigned char>(1 + rng() % 255);
      }
      try {
        const auto tokenizer = xsr::make_tokenizer(blob, damaged.span(), config_for(1000, true));
        for (int32_t id : ids_of(*tokenizer, text))
          ASSERT_LT(static_cast<uint32_t>(id), static_cast<uint32_t>(tokenizer->vocab_size()));
      } catch (const xsr::Error& e) {
        ASSERT_EQ(e.status(), XSR_STATUS_BAD_FILE) << e.what();
      }
    }
  }
}

TEST(TokenizerModel, VocabularyAndKind) {
  const Subject subject = tiny_bpe();
  EXPECT_EQ(subject.ours->vocab_size(), 400);
  EXPECT_NO_THROW(xsr::make_tokenizer(subject.blob, config_for(5000, true)));
  try {
    xsr::make_tokenizer(subject.blob, config_for(399, true));
    ADD_FAILURE();
  } catch (const xsr::Error& e) {
    EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE);
    EXPECT_THAT(e.what(), HasSubstr("400"));
    EXPECT_THAT(e.what(), HasSubstr("399"));
  }
  xsr::ModelConfig config = config_for(400, true);
  config.tokenizer = xsr::TokenizerKind::kNone;
  EXPECT_EQ(xsr::make_tokenizer("", config), nullptr);
  config.tokenizer = xsr::TokenizerKind::kWordPiece;
  try {
    xsr::make_tokenizer(subject.blob, config);
    ADD_FAILURE();
  } catch (const xsr::Error& e) {
    EXPECT_EQ(e.status(), XSR_STATUS_UNSUPPORTED);
  }
}

}  // namespace
