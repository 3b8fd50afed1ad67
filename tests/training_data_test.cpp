#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/text/line_reader.h"
#include "runtime/text/sentencepiece_model.h"
#include "runtime/text/tokenizer.h"
#include "tests/support/error_of.h"
#include "tests/support/files.h"
#include "tests/support/packing.h"
#include "tests/support/paths.h"
#include "training/data/held_out.h"
#include "training/data/log.h"
#include "training/data/pair_sampler.h"
#include "training/data/pair_stream.h"
#include "training/data/parallel_text.h"
#include "training/data/tokenized_corpus.h"
#include "training/data/tokenizer_training.h"

namespace xsr::training {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::gzip;
using test::read_file;
using test::zstd;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// Pairs of made-up words, `language` words on side 2; every line another pair.
std::string made_up_text(int lines, int language, uint32_t seed) {
  const char* syllables[] = {"ka", "mo", "ri", "te", "su", "ne", "lo", "pi", "da", "vu"};
  const auto random = [&seed] { return (seed = seed * 1664525u + 1013904223u) >> 8; };
  std::string text;
  for (int i = 0; i < lines; ++i) {
    for (int side : {0, 1}) {
      const int words = 2 + static_cast<int>(random() % 9);
      for (int w = 0; w < words; ++w) {
        const uint32_t word = random() % 200;
        if (w > 0) text += ' ';
        text += side == 0 ? "" : language == 0 ? "xi" : "zo";
        text += syllables[word % 10];
        text += syllables[word / 10 % 10];
        if (word >= 100) text += syllables[word % 7];
      }
      text += ' ' + std::to_string(i) + (i % 3 == 0 ? " !" : ".");
      text += side == 0 ? '\t' : '\n';
    }
  }
  return text;
}

class TrainingData : public testing::Test {
 protected:
  TrainingData() {
    folder_ = fs::temp_directory_path() / ("xsr-training-data-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    config_.tokenizer = TokenizerKind::kSentencePiece;
    config_.lowercase = true;
    config_.pad_id = 0;
    config_.unk_id = 1;
    config_.mask_id = 2;
    config_.vocab_size = 400;
    config_.max_seq_len = 40;
    log_.say = [this](const std::string& message) { said_ += message + "\n"; };
  }
  ~TrainingData() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }
  /// Trained once for all tests.
  static const std::string& tokenizer() {
    static const std::string model = [] {
      const std::string name =
          (fs::temp_directory_path() / ("xsr-tokenizer-" + std::to_string(::getpid()) + ".tsv"))
              .string();
      std::ofstream(name, std::ios::binary) << made_up_text(2000, 0, 1) << made_up_text(2000, 1, 2);
      LanguagePair languages[] = {{"a-b", {{name}}}};
      TokenizerOptions options;
      options.vocab_size = 400;
      std::string bytes = train_tokenizer(languages, options);
      fs::remove(name);
      return bytes;
    }();
    return model;
  }
  std::shared_ptr<const TokenizedCorpus> corpus(std::vector<LanguagePair> languages,
                                                const CorpusOptions& options = {}) {
    said_.clear();
    return TokenizedCorpus::open_or_build(path("cache"), languages, config_, tokenizer(), options,
                                          pool_, log_);
  }
  std::string corpus_error(std::vector<LanguagePair> languages, const CorpusOptions& options = {}) {
    return error_of([&] { corpus(std::move(languages), options); });
  }
  /// Three pairs of languages, of 300, 100 and 50 pairs.
  std::vector<LanguagePair> three_languages() {
    return {{"a-b", {{write("ab.tsv", made_up_text(300, 0, 3))}}},
            {"a-c", {{write("ac.tsv", made_up_text(100, 1, 4))}}},
            {"b-c", {{write("bc.tsv", made_up_text(50, 1, 5))}}}};
  }
  BatchBuilder builder(std::shared_ptr<const TokenizedCorpus> corpus, uint64_t seed = 7) {
    return {std::move(corpus), config_.mask_id, maskable_tokens(tokenizer(), config_), seed};
  }

