#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>

#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "corpus/resume_point.h"
#include "corpus/token_line.h"
#include "corpus/vector_memo.h"
#include "corpus/vector_writer.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/text/line_reader.h"
#include "runtime/text/progress.h"
#include "tests/support/error_of.h"
#include "tests/support/file_size_limit.h"
#include "tests/support/files.h"
#include "tests/support/system_calls.h"
#include "tests/support/temp_folder.h"

namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using xsr::test::error_of;

class Corpus : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_ / name; }
  std::string write(const std::string& bytes) const {
    std::ofstream(path("in.txt"), std::ios::binary) << bytes;
    return path("in.txt");
  }
  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
  }
  std::string read(const std::string& name) const { return xsr::test::read_file(path(name)); }

  const xsr::test::TempFolder folder_;
};

struct Lines {
  std::vector<std::string> text;
  std::vector<int> cut;
};

Lines lines_of(const std::string& file, size_t max_line = 1 << 20, size_t block = 1 << 20,
               size_t max_lines = 3, size_t max_bytes = 1000) {
  xsr::LineReader reader(file, max_line, nullptr, block);
  Lines lines;
  xsr::LineBatch batch;
  while (reader.read(max_lines, max_bytes, batch)) {
    EXPECT_EQ(batch.first_line, lines.text.size() + 1);
    EXPECT_LE(batch.size(), max_lines);
    for (size_t i = 0; i < batch.size(); ++i) {
      lines.text.emplace_back(batch.line(i));
      lines.cut.push_back(batch.cut[i]);
    }
  }
  EXPECT_EQ(batch.bytes_consumed, reader.total_bytes());
  EXPECT_EQ(batch.source_bytes, reader.total_bytes());
  EXPECT_FALSE(reader.read(max_lines, max_bytes, batch));
  return lines;
}

TEST_F(Corpus, LineEnds) {
  const std::pair<std::string, std::vector<std::string>> cases[] = {
      {"", {}},
      {"\n", {""}},
      {"\n\n", {"", ""}},
      {"a", {"a"}},
      {"a\n", {"a"}},
      {"a\nb", {"a", "b"}},
      {"a\r\nb\r\n", {"a", "b"}},
      {"\r\n\r\n", {"", ""}},
      {"a\r\r\nb\rc\n", {"a\r", "b\rc"}},
      {"a\r", {"a\r"}},
      {"\0\n\0\0b\n"s, {"\0"s, "\0\0b"s}},
      {"one\n\n\nfour\n", {"one", "", "", "four"}},
  };
  for (const auto& [bytes, expected] : cases) {
    for (size_t block : {1, 2, 3, 5, 1000}) {
      EXPECT_EQ(lines_of(write(bytes), 1000, block).text, expected) << bytes << " block " << block;
      EXPECT_EQ(lines_of(write(bytes), 1000, block, 3, 0).text, expected) << "a line at a time";
    }
  }
}

TEST_F(Corpus, LinesOfAnyLengthAndBlock) {
  std::mt19937 rng(4);
  for (int i = 0; i < 200; ++i) {
    std::string bytes;
    std::vector<std::string> expected;
    for (uint32_t n = rng() % 30; n > 0; --n) {
      std::string line(rng() % 4 == 0 ? rng() % 3000 : rng() % 20, '\0');
      for (char& c : line) c = static_cast<char>(rng() % 255 + (rng() % 2));
      for (char& c : line) c = c == '\n' || c == '\r' ? 'x' : c;
      bytes += line + (rng() % 2 ? "\n" : "\r\n");
      expected.push_back(line);
    }
    ASSERT_EQ(lines_of(write(bytes), 5000, 1 + rng() % 300, 1 + rng() % 9, rng() % 900).text,
              expected);
  }
}

TEST_F(Corpus, LongLinesKeepTheirBeginning) {
  for (size_t block : {1, 3, 100}) {
    const Lines lines =
        lines_of(write("12345\n123456\n1234567\r\n12345\r\n123456789012345\nab"), 6, block);
    EXPECT_THAT(lines.text, ElementsAre("12345", "123456", "123456", "12345", "123456", "ab"));
    EXPECT_THAT(lines.cut, ElementsAre(0, 0, 1, 0, 1, 0));
    // A line of exactly the limit before CRLF is whole; a CR beyond the limit that ends no line is
    // cut off.
    EXPECT_THAT(lines_of(write("123456\r\n123456\rx\n"), 6, block).cut, ElementsAre(0, 1));
    // The cut goes before a character, not through it.
    const Lines split = lines_of(write("1234\u20AC\u20AC\n12345\u20AC\n123\u20AC\u20AC"), 6, block);
    EXPECT_THAT(split.text, ElementsAre("1234", "12345", "123\u20AC"));
    EXPECT_THAT(split.cut, ElementsAre(1, 1, 1));
    for (const std::string begin : {"123", "1234", "12345"}) {
      EXPECT_THAT(lines_of(write(begin + "\U0001F600\n"), 6, block).text, ElementsAre(begin));
    }
  }
}

