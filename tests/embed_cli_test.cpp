// Runs the built xsr-embed on the shipped model.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "runtime/device/isa_choice.h"
#include "runtime/format/xsr_file.h"
#include "runtime/text/progress.h"
#include "tests/support/packing.h"
#include "tests/support/sanitizers.h"
#include "tests/support/tensor_sources.h"
#include "tests/support/tool_test.h"
#include "xsr/xsr.h"

namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;
using testing::HasSubstr;
using testing::Not;
using xsr::test::gzip;
using xsr::test::kSkippedFrame;
using xsr::test::Outcome;
using xsr::test::ToolTest;
using xsr::test::zstd;

const std::string kTool = XSR_BINARY_DIR "/corpus/xsr-embed";
const std::string kModel = XSR_SOURCE_DIR "/models/xsr-multi.xsr";

class EmbedCli : public ToolTest {
 protected:
  EmbedCli() : ToolTest(kTool) {}
  void SetUp() override {
    ToolTest::SetUp();
    ASSERT_TRUE(fs::exists(kModel)) << kModel;
  }

  std::string read(const std::string& name) const { return xsr::test::read_file(path(name)); }
  Outcome embed(const std::string& arguments) const {
    return run("-m " + kModel + " " + arguments);
  }
};

/// The C API on the same model, for what the rows must be.
class Reference {
 public:
  explicit Reference(xsr_session_options options = {}) {
    char detail[256] = "";
    options.size = sizeof options;
    EXPECT_EQ(xsr_model_open(kModel.c_str(), nullptr, &model_, detail, sizeof detail),
              XSR_STATUS_OK)
        << detail;
    EXPECT_EQ(xsr_session_create(model_, &options, &session_, detail, sizeof detail), XSR_STATUS_OK)
        << detail;
    info_.size = sizeof info_;
    EXPECT_EQ(xsr_model_get_info(model_, &info_), XSR_STATUS_OK);
  }
  ~Reference() {
    xsr_session_destroy(session_);
    xsr_model_close(model_);
  }
  size_t columns() const { return static_cast<size_t>(info_.embedding_size); }
  int32_t max_tokens() const { return info_.max_seq_len; }
  int32_t vocab_size() const { return info_.vocab_size; }
  std::string row(const std::string& text) const {
    std::vector<float> values(columns());
    const xsr_text t = {text.data(), text.size()};
    EXPECT_EQ(xsr_session_embed_texts(session_, &t, 1, values.data(), nullptr), XSR_STATUS_OK);
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  }
  std::string ids(const std::string& text) const {
    std::vector<int32_t> ids(1000);
    size_t count = 0;
    EXPECT_EQ(xsr_session_tokenize(session_, {text.data(), text.size()}, ids.data(), ids.size(),
                                   &count, nullptr),
              XSR_STATUS_OK);
    std::string line;
    for (size_t i = 0; i < count; ++i) line += (i ? " " : "") + std::to_string(ids[i]);
    return line;
  }

 private:
  xsr_model* model_ = nullptr;
  xsr_session* session_ = nullptr;
  xsr_model_info info_ = {};
};

/// Lines that come again, in one batch (8 MiB of text) and in the next, get the bits they would get
/// if computed again; one too long to be remembered, too.
TEST_F(EmbedCli, RepeatedLinesAreComputedOnceAndChangeNothing) {
  std::string text;
  const auto distinct = [&text](int from, int to) {
    for (int i = from; i < to; ++i) text += "line " + std::to_string(i) + "\n";
  };
  std::string long_line;
  while (long_line.size() < 5000) long_line += "the cat sleeps ";
  for (int i = 0; i < 40; ++i) text += "Thank you.\n";
  text += long_line + "\n";
  distinct(0, 60);
  text += std::string(5 << 20, ' ') + "\n" + std::string(5 << 20, '\t') + "\n";
  distinct(40, 90);
  text += long_line + "\n";
  text += "Thank you.\nTHANK YOU.\n\n\n";
  write("in.txt", text);
  const Outcome once = embed("-i in.txt -o once.f32");
  EXPECT_EQ(once.exit_status, 0) << once.err;
  EXPECT_THAT(once.err, HasSubstr("xsr-embed: 158 lines, "));
  EXPECT_THAT(once.err, HasSubstr(" 61 repeated, "));  // 39 + 20 + 1 + the second blank line
  const Outcome again = embed("-i in.txt -o again.f32 --no-dedup");
  EXPECT_EQ(again.exit_status, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr(" 0 repeated, "));
  EXPECT_TRUE(read("once.f32") == read("again.f32"));
  const auto counts = [](const std::string& err) {
    const size_t begin = err.find("xsr-embed: ");
    return err.substr(begin, err.find(" empty") - begin);
  };
  EXPECT_EQ(counts(once.err), counts(again.err)) << "the same counts of tokens";
}

TEST_F(EmbedCli, RepeatedLinesOfIdsAndErrorsNameTheirLine) {
  write("in.txt", "5 6 7\n8\n5 6 7\n8\n9 x\n");
  const Outcome outcome = embed("--ids -i in.txt -o out.f32");
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("in.txt:5: \"x\" is no token id"));
}

TEST_F(EmbedCli, RowIIsLineI) {
  const Reference reference;
  const std::string row_bytes(reference.columns() * 4, '\0');
  const std::vector<std::string> lines = {
      "The cat sleeps.", "", "Le chat dort.", "nul \0 byte"s, "bad \xFF\xFF bytes", " \t ", "last"};
  std::string expected;
  for (const std::string& line : lines) expected += reference.row(line);
  EXPECT_EQ(expected.substr(row_bytes.size(), row_bytes.size()), row_bytes)
      << "a blank line is a zero vector";
  for (const char* end : {"\n", "\r\n"}) {
    for (bool final_end : {true, false}) {
      std::string text;
      for (size_t i = 0; i < lines.size(); ++i)
        text += lines[i] + (i + 1 < lines.size() || final_end ? end : "");
      write("in.txt", text);
      const Outcome outcome = embed("-i in.txt -o v.f32");
      ASSERT_EQ(outcome.exit_status, 0) << outcome.err;
      EXPECT_EQ(read("v.f32"), expected);
      EXPECT_THAT(outcome.err, HasSubstr("7 lines, "));
      EXPECT_THAT(outcome.err, HasSubstr(", 0 truncated, 2 empty, 0 repeated, 2 replaced bytes, "));
      EXPECT_EQ(outcome.out, "");
    }
  }
  // The same through standard input and output, and as npy and text.
  ASSERT_EQ(embed("-o - < in.txt").out, expected);
  ASSERT_EQ(embed("-i in.txt -o v.npy --threads 2").exit_status, 0);
  EXPECT_EQ(read("v.npy").substr(128), expected);
  EXPECT_THAT(read("v.npy"),
              HasSubstr("'shape': (7, " + std::to_string(reference.columns()) + ")"));
  ASSERT_EQ(embed("-q -i in.txt -o v.tsv").err, "");
  std::istringstream tsv(read("v.tsv"));
  std::string parsed;
  for (std::string word; tsv >> word;) {
    const float value = std::strtof(word.c_str(), nullptr);
    parsed.append(reinterpret_cast<const char*>(&value), 4);
  }
  EXPECT_EQ(parsed, expected);
}