  fs::path folder_;
  ModelConfig config_;
  ThreadPool pool_{2};
  DataLog log_;
  std::string said_;
};

std::vector<std::string> lines_of(const std::string& path) {
  LineReader reader(open_text(path, hash_file(path)), 1 << 20);
  LineBatch batch;
  std::vector<std::string> lines;
  while (reader.read(3, 1 << 20, batch))
    for (size_t i = 0; i < batch.size(); ++i) lines.emplace_back(batch.line(i));
  return lines;
}

/// What reading the whole file throws.
std::string reading_error(const std::string& path) {
  return error_of([&] { lines_of(path); });
}

SamplerOptions by_pairs(int32_t batch_pairs, int32_t pool_batches = 1) {
  SamplerOptions options;
  options.batch_pairs = batch_pairs;
  options.pool_batches = pool_batches;
  return options;
}

// ---- Files.

TEST_F(TrainingData, PlainGzipAndZstdGiveTheSameLines) {
  const std::string text = made_up_text(30000, 0, 1);  // several blocks
  const std::string half = text.substr(0, text.size() / 2), rest = text.substr(text.size() / 2);
  const auto plain = lines_of(write("plain", text));
  ASSERT_EQ(plain.size(), 30000u);
  EXPECT_EQ(lines_of(write("one.gz", gzip(text))), plain);
  EXPECT_EQ(lines_of(write("two.gz", gzip(half) + gzip(rest))), plain);  // two members
  EXPECT_EQ(lines_of(write("one.zst", zstd(text))), plain);
  EXPECT_EQ(lines_of(write("two.zst", zstd(half) + zstd(rest))), plain);  // two frames
  EXPECT_EQ(lines_of(write("long.zst", zstd(text, 27))), plain);
  EXPECT_EQ(
      lines_of(write("p.zst", test::kSkippedFrame + zstd(half) + test::kSkippedFrame + zstd(rest))),
      plain);
  EXPECT_THAT(reading_error(write("longer.zst", zstd(text, 28))), HasSubstr("--long=27"));
  EXPECT_TRUE(lines_of(write("empty", "")).empty());
  EXPECT_TRUE(lines_of(write("empty.gz", gzip(""))).empty());
  EXPECT_TRUE(lines_of(write("empty.zst", zstd(""))).empty());
}

TEST_F(TrainingData, PackedFilesThatAreCutOrDamagedNameFileAndLine) {
  const std::string text = made_up_text(20000, 0, 1);
  for (const bool gz : {true, false}) {
    const std::string name = gz ? "damaged.gz" : "damaged.zst";
    const std::string whole = gz ? gzip(text) : zstd(text);
    for (size_t size : {whole.size() - 1, whole.size() / 2, size_t{5}}) {
      EXPECT_THAT(reading_error(write(name, whole.substr(0, size))),
                  AllOf(HasSubstr(name), HasSubstr("ends early"), HasSubstr("after line")))
          << size;
    }
    std::string damaged = whole;
    damaged[whole.size() / 2] ^= 0x55;
    EXPECT_THAT(reading_error(write(name, damaged)), AllOf(HasSubstr(name), HasSubstr("damaged")));
    EXPECT_THAT(reading_error(write(name, whole + "this is no member")),
                HasSubstr("other data follows"));
  }
}

TEST_F(TrainingData, AFileThatIsNotWhatItWasIsAnError) {
  const std::string text = made_up_text(20000, 0, 1);
  const std::string name = write("changing.tsv", text);
  const ContentHash hash = hash_file(name);
  std::string same_size = text;
  same_size[text.size() - 5] ^= 1;
  const std::pair<std::string, const char*> cases[] = {
      {text.substr(0, text.size() / 2), "shrank while"},
      {text + "one\tmore\n", "grew while"},
      {same_size, "changed while"}};
  for (const auto& [bytes, what] : cases) {
    write("changing.tsv", text);
    LineReader reader(open_text(name, hash), 1 << 20);
    LineBatch batch;
    ASSERT_TRUE(reader.read(10, 1 << 20, batch));
    std::ofstream(name, std::ios::binary | std::ios::trunc) << bytes;  // the same file, being read
    const std::string error = error_of([&] {
      while (reader.read(10, 1 << 20, batch)) {
      }
    });
    EXPECT_THAT(error, AllOf(HasSubstr(name), HasSubstr(what), HasSubstr("after line")));
  }
}

TEST_F(TrainingData, WhatIsNoRegularFileIsAnError) {
  EXPECT_THAT(error_of([&] { hash_file(path("missing")); }),
              AllOf(HasSubstr("missing: cannot open"), HasSubstr("No such file")));
  EXPECT_THAT(error_of([&] { hash_file(folder_.string()); }), HasSubstr("is no regular file"));
  EXPECT_THAT(error_of([&] { hash_file("/dev/null"); }), HasSubstr("is no regular file"));
  EXPECT_THAT(error_of([&] { hash_file("-"); }), HasSubstr("is no regular file"));
}

TEST_F(TrainingData, ColumnsAreChosenAndSwapped) {
  std::string_view sides[2];
  const TextFile third{"x", 3, 1, 4};
  EXPECT_EQ(split_pair("a\tb\tc\td", false, third, sides), DropReason::kKept);
  EXPECT_THAT(sides, ElementsAre("c", "a"));
  EXPECT_EQ(split_pair("a\tb\tc", false, third, sides), DropReason::kFewColumns);
  EXPECT_EQ(split_pair(" a \tb\r", false, TextFile{"x"}, sides), DropReason::kKept);
  EXPECT_THAT(sides, ElementsAre("a", "b"));
  EXPECT_THAT(error_of([] { check(TextFile{"x", 1, 1}); }), HasSubstr("x: columns 1 and 1"));
  EXPECT_THAT(error_of([] { check(TextFile{"x", 0, 1}); }), HasSubstr("cannot be the two sides"));
  EXPECT_THAT(error_of([] { check(TextFile{"x", 1, 3, 2}); }), HasSubstr("of 2 cannot"));
}

// ---- Bad lines.

TEST_F(TrainingData, FilesOfOneNameAreOneLanguagePair) {
  const auto pairs = parse_language_pairs({"aa=x/one.tsv", "x/bb.tsv.gz", "aa=two.tsv"}, {3, 1}, 4);
  ASSERT_EQ(pairs.size(), 2u);
  EXPECT_EQ(pairs[0].name, "aa");
  ASSERT_EQ(pairs[0].files.size(), 2u);
  EXPECT_EQ(pairs[0].files[1].path, "two.tsv");
  EXPECT_EQ(pairs[0].files[1].first_column, 3);
  EXPECT_EQ(pairs[0].files[1].second_column, 1);
  EXPECT_EQ(pairs[0].files[1].num_columns, 4);
  EXPECT_EQ(pairs[1].name, "bb");
  EXPECT_EQ(pairs[1].files[0].path, "x/bb.tsv.gz");
}

TEST_F(TrainingData, AReportNamesThreeLinesOfAKind) {
  DropReport report;
  for (const char* line : {"x:1", "x:2", "x:3"}) report.add(DropReason::kShort, line);
  EXPECT_EQ(report.text(), "  3 lines: a side shorter than min_tokens (x:1; x:2; x:3)");
  report.add(DropReason::kShort, "x:4");
  report.add(DropReason::kRatio, "x:5");
  EXPECT_EQ(report.text(),
            "  4 lines: a side shorter than min_tokens (x:1; x:2; x:3; ...)\n"
            "  1 line: lengths further apart than max_ratio (x:5)");
}

TEST_F(TrainingData, BadLinesAreDroppedCountedAndNamed) {
  const std::string good = made_up_text(5, 0, 1);
  const std::string bad[] = {"only one column",
                             "one\ttwo\tthree",
                             "\tempty first side",
                             "empty second side\t",
                             "  \tonly spaces",
                             "x\t" + std::string(1 << 20, 'y'),
                             "latin-1 caf\xE9\tcoffee",
                             std::string("nul\0here\tx", 10),
                             ""};
  std::string text = good;
  for (const std::string& line : bad) text += line + "\n";
  text += "kamo with crlf\txikamo the same\r\nkamo without an end\txikamo";
  const std::string name = write("bad.tsv", text);
  const auto made = corpus({{"a-b", {{name}}}});
  EXPECT_EQ(made->num_pairs(), 7u);
  const DropReport& drops = made->parts()[0].drops;
  EXPECT_EQ(drops.lines, 16u);
  EXPECT_EQ(drops.kept, 7u);
  EXPECT_EQ(drops.dropped(), 9u);
  const auto count = [&](DropReason r) { return drops.counts[static_cast<size_t>(r)]; };
  EXPECT_EQ(count(DropReason::kFewColumns), 2u);
  EXPECT_EQ(count(DropReason::kManyColumns), 1u);
  EXPECT_EQ(count(DropReason::kEmptySide), 3u);
  EXPECT_EQ(count(DropReason::kLongLine), 1u);
  EXPECT_EQ(count(DropReason::kInvalidUtf8), 1u);
  EXPECT_EQ(count(DropReason::kNulByte), 1u);
  EXPECT_THAT(
      said_,
      AllOf(HasSubstr("a-b: 7 pairs of 16 lines"), HasSubstr(name + ":6: has 1 column, expected 2"),
            HasSubstr(name + ":7: has 3 columns, expected 2"),
            HasSubstr(name + ":8: column 1 is empty"), HasSubstr(name + ":9: column 2 is empty"),
            HasSubstr(name + ":11: has more than 262144 bytes"),
            HasSubstr(name + ":12: byte 12 is 0xE9"), HasSubstr(name + ":13: byte 4 is NUL")));
  // The line with CRLF has the ids of the same line without.
  std::vector<int32_t> crlf, lf;
  made->append_ids(5, 1, crlf);
  EXPECT_EQ(made->place(5), name + ":15");
  write("bad.tsv", "kamo with crlf\txikamo the same\n");
  corpus({{"a-b", {{name}}}})->append_ids(0, 1, lf);
  EXPECT_EQ(crlf, lf);
}

TEST_F(TrainingData, APairThatTheTokenizerCannotEncodeIsDropped) {
  // Of single characters: <unk>, a, and l as a control piece.
  const std::string model(
      "\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x03\x0a\x01"
      "a\x0a\x05\x0a\x01l\x18\x03\x12\x02\x18\x04",
      27);
  config_.vocab_size = 3;
  const LanguagePair pairs{"a-b", {{write("control.tsv", "a\taa\na\tal\naaa\ta\n")}}};
  const auto made =
      TokenizedCorpus::open_or_build(path("cache"), {pairs}, config_, model, {}, pool_, log_);
  ASSERT_EQ(made->num_pairs(), 2u);
  EXPECT_EQ(made->length(1, 0), made->length(0, 0) + 2);
  EXPECT_THAT(said_, HasSubstr("1 line: a control piece of the tokenizer in the text (" +
                               path("control.tsv") + ":2)"));
}

TEST_F(TrainingData, StrictMakesABadLineAnError) {
  CorpusOptions strict;
  strict.strict = true;
  const std::string text = made_up_text(3000, 0, 1);  // the bad line is not in the first chunk
  const std::string name = write("strict.tsv", text + "no tab\nnor here\n" + text + "none here\n");
  EXPECT_THAT(
      corpus_error({{"a-b", {{name}}}}, strict),
      AllOf(HasSubstr(name + ":3001: has 1 column, expected 2"), HasSubstr("Mend the line")));
  EXPECT_FALSE(fs::exists(path("cache")));
  EXPECT_FALSE(fs::exists(path("cache.partial")));
  EXPECT_THAT(corpus_error({{"a-b", {{write("none.tsv", "no tab\n")}}}}),
              AllOf(HasSubstr("not one pair is left of 1 lines"), HasSubstr("none.tsv:1")));
}

TEST_F(TrainingData, FiltersByLengthAndRatioSayWhatTheyDropped) {
  const std::string ten = "ka ka ka ka ka ka ka ka ka ka";
  const std::string name =
      write("lengths.tsv", "ka\txika\n" + ten + "\txika xika\n" + ten + " " + ten + " " + ten +
                               " " + ten + " " + ten + "\t" + ten + "\n" + ten + "\t" + ten + "\n");
  const auto all = corpus({{"a-b", {{name}}}});
  ASSERT_EQ(all->num_pairs(), 4u);
  EXPECT_EQ(all->length(2, 0), 40);  // cut
  EXPECT_EQ(all->parts()[0].drops.truncated, 1u);
  EXPECT_THAT(said_, HasSubstr("1 sentences cut to 40 tokens"));
  const std::string fifty = ten + " " + ten + " " + ten + " " + ten + " " + ten;
  const auto both = corpus({{"a-b", {{write("both.tsv", fifty + "\t" + fifty + "\n")}}}});
  EXPECT_EQ(both->parts()[0].drops.truncated, 2u);
  const int32_t one = all->length(0, 0), many = all->length(3, 0);
  ASSERT_LT(one, many);

  CorpusOptions options;
  options.min_tokens = std::max(all->length(0, 0), all->length(0, 1)) + 1;
  options.max_tokens = 40;
  options.max_ratio = 1.5;
  const auto some = corpus({{"a-b", {{name}}}}, options);
  EXPECT_TRUE(some->was_built());  // other options, another cache
  EXPECT_EQ(some->num_pairs(), 1u);
  EXPECT_EQ(some->place(0), name + ":4");
  const DropReport& drops = some->parts()[0].drops;
  EXPECT_EQ(drops.counts[static_cast<size_t>(DropReason::kShort)], 1u);
  EXPECT_EQ(drops.counts[static_cast<size_t>(DropReason::kRatio)], 1u);
  EXPECT_EQ(drops.counts[static_cast<size_t>(DropReason::kLong)], 1u);
  EXPECT_THAT(drops.text(), HasSubstr("lengths.tsv:1"));
  EXPECT_THAT(drops.text(), HasSubstr("lengths.tsv:3: 40 and " + std::to_string(many) +
                                      " tokens as cut to max_seq_len"));
  options.max_ratio = 1;  // sides of one length stay
  EXPECT_EQ(corpus({{"a-b", {{name}}}}, options)->place(0), name + ":4");
  options.max_ratio = 0.5;
  EXPECT_THAT(corpus_error({{"a-b", {{name}}}}, options), HasSubstr("max_ratio 0.5"));
  options = {};
  options.max_tokens = 41;
  EXPECT_THAT(corpus_error({{"a-b", {{name}}}}, options), HasSubstr("max_tokens 41"));
}

// ---- The tokenizer.

TEST_F(TrainingData, ATokenizerIsTrainedAndIsTheSameEveryTime) {
  LanguagePair languages[] = {{"a-b", {{write("t.tsv", made_up_text(2000, 0, 1))}}},
                              {"a-c", {{write("u.tsv", made_up_text(1000, 1, 2))}}}};
  TokenizerOptions options;
  options.vocab_size = 300;
  options.max_sentences = 1000;
  const std::string model = train_tokenizer(languages, options, log_);
  EXPECT_THAT(said_, HasSubstr("300 pieces on 998 of 6,000 sentences"));
  const SentencePieceModel parsed = parse_sentencepiece_model(model);
  ASSERT_EQ(parsed.pieces.size(), 300u);
  EXPECT_EQ(parsed.type, SentencePieceType::kBpe);
  EXPECT_EQ(parsed.text(parsed.pieces[0]), "<pad>");
  EXPECT_EQ(parsed.pieces[1].type, PieceType::kUnknown);
  EXPECT_EQ(parsed.text(parsed.pieces[2]), "<MASK>");
  EXPECT_EQ(parsed.pieces[2].type, PieceType::kUserDefined);
  for (size_t i = 3; i < parsed.pieces.size(); ++i)
    EXPECT_EQ(parsed.pieces[i].type, PieceType::kNormal) << i;
  EXPECT_FALSE(parsed.charsmap.empty());  // nmt_nfkc

  EXPECT_EQ(train_tokenizer(languages, options), model);
  options.seed = 2;
  EXPECT_NE(train_tokenizer(languages, options), model);
  options.seed = 1;
  options.character_coverage = 0.98;
  EXPECT_NE(train_tokenizer(languages, options), model);
  options.character_coverage = TokenizerOptions().character_coverage;
  // √2000 : √1000 of 2500 pairs, but no more than there are.
  options.max_sentences = 5000;
  options.temperature = 2;
  said_.clear();
  train_tokenizer(languages, options, log_);
  EXPECT_THAT(said_, HasSubstr("300 pieces on 4,928 of 6,000 sentences"));
  options = TokenizerOptions();
  options.vocab_size = 300;
  options.max_sentences = 1000;
  std::string capitals = read_file(path("t.tsv"));
  for (char& c : capitals) c = static_cast<char>(std::toupper(c));
  languages[0].files = {{write("T.tsv", capitals)}};
  options.lowercase = true;
  EXPECT_EQ(train_tokenizer(languages, options), model);
  options.lowercase = false;
  EXPECT_NE(train_tokenizer(languages, options), model);
  options.vocab_size = 100000;
  EXPECT_THAT(error_of([&] { train_tokenizer(languages, options); }),
              AllOf(HasSubstr("100000 pieces"), HasSubstr("fewer pieces")));
  options.vocab_size = 10;
  EXPECT_THAT(error_of([&] { train_tokenizer(languages, options); }), HasSubstr("10 pieces"));
}

TEST_F(TrainingData, TheTokenizersSampleHasAsManySentencesAsItSaysFromAllOfTheText) {
  // Each sentence has a letter of its own, which is a piece where the sentence is in the sample.
  constexpr int kPairs = 400, kWanted = 100;
  std::string text;
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int letter = 0x4E00 + i;
    text += "kamo rite ";
    text += {static_cast<char>(0xE0 | letter >> 12), static_cast<char>(0x80 | (letter >> 6 & 0x3F)),
             static_cast<char>(0x80 | (letter & 0x3F))};
    text += i % 2 == 0 ? '\t' : '\n';
  }
  LanguagePair languages[] = {{"a-b", {{write("letters.tsv", text)}}}};
  TokenizerOptions options;
  options.vocab_size = 240;
  options.character_coverage = 1;
  options.max_sentences = 2 * kWanted;
  const std::string bytes = train_tokenizer(languages, options);
  const SentencePieceModel model = parse_sentencepiece_model(bytes);
  std::set<std::string_view> pieces;
  for (const auto& piece : model.pieces) pieces.insert(model.text(piece));
  int quarters[4] = {};
  for (int i = 0; i < kPairs; ++i) {
    int sides = 0;
    for (int side : {0, 1}) {
      const size_t at = text.find(side == 0 ? '\t' : '\n', 1 + static_cast<size_t>(i) * 28) - 3;
      sides += pieces.contains(std::string_view(text).substr(at, 3));
    }
    EXPECT_NE(sides, 1) << i;
    quarters[i * 4 / kPairs] += sides == 2;
  }
  EXPECT_EQ(quarters[0] + quarters[1] + quarters[2] + quarters[3], kWanted);
  for (const int count : quarters) EXPECT_NEAR(count, kWanted / 4, 16);  // four deviations
}