TEST_F(Corpus, MemoryDoesNotGrowWithALine) {
  {
    std::ofstream out(path("long"), std::ios::binary);
    const std::string block(1 << 20, 'x');
    for (int i = 0; i < 64; ++i) out << block;
    out << "\nlast\n";
  }
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  const Lines lines = lines_of(path("long"), 1 << 20);
  getrusage(RUSAGE_SELF, &after);
  ASSERT_EQ(lines.text.size(), 2u);
  EXPECT_EQ(lines.text[0].size(), size_t{1} << 20);
  EXPECT_EQ(lines.text[1], "last");
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 40 * 1024) << "KiB";
}

TEST_F(Corpus, PackedDataAndUtf16AreNoLines) {
  const std::pair<std::string, const char*> cases[] = {
      {"\x1F\x8B\b\0\n"s, "is gzip data, expected text in UTF-8; unpack it first (gunzip)"},
      {"\x28\xB5\x2F\xFD\n", "is Zstandard data"},
      {"\xFD"
       "7zXZ\0\n"s,
       "is xz data"},
      {"\xFF\xFE\x61\0\n\0"s, "is UTF-16, expected text in UTF-8; convert it (iconv -f UTF-16"},
      {"\xFE\xFF\0a\0\n"s, "is UTF-16"},
      {"BZh91AY&SY\n", "is bzip2 data"},
      {"PK\x03\x04\n", "is a zip archive"},
  };
  for (const auto& [bytes, message] : cases) {
    try {
      lines_of(write(bytes));
      ADD_FAILURE() << message;
    } catch (const xsr::Error& e) {
      EXPECT_EQ(e.status(), XSR_STATUS_BAD_FILE);
      EXPECT_THAT(e.what(), HasSubstr("in.txt: "s + message));
    }
    EXPECT_EQ(lines_of(write("\n" + bytes)).text.size(), 2 + (bytes.back() == '\0'))
        << "malformed lines are lines";
  }
}

/// Only the first block says what a text is, however long its first line.
TEST_F(Corpus, PackedDataWithinALineIsText) {
  const std::string line = "four" + std::string("PK\x03\x04");
  xsr::LineReader reader(write(line + "\n"), 1000, nullptr, /*block_bytes=*/4);
  xsr::LineBatch batch;
  ASSERT_TRUE(reader.read(10, 1000, batch));
  EXPECT_EQ(batch.line(0), line);
}

/// A training run reads many, xsr-embed's output may be standard input's neighbour.
TEST_F(Corpus, AFileIsClosedAgainAndStandardInputIsNot) {
  const auto open_files = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const std::string file = write("one\n");
  const auto before = open_files();
  {
    const xsr::FileSource source(file);
    EXPECT_EQ(open_files(), before + 1);
  }
  EXPECT_EQ(open_files(), before);
  { const xsr::FileSource source("-"); }
  EXPECT_EQ(open_files(), before);
}

TEST_F(Corpus, AReaderGoesOnBehindWhatIsDone) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i) + (i % 3 == 0 ? "\r\n" : "\n");
  text += "no end";
  write("t", text);
  for (const size_t block : {1, 7, 64, 1 << 20}) {
    xsr::LineReader first(path("t"), 1000, nullptr, block);
    xsr::LineBatch batch;
    while (first.read(37, 1 << 20, batch)) {
      const uint64_t done = batch.first_line + batch.size() - 1;
      EXPECT_EQ(batch.mid_line, done == 401) << "the last line has no end";
      xsr::LineReader second(path("t"), 1000, nullptr, block);
      std::vector<uint64_t> told;
      second.skip(batch.bytes_consumed, done, batch.text_hash,
                  [&](uint64_t bytes) { told.push_back(bytes); });
      EXPECT_EQ(told.size(), (batch.bytes_consumed + block - 1) / block);
      EXPECT_EQ(told.back(), batch.bytes_consumed);
      EXPECT_EQ(told.front(), std::min<uint64_t>(block, batch.bytes_consumed));
      xsr::LineBatch rest;
      std::vector<std::string> lines;
      while (second.read(50, 1 << 20, rest)) {
        EXPECT_EQ(rest.first_line, done + lines.size() + 1);
        for (size_t i = 0; i < rest.size(); ++i) lines.emplace_back(rest.line(i));
      }
      ASSERT_EQ(lines.size(), 401 - done);
      if (!lines.empty()) {
        EXPECT_EQ(lines.back(), "no end");
        EXPECT_EQ(lines.front(), done == 400 ? "no end" : "line " + std::to_string(done));
      }
    }
  }
  xsr::LineBatch batch;
  xsr::LineReader reader(path("t"));
  ASSERT_TRUE(reader.read(100, 1 << 20, batch));
  EXPECT_FALSE(batch.mid_line);
  const auto skip = [&] {
    xsr::LineReader(path("t")).skip(batch.bytes_consumed, batch.size(), batch.text_hash);
  };
  skip();
  write("t", text + "and more");  // a text may grow
  skip();
  text[5] = 'X';
  write("t", text);
  EXPECT_THAT(error_of(skip), AllOf(HasSubstr("t: differs in the first "),
                                    HasSubstr(" the text whose first 100 lines are done")));
  write("t", text.substr(0, batch.bytes_consumed - 1));
  EXPECT_THAT(error_of(skip), HasSubstr("t: is shorter than the text whose first 100 lines"));
}