TEST_F(EmbedCli, TheQkvTableIsThatOfASession) {
  const std::string text = "The cat sleeps.";
  write("in.txt", text);
  const Outcome outcome = embed("-i in.txt -o v.f32 --qkv-table");
  ASSERT_EQ(outcome.exit_status, 0) << outcome.err;
  xsr_session_options options = {};
  options.qkv_table = XSR_QKV_TABLE_ON;
  EXPECT_EQ(read("v.f32"), Reference(options).row(text));
  EXPECT_NE(read("v.f32"), Reference().row(text)) << "the sum is taken in another order";
}

TEST_F(EmbedCli, NormalizeIsThatOfASession) {
  const std::string text = "The cat sleeps.";
  write("in.txt", text + "\n\n" + text);
  const Outcome outcome = embed("-i in.txt -o v.f32 --normalize");
  ASSERT_EQ(outcome.exit_status, 0) << outcome.err;
  xsr_session_options options = {};
  options.normalize = XSR_NORMALIZE_ON;
  const std::string row = Reference(options).row(text);
  EXPECT_EQ(read("v.f32"), row + std::string(row.size(), '\0') + row);
  EXPECT_NE(row, Reference().row(text));
}

TEST_F(EmbedCli, IsaAndComputeAreThoseOfASession) {
  const std::string text = "The cat sleeps.";
  write("in.txt", text);
  xsr_session_options options = {};
  options.isa = XSR_ISA_REF;
  ASSERT_EQ(embed("-i in.txt -o isa.f32 --isa ref").exit_status, 0);
  EXPECT_EQ(read("isa.f32"), Reference(options).row(text));
  options.isa = XSR_ISA_AUTO;
  options.compute = XSR_COMPUTE_INT8;
  ASSERT_EQ(embed("-i in.txt -o int8.f32 --compute int8").exit_status, 0);
  EXPECT_EQ(read("int8.f32"), Reference(options).row(text));
  EXPECT_NE(read("int8.f32"), Reference().row(text));
}

TEST_F(EmbedCli, EmptyInput) {
  const Outcome outcome = embed("-o v.npy < /dev/null");
  EXPECT_EQ(outcome.exit_status, 0) << outcome.err;
  EXPECT_THAT(read("v.npy"), HasSubstr("'shape': (0, "));
  EXPECT_EQ(read("v.npy").size(), 128u);
  EXPECT_THAT(outcome.err, HasSubstr("0 lines, 0 tokens"));
}

TEST_F(EmbedCli, TokenIdsGiveTheTextsVectors) {
  const Reference reference;
  write("in.txt", reference.ids("The cat sleeps.") + "\r\n\n" + reference.ids("Le chat dort."));
  const Outcome outcome = embed("--ids -i in.txt -o v.f32");
  ASSERT_EQ(outcome.exit_status, 0) << outcome.err;
  EXPECT_EQ(read("v.f32"),
            reference.row("The cat sleeps.") + reference.row("") + reference.row("Le chat dort."));

  // Of a line beyond 16 MiB a number that goes across is not looked at.
  const std::string long_line = "5" + std::string((16 << 20) - 2, ' ') + "67 8";
  write("in.txt", long_line + "\n5\n");
  const Outcome cut = embed("--ids -i in.txt -o cut.f32");
  ASSERT_EQ(cut.exit_status, 0) << cut.err;
  EXPECT_THAT(cut.err, HasSubstr("2 lines, 2 tokens, 1 truncated, "));
  const std::string rows = read("cut.f32");
  EXPECT_EQ(rows.substr(0, rows.size() / 2), rows.substr(rows.size() / 2));

  for (const std::string& bad :
       {"x7"s, "-1"s, std::to_string(reference.vocab_size()), "99999999999999999999"s}) {
    write("in.txt", "1 2\n\n3 " + bad + " 4\n");
    const Outcome failed = embed("--ids -i in.txt -o bad.f32");
    EXPECT_EQ(failed.exit_status, 1);
    EXPECT_THAT(failed.err, HasSubstr("in.txt:3: \"" + bad + "\""));
    EXPECT_FALSE(fs::exists(path("bad.f32")));
    EXPECT_FALSE(fs::exists(path("bad.f32.partial"))) << "no row was written";
  }
}

TEST_F(EmbedCli, TenMegabyteLines) {
  const Reference reference;
  std::string words, letters;
  while (words.size() < 10'000'000) words += "the cat sleeps on the warm stone ";
  while (letters.size() < 10'000'000) letters += "thecatsleepsonthewarmstone";
  write("in.txt", words + "\nshort\n" + letters);
  const Outcome outcome = embed("-i in.txt -o v.f32");
  ASSERT_EQ(outcome.exit_status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("3 lines, "));
  EXPECT_THAT(outcome.err, HasSubstr(", 2 truncated, 0 empty"));
  // A megabyte has more tokens than the model takes, so the rest of the line cannot matter.
  EXPECT_EQ(read("v.f32"), reference.row(words.substr(0, 1 << 20)) + reference.row("short") +
                               reference.row(letters.substr(0, 1 << 20)));
  std::printf("  peak RSS %ld MiB\n", outcome.max_rss / 1024);
}

TEST_F(EmbedCli, ConstantMemory) {
  // Mostly blank lines: rows without the work. The large output would not fit the allowed growth.
  const auto peak = [&](int lines) {
    std::string text;
    for (int i = 0; i < lines; ++i) text += i % 50 == 0 ? "word\n" : "\n";
    write("in.txt", text);
    const Outcome outcome = embed("-i in.txt -o v.f32 --threads 1");
    EXPECT_EQ(outcome.exit_status, 0) << outcome.err;
    EXPECT_EQ(fs::file_size(path("v.f32")) % static_cast<size_t>(lines), 0u);
    return outcome.max_rss;
  };
  const long few = peak(20000), many = peak(60000);
  EXPECT_LT(many - few, 40 * 1024) << "KiB more for 40,000 lines more (80 MiB of vectors)";
}