TEST_F(TrainingData, ALineThatIsTooLongIsNotInTheTokenizersSample) {
  const std::string text = made_up_text(500, 0, 1);
  std::string wide = "\xCE\xB1\xCE\xB2\xCE\xB3";  // letters of no other line
  while (wide.size() < 300) wide += ' ' + wide;
  LanguagePair plain[] = {{"a-b", {{write("plain.tsv", text)}}}};
  LanguagePair longer[] = {{"a-b", {{write("longer.tsv", text + wide + '\t' + wide + '\n')}}}};
  TokenizerOptions options;
  options.vocab_size = 300;
  options.character_coverage = 1;
  options.max_line_bytes = 300;
  const std::string expected = train_tokenizer(plain, options);
  said_.clear();
  EXPECT_TRUE(train_tokenizer(longer, options, log_) == expected);
  EXPECT_THAT(said_, HasSubstr("on 1,000 of 1,000 sentences"));
  options.max_line_bytes = 2000;
  said_.clear();
  EXPECT_FALSE(train_tokenizer(longer, options, log_) == expected);
  EXPECT_THAT(said_, HasSubstr("on 1,002 of 1,002 sentences"));
}

// ---- The cache.

TEST_F(TrainingData, TheCacheHoldsTheTokenizersIds) {
  const auto languages = three_languages();
  std::map<int32_t, uint64_t> bytes;
  for (const int32_t vocab_size : {400, 65536, 65537}) {  // from here on ids take 32 bits
    config_.vocab_size = vocab_size;
    const auto made = corpus(languages);
    EXPECT_TRUE(made->was_built());
    ASSERT_EQ(made->num_pairs(), 450u);
    ASSERT_EQ(made->parts().size(), 3u);
    EXPECT_EQ(made->parts()[1].name, "a-c");
    EXPECT_EQ(made->parts()[1].first_pair, 300u);
    EXPECT_EQ(made->parts()[2].num_pairs, 50u);
    const auto reference = make_tokenizer(tokenizer(), config_);
    uint64_t pair = 0, tokens = 0;
    for (const LanguagePair& language : languages) {
      uint64_t line = 0;
      for (const std::string& text : test::read_lines(language.files[0].path)) {
        EXPECT_EQ(made->place(pair), language.files[0].path + ":" + std::to_string(++line));
        const size_t tab = text.find('\t');
        for (int side : {0, 1}) {
          std::vector<int32_t> ids, expected;
          reference->encode(side == 0 ? text.substr(0, tab) : text.substr(tab + 1), 40, expected);
          made->append_ids(pair, side, ids);
          ASSERT_EQ(ids, expected) << made->place(pair);
          tokens += ids.size();
        }
        ++pair;
      }
    }
    EXPECT_EQ(made->num_tokens(), tokens);
    bytes[vocab_size] = fs::file_size(path("cache"));
    // A hash is of the whole sentence.
    const std::string begin = "kamo rite sune lopi davu kamo rite ";
    const auto two =
        corpus({{"a-b", {{write("two.tsv", begin + "1\tkamo\n" + begin + "2\tkamo\n")}}}});
    EXPECT_NE(two->sentence_hash(0, 0), two->sentence_hash(1, 0));
    EXPECT_EQ(two->sentence_hash(0, 1), two->sentence_hash(1, 1));
  }
  EXPECT_EQ(bytes[400], bytes[65536]);
  EXPECT_GE(bytes[65537], bytes[400] + 2 * corpus(languages)->num_tokens() - 64);
}