TEST_F(Corpus, MissingAndUnreadableInput) {
  for (const std::string& name : {path("missing.txt"), path(".")}) {
    try {
      lines_of(name);
      ADD_FAILURE() << name;
    } catch (const xsr::Error& e) {
      EXPECT_EQ(e.status(), XSR_STATUS_IO);
      EXPECT_THAT(e.what(), HasSubstr(name));
    }
  }
}

/// By who writes it anew: what is left of it is not the text.
TEST_F(Corpus, ATextThatIsCutWhileItIsReadIsAnError) {
  const std::string file = write("one\ntwo\nthree\n");
  xsr::LineReader reader(file, 1000, nullptr, 4);
  xsr::LineBatch batch;
  ASSERT_TRUE(reader.read(1, 1000, batch));
  EXPECT_EQ(batch.line(0), "one");
  fs::resize_file(file, 8);
  ASSERT_TRUE(reader.read(1, 1000, batch));
  EXPECT_EQ(batch.line(0), "two");
  EXPECT_EQ(error_of([&] { reader.read(1, 1000, batch); }),
            file +
                ": the file shrank while it was being read: 14 bytes at first, now 8. Let whatever "
                "writes to it end, then start again (after line 2)");
  std::ofstream(file, std::ios::app) << "2\nthree\nand more\n";  // it may grow
  ASSERT_TRUE(reader.read(10, 1000, batch));
  EXPECT_EQ(batch.size(), 3u);
  EXPECT_FALSE(reader.read(1, 1000, batch));
}

TEST_F(Corpus, StopsWhileWaitingForInput) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    std::ofstream out(path("pipe"), std::ios::binary);
    out << "one\ntwo\nhal" << std::flush;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stop = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // the pipe stays open
  });
  xsr::LineReader reader(path("pipe"), 1000, &stop);
  xsr::LineBatch batch;
  ASSERT_TRUE(reader.read(100, 1000, batch));
  ASSERT_EQ(batch.size(), 2u);  // half a line is no line
  EXPECT_EQ(batch.line(1), "two");
  EXPECT_FALSE(reader.read(100, 1000, batch));
  writer.join();
}

std::atomic<bool> signalled{false};

/// Ctrl-C of what reads a terminal: after the signal nothing more may come.
TEST_F(Corpus, ASignalEndsTheWaitForInput) {
  const std::string pipe = path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int writer = ::open(pipe.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(writer, 0);
  struct sigaction action = {}, before;
  action.sa_handler = [](int) { signalled = true; };
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  signalled = false;
  std::atomic<bool> ended = false;
  const pthread_t reading = pthread_self();
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    pthread_kill(reading, SIGUSR1);
    for (int i = 0; i < 200 && !ended; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(ended) << "it waits for more input";
    EXPECT_EQ(::write(writer, "x", 1), 1);
  });
  xsr::FileSource source(pipe, &signalled);
  char byte;
  EXPECT_EQ(source.read(&byte, 1), 0u);
  ended = true;
  other.join();
  sigaction(SIGUSR1, &before, nullptr);
  ::close(writer);
}

// ---- Writers ----

std::vector<float> rows_of(size_t rows, size_t columns) {
  std::vector<float> values(rows * columns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i)) * 1e-3f;
  return values;
}

TEST_F(Corpus, NpyHasItsRowsAndShape) {
  const std::vector<float> values = rows_of(7, 5);
  xsr::VectorWriter writer(path("v.npy"), xsr::VectorFormat::kNpy, 5);
  writer.append(values.data(), 3);
  writer.append(values.data() + 15, 4);
  EXPECT_FALSE(fs::exists(path("v.npy")));
  EXPECT_TRUE(fs::exists(path("v.npy.partial")));
  writer.finish();
  EXPECT_FALSE(fs::exists(path("v.npy.partial")));
  const std::string bytes = read("v.npy");
  ASSERT_EQ(bytes.size(), 128 + values.size() * 4);
  EXPECT_EQ(bytes.substr(0, 10), "\x93NUMPY\x01\x00\x76\x00"s);
  EXPECT_EQ(bytes.substr(10, 60), "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 5), } ");
  EXPECT_EQ(bytes[127], '\n');
  EXPECT_EQ(std::memcmp(bytes.data() + 128, values.data(), values.size() * 4), 0);
}

TEST_F(Corpus, EmptyOutputs) {
  for (const char* name : {"e.npy", "e.f32", "e.tsv"}) {
    xsr::VectorWriter writer(path(name), xsr::vector_format(name), 512);
    writer.finish();
    EXPECT_TRUE(fs::exists(path(name)));
  }
  EXPECT_THAT(read("e.npy"), HasSubstr("'shape': (0, 512)"));
  EXPECT_EQ(read("e.f32"), "");
  EXPECT_EQ(read("e.tsv"), "");
}