TEST_F(EmbedCli, UsageAndFailures) {
  EXPECT_EQ(run("--help").exit_status, 0);
  EXPECT_EQ(embed("-i x -o v.npy --save-seconds nan").exit_status, 2);
  EXPECT_EQ(embed("-i x -o v.npy --device cuda:64").exit_status, 2);
  EXPECT_THAT(run("--version").out, HasSubstr(xsr_version_string()));
  write("in.txt", "a\n");
  EXPECT_EQ(run("-i in.txt -o v.npy").exit_status, 2);  // no model
  EXPECT_EQ(embed("-i in.txt").exit_status, 2);         // no output
  EXPECT_EQ(embed("-i in.txt -o v.npy --isa sse9").exit_status, 2);
  const Outcome ending = embed("-i in.txt -o v.bin");
  EXPECT_EQ(ending.exit_status, 2);
  EXPECT_THAT(ending.err, HasSubstr("v.bin"));
  const Outcome no_model = run("-m missing.xsr -i in.txt -o v.npy");
  EXPECT_EQ(no_model.exit_status, 1);
  EXPECT_THAT(no_model.err, HasSubstr("missing.xsr"));
  const Outcome no_input = embed("-i missing.txt -o v.npy");
  EXPECT_EQ(no_input.exit_status, 1);
  EXPECT_THAT(no_input.err, HasSubstr("missing.txt: cannot open: No such file"));
  EXPECT_EQ(run("-m in.txt -i in.txt -o v.npy").exit_status, 1);  // no model file
  EXPECT_EQ(embed("-i in.txt -o v.npy --threads 1025").exit_status, 2);
  write("same.tsv", "a\n");
  fs::create_symlink("same.tsv", path("link.tsv.partial"));
  for (const char* output : {"same.tsv", "link.tsv"}) {
    for (const char* input : {"-i ", "<"}) {
      const Outcome same = embed(input + "same.tsv -o "s + output);
      EXPECT_EQ(same.exit_status, 1);
      EXPECT_THAT(same.err, HasSubstr("is an input too, which would be overwritten"));
      EXPECT_EQ(read("same.tsv"), "a\n");
    }
  }
  fs::create_symlink(kModel, path("model.tsv"));
  EXPECT_THAT(run("-m model.tsv -i in.txt -o model.tsv").err, HasSubstr("model.tsv: is an input"));
  EXPECT_TRUE(fs::is_symlink(path("model.tsv")));
  EXPECT_EQ(embed("-i in.txt -o v.npy --device gpu").exit_status, 2);
  const Outcome no_library = wait_for(start("-m " + kModel + " -i in.txt -o v.npy --device cuda",
                                            "export XSR_CUDA_LIBRARY=/no/such/libxsr_cuda.so; "));
  EXPECT_EQ(no_library.exit_status, 1);
  EXPECT_THAT(no_library.err, HasSubstr("a CUDA session needs libxsr_cuda.so"));
  EXPECT_FALSE(fs::exists(path("v.npy")));
  EXPECT_FALSE(fs::exists(path("v.npy.partial")));
  const Outcome unnamed = wait_for(
      start("-m " + kModel + " -i in.txt -o v.npy --device cuda", "export XSR_CUDA_LIBRARY=; "));
  EXPECT_THAT(unnamed.err, Not(HasSubstr("has no xsr_cuda_encoder_create")))
      << "an empty name is none";
}

#ifdef XSR_CUDA_EMULATED_MODULE
/// The same rows on a CUDA device, emulated here, up to what f32 rounds; the same bytes on three.
TEST_F(EmbedCli, ACudaDeviceGivesTheSameVectors) {
  write("in.txt", "A black cat.\n\nUn chat noir.\nThe weather is fine today, is it not?\n");
  ASSERT_EQ(embed("-i in.txt -o cpu.f32").exit_status, 0);
  const auto on_device = [&](const std::string& arguments, const std::string& output) {
    const Outcome outcome =
        wait_for(start("-m " + kModel + " -i in.txt -o " + output + " " + arguments,
                       "export XSR_EMULATED_DEVICES=3 "
                       "XSR_CUDA_LIBRARY=" XSR_CUDA_EMULATED_MODULE "; "));
    EXPECT_EQ(outcome.exit_status, 0) << outcome.err;
    return read(output);
  };
  const std::string cpu = read("cpu.f32"), cuda = on_device("--device cuda", "cuda.f32");
  EXPECT_EQ(cuda, on_device("--device cuda:2,0,1", "three.f32"));
  ASSERT_EQ(cpu.size(), cuda.size());
  ASSERT_EQ(cpu.size(), 4 * 4 * Reference().columns());
  EXPECT_NE(cpu, cuda) << "did the device compute?";
  for (size_t i = 0; i < cpu.size(); i += 4) {
    float a, b;
    std::memcpy(&a, &cpu[i], 4);
    std::memcpy(&b, &cuda[i], 4);
    ASSERT_NEAR(a, b, 1e-5) << "element " << i / 4;
  }
  const Outcome no_device = wait_for(
      start("-m " + kModel + " -i in.txt -o v.npy --device cuda",
            "export XSR_EMULATED_DEVICES=0 XSR_CUDA_LIBRARY=" XSR_CUDA_EMULATED_MODULE "; "));
  EXPECT_EQ(no_device.exit_status, 1);
  EXPECT_THAT(no_device.err, HasSubstr("no CUDA device can be used"));
  EXPECT_FALSE(fs::exists(path("v.npy")));
}
#endif