TEST_F(TrainingData, TheCacheIsOpenedAgainAndMadeAgainWhenItsInputsChange) {
  auto languages = three_languages();
  EXPECT_TRUE(corpus(languages)->was_built());
  const std::string bytes = read_file(path("cache"));
  EXPECT_FALSE(corpus(languages)->was_built());
  EXPECT_EQ(said_, "");
  fs::copy_file(path("ab.tsv"), path("moved.tsv"));  // the same content elsewhere
  languages[0].files[0].path = path("moved.tsv");
  const auto moved = corpus(languages);
  EXPECT_FALSE(moved->was_built());
  EXPECT_EQ(moved->place(0), path("moved.tsv") + ":1");
  EXPECT_EQ(moved->parts()[0].drops.kept, 300u);
  // Any number of threads gives the same file.
  fs::remove(path("cache"));
  ThreadPool one(1);
  TokenizedCorpus::open_or_build(path("cache"), languages, config_, tokenizer(), {}, one);
  EXPECT_EQ(read_file(path("cache")), bytes);

  write("ac.tsv", made_up_text(100, 1, 44));
  EXPECT_TRUE(corpus(languages)->was_built());
  EXPECT_THAT(said_, HasSubstr("have changed"));
  languages[0].files[0].first_column = 2;
  languages[0].files[0].second_column = 1;
  EXPECT_TRUE(corpus(languages)->was_built());
  write("bc.tsv", std::regex_replace(made_up_text(50, 1, 5), std::regex("\n"), "\tthree\n"));
  languages[2].files[0].num_columns = 3;
  EXPECT_TRUE(corpus(languages)->was_built());
  languages[2].files[0].second_column = 3;
  EXPECT_TRUE(corpus(languages)->was_built());
  languages[2].files[0].first_column = 2;
  EXPECT_TRUE(corpus(languages)->was_built());
  config_.max_seq_len = 30;
  EXPECT_TRUE(corpus(languages)->was_built());
  config_.lowercase = false;
  EXPECT_TRUE(corpus(languages)->was_built());
  languages.pop_back();
  EXPECT_TRUE(corpus(languages)->was_built());
  EXPECT_FALSE(corpus(languages)->was_built());
  config_.unk_id = 3;
  EXPECT_TRUE(corpus(languages)->was_built());
  CorpusOptions options;
  options.max_line_bytes = 1 << 17;
  EXPECT_TRUE(corpus(languages, options)->was_built());
  options.strict = true;
  EXPECT_TRUE(corpus(languages, options)->was_built());
  options.min_tokens = 2;
  EXPECT_TRUE(corpus(languages, options)->was_built());
  options.max_tokens = 30;
  EXPECT_TRUE(corpus(languages, options)->was_built());
  options.max_ratio = 100;
  EXPECT_TRUE(corpus(languages, options)->was_built());
  languages[0].files[0].num_columns = 2;
  EXPECT_TRUE(corpus(languages, options)->was_built());
  // The same files, shared out among the language pairs in another way.
  languages[1].files.push_back({write("bc.tsv", made_up_text(50, 1, 5))});
  EXPECT_EQ(corpus(languages, options)->parts()[1].num_pairs, 150u);
  languages[0].files.push_back(languages[1].files[0]);
  languages[1].files.erase(languages[1].files.begin());
  EXPECT_EQ(corpus(languages, options)->parts()[1].num_pairs, 50u);
  EXPECT_FALSE(corpus(languages, options)->was_built());
  // Another tokenizer of as many pieces.
  std::string other = tokenizer();
  const size_t at = other.find("kamo");
  ASSERT_NE(at, other.npos);
  other.replace(at, 4, "komo");
  EXPECT_TRUE(
      TokenizedCorpus::open_or_build(path("cache"), languages, config_, other, options, pool_)
          ->was_built());
}

TEST_F(TrainingData, ADamagedCacheIsMadeAgain) {
  const auto languages = three_languages();
  corpus(languages);
  const std::string whole = read_file(path("cache"));
  // A bit anywhere, padding apart, which nothing reads.
  for (size_t at = 0; at < whole.size(); at += at < 144 ? 7 : whole.size() / 41) {
    if (at >= 144 && whole[at] == 0) continue;
    std::string damaged = whole;
    damaged[at] ^= 0x10;
    write("cache", damaged);
    EXPECT_TRUE(corpus(languages)->was_built()) << at;
    EXPECT_THAT(said_, HasSubstr("making the corpus cache: ")) << at;
    ASSERT_EQ(read_file(path("cache")), whole) << at;
  }
  for (size_t size : {size_t{0}, size_t{10}, size_t{144}, whole.size() / 2, whole.size() - 1}) {
    write("cache", whole.substr(0, size));
    EXPECT_TRUE(corpus(languages)->was_built()) << size;
    ASSERT_EQ(read_file(path("cache")), whole) << size;
  }
  write("cache", whole + "x");
  EXPECT_TRUE(corpus(languages)->was_built());
  write("cache", "something else");
  EXPECT_TRUE(corpus(languages)->was_built());
}