TEST_F(Corpus, RawAndTsvHoldTheSameFloats) {
  std::vector<float> values = rows_of(4, 3);
  values[0] = 1.17549435e-38f;
  values[1] = 3.40282347e+38f;
  values[2] = -0.0f;
  for (const char* name : {"v.f32", "v.tsv"}) {
    xsr::VectorWriter writer(path(name), xsr::vector_format(name), 3);
    writer.append(values.data(), 4);
    writer.finish();
  }
  const std::string raw = read("v.f32");
  ASSERT_EQ(raw.size(), values.size() * 4);
  EXPECT_EQ(std::memcmp(raw.data(), values.data(), raw.size()), 0);
  std::istringstream in(read("v.tsv"));
  size_t at = 0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    for (std::string word; std::getline(words, word, '\t'); ++at) {
      ASSERT_LT(at, values.size());
      const float value = std::strtof(word.c_str(), nullptr);
      EXPECT_EQ(std::memcmp(&value, &values[at], 4), 0) << word;
    }
    EXPECT_EQ(at % 3, 0u);
  }
  EXPECT_EQ(at, values.size());
}

TEST_F(Corpus, AbandonedRunsKeepWholeRowsAndTheOldOutput) {
  std::ofstream(path("v.npy")) << "older";
  const std::vector<float> values = rows_of(2, 3);
  {
    xsr::VectorWriter writer(path("v.npy"), xsr::VectorFormat::kNpy, 3);
    writer.append(values.data(), 2);
    EXPECT_THAT(writer.abandon(), HasSubstr("kept in " + path("v.npy") + ".partial."));
    EXPECT_EQ(writer.abandon(), "");
  }
  EXPECT_EQ(read("v.npy"), "older");
  EXPECT_THAT(read("v.npy.partial"), HasSubstr("'shape': (2, 3)"));
  EXPECT_EQ(read("v.npy.partial").size(), 128u + 24);
  {
    xsr::VectorWriter writer(path("none.npy"), xsr::VectorFormat::kNpy, 3);
    EXPECT_EQ(writer.abandon(), "");
  }
  EXPECT_FALSE(fs::exists(path("none.npy")));
  EXPECT_FALSE(fs::exists(path("none.npy.partial")));
}

/// Writes of at most seven bytes, every other one interrupted by a signal.
class Interruptions {
 public:
  Interruptions() {
    xsr::test::limit_write = [this](size_t size) -> ssize_t {
      if (calls++ % 2 == 0) {
        errno = EINTR;
        return -1;
      }
      return static_cast<ssize_t>(std::min<size_t>(size, 7));
    };
  }
  ~Interruptions() { xsr::test::limit_write = nullptr; }

  int calls = 0;
};

TEST_F(Corpus, WritesThatAreCutShortOrInterruptedGoOn) {
  const std::vector<float> values = rows_of(4, 3);
  for (const std::string name : {"v.npy", "v.f32", "v.tsv"}) {
    const auto write_to = [&](const std::string& file) {
      xsr::VectorWriter writer(path(file), xsr::vector_format(name), 3);
      writer.append(values.data(), 3);
      writer.append(values.data() + 9, 1);
      writer.finish();
    };
    write_to(name);
    const std::string whole = read(name);
    const Interruptions interruptions;
    write_to("cut-" + name);
    EXPECT_EQ(read("cut-" + name), whole) << name;
    EXPECT_GE(interruptions.calls, static_cast<int>(2 * whole.size() / 7));
  }
}

TEST_F(Corpus, AnAbandonedHeaderThatIsCutShortOrInterruptedIsWhole) {
  const std::vector<float> values = rows_of(2, 3);
  xsr::VectorWriter writer(path("v.npy"), xsr::VectorFormat::kNpy, 3);
  writer.append(values.data(), 2);
  const Interruptions interruptions;
  EXPECT_THAT(writer.abandon(), HasSubstr("kept in " + path("v.npy") + ".partial."));
  EXPECT_THAT(read("v.npy.partial"), HasSubstr("'shape': (2, 3)"));
}

TEST_F(Corpus, AHeaderThatCannotBeWrittenIsTold) {
  const std::vector<float> values = rows_of(2, 3);
  xsr::VectorWriter writer(path("v.npy"), xsr::VectorFormat::kNpy, 3);
  writer.append(values.data(), 2);
  xsr::test::limit_write = [](size_t) -> ssize_t {
    errno = EIO;
    return -1;
  };
  std::string message;
  try {
    writer.finish();
  } catch (const xsr::Error& error) {
    message = error.what();
  }
  xsr::test::limit_write = nullptr;
  EXPECT_THAT(message, HasSubstr("v.npy: cannot write the header: "));
  EXPECT_THAT(message, HasSubstr(" after 2 rows. The rows written are in " + path("v.npy") +
                                 ".partial, whose header gives no row count."));
  EXPECT_FALSE(fs::exists(path("v.npy")));
}

TEST_F(Corpus, AFileThatIsWrittenInPiecesIsWhole) {
  std::string bytes(100, ' ');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i);
  const Interruptions interruptions;
  xsr::PartialFile file(path("f"));
  file.write(bytes.data(), bytes.size());
  file.overwrite(10, "0123456789abcdefghij", 20);
  file.commit();
  EXPECT_EQ(read("f"), bytes.replace(10, 20, "0123456789abcdefghij"));
}