/// Words that nobody can read are no failure, and no reason to write them elsewhere.
TEST_F(EmbedCli, StandardErrorMayBeFullOrClosed) {
  write("in.txt", "The cat sleeps.\n");
  ASSERT_EQ(embed("-i in.txt -o whole.npy").exit_status, 0);
  const auto shell = [&](const std::string& arguments) {
    return status_of("-m " + kModel + " " + arguments);
  };
  for (const std::string streams : {" 2>/dev/full", " 2>&-", " >&- 2>&-"}) {
    EXPECT_EQ(shell("-o v.npy <in.txt" + streams), 0) << streams;
    EXPECT_TRUE(read("v.npy") == read("whole.npy")) << streams;
    fs::remove(path("v.npy"));
    EXPECT_EQ(shell("-i missing.txt -o v.npy" + streams), 1) << streams;
    EXPECT_EQ(shell("-o v.bin <in.txt" + streams), 2) << streams;
  }
  EXPECT_EQ(shell("-i in.txt -o - >&- 2>err"), 1) << "nowhere to write to";
  EXPECT_THAT(read("err"), HasSubstr("standard output: cannot write: bad file descriptor"));
  EXPECT_EQ(status_of("--help >/dev/full 2>err"), 1);
  EXPECT_THAT(read("err"), HasSubstr("standard output: cannot write; is it closed"));
  EXPECT_EQ(shell("-o v.npy <&- 2>err"), 1) << "nothing to read";
  EXPECT_THAT(read("err"), HasSubstr("standard input: cannot read: Bad file descriptor"));
}

TEST_F(EmbedCli, AReaderThatGoesIsAFailure) {
  write("in.txt", std::string(2000, '\n'));  // more than a pipe holds
  const std::string command = "cd " + path("") + " && { " + kTool + " -m " + kModel +
                              " -i in.txt -o - 2>err; echo $? >status; } | :";
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(read("status"), "1\n");
  EXPECT_THAT(read("err"), HasSubstr("xsr-embed: standard output: cannot write: broken pipe"));
}

/// A failure does not wait for the rest of the input.
TEST_F(EmbedCli, ABadLineEndsTheRunWhileThePipeIsOpen) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const pid_t child = start("-m " + kModel + " --ids -i pipe -o v.npy");
  std::ofstream pipe(path("pipe"), std::ios::binary);
  // More than the first batch, which has 256 lines, and not all of the second.
  pipe << "x" << std::string(300, '\n') << std::flush;
  const Outcome outcome = wait_for(child);
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("pipe:1: \"x\" is no token id"));
}

TEST_F(EmbedCli, OtherArchivesAreRefused) {
  write("in.txt.xz",
        "\xFD"
        "7zXZ\0\n"s);
  for (const char* input : {"-i in.txt.xz", "<in.txt.xz"}) {
    const Outcome outcome = embed("-o v.npy "s + input);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr(": is xz data, expected text in UTF-8; unpack it first"));
    EXPECT_FALSE(fs::exists(path("v.npy")));
    EXPECT_FALSE(fs::exists(path("v.npy.partial")));
  }
  write("in.txt.bz2", "BZh91AY&SY\x8d\n");
  EXPECT_THAT(embed("-i in.txt.bz2 -o v.npy").err, HasSubstr(": is bzip2 data, expected text"));
  write("in.zip", "PK\x03\x04\n");
  EXPECT_THAT(embed("-i in.zip -o v.npy").err, HasSubstr(": is a zip archive, expected text"));
}

/// A token id a line, which is text too.
std::string id_lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += std::to_string(i % 40) + '\n';
  return text;
}

/// Sentences of which some come again, and blank lines.
std::string sentences(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += i % 7 == 0 ? "" : "Sentence number " + std::to_string(i % 50 * (i % 11)) + ".";
    text += '\n';
  }
  return text;
}

/// From a file, whatever its name, from standard input and from a pipe.
TEST_F(EmbedCli, PackedTextGivesTheSameBytes) {
  const std::string text = sentences(9000) + "The last line has no end";
  const std::string half = text.substr(0, 40000), rest = text.substr(40000);
  write("in.txt", text);
  write("a.txt.gz", gzip(text));
  write("b.txt.zst", zstd(text));
  write("c", gzip(half) + gzip(rest));
  write("d", kSkippedFrame + zstd(half) + kSkippedFrame + zstd(rest));
  ASSERT_EQ(embed("-i in.txt -o whole.npy").exit_status, 0);
  const std::string whole = read("whole.npy");
  for (const char* name : {"a.txt.gz", "b.txt.zst", "c", "d"}) {
    for (const auto& [before, input] :
         {std::pair{""s, "-i "s + name}, {""s, "-i - <"s + name}, {"cat "s + name + " | ", ""s}}) {
      const Outcome outcome = wait_for(start("-m " + kModel + " -o v.npy " + input, before));
      EXPECT_EQ(outcome.exit_status, 0) << outcome.err;
      EXPECT_THAT(outcome.err, HasSubstr("xsr-embed: 9,001 lines, "));
      EXPECT_TRUE(read("v.npy") == whole) << before << input;
      fs::remove(path("v.npy"));
    }
  }
  write("ids", "5 6 7\n\n8\n");
  write("ids.gz", gzip("5 6 7\n\n8\n"));
  ASSERT_EQ(embed("--ids -i ids -o ids.f32").exit_status, 0);
  ASSERT_EQ(embed("--ids -i ids.gz -o packed.f32").exit_status, 0);
  EXPECT_EQ(read("ids.f32"), read("packed.f32"));
}

/// A text that is still being copied costs no row before the place where it ends, and goes on once
/// it is whole: packed the same way, another way or not at all.
TEST_F(EmbedCli, PackedTextThatEndsEarlyKeepsItsRows) {
  const std::string text = sentences(30000);
  write("in.txt", text);
  write("in.txt.gz", gzip(text));
  write("in.txt.zst", zstd(text));
  ASSERT_EQ(embed("-i in.txt -q -o whole.npy").exit_status, 0);
  const std::string whole = read("whole.npy");
  const std::pair<std::string, std::string> cases[] = {
      {"in.txt.gz", "in.txt.zst"}, {"in.txt.zst", "in.txt"}, {"in.txt.gz", "in.txt.gz"}};
  for (const auto& [name, then] : cases) {
    const std::string packed = read(name);
    write("cut", packed.substr(0, packed.size() - 3));
    const Outcome outcome = embed("-i cut -q -o v.npy");
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("xsr-embed: cut: the "));
    EXPECT_THAT(outcome.err, HasSubstr(" data ends early, behind byte "));
    EXPECT_THAT(outcome.err,
                testing::ContainsRegex(" [(]after line [0-9]+[)] [(][0-9,]+ rows. The rows written "
                                       "are kept in v.npy.partial.[)] --resume goes on behind row "
                                       "[1-9][0-9,]*.\n"));
    EXPECT_FALSE(fs::exists(path("v.npy")));
    // Still not whole, until nothing is left to be done before the place where it ends.
    std::string note, before;
    do {
      before = read("v.npy.resume");
      const Outcome again = embed("-i cut -q --resume -o v.npy");
      EXPECT_THAT(again.err, HasSubstr(" --resume goes on behind row "));
      note = read("v.npy.resume");
    } while (then == "in.txt" && note != before);
    // Now even before what is done.
    write("cut", packed.substr(0, 50));
    const Outcome shorter = embed("-i cut -q --resume -o v.npy");
    EXPECT_EQ(shorter.exit_status, 1);
    EXPECT_THAT(shorter.err, HasSubstr("xsr-embed: cut: the "));
    EXPECT_THAT(shorter.err, HasSubstr(" data ends early, behind byte 50 of 50; "));
    EXPECT_EQ(read("v.npy.resume"), note);
    const Outcome resumed = embed("-i " + then + " --resume -o v.npy");
    EXPECT_EQ(resumed.exit_status, 0) << resumed.err;
    EXPECT_THAT(resumed.err, HasSubstr("going on behind row "));
    EXPECT_TRUE(read("v.npy") == whole);
    EXPECT_FALSE(fs::exists(path("v.npy.resume")));
    fs::remove(path("v.npy"));
  }
}