TEST_F(TrainingData, AKilledWriterLeavesTheOldCache) {
  const LanguagePair old{"a-b", {{write("old.tsv", made_up_text(100, 0, 9))}}};
  const LanguagePair big{"a-b", {{write("big.tsv", made_up_text(30000, 0, 10))}}};
  corpus({old});
  const std::string whole = read_file(path("cache"));
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ThreadPool one(1);  // threads do not come along in a fork
    DataLog log;
    log.progress = [](uint64_t, uint64_t, uint64_t lines) {
      if (lines > 10000) ::kill(::getpid(), SIGKILL);
    };
    try {
      TokenizedCorpus::open_or_build(path("cache"), {big}, config_, tokenizer(), {}, one, log);
    } catch (...) {
    }
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_TRUE(fs::exists(path("cache.partial")));
  EXPECT_EQ(read_file(path("cache")), whole);
  EXPECT_FALSE(corpus({old})->was_built());
  EXPECT_EQ(corpus({big})->num_pairs(), 30000u);
  EXPECT_FALSE(fs::exists(path("cache.partial")));
}

TEST_F(TrainingData, AStopLeavesTheOldCache) {
  const LanguagePair old{"a-b", {{write("old.tsv", made_up_text(100, 0, 9))}}};
  const LanguagePair big{"a-b", {{write("big.tsv", made_up_text(30000, 0, 10))}}};
  corpus({old});
  std::atomic<bool> stop{false};
  log_.stop = &stop;
  log_.progress = [&](uint64_t, uint64_t, uint64_t lines) { stop = lines > 10000; };
  EXPECT_THROW(corpus({big}), Stopped);
  EXPECT_FALSE(fs::exists(path("cache.partial")));
  // At the end of a file the next must not be taken for an empty one.
  stop = false;
  const LanguagePair two{"a-b", {old.files[0], {write("two.tsv", made_up_text(100, 0, 11))}}};
  log_.progress = [&](uint64_t, uint64_t, uint64_t lines) { stop = lines == 100; };
  EXPECT_THROW(corpus({two}), Stopped);
  stop = false;
  EXPECT_FALSE(corpus({old})->was_built());
}

TEST_F(TrainingData, AFileIsHashedOnceForTokenizerAndCache) {
  std::vector<LanguagePair> languages = {{"a-b", {{write("t.tsv", made_up_text(2000, 0, 1))}}}};
  TokenizerOptions options;
  options.vocab_size = 300;
  train_tokenizer(languages, options);
  EXPECT_EQ(languages[0].files[0].hash, hash_file(path("t.tsv")));
  std::string other = made_up_text(2000, 0, 1);
  other[0] = other[0] == 'x' ? 'y' : 'x';
  write("t.tsv", other);
  EXPECT_THAT(corpus_error(languages), HasSubstr("the file changed while it was being read"));
  languages[0].files[0].hash = {};
  EXPECT_TRUE(corpus(languages)->was_built());
}

TEST_F(TrainingData, TwoWritersOfOneFileAreKeptApart) {
  PartialFile first(path("shared"));
  EXPECT_THAT(error_of([&] { PartialFile second(path("shared")); }),
              AllOf(HasSubstr("shared.partial"), HasSubstr("another process is writing it")));
  first.write("whole", 5);
  first.overwrite(0, "W", 1);
  first.commit();
  EXPECT_EQ(read_file(path("shared")), "Whole");
  PartialFile third(path("shared"));  // the name is free again
}

TEST_F(TrainingData, AFullDiskIsAnErrorThatNamesTheFileAndLeavesTheOldCache) {
  const LanguagePair old{"a-b", {{write("old.tsv", made_up_text(100, 0, 9))}}};
  const LanguagePair big{"a-b", {{write("big.tsv", made_up_text(10000, 0, 10))}}};
  corpus({old});
  const std::string whole = read_file(path("cache"));
  tokenizer();
  // A limit on the size of files fails as a full disk does: the tokens at the first, the records,
  // which are kept apart, at the second.
  for (const rlim_t limit : {rlim_t{10000}, rlim_t{120000}}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit sizes{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &sizes);
      ThreadPool one(1);
      std::string error = "no error";
      try {
        TokenizedCorpus::open_or_build(path("cache"), {big}, config_, tokenizer(), {}, one);
      } catch (const Error& e) {
        error = e.what();
      }
      write("error", error);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_THAT(read_file(path("error")),
                AllOf(HasSubstr("cache.partial"), HasSubstr("too large")));
    EXPECT_FALSE(fs::exists(path("cache.partial")));
    EXPECT_FALSE(fs::exists(path("cache.partial.records")));
    EXPECT_EQ(read_file(path("cache")), whole);
  }
}

// ---- Held-out pairs.

TEST_F(TrainingData, HeldOutPairsShareNoSentenceWithTheOthers) {
  std::string text;
  // Every sentence of side 1 stands three times, with different sides 2.
  for (int i = 0; i < 600; ++i) {
    text += "kamo rite " + std::to_string(i / 3) + "\txi " + std::to_string(i % 40) + " sune\n";
  }
  const auto made = corpus(
      {{"a-b", {{write("dup.tsv", text)}}}, {"a-c", {{write("ac.tsv", made_up_text(100, 1, 4))}}}});
  const HeldOut held = hold_out(*made, 20, 5, pool_);
  ASSERT_EQ(held.dev.size(), 40u);
  int parts[2] = {};
  std::set<uint64_t> side[2], excluded(held.excluded.begin(), held.excluded.end());
  for (uint64_t pair : held.dev) {
    EXPECT_TRUE(excluded.contains(pair));
    for (int s : {0, 1}) EXPECT_TRUE(side[s].insert(made->sentence_hash(pair, s)).second);
    if (pair < 600) {
      EXPECT_EQ(pair % 3, 0u) << "of the three pairs of its sentence the first";
    }
  }
  EXPECT_TRUE(std::is_sorted(held.dev.begin(), held.dev.end()));
  EXPECT_GE(excluded.size(), 20u * 3 + 20);
  for (uint64_t pair = 0; pair < made->num_pairs(); ++pair) {
    EXPECT_EQ(excluded.contains(pair), side[0].contains(made->sentence_hash(pair, 0)) ||
                                           side[1].contains(made->sentence_hash(pair, 1)));
  }
  EXPECT_EQ(hold_out(*made, 20, 5, pool_).dev, held.dev);
  EXPECT_NE(hold_out(*made, 20, 6, pool_).dev, held.dev);
  EXPECT_TRUE(hold_out(*made, 0, 5, pool_).excluded.empty());
  for (uint64_t pair : hold_out(*made, 1000, 5, pool_).dev) parts[pair < 600 ? 0 : 1] += 1;
  EXPECT_THAT(parts, ElementsAre(testing::Le(300), 50)) << "at most half of each";
  EXPECT_EQ(pairs_shared_with(*made, *made, pool_).size(), made->num_pairs());

  PairSampler sampler(builder(made), held.excluded, by_pairs(10));
  DataPosition position;
  PairBatch batch;
  while (position.epoch == 0) {
    sampler.next(position, batch);
    for (uint64_t pair : batch.pair_numbers) EXPECT_FALSE(excluded.contains(pair));
  }
}

// ---- Batches.