// A full disk, played by the file size limit: the kernel writes up to it and then refuses, as a
// full disk does.
TEST_F(Corpus, AFullDiskKeepsTheWholeRowsWritten) {
  signal(SIGXFSZ, SIG_IGN);
  rlimit old;
  getrlimit(RLIMIT_FSIZE, &old);
  const std::vector<float> values = rows_of(10, 5);
  for (const char* name : {"v.npy", "v.f32", "v.tsv"}) {
    std::string message;
    size_t first_append = 0;
    {
      xsr::VectorWriter writer(path(name), xsr::vector_format(name), 5);
      writer.append(values.data(), 10);
      first_append = fs::file_size(path(name + ".partial"s));
      // Room for one row and a half in any of the formats.
      const rlimit small = {first_append + (name == "v.tsv"s ? 70 : 30), old.rlim_max};
      setrlimit(RLIMIT_FSIZE, &small);
      try {
        writer.append(values.data(), 10);
      } catch (const xsr::Error& e) {
        EXPECT_EQ(e.status(), XSR_STATUS_IO);
        message = e.what();
      }
      setrlimit(RLIMIT_FSIZE, &old);
    }
    EXPECT_THAT(message, HasSubstr(path(name) + ": "));
    EXPECT_THAT(message, HasSubstr(" after 11 rows. The rows written are kept in " + path(name) +
                                   ".partial."));
    EXPECT_FALSE(fs::exists(path(name)));
    const std::string partial = read(name + ".partial"s);
    if (name == "v.tsv"s) {
      EXPECT_EQ(std::count(partial.begin(), partial.end(), '\n'), 11);
      EXPECT_EQ(partial.back(), '\n');
    } else {
      EXPECT_EQ(partial.size(), first_append + 20);
      EXPECT_EQ(std::memcmp(partial.data() + first_append, values.data(), 20), 0);
    }
    if (name == "v.npy"s) {
      EXPECT_THAT(partial, HasSubstr("'shape': (11, 5)"));
    }
  }
}

// A row of text is whole with its line end only.
TEST_F(Corpus, AFullDiskJustBeforeALineEndKeepsTheRowsBefore) {
  const std::vector<float> values = rows_of(3, 5);
  std::string message, whole;
  for (const bool full : {false, true}) {
    xsr::VectorWriter writer(path("v.tsv"), xsr::VectorFormat::kTsv, 5);
    if (!full) {
      writer.append(values.data(), 3);
      writer.finish();
      whole = read("v.tsv");
      continue;
    }
    const xsr::test::FileSizeLimit limit(whole.size() - 1);
    try {
      writer.append(values.data(), 3);
    } catch (const xsr::Error& e) {
      message = e.what();
    }
  }
  EXPECT_THAT(message, HasSubstr(" after 2 rows. The rows written are kept in "));
  EXPECT_EQ(read("v.tsv.partial"), whole.substr(0, whole.rfind('\n', whole.size() - 2) + 1));
}

TEST_F(Corpus, RowsAreFlushedBeforeTheNameAndTheNameAfterwards) {
  const std::vector<float> values = rows_of(1, 5);
  std::vector<std::pair<std::string, bool>> flushed;  // and whether there is an output by then
  xsr::test::before_fsync = [&](const std::string& name) {
    flushed.emplace_back(name, fs::exists(path("v.f32")));
  };
  const auto write_row = [&] {
    xsr::VectorWriter writer(path("v.f32"), xsr::VectorFormat::kF32, 5);
    writer.append(values.data(), 1);
    writer.finish();
  };
  write_row();
  xsr::test::before_fsync = nullptr;
  EXPECT_THAT(flushed,
              ElementsAre(testing::Pair(path("v.f32.partial"), false),
                          testing::Pair(fs::path(path("v.f32")).parent_path().string(), true)));
  fs::create_symlink("/dev/null", path("v.f32.partial"));
  try {
    write_row();
    ADD_FAILURE() << "rows that are not on the disk";
  } catch (const xsr::Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("v.f32: cannot flush: invalid argument after 1 rows."));
  }
  EXPECT_EQ(fs::file_size(path("v.f32")), 20u) << "the older output";
}

/// Linux tells of pages that it could not write once, and holds them for written from then on.
TEST_F(Corpus, AFlushThatHasFailedOnceFailsAgain) {
  const std::vector<float> values = rows_of(2, 3);
  xsr::VectorWriter writer(path("v.f32"), xsr::VectorFormat::kF32, 3);
  writer.append(values.data(), 2);
  int calls = 0;
  xsr::test::instead_of_fdatasync = [&] { return ++calls == 1 ? EIO : 0; };
  const std::string first = error_of([&] { writer.flush(); });
  const std::string second = error_of([&] { writer.flush(); });
  xsr::test::instead_of_fdatasync = nullptr;
  EXPECT_THAT(first, HasSubstr("v.f32: cannot flush: input/output error after 2 rows."));
  EXPECT_THAT(second, HasSubstr("v.f32: cannot flush: input/output error after 2 rows."));
  // finish() flushes, too.
  fs::create_symlink("/dev/null", path("w.f32.partial"));
  xsr::VectorWriter last(path("w.f32"), xsr::VectorFormat::kF32, 3);
  last.append(values.data(), 2);
  EXPECT_THAT(error_of([&] { last.finish(); }), HasSubstr("w.f32: cannot flush: invalid"));
  xsr::test::instead_of_fdatasync = [] { return 0; };
  EXPECT_THAT(error_of([&] { last.flush(); }), HasSubstr("w.f32: cannot flush: invalid"));
  xsr::test::instead_of_fdatasync = nullptr;
}