/// What is beside the products has bits of its own where they fall back to another set's kernels.
TEST_F(EmbedCli, RowsOfAnotherInstructionSetAreNotGoneOnWith) {
  using xsr::kernels::Isa;
  if (!xsr::kernels::isa_supported(Isa::kAvx512) || xsr::choose_isa("avx512") != Isa::kAvx512)
    GTEST_SKIP() << "avx512 is not available here";
  const std::string text = sentences(30000), packed = gzip(text);
  write("in.txt", text);
  write("cut.gz", packed.substr(0, packed.size() - 3));
  for (const std::string compute : {"bf16x3", "int8"}) {
    const std::string options = " --compute " + compute + " --resume -q -o v.f32";
    ASSERT_EQ(embed("-i cut.gz --isa avx512" + options).exit_status, 1);
    EXPECT_THAT(embed("-i in.txt --isa avx2" + options).err,
                HasSubstr("its rows would have other bits"));
    EXPECT_EQ(embed("-i in.txt --isa avx512" + options).exit_status, 0);
    ASSERT_EQ(embed("-i in.txt -q -o whole.f32 --isa avx512 --compute " + compute).exit_status, 0);
    EXPECT_TRUE(read("v.f32") == read("whole.f32"));
  }
}

/// What is wrong with it may show only at its end; rows of such a text are not gone on with.
TEST_F(EmbedCli, DamagedPackedTextGivesNoOutput) {
  const std::string text = sentences(30000);
  write("in.txt", text);
  ASSERT_EQ(embed("-i in.txt -q -o whole.npy").exit_status, 0);
  for (const std::string& packed : {gzip(text), zstd(text)}) {
    for (const size_t part : {2, 3, 5, 8}) {
      std::string damaged = packed;
      damaged[packed.size() / part] ^= 4;
      write("damaged", damaged);
      const Outcome outcome = embed("-i damaged -q -o v.npy");
      EXPECT_EQ(outcome.exit_status, 1);
      EXPECT_THAT(outcome.err, HasSubstr("xsr-embed: damaged: the "));
      EXPECT_THAT(outcome.err, HasSubstr(" data is damaged ("));
      EXPECT_THAT(outcome.err, HasSubstr("; copy it again, or pack the text again"));
      EXPECT_FALSE(fs::exists(path("v.npy")));
      const Outcome resumed = embed("-i in.txt -q --resume -o v.npy");
      if (resumed.exit_status == 0) {
        EXPECT_TRUE(read("v.npy") == read("whole.npy"));
      } else {
        EXPECT_THAT(resumed.err, HasSubstr("in.txt: differs in the first "));
        EXPECT_THAT(resumed.err, HasSubstr("remove v.npy.resume to begin anew"));
      }
      for (const char* name : {"v.npy", "v.npy.resume", "v.npy.partial"}) fs::remove(path(name));
    }
  }
}

/// Stopped and killed while it waits for more of a packed text.
TEST_F(EmbedCli, ARunOverPackedTextGoesOnToTheSameBytes) {
  const std::string text = sentences(30000), packed = gzip(text);
  write("in.txt", text);
  write("in.txt.gz", packed);
  write("in.txt.zst", zstd(text));
  ASSERT_EQ(embed("-i in.txt -q -o whole.npy").exit_status, 0);
  size_t part = packed.size() / 3;
  for (const int signal : {SIGTERM, SIGKILL}) {
    ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
    const std::string note = fs::exists(path("v.npy.resume")) ? read("v.npy.resume") : "";
    const pid_t child = start("-m " + kModel + " -i pipe --resume --save-seconds 0 -q -o v.npy");
    std::ofstream pipe(path("pipe"), std::ios::binary);
    pipe << packed.substr(0, part) << std::flush;
    for (int i = 0; i < 2400 && (!fs::exists(path("v.npy.resume")) || read("v.npy.resume") == note);
         ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(25));
    kill(child, signal);
    const Outcome outcome = wait_for(child);
    EXPECT_EQ(outcome.exit_status, signal == SIGKILL ? 128 + SIGKILL : 1);
    if (signal == SIGTERM) {
      EXPECT_THAT(outcome.err, HasSubstr("interrupted after "));
      EXPECT_THAT(outcome.err, HasSubstr("--resume goes on behind row "));
    }
    EXPECT_NE(read("v.npy.resume"), note);
    EXPECT_FALSE(fs::exists(path("v.npy")));
    fs::remove(path("pipe"));
    part *= 2;
  }
  write("other.gz", gzip("X" + text.substr(1)));
  EXPECT_THAT(embed("-i other.gz --resume -q -o v.npy").err,
              HasSubstr("other.gz: differs in the first "));
  EXPECT_EQ(embed("--resume -q -o v.npy <in.txt.zst").exit_status, 0);
  EXPECT_TRUE(read("v.npy") == read("whole.npy"));
}