TEST_F(TrainingData, EveryPairComesOnceAnEpochInAnotherOrder) {
  const auto made = corpus(three_languages());
  const std::vector<uint64_t> excluded = {0, 1, 2, 299, 300, 398, 399, 449};
  for (const int kind : {0, 1, 2, 3}) {
    SamplerOptions options;
    options.batch_pairs = 16;
    options.drop_last = false;
    if (kind == 1) options.pool_batches = 4;
    if (kind >= 2) options.batch_tokens = 300;
    if (kind == 3) options.pool_batches = 32;
    PairSampler sampler(builder(made), excluded, options);
    EXPECT_EQ(sampler.draws_per_epoch(), 442u);
    DataPosition position;
    PairBatch batch;
    std::vector<uint64_t> epochs[2];
    std::map<uint64_t, std::set<std::pair<uint8_t, int32_t>>> masks;  // of a pair
    uint64_t batches = 0;
    while (position.epoch < 2) {
      const uint64_t epoch = position.epoch;
      sampler.next(position, batch);
      batches += epoch == 0;
      EXPECT_LE(batch.num_pairs, 16);
      EXPECT_LE(batch.num_tokens(), kind >= 2 ? 300 : INT32_MAX);
      epochs[epoch].insert(epochs[epoch].end(), batch.pair_numbers.begin(),
                           batch.pair_numbers.end());
      for (int32_t i = 0; i < batch.num_pairs; ++i) {
        const uint8_t side = batch.masked_side[i];
        masks[batch.pair_numbers[i]].emplace(
            side, batch.masked_row[i] - batch.cu_seqlens[side * batch.num_pairs + i]);
      }
    }
    EXPECT_GT(std::count_if(masks.begin(), masks.end(),
                            [](const auto& pair) { return pair.second.size() == 2; }),
              300)
        << "of 442 pairs, masked anew in the second epoch";
    if (kind < 2) {
      EXPECT_EQ(batches, sampler.batches_per_epoch());
    }
    EXPECT_NE(epochs[0], epochs[1]);
    std::vector<int> parts[2];  // that the pairs are of, which come in another order too
    for (const int epoch : {0, 1}) {
      for (const uint64_t pair : epochs[epoch])
        parts[epoch].push_back(pair < 300 ? 0 : pair < 400 ? 1 : 2);
    }
    EXPECT_NE(parts[0], parts[1]);
    for (std::vector<uint64_t>& pairs : epochs) {
      EXPECT_FALSE(std::is_sorted(pairs.begin(), pairs.end()));
      std::sort(pairs.begin(), pairs.end());
      pairs.insert(pairs.end(), excluded.begin(), excluded.end());
      std::sort(pairs.begin(), pairs.end());
      ASSERT_EQ(pairs.size(), 450u) << kind;
      for (uint64_t i = 0; i < 450; ++i) ASSERT_EQ(pairs[i], i) << kind;
    }
  }
}

TEST_F(TrainingData, TheLastBatchIsDroppedOnDemand) {
  const auto made = corpus(three_languages());
  for (int32_t pool_batches : {1, 8}) {
    PairSampler sampler(builder(made), {}, by_pairs(64, pool_batches));
    EXPECT_EQ(sampler.batches_per_epoch(), 7u);
    DataPosition position;
    PairBatch batch;
    int batches = 0;
    for (; position.epoch == 0; ++batches) {
      sampler.next(position, batch);
      EXPECT_EQ(batch.num_pairs, 64);
    }
    EXPECT_EQ(batches, 7);
  }
  EXPECT_THAT(error_of([&] { PairSampler(builder(made), {}, by_pairs(451)); }),
              HasSubstr("one batch of 451 pairs is more than the 450"));
}

TEST_F(TrainingData, ABatchHasAtMostItsTokens) {
  const auto made = corpus(three_languages());
  const uint64_t pairs[] = {0, 1, 2};
  int64_t two = 0;
  for (uint64_t pair : {0, 1}) two += made->length(pair, 0) + made->length(pair, 1);
  EXPECT_EQ(builder(made).fitting(pairs, 16, two), 2u);
  EXPECT_EQ(builder(made).fitting(pairs, 16, two - 1), 1u);
  EXPECT_EQ(builder(made).fitting(pairs, 16, 1), 1u) << "a single one stays";
  EXPECT_EQ(builder(made).fitting(pairs, 2, 0), 2u);
  SamplerOptions options = by_pairs(16);
  options.batch_tokens = static_cast<int32_t>(made->longest_pair());
  EXPECT_NO_THROW(PairSampler(builder(made), {}, options));
  --options.batch_tokens;
  EXPECT_THAT(
      error_of([&] { PairSampler(builder(made), {}, options); }),
      HasSubstr("cannot hold the longest pair, which has " + std::to_string(made->longest_pair())));
}

TEST_F(TrainingData, TheLastTwoBatchesByTokensShareTheirPairs) {
  // Sizes of the batches of an epoch of pairs with so many words a side, the shortest pairs first.
  const auto sizes = [&](const std::vector<int>& words, int32_t batch_pairs, int32_t batch_words) {
    std::string text;
    for (const int count : words) {
      for (const char end : {'\t', '\n'}) {
        for (int i = 0; i < count; ++i) text += i == 0 ? "kamo" : " kamo";
        text += end;
      }
    }
    const auto made = corpus({{"a-b", {{write("equal.tsv", text)}}}});
    EXPECT_EQ(made->num_pairs(), words.size());
    const int32_t tokens_a_word = 2 * made->length(0, 0) / words[0];
    SamplerOptions options = by_pairs(batch_pairs, 16);
    options.batch_tokens = batch_words * tokens_a_word;
    PairSampler sampler(builder(made), {}, options);
    std::vector<std::pair<int32_t, int32_t>> batches;  // tokens a pair, size
    DataPosition position;
    PairBatch batch;
    while (position.epoch == 0) {
      sampler.next(position, batch);
      EXPECT_LE(batch.num_tokens(), options.batch_tokens);
      batches.emplace_back(batch.num_tokens() / batch.num_pairs, batch.num_pairs);
    }
    std::sort(batches.begin(), batches.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : a.second > b.second;
    });
    std::vector<int32_t> sizes;
    for (const auto& [length, size] : batches) sizes.push_back(size);
    return sizes;
  };
  const auto equal = [](int pairs) { return std::vector<int>(static_cast<size_t>(pairs), 1); };
  EXPECT_THAT(sizes(equal(20), 100, 6), ElementsAre(6, 6, 4, 4));  // not 6, 6, 6, 2
  EXPECT_THAT(sizes(equal(19), 100, 6), ElementsAre(6, 6, 4, 3));
  EXPECT_THAT(sizes(equal(7), 100, 6), ElementsAre(4, 3));
  EXPECT_THAT(sizes(equal(18), 100, 6), ElementsAre(6, 6, 6));
  EXPECT_THAT(sizes(equal(5), 100, 6), ElementsAre(5));
  EXPECT_THAT(sizes(equal(20), 6, 100), ElementsAre(6, 6, 4, 4));  // by pairs, which tokens allow
  // What would have more tokens than a batch may have stays as it is.
  EXPECT_THAT(sizes({1, 1, 1, 1, 1, 1, 6}, 100, 6), ElementsAre(6, 1));
  EXPECT_THAT(sizes({1, 1, 1, 1, 1, 1, 3}, 100, 6), ElementsAre(4, 3));
}

TEST_F(TrainingData, BatchesArePackedAndSortedWithinTheirPool) {
  const auto made = corpus(three_languages());
  PairSampler sampler(builder(made), {}, by_pairs(16, 8));
  PairSampler plain(builder(made), {}, by_pairs(16));
  DataPosition position, plain_position;
  PairBatch batch;
  const auto spread = [&](const PairBatch& b) {
    int32_t least = INT32_MAX, most = 0;
    for (uint64_t pair : b.pair_numbers) {
      const int32_t length = made->length(pair, 0) + made->length(pair, 1);
      least = std::min(least, length);
      most = std::max(most, length);
    }
    return most - least;
  };
  int sorted_spread = 0, plain_spread = 0;
  while (position.epoch == 0) {
    sampler.next(position, batch);
    sorted_spread += spread(batch);
    ASSERT_EQ(batch.cu_seqlens.size(), 33u);
    ASSERT_EQ(batch.num_tokens(), static_cast<int32_t>(batch.token_ids.size()));
    for (int32_t s = 0; s < 32; ++s) {
      const uint64_t pair = batch.pair_numbers[static_cast<size_t>(s % 16)];
      std::vector<int32_t> ids;
      made->append_ids(pair, s / 16, ids);
      const size_t i = static_cast<size_t>(s % 16);
      const int32_t first = batch.cu_seqlens[static_cast<size_t>(s)];
      if (batch.masked_side[i] == s / 16 && batch.masked_row[i] >= 0) {
        EXPECT_EQ(ids.at(static_cast<size_t>(batch.masked_row[i] - first)), batch.masked_id[i]);
        ids[static_cast<size_t>(batch.masked_row[i] - first)] = config_.mask_id;
      }
      EXPECT_EQ(ids, std::vector<int32_t>(
                         batch.token_ids.begin() + first,
                         batch.token_ids.begin() + batch.cu_seqlens[static_cast<size_t>(s) + 1]));
    }
    plain.next(plain_position, batch);
    plain_spread += spread(batch);
  }
  EXPECT_LT(3 * sorted_spread, plain_spread);

  // The shortest of a pool comes anywhere in it, and elsewhere in the next epoch.
  std::set<uint64_t> places[2];  // of pool 0's, and of pool 1's
  while (position.epoch < 21) {
    std::map<int32_t, uint64_t> by_length;  // place of a batch
    const uint64_t pool = position.pool;
    for (const uint64_t epoch = position.epoch; position.epoch == epoch && position.pool == pool;) {
      const uint64_t place = position.batch;
      sampler.next(position, batch);
      by_length.emplace(batch.num_tokens(), place);
    }
    if (pool < 2) places[pool].insert(by_length.begin()->second);
  }
  for (const auto& found : places) EXPECT_GE(found.size(), 5u) << "of 8, in 20 epochs";
}