TEST_F(Corpus, FullDeviceMessage) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  fs::create_symlink("/dev/full", path("v.f32.partial"));
  const std::vector<float> values = rows_of(1, 5);
  xsr::VectorWriter writer(path("v.f32"), xsr::VectorFormat::kF32, 5);
  try {
    writer.append(values.data(), 1);
    ADD_FAILURE();
  } catch (const xsr::Error& e) {
    EXPECT_EQ(e.what(), path("v.f32") + ": no space left on device after 0 rows.");
  }
}

TEST_F(Corpus, FormatsAndFolders) {
  EXPECT_EQ(xsr::vector_format("a/b.npy"), xsr::VectorFormat::kNpy);
  EXPECT_EQ(xsr::vector_format("b.f32"), xsr::VectorFormat::kF32);
  EXPECT_EQ(xsr::vector_format("b.tsv"), xsr::VectorFormat::kTsv);
  for (const char* bad : {"b", "b.bin", ".npy", "", "npy", "b.npy.gz"}) {
    EXPECT_THROW(xsr::vector_format(bad), xsr::Error) << bad;
  }
  try {
    xsr::VectorWriter writer(path("no/such/folder.npy"), xsr::VectorFormat::kNpy, 3);
    ADD_FAILURE();
  } catch (const xsr::Error& e) {
    EXPECT_EQ(e.status(), XSR_STATUS_IO);
    EXPECT_THAT(e.what(), HasSubstr("No such file"));
  }
  fs::create_directory(path("folder.npy"));
  try {
    xsr::VectorWriter writer(path("folder.npy"), xsr::VectorFormat::kNpy, 3);
    ADD_FAILURE() << "a folder cannot be replaced by a file";
  } catch (const xsr::Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("folder.npy: is a folder, which"));
  }
  EXPECT_FALSE(fs::exists(path("folder.npy.partial")));
  const float row[3] = {};
  xsr::VectorWriter late(path("late.f32"), xsr::VectorFormat::kF32, 3);
  late.append(row, 1);
  fs::create_directory(path("late.f32"));
  try {
    late.finish();
    ADD_FAILURE() << "a folder came into the way";
  } catch (const xsr::Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("late.f32: cannot rename its partial file: is a directory"));
    EXPECT_THAT(e.what(), HasSubstr("kept in " + path("late.f32.partial")));
  }
}

TEST_F(Corpus, AWriterGoesOnBehindTheRowsThatAreKept) {
  const std::vector<float> rows = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  for (const char* name : {"v.npy", "v.f32", "v.tsv"}) {
    const xsr::VectorFormat format = xsr::vector_format(name);
    xsr::KeptRows kept;
    {
      xsr::VectorWriter writer(path(name), format, 2);
      writer.append(rows.data(), 3);
      writer.flush();
      kept = {writer.rows(), writer.whole_bytes()};
      writer.append(rows.data() + 6, 1);  // nobody knows of it behind a crash
    }
    EXPECT_FALSE(fs::exists(path(name)));
    xsr::VectorWriter writer(path(name), format, 2, kept);
    EXPECT_EQ(3u, writer.rows());
    writer.append(rows.data() + 6, 2);
    writer.finish();
    xsr::VectorWriter whole(path("whole"), format, 2);
    whole.append(rows.data(), 5);
    whole.finish();
    EXPECT_EQ(read(name), read("whole")) << name;

    // Not where the rows are gone; and the place is as it was.
    EXPECT_THAT(error_of([&] { xsr::VectorWriter(path(name), format, 2, kept); }),
                HasSubstr(".partial: has 0 bytes, fewer than the " + std::to_string(kept.bytes) +
                          " that were written"));
    EXPECT_FALSE(fs::exists(path(name) + ".partial"));
    write(name + ".partial"s, "abc"s);
    EXPECT_THAT(error_of([&] { xsr::VectorWriter(path(name), format, 2, kept); }),
                HasSubstr(".partial: has 3 bytes, fewer than "));
    EXPECT_EQ("abc", read(name + ".partial"s));
    fs::remove(path(name) + ".partial");
  }
}