/// Pipes of an event loop may be set not to block (node.js, ssh), for reader and writer alike.
TEST_F(EmbedCli, PipesThatDoNotBlockAreWaitedFor) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += std::to_string(i) + "\n";
  write("in.txt", text);
  ASSERT_EQ(embed("-i in.txt -o whole.f32").exit_status, 0);
  int to[2], from[2];
  ASSERT_EQ(pipe(to), 0);
  ASSERT_EQ(pipe(from), 0);
  const pid_t child = fork();
  if (child == 0) {
    for (const int fd : {to[0], from[1]}) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    dup2(to[0], STDIN_FILENO);
    dup2(from[1], STDOUT_FILENO);
    for (const int fd : {to[0], to[1], from[0], from[1]}) close(fd);
    execl(kTool.c_str(), kTool.c_str(), "-q", "-m", kModel.c_str(), "-o", "-", nullptr);
    _exit(127);
  }
  close(to[0]);
  close(from[1]);
  ASSERT_EQ(::write(to[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  close(to[1]);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // so that the pipe is full
  std::string rows;
  char block[4096];
  for (ssize_t size; (size = ::read(from[0], block, sizeof block)) > 0;)
    rows.append(block, static_cast<size_t>(size));
  close(from[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(rows == read("whole.f32")) << rows.size() << " bytes";
}

TEST_F(EmbedCli, WorksWhereNoThreadIsToBeHad) {
  if (xsr::test::kSlow) GTEST_SKIP() << "sanitizers take more addresses";
  write("in.txt", "The cat sleeps.\n\n" + std::string(20000, '\n') + "Le chat dort.\n");
  ASSERT_EQ(embed("-i in.txt -o whole.f32").exit_status, 0);
  const Outcome outcome =
      wait_for(start("-m " + kModel + " -i in.txt -o v.f32 --threads 1", xsr::test::kNoThreads));
  EXPECT_EQ(outcome.exit_status, 0) << outcome.err;
  EXPECT_TRUE(read("v.f32") == read("whole.f32"));
}

TEST_F(EmbedCli, FewerThreadsThanAskedForAreAFailure) {
  if (xsr::test::kSlow) GTEST_SKIP() << "sanitizers take more addresses";
  write("in.txt", "The cat sleeps.\n");
  // Stacks of 500 MB: some threads start, and are told to stop.
  const Outcome outcome = wait_for(start("-m " + kModel + " -i in.txt -o v.f32 --threads 8",
                                         "ulimit -s 500000 && ulimit -v 2000000 && "));
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("xsr-embed: cannot start 8 threads: "));
  EXPECT_THAT(outcome.err, HasSubstr("; ask for fewer threads"));
  EXPECT_THAT(outcome.err, Not(HasSubstr(" after 0;"))) << "or this says little";
}

TEST_F(EmbedCli, AFullDiskKeepsWholeRowsAndNoOutput) {
  write("in.txt", std::string(20000, '\n'));
  // The limit on a file's size, in blocks of 512 or 1,024 bytes, plays the full disk.
  const Outcome outcome =
      wait_for(start("-m " + kModel + " -i in.txt -o v.npy", "ulimit -f 20000; "));
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("xsr-embed: v.npy: "));
  EXPECT_THAT(outcome.err,
              HasSubstr(" rows. The rows written are kept in v.npy.partial. --resume goes on "));
  EXPECT_FALSE(fs::exists(path("v.npy")));
  const size_t row_bytes = Reference().columns() * 4,
               rows = fs::file_size(path("v.npy.partial")) / row_bytes;
  EXPECT_EQ(fs::file_size(path("v.npy.partial")), 128 + rows * row_bytes);
  EXPECT_THAT(read("v.npy.partial").substr(0, 128),
              HasSubstr("'shape': (" + std::to_string(rows) + ", "));
}

TEST_F(EmbedCli, AnInterruptKeepsWholeRowsAndNoOutput) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const pid_t child = start("-m " + kModel + " -i pipe -o v.npy");
  std::ofstream pipe(path("pipe"),
                     std::ios::binary);  // waits until the tool has opened the other end
  for (int i = 0; i < 9000; ++i) pipe << "\n";
  pipe << "half a li" << std::flush;
  for (int i = 0; i < 600 && !fs::exists(path("v.npy.partial")); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  kill(child, SIGHUP);
  const Outcome outcome = wait_for(child);  // although the pipe is still open
  EXPECT_EQ(outcome.exit_status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("interrupted after "));
  EXPECT_FALSE(fs::exists(path("v.npy")));
  const std::string partial = read("v.npy.partial");
  ASSERT_GT(partial.size(), 128u) << outcome.err;
  const size_t row_bytes = Reference().columns() * 4;
  EXPECT_EQ((partial.size() - 128) % row_bytes, 0u);
  EXPECT_THAT(partial.substr(0, 128),
              HasSubstr("'shape': (" + std::to_string((partial.size() - 128) / row_bytes) + ", "));
}

/// A run that is killed while it waits for more of a pipe, at ever later places, until one that
/// finds all of the text: the bytes of an undisturbed run.
TEST_F(EmbedCli, AKilledRunGoesOnToTheSameBytes) {
  std::string text;
  std::vector<size_t> ends = {0};
  for (int i = 0; i < 30000; ++i) {
    text += i % 7 == 0 ? "" : "Sentence number " + std::to_string(i % 50 * (i % 11)) + ".";
    text += '\n';
    ends.push_back(text.size());
  }
  write("in.txt", text);
  for (const std::string name : {"v.npy", "v.f32"}) {
    ASSERT_EQ(embed("-i in.txt -q -o whole" + name.substr(1)).exit_status, 0);
    const std::string options = " --resume --save-seconds 0 -q -o " + name;
    const auto point = [&] {  // rows that the run will go on behind
      std::istringstream lines(fs::exists(path(name + ".resume")) ? read(name + ".resume") : "");
      std::string line;
      while (std::getline(lines, line)) {
        if (line.starts_with("rows ")) return std::stoul(line.substr(5));
      }
      return 0ul;
    };
    size_t done = 0;
    for (const size_t lines : {8192, 17000, 25000}) {
      fs::remove(path("pipe"));
      ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
      const pid_t child = start("-m " + kModel + " -i pipe" + options);
      std::ofstream pipe(path("pipe"), std::ios::binary);
      pipe << text.substr(0, ends[lines]) << std::flush;
      // How many of them its batches hold depends on how long they take.
      for (int i = 0; i < 2400 && point() <= done; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(25));
      ASSERT_GT(point(), done);
      kill(child, SIGKILL);
      EXPECT_EQ(wait_for(child).exit_status, 128 + SIGKILL);
      done = point();
      ASSERT_LE(done, lines);
      EXPECT_FALSE(fs::exists(path(name)));
      // What came behind it may be there in part.
      std::ofstream(path(name + ".partial"), std::ios::app) << "half a row";
    }
    const std::string rows = xsr::with_separators(done);
    Outcome outcome = embed("-i in.txt -o " + name);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err,
                HasSubstr(name + ".resume: " + rows + " rows of an earlier run are in " + name +
                          ".partial; go on with --resume, or remove"));
    outcome = embed("-i in.txt --resume --compute int8 -o " + name);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("its rows would have other bits"));
    write("other.txt", "X" + text.substr(1));
    outcome = embed("-i other.txt --resume -o " + name);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("other.txt: differs in the first "));
    EXPECT_THAT(outcome.err, HasSubstr("give that text, or remove " + name + ".resume to begin"));
    // A run that still lives is told of before the text is read over.
    const int held = ::open(path(name + ".partial").c_str(), O_WRONLY);
    EXPECT_EQ(::flock(held, LOCK_EX), 0);
    outcome = embed("-i other.txt --resume -o " + name);
    ::close(held);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr(name + ".partial: another process is writing it"));
    outcome = embed("-i in.txt --resume --threads 1 -o " + name);
    EXPECT_EQ(outcome.exit_status, 0) << outcome.err;
    EXPECT_THAT(outcome.err,
                HasSubstr("xsr-embed: " + name + ": going on behind row " + rows + "\n"));
    EXPECT_THAT(outcome.err, HasSubstr("30,000 lines (" + rows + " of them by an earlier run), "));
    EXPECT_EQ(read(name), read("whole" + name.substr(1)));
    EXPECT_FALSE(fs::exists(path(name + ".resume")));
    EXPECT_FALSE(fs::exists(path(name + ".partial")));
  }
}