TEST_F(TrainingData, ARunResumesAtAnyBatch) {
  const auto made = corpus(three_languages());
  const std::vector<uint64_t> excluded = {5, 301};
  for (const int kind : {0, 1, 2}) {
    SamplerOptions options;
    options.seed = 11;
    options.batch_pairs = 16;
    if (kind >= 1) options.pool_batches = 4;
    if (kind == 2) options.batch_tokens = 300;
    if (kind == 1) options.weights = {1, 1, 2};
    PairSampler sampler(builder(made), excluded, options);
    std::vector<DataPosition> positions;
    std::vector<PairBatch> batches;
    DataPosition position;
    while (position.epoch < 3) {
      positions.push_back(position);
      sampler.next(position, batches.emplace_back());
    }
    for (size_t at = 0; at < batches.size(); at += 5) {
      PairStream stream(PairSampler(builder(made), excluded, options), positions[at], 3);
      for (size_t i = at; i < std::min(batches.size(), at + 12); ++i) {
        PairBatch batch;
        const PairBatch* ahead = nullptr;
        while (i % 2 == 0 && (ahead = stream.peek()) == nullptr) std::this_thread::yield();
        if (ahead != nullptr) {
          ASSERT_TRUE(*ahead == batches[i]) << "kind " << kind << ", ahead of " << i;
        }
        EXPECT_EQ(stream.position(), positions[i]);
        stream.next(batch);
        ASSERT_TRUE(batch == batches[i]) << "kind " << kind << " from " << at << " to " << i;
      }
    }
    options.seed = 12;
    PairBatch other;
    DataPosition begin;
    PairSampler(builder(made), excluded, options).next(begin, other);
    EXPECT_NE(other.pair_numbers, batches[0].pair_numbers);
    DataPosition wrong{0, 0, 10000};
    EXPECT_THAT(error_of([&] { sampler.next(wrong, other); }), HasSubstr("no batch 10000"));
    PairStream failing(PairSampler(builder(made), excluded, options), wrong);
    EXPECT_THAT(error_of([&] { failing.next(other); }), HasSubstr("no batch 10000"));
  }
}

TEST_F(TrainingData, LanguagesAreMixedByWeightAndTemperature) {
  const auto made = corpus(three_languages());
  const auto draws = [&](const SamplerOptions& options) {
    PairSampler sampler(builder(made), {}, options);
    std::vector<uint64_t> counts(3);
    std::vector<std::map<uint64_t, int>> seen(3);
    DataPosition position;
    PairBatch batch;
    while (position.epoch < 4) {
      sampler.next(position, batch);
      for (uint64_t pair : batch.pair_numbers) {
        const size_t l = pair < 300 ? 0 : pair < 400 ? 1 : 2;
        ++counts[l];
        ++seen[l][pair];
      }
    }
    // However a part is weighted, its pairs come equally often, give or take one.
    for (size_t l = 0; l < 3; ++l) {
      EXPECT_EQ(counts[l], 4 * sampler.draws_of_part(l));
      int least = INT32_MAX, most = 0;
      for (const auto& [pair, n] : seen[l]) {
        least = std::min(least, n);
        most = std::max(most, n);
      }
      if (seen[l].size() < made->parts()[l].num_pairs) least = 0;
      EXPECT_LE(most - least, 1) << l;
    }
    return counts;
  };
  SamplerOptions options;
  options.batch_pairs = 10;
  options.drop_last = false;
  EXPECT_THAT(draws(options), ElementsAre(1200, 400, 200));
  options.weights = {1, 1, 1};
  EXPECT_THAT(draws(options), ElementsAre(600, 600, 600));
  options.weights = {0, 1, 3};
  EXPECT_THAT(draws(options), ElementsAre(0, 4 * 38, 4 * 113));  // of 150 an epoch
  options.weights.clear();
  options.temperature = 2;  // √300 : √100 : √50 of 450
  EXPECT_THAT(draws(options), ElementsAre(4 * 227, 4 * 131, 4 * 93));
  // Pairs that are held out count for nothing: 16, 100 and 4 are left, √ of them of 120.
  std::vector<uint64_t> excluded;
  for (uint64_t pair = 16; pair < 446; ++pair)
    if (pair < 300 || pair >= 400) excluded.push_back(pair);
  const PairSampler fewer(builder(made), excluded, options);
  for (const auto& [l, count] : {std::pair(0, 30u), {1, 75u}, {2, 15u}})
    EXPECT_EQ(fewer.draws_of_part(static_cast<size_t>(l)), count) << l;
  options.temperature = 0;
  EXPECT_THAT(error_of([&] { PairSampler(builder(made), {}, options); }), HasSubstr("temperature"));
  options.temperature = 1;
  options.weights = {1, -1, 1};
  EXPECT_THAT(error_of([&] { PairSampler(builder(made), {}, options); }),
              HasSubstr("a-c: has a weight of -1"));
  options.weights = {1};
  EXPECT_THAT(error_of([&] { PairSampler(builder(made), {}, options); }), HasSubstr("1 weights"));
}

/// Of 300 pairs an epoch takes 150, so that every second epoch begins them anew.
TEST_F(TrainingData, APartIsWalkedInAnotherOrderEachTime) {
  const auto made = corpus(three_languages());
  SamplerOptions options;
  options.batch_pairs = 10;
  options.weights = {1, 1, 1};
  PairSampler sampler(builder(made), {}, options);
  ASSERT_EQ(sampler.draws_of_part(0), 150u);
  std::set<uint64_t> seen[4];
  DataPosition position;
  PairBatch batch;
  while (position.epoch < 4) {
    std::set<uint64_t>& here = seen[position.epoch];
    sampler.next(position, batch);
    for (uint64_t pair : batch.pair_numbers) {
      if (pair < 300) here.insert(pair);
    }
  }
  for (const auto& pairs : seen) EXPECT_EQ(pairs.size(), 150u);
  std::vector<uint64_t> both;
  std::set_intersection(seen[0].begin(), seen[0].end(), seen[2].begin(), seen[2].end(),
                        std::back_inserter(both));
  EXPECT_NEAR(both.size(), 75, 26);  // four standard deviations
}