TEST_F(Corpus, ResumePointsAreReadAsTheyWereWritten) {
  xsr::ResumePoint point{"xsr 0.1.0, model 1, cpu avx2, f32", 1, 2, 3, ~uint64_t{0}, 5, 6, 7, 8, 9};
  const std::string file = xsr::resume_path(path("v.npy"));
  EXPECT_EQ(file, path("v.npy.resume"));
  EXPECT_EQ(xsr::load_resume_point(file), std::nullopt);
  xsr::save_resume_point(file, point);
  EXPECT_EQ(xsr::load_resume_point(file), point);
  point.rows = 10;
  xsr::save_resume_point(file, point);
  EXPECT_EQ(xsr::load_resume_point(file), point);
  const std::string text = read("v.npy.resume");
  const auto load = [&](const std::string& bytes) {
    write("v.npy.resume", bytes);
    return error_of([&] { xsr::load_resume_point(file); });
  };
  for (size_t cut = 0; cut + 1 < text.size(); ++cut) {
    EXPECT_THAT(load(text.substr(0, cut)),
                AllOf(HasSubstr("v.npy.resume:"), HasSubstr("; remove the file to begin anew")))
        << cut;
  }
  std::string wrong = text;
  for (size_t bit = 0; bit < 8 * text.size(); ++bit) {
    wrong[bit / 8] = static_cast<char>(text[bit / 8] ^ 1 << bit % 8);
    // What stands behind the checksum says nothing.
    if (load(wrong) == "no error") {
      EXPECT_EQ(xsr::load_resume_point(file), point) << bit;
    }
    wrong[bit / 8] = text[bit / 8];
  }
  wrong.replace(wrong.find("rows 10"), 7, "rows 1x");
  EXPECT_THAT(load(wrong), HasSubstr("v.npy.resume:3: \"1x\" is no number"));
}

TEST_F(Corpus, TwoWritersOfOnePathDoNotMix) {
  const std::vector<float> values = rows_of(2, 3);
  xsr::VectorWriter first(path("v.f32"), xsr::VectorFormat::kF32, 3);
  first.append(values.data(), 2);
  try {
    xsr::VectorWriter second(path("v.f32"), xsr::VectorFormat::kF32, 3);
    ADD_FAILURE() << "two writers of one file";
  } catch (const xsr::Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("v.f32.partial: another process is writing it"));
  }
  first.finish();
  EXPECT_EQ(fs::file_size(path("v.f32")), 24u);
  xsr::VectorWriter third(path("v.f32"), xsr::VectorFormat::kF32, 3);  // the name is free again
  third.append(values.data(), 1);
  third.finish();
  EXPECT_EQ(fs::file_size(path("v.f32")), 12u);
}

/// By someone who wants to begin anew while the first run still lives.
TEST_F(Corpus, AWriterWhosePartialFileIsRemovedTouchesNoOther) {
  const std::vector<float> values = rows_of(3, 3);
  const auto writer_of = [&] {
    return std::make_unique<xsr::VectorWriter>(path("v.f32"), xsr::VectorFormat::kF32, 3);
  };
  const std::string gone = "v.f32: cannot find its partial file: no such file or directory after ";
  const auto fails = [&](const auto& what, const std::string& rows) {
    EXPECT_THAT(error_of(what), AllOf(HasSubstr(gone + rows), HasSubstr("has been removed")));
  };
  const auto finished = writer_of();
  fs::remove(path("v.f32.partial"));
  const auto flushed = writer_of();
  fs::remove(path("v.f32.partial"));
  const auto abandoned = writer_of();
  finished->append(values.data(), 1);
  flushed->append(values.data(), 1);
  fs::remove(path("v.f32.partial"));
  fails([&] { flushed->flush(); }, "1 rows.");
  const auto last = writer_of();
  last->append(values.data(), 2);
  fails([&] { finished->finish(); }, "1 rows.");
  EXPECT_THAT(abandoned->abandon(), HasSubstr("v.f32.partial has been removed"));
  EXPECT_FALSE(fs::exists(path("v.f32")));
  last->append(values.data() + 6, 1);
  last->finish();
  EXPECT_EQ(fs::file_size(path("v.f32")), 36u);
}

// ---- Small parts ----

TEST(TokenLine, NumbersAndMistakes) {
  std::vector<int32_t> ids;
  std::string_view bad;
  EXPECT_TRUE(xsr::parse_token_line("", 10, ids, &bad));
  EXPECT_TRUE(xsr::parse_token_line(" \t ", 10, ids, &bad));
  EXPECT_TRUE(ids.empty());
  EXPECT_TRUE(xsr::parse_token_line(" 0 9\t3  ", 10, ids, &bad));
  EXPECT_THAT(ids, ElementsAre(0, 9, 3));
  for (const auto& [line, word] : {std::pair{"1 x2 3", "x2"},
                                   {"1 2x 3", "2x"},
                                   {"10", "10"},
                                   {"-1", "-1"},
                                   {"1 99999999999", "99999999999"},
                                   {"1,2", "1,2"},
                                   {"+1", "+1"},
                                   {"1.0", "1.0"}}) {
    EXPECT_FALSE(xsr::parse_token_line(line, 10, ids, &bad)) << line;
    EXPECT_EQ(bad, word);
  }
}