/// What the disk did not take is not noted as done: not as rows are written, nor as a run ends.
TEST_F(EmbedCli, RowsAreNotedBehindTheirFlush) {
  write("in.txt", id_lines(600) + "x\n");
  // It cannot be flushed. (Other tests lock /dev/null.)
  fs::create_symlink("/dev/zero", path("v.f32.partial"));
  for (const std::string save : {"0", "86400"}) {
    const Outcome outcome = embed("--ids -i in.txt -q -o v.f32 --save-seconds " + save);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr(save == "0" ? "v.f32: cannot flush: invalid argument after "
                                                   : "in.txt:601: \"x\" is no token id"));
    EXPECT_THAT(outcome.err, Not(HasSubstr("--resume goes on")));
    EXPECT_FALSE(fs::exists(path("v.f32.resume")));
  }
}

TEST_F(EmbedCli, AResumedRunNamesTheLineOfTheWholeText) {
  write("in.txt", id_lines(600) + "x\n");
  for (const std::string resume : {"", " --resume"}) {
    const Outcome outcome = embed("--ids -i in.txt -q -o v.f32" + resume);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("in.txt:601: \"x\" is no token id"));
    EXPECT_THAT(outcome.err, HasSubstr(" --resume goes on behind row "));
  }
}

/// A row's bits depend on the model, on the table and on what its line is taken for.
TEST_F(EmbedCli, RowsOfAnotherKindAreNotGoneOnWith) {
  const std::string text = id_lines(600);
  write("in.txt", text);
  write("cut.gz", gzip(text).substr(0, gzip(text).size() - 3));
  const auto file = xsr::XsrFile::open(kModel);
  std::vector<xsr::TensorSource> tensors = xsr::test::tensor_sources(*file);
  std::vector<float> changed;
  for (xsr::TensorSource& t : tensors) {
    if (t.name != "layer.0.up.bias") continue;
    const auto* values = static_cast<const float*>(t.data);
    changed.assign(values, values + t.dims[0]);
    changed[0] += 1;
    t.data = changed.data();
  }
  xsr::write_xsr_file(path("other.xsr"), file->config(), tensors, file->tokenizer(),
                      file->provenance(), file->tokenizer_tables());
  const std::string model = "-m " + kModel, other = "-m other.xsr";
  std::vector<std::pair<std::string, std::string>> kinds = {{model, other},
                                                            {model, model + " --qkv-table"},
                                                            {model, model + " --ids"},
                                                            {model, model + " --normalize"}};
  if (xsr::choose_isa("auto") != xsr::kernels::Isa::kRef)
    kinds.emplace_back(model, model + " --isa ref");
  for (const auto& [before, then] : kinds) {
    ASSERT_EQ(run(before + " -i cut.gz -q -o v.f32").exit_status, 1);
    ASSERT_TRUE(fs::exists(path("v.f32.resume")));
    const Outcome outcome = run(then + " -i in.txt -q --resume -o v.f32");
    EXPECT_EQ(outcome.exit_status, 1) << then;
    EXPECT_THAT(outcome.err, HasSubstr("its rows would have other bits")) << then;
    EXPECT_EQ(run(before + " -i in.txt -q --resume -o v.f32").exit_status, 0);
    fs::remove(path("v.f32"));
  }
}