TEST_F(TrainingData, MasksFollowThePaperAndOnlySeedVisitAndPair) {
  const LanguagePair one{"a-b", {{write("masks.tsv", made_up_text(4000, 0, 21))}}};
  const auto made = corpus({one});
  const BatchBuilder build = builder(made);
  const auto maskable = maskable_tokens(tokenizer(), config_);
  std::vector<BatchBuilder::Draw> draws;
  for (uint64_t pair = 0; pair < made->num_pairs(); ++pair) draws.push_back({pair, 0});
  PairBatch batch;
  build.build(draws, batch);
  int side_one = 0, first_half[2] = {}, masks[2] = {};  // of masks on a side
  // Masks on the first and the last that may have one, and how many are to be expected.
  int at_ends[2] = {};
  double expected = 0, variance = 0;
  for (size_t i = 0; i < draws.size(); ++i) {
    ASSERT_GE(batch.masked_row[i], 0);
    EXPECT_TRUE(maskable[static_cast<size_t>(batch.masked_id[i])]);
    EXPECT_EQ(batch.token_ids[static_cast<size_t>(batch.masked_row[i])], config_.mask_id);
    side_one += batch.masked_side[i];
    const size_t sentence = i + (batch.masked_side[i] ? draws.size() : 0);
    const int32_t first = batch.cu_seqlens[sentence], last = batch.cu_seqlens[sentence + 1];
    ASSERT_GE(batch.masked_row[i], first);
    ASSERT_LT(batch.masked_row[i], last);
    // Of the maskable tokens of the sentence, how many stand before the masked one?
    int before = 0, all = 0;
    for (int32_t row = first; row < last; ++row) {
      const bool may = row == batch.masked_row[i] ||
                       maskable[static_cast<size_t>(batch.token_ids[static_cast<size_t>(row)])];
      all += may;
      before += may && row < batch.masked_row[i];
    }
    at_ends[0] += before == 0;
    at_ends[1] += before == all - 1;
    expected += 1.0 / all;
    variance += (1 - 1.0 / all) / all;
    if (all % 2 == 0) {
      ++masks[batch.masked_side[i]];
      first_half[batch.masked_side[i]] += before < all / 2;
    }
  }
  // One token a pair, no more.
  EXPECT_EQ(std::count(batch.token_ids.begin(), batch.token_ids.end(), config_.mask_id), 4000);
  EXPECT_NEAR(side_one, 2000, 4 * 32);  // four standard deviations
  for (const int count : at_ends) EXPECT_NEAR(count, expected, 4 * std::sqrt(variance));
  for (int side : {0, 1}) {
    EXPECT_GT(masks[side], 500);
    EXPECT_NEAR(first_half[side], masks[side] / 2.0, 4 * std::sqrt(masks[side] / 4.0));
  }

  // A pair's mask is the same in any batch, and another at another visit or seed.
  int differ_visit = 0, differ_seed = 0;
  const BatchBuilder reseeded = builder(made, 7 + (uint64_t{1} << 32));  // all 64 bits count
  for (size_t i = 0; i < 200; ++i) {
    PairBatch alone;
    const auto column = [](const PairBatch& b, size_t k) {
      return b.masked_row[k] - b.cu_seqlens[k + (b.masked_side[k] ? b.pair_numbers.size() : 0)];
    };
    const auto mask = [&](const PairBatch& b, size_t k) {
      return std::make_pair(b.masked_side[k], column(b, k));
    };
    build.build(std::span(draws).subspan(i, 1), alone);
    EXPECT_EQ(mask(alone, 0), mask(batch, i));
    const BatchBuilder::Draw again[] = {{i, 1}};
    build.build(again, alone);
    differ_visit += mask(alone, 0) != mask(batch, i);
    reseeded.build(std::span(draws).subspan(i, 1), alone);
    differ_seed += mask(alone, 0) != mask(batch, i);
  }
  EXPECT_GT(differ_visit, 150);
  EXPECT_GT(differ_seed, 150);

  PairBatch unmasked;
  BatchBuilder(made, -1, {}, 7).build(draws, unmasked);
  EXPECT_EQ(std::count(unmasked.token_ids.begin(), unmasked.token_ids.end(), config_.mask_id), 0);
  EXPECT_EQ(unmasked.masked_id[0], -1);
}

TEST_F(TrainingData, PunctuationIsNotMasked) {
  const auto maskable = maskable_tokens(tokenizer(), config_);
  const SentencePieceModel model = parse_sentencepiece_model(tokenizer());
  std::set<std::string_view> spared;
  for (size_t id = 0; id < model.pieces.size(); ++id)
    if (!maskable[id]) spared.insert(model.text(model.pieces[id]));
  for (const char* piece : {"<pad>", "<MASK>", ".", "!", "\xE2\x96\x81", "\xE2\x96\x81!"})
    EXPECT_TRUE(spared.contains(piece)) << piece;
  EXPECT_LE(spared.size(), 7u);
  // A pair of punctuation alone has no mask; where one side has words, that one is masked.
  const auto made = corpus({{"a-b", {{write("punct.tsv", "!\t.\n! . !\txikamo\nkamo\t. .\n")}}}});
  PairBatch batch;
  const uint64_t pairs[] = {0, 1, 2};
  for (uint64_t seed = 0; seed < 20; ++seed) {
    builder(made, seed).build(pairs, batch);
    EXPECT_EQ(batch.masked_row[0], -1);
    EXPECT_EQ(batch.masked_id[0], -1);
    EXPECT_EQ(batch.masked_side[1], 1);
    EXPECT_GE(batch.masked_row[1], 0);
    EXPECT_EQ(batch.masked_side[2], 0);
    EXPECT_GE(batch.masked_row[2], 0);
  }
}

TEST_F(TrainingData, SpecialTokensAreNotMaskedWhateverTheirPiece) {
  const auto words = maskable_tokens(tokenizer(), config_);
  std::vector<int32_t> ids;  // of words
  for (size_t id = 3; id < words.size() && ids.size() < 4; ++id)
    if (words[id]) ids.push_back(static_cast<int32_t>(id));
  ASSERT_EQ(ids.size(), 4u);
  const auto spared = [&](int32_t ModelConfig::*special, int32_t id) {
    ModelConfig config = config_;
    config.*special = id;
    const auto maskable = maskable_tokens(tokenizer(), config);
    EXPECT_EQ(maskable.size(), words.size());
    for (size_t other = 3; other < maskable.size(); ++other) {
      const bool may = words[other] && static_cast<int32_t>(other) != id;
      EXPECT_EQ(maskable[other] != 0, may) << other;
    }
    return maskable[static_cast<size_t>(id)] == 0;
  };
  EXPECT_TRUE(spared(&ModelConfig::pad_id, ids[0]));
  EXPECT_TRUE(spared(&ModelConfig::mask_id, ids[1]));
  EXPECT_TRUE(spared(&ModelConfig::cls_id, ids[2]));
  EXPECT_TRUE(spared(&ModelConfig::sep_id, ids[3]));
  ModelConfig larger = config_;
  larger.vocab_size = 403;  // rows that the tokenizer never gives
  const auto maskable = maskable_tokens(tokenizer(), larger);
  ASSERT_EQ(maskable.size(), 403u);
  EXPECT_THAT(std::vector<int>(maskable.begin() + 400, maskable.end()), ElementsAre(0, 0, 0));
}

TEST_F(TrainingData, RealText) {
  const fs::path file = test::shared_folder() / "data/train/en-fr.tsv.zst";
  if (!fs::exists(file)) GTEST_SKIP() << file << " is not there";
  const fs::path model = test::shared_folder() / "models/xsr-enfr-16k.spm.model";
  const std::string blob = fs::exists(model) ? read_file(model) : std::string();
  if (blob.empty()) GTEST_SKIP() << model << " is not there";
  config_.vocab_size = 16000;
  config_.max_seq_len = 200;
  const std::vector<LanguagePair> languages = {{"en-fr", {{file.string()}}}};
  const auto made =
      TokenizedCorpus::open_or_build(path("cache"), languages, config_, blob, {}, pool_, log_);
  EXPECT_EQ(made->num_pairs() + made->parts()[0].drops.dropped(), 317807u);
  EXPECT_EQ(made->parts()[0].drops.dropped(), 0u) << made->parts()[0].drops.text();
  const HeldOut held = hold_out(*made, 1000, 1, pool_);
  EXPECT_EQ(held.dev.size(), 1000u);
  PairSampler sampler(BatchBuilder(made, config_.mask_id, maskable_tokens(blob, config_), 1),
                      held.excluded, by_pairs(128, 64));
  std::vector<uint8_t> seen(made->num_pairs());
  DataPosition position;
  PairBatch batch;
  uint64_t pairs = 0;
  while (position.epoch == 0) {
    sampler.next(position, batch);
    for (uint64_t pair : batch.pair_numbers) EXPECT_EQ(seen[pair]++, 0);
    pairs += batch.pair_numbers.size();
  }
  EXPECT_EQ(pairs, (made->num_pairs() - held.excluded.size()) / 128 * 128);
}

}  // namespace
}  // namespace xsr::training