TEST(Progress, Words) {
  EXPECT_EQ(xsr::with_separators(0), "0");
  EXPECT_EQ(xsr::with_separators(999), "999");
  EXPECT_EQ(xsr::with_separators(1000), "1,000");
  EXPECT_EQ(xsr::with_separators(1204992), "1,204,992");
  EXPECT_EQ(xsr::clock_time(0), "0:00");
  EXPECT_EQ(xsr::clock_time(83), "1:23");
  EXPECT_EQ(xsr::clock_time(3723), "1:02:03");
  EXPECT_EQ(xsr::progress_line(250, 1000, 5000, 10), "25.0 %, 5,000 lines, 500 lines/s, 0:30 left");
  EXPECT_EQ(xsr::progress_line(250, 0, 5000, 10), "5,000 lines, 500 lines/s, 0:10 so far");
  EXPECT_EQ(xsr::progress_line(0, 1000, 0, 0), "0.0 %, 0 lines, 0 lines/s");
  EXPECT_EQ(xsr::progress_line(2000, 1000, 10, 1), "100.0 %, 10 lines, 10 lines/s, 0:00 left");
}

std::string shown(bool terminal, std::initializer_list<double> times) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* out = open_memstream(&text, &size);
  xsr::Progress progress(out, terminal, 100, "at work: ");
  for (double t : times) progress.update(static_cast<uint64_t>(t), 1, t);
  progress.clear();
  std::fclose(out);
  std::string result(text, size);
  std::free(text);
  return result;
}

TEST(Progress, RareLinesInALogAndOneLineOnATerminal) {
  EXPECT_EQ(shown(false, {1, 5, 9.9}), "");
  const std::string log = shown(false, {1, 10, 12, 19, 20, 25});
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2);
  EXPECT_EQ(log.find('\r'), std::string::npos);
  EXPECT_EQ(log.substr(0, log.find('\n')), "at work: " + xsr::progress_line(10, 100, 1, 10));
  const std::string terminal = shown(true, {0.1, 0.6, 0.7, 1.2});
  EXPECT_EQ(terminal.find('\n'), std::string::npos);
  EXPECT_EQ(std::count(terminal.begin(), terminal.end(), '\r'), 3);  // two updates and the clearing
}

TEST(VectorMemo, RemembersExactTextsWithinItsMemory) {
  constexpr size_t kColumns = 8, kBytes = 16 << 10;
  xsr::VectorMemo memo(kColumns, kBytes);
  const auto vector = [](int i) {
    std::vector<float> values(kColumns);
    for (size_t c = 0; c < kColumns; ++c) values[c] = static_cast<float>(i) + 1 / (c + 2.0f);
    return values;
  };
  const auto result = [](int i) {
    xsr_text_result r = {};
    r.num_tokens = i;
    return r;
  };
  const auto expect_known = [&](const std::string& text, int i) {
    const auto entry = memo.find(text);
    ASSERT_TRUE(entry.has_value()) << text;
    EXPECT_EQ(entry->result.num_tokens, i);
    EXPECT_EQ(std::vector<float>(entry->vector, entry->vector + kColumns), vector(i));
  };
  memo.insert("", vector(7).data(), result(7));
  memo.insert("nul \0a"s, vector(8).data(), result(8));
  expect_known("", 7);
  expect_known("nul \0a"s, 8);
  EXPECT_FALSE(memo.find("nul \0b"s));
  EXPECT_FALSE(memo.find("nul "));
  for (int i = 0; i < 1000; ++i) {
    memo.insert("text " + std::to_string(i), vector(i).data(), result(i));
    EXPECT_LE(memo.bytes(), kBytes);
    if (i % 10 == 0) expect_known("text 0", 0);  // what keeps coming stays
  }
  expect_known("text 999", 999);
  EXPECT_FALSE(memo.find("text 1"));
  memo.insert(std::string(5000, 'x'), vector(1).data(), result(1));
  EXPECT_FALSE(memo.find(std::string(5000, 'x'))) << "long lines are passed over";
  xsr::VectorMemo tiny(kColumns, 100);
  tiny.insert("a", vector(1).data(), result(1));
  EXPECT_FALSE(tiny.find("a")) << "there is no room for one";
  EXPECT_EQ(tiny.bytes(), 0u);
}

/// Texts whose hashes have the upper half and the place in a table of 1,024 in common.
TEST(VectorMemo, TextsOfOneHashAreToldApart) {
  const std::string one = "2004862", other = "4008785";
  const uint64_t difference =
      XXH3_64bits(one.data(), one.size()) ^ XXH3_64bits(other.data(), other.size());
  ASSERT_EQ(difference & 0xffffffff000003ff, 0u);
  xsr::VectorMemo memo(1, 1 << 20);
  const float values[] = {1, 2};
  memo.insert(one, &values[0], {});
  EXPECT_FALSE(memo.find(other));
  memo.insert(other, &values[1], {});
  EXPECT_EQ(*memo.find(one)->vector, 1);
  EXPECT_EQ(*memo.find(other)->vector, 2);
}

TEST(VectorMemo, KeepsAllWhileThereIsRoom) {
  xsr::VectorMemo memo(1, 1 << 20);
  for (int i = 0; i < 4000; ++i) {  // the table grows twice
    const float value = static_cast<float>(i);
    memo.insert(std::to_string(i), &value, {});
  }
  for (int i = 0; i < 4000; ++i) {
    const auto entry = memo.find(std::to_string(i));
    ASSERT_TRUE(entry.has_value()) << i;
    ASSERT_EQ(*entry->vector, i);
  }
}

}  // namespace