TEST_F(EmbedCli, AnInterruptedRunSaysHowItGoesOn) {
  const std::string text = id_lines(20000);
  write("in.txt", text);
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const pid_t child = start("-m " + kModel + " -i pipe -o v.npy");
  std::ofstream pipe(path("pipe"), std::ios::binary);
  pipe << text.substr(0, text.size() - 4) << std::flush;  // it is stopped within a line
  for (int i = 0; i < 600 && (!fs::exists(path("v.npy.partial")) ||
                              fs::file_size(path("v.npy.partial")) < 8192 * 384 * 4);
       ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  kill(child, SIGTERM);
  const Outcome outcome = wait_for(child);
  EXPECT_EQ(outcome.exit_status, 1);
  // The last whole batch, whose size depends on how long it takes.
  EXPECT_THAT(outcome.err,
              testing::ContainsRegex(" rows. The rows written are kept in v.npy.partial. --resume "
                                     "goes on behind row [1-9][0-9]*,[0-9]*.\n"));
  const std::string note = read("v.npy.resume");
  EXPECT_EQ(embed("-i - --resume -q -o v.npy < in.txt").exit_status, 0);
  EXPECT_EQ(embed("-i in.txt --resume -q -o w.npy").exit_status, 0);  // where there is nothing
  EXPECT_EQ(read("v.npy"), read("w.npy"));
  EXPECT_EQ(embed("-i in.txt --resume -o -").exit_status, 2);
  // A crash between the last two steps of a run leaves a note without rows.
  write("v.npy.resume", note);
  write("v.npy.resume.partial", "begun");
  EXPECT_EQ(embed("-i in.txt --resume -q -o v.npy").exit_status, 0);
  EXPECT_EQ(read("v.npy"), read("w.npy"));
  EXPECT_FALSE(fs::exists(path("v.npy.resume")));
  EXPECT_FALSE(fs::exists(path("v.npy.resume.partial")));
  // Where no note can be made the rows are written all the same.
  fs::create_directories(path("n.npy.resume.partial/x"));
  const Outcome unnoted = embed("-i in.txt -q --save-seconds 0 -o n.npy");
  EXPECT_EQ(unnoted.exit_status, 0);
  EXPECT_THAT(unnoted.err, HasSubstr("xsr-embed: warning: n.npy.resume.partial: "));
  EXPECT_EQ(read("n.npy"), read("w.npy"));
  // What is no note of a run is not taken for one.
  write("w.npy.resume", "xsr-embed resume point 1\nrun of another\nrows 5\n");
  const Outcome damaged = embed("-i in.txt -q -o w.npy");
  EXPECT_EQ(damaged.exit_status, 1);
  EXPECT_THAT(damaged.err, HasSubstr("w.npy.resume:4: expected \"row_bytes \"; remove the file"));
}

/// A batch of long lines must not keep a signal waiting for as long as 8,192 of them take: minutes
/// with a large model.
TEST_F(EmbedCli, ASignalDoesNotWaitForThousandsOfLongLines) {
  std::string text;
  constexpr int kLines = 120;
  for (int i = 0; i < kLines; ++i) {
    for (int word = 0; word < 140; ++word) text += std::to_string(i * 7 + word * word % 97) + ' ';
    text += '\n';
  }
  write("in.txt", text);
  // Later each time that nothing was under way yet.
  for (int delay = 5; delay < 2000 && !fs::exists(path("v.npy.partial")); delay *= 2) {
    const pid_t child = start("-m " + kModel + " -i in.txt --threads 1 -o v.npy");
    for (int i = 0; i < 6000 && !fs::exists(path("v.npy.partial")); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::this_thread::sleep_for(std::chrono::milliseconds(delay));
    kill(child, SIGTERM);
    const Outcome outcome = wait_for(child);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("interrupted after "));
  }
  const size_t row_bytes = Reference().columns() * 4;
  const size_t rows = (fs::file_size(path("v.npy.partial")) - 128) / row_bytes;
  EXPECT_GT(rows, 0u);
  EXPECT_LT(rows, kLines / 2u);
  EXPECT_EQ(embed("-i in.txt --resume -q -o v.npy").exit_status, 0);
  EXPECT_EQ(fs::file_size(path("v.npy")), 128 + kLines * row_bytes);
}

/// The last step of hours of work: it is lost no more than any other.
TEST_F(EmbedCli, ARunThatCannotNameItsOutputSaysHowItGoesOn) {
  write("in.txt", "one\ntwo\nthree\n");
  const Outcome undisturbed = embed("-i in.txt -o whole.npy");
  ASSERT_EQ(undisturbed.exit_status, 0);
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const auto embed_without_a_name = [&](const std::string& text) {
    const pid_t child = start("-m " + kModel + " -i pipe -o v.npy");
    std::ofstream pipe(path("pipe"), std::ios::binary);
    for (int i = 0; i < 600 && !fs::exists(path("v.npy.partial")); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    fs::create_directories(path("v.npy/in the way"));
    pipe << text;
    pipe.close();
    Outcome ended = wait_for(child);
    fs::remove_all(path("v.npy"));
    EXPECT_EQ(ended.exit_status, 1);
    return ended;
  };
  const Outcome outcome = embed_without_a_name("one\ntwo\nthree\n");
  EXPECT_THAT(outcome.err, HasSubstr("v.npy: cannot rename its partial file: "));
  EXPECT_THAT(outcome.err, HasSubstr(" after 3 rows. The rows written are kept in v.npy.partial. "
                                     "--resume goes on behind row 3.\n"));
  const Outcome resumed = embed("-i in.txt --resume -o v.npy");
  EXPECT_EQ(resumed.exit_status, 0);
  EXPECT_EQ(read("v.npy"), read("whole.npy"));
  EXPECT_FALSE(fs::exists(path("v.npy.resume")));
  // Words count the whole text, whoever embedded it.
  const size_t begin = undisturbed.err.find("3 lines, ") + 9,
               end = undisturbed.err.find(" replaced bytes");
  ASSERT_LT(begin, end);
  EXPECT_THAT(resumed.err, HasSubstr("3 lines (3 of them by an earlier run), " +
                                     undisturbed.err.substr(begin, end - begin)));

  // A last line that may have grown meanwhile is not done.
  fs::remove(path("v.npy"));
  EXPECT_THAT(embed_without_a_name("one\ntwo\nthr").err, HasSubstr("cannot rename its partial"));
  EXPECT_EQ(embed("-i in.txt --resume -q -o v.npy").exit_status, 0);
  EXPECT_TRUE(read("v.npy") == read("whole.npy"));
}

TEST_F(EmbedCli, AHangUpThatIsIgnoredStaysIgnored) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  ::signal(SIGHUP, SIG_IGN);  // as nohup does; the child inherits it
  const pid_t child = start("-m " + kModel + " -i pipe -o v.npy");
  ::signal(SIGHUP, SIG_DFL);
  std::ofstream pipe(path("pipe"), std::ios::binary);
  for (int i = 0; i < 600 && !fs::exists(path("v.npy.partial")); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  kill(child, SIGHUP);
  pipe << "a line\n";
  pipe.close();
  EXPECT_EQ(wait_for(child).exit_status, 0);
  EXPECT_TRUE(fs::exists(path("v.npy")));
}

TEST_F(EmbedCli, ASecondSignalEndsTheRunAtOnceWhicheverItIs) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const pid_t child = start("-m " + kModel + " -i pipe -o v.npy");
  const std::ofstream pipe(path("pipe"), std::ios::binary);
  for (int i = 0; i < 600 && !fs::exists(path("v.npy.partial")); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  // Both wait for it, so that it cannot end in good order between them.
  for (const int signal : {SIGSTOP, SIGINT, SIGTERM, SIGCONT}) kill(child, signal);
  EXPECT_THAT(wait_for(child).exit_status, testing::AnyOf(128 + SIGINT, 128 + SIGTERM));
}

}  // namespace
