// Texts as they lie on disk: plain, gzip, Zstandard.
#include "input/text_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "runtime/error.h"
#include "runtime/text/line_reader.h"
#include "tests/support/error_of.h"
#include "tests/support/packing.h"
#include "tests/support/temp_folder.h"

namespace xsr {
namespace {

using test::error_of;
using test::gzip;
using test::kSkippedFrame;
using test::zstd;
using testing::AllOf;
using testing::HasSubstr;
using namespace std::string_literals;

/// Gives at most `most` bytes at a time, as a pipe may.
class MemorySource : public ByteSource {
 public:
  MemorySource(std::string bytes, size_t most, std::string name)
      : bytes_(std::move(bytes)), most_(most), name_(std::move(name)) {}
  size_t read(char* to, size_t size) override {
    const size_t count = bytes_.copy(to, std::min(size, most_), at_);
    at_ += count;
    ends_ += count == 0;
    if (stop_ != nullptr && at_ == bytes_.size()) *stop_ = true;
    return count;
  }
  const std::string& name() const override { return name_; }
  uint64_t total_bytes() const override { return bytes_.size(); }
  uint64_t bytes_read() const override { return at_; }
  int ends() const { return ends_; }
  void stop_at_the_end(std::atomic<bool>* stop) { stop_ = stop; }

 private:
  const std::string bytes_;
  const size_t most_;
  const std::string name_;
  size_t at_ = 0;
  int ends_ = 0;
  std::atomic<bool>* stop_ = nullptr;
};

std::string unpacked(const std::string& bytes, size_t most = 1 << 20, size_t block = 1 << 16,
                     const std::string& name = "text") {
  const auto source = unpack(std::make_unique<MemorySource>(bytes, most, name));
  std::string text, part(block, '\0');
  while (const size_t size = source->read(part.data(), block)) text.append(part, 0, size);
  EXPECT_EQ(source->read(part.data(), block), 0u) << "the end is the end";
  EXPECT_EQ(source->bytes_read(), bytes.size());
  EXPECT_EQ(source->total_bytes(), bytes.size());
  return text;
}

std::string numbered_lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += "Line " + std::to_string(i) + " of " +
            std::to_string(static_cast<uint32_t>(i) * 2654435761u % 977) + ".\n";
  return text;
}

TEST(TextFile, TheTextIsTheSameHoweverItIsPacked) {
  const std::string text = numbered_lines(3000);
  const std::string half = text.substr(0, 20001), rest = text.substr(20001);
  const std::string forms[] = {
      text,
      gzip(text),
      gzip(half) + gzip("") + gzip(rest),
      zstd(text),
      zstd(half) + zstd("") + zstd(rest),
      kSkippedFrame + zstd(half) + kSkippedFrame + zstd(rest) + kSkippedFrame,
      "\x5F" + kSkippedFrame.substr(1) + zstd(text),  // the last of sixteen magic numbers
  };
  for (const std::string& bytes : forms) {
    for (const size_t most : {1, 2, 3, 1000, 1 << 20}) {
      for (const size_t block : {1, 100, 1 << 20})
        ASSERT_TRUE(unpacked(bytes, most, block) == text) << most << " " << block;
    }
  }
  for (const std::string& nothing : {""s, gzip(""), zstd(""), kSkippedFrame})
    EXPECT_EQ(unpacked(nothing, 1), "");
}

/// A terminal would have to be told of it as often.
TEST(TextFile, TheEndIsAskedForOnce) {
  for (const std::string& bytes : {""s, "hello"s, "P"s, gzip(""), gzip("hello"), zstd("hello")}) {
    auto memory = std::make_unique<MemorySource>(bytes, 100, "text");
    const MemorySource& source = *memory;
    LineReader reader(unpack(std::move(memory)));
    LineBatch batch;
    while (reader.read(10, 100, batch)) {
    }
    EXPECT_EQ(source.ends(), 1) << bytes.size();
  }
}

/// Else rows of one text would be gone on with from another.
TEST(TextFile, AStopAtTheEndOfWhatIsDoneHidesNoOtherText) {
  const std::string text = numbered_lines(100);
  std::atomic<bool> stop = false;
  auto memory = std::make_unique<MemorySource>(text, 1 << 20, "text");
  memory->stop_at_the_end(&stop);
  LineReader reader(std::move(memory), 1000, &stop);
  EXPECT_THAT(error_of([&] { reader.skip(text.size() / 2, 50, 1); }),
              HasSubstr("text: differs in the first "));
  EXPECT_TRUE(stop);
}

/// The source of a reader that is stopped ends early.
TEST(TextFile, AStopWithinWhatIsDoneIsNoShorterText) {
  const std::string text = numbered_lines(100), begin = text.substr(0, text.size() / 2);
  std::atomic<bool> stop = false;
  const auto skip = [&] {
    LineReader(std::make_unique<MemorySource>(begin, 50, "text"), 1000, &stop)
        .skip(text.size(), 100, 1);
  };
  EXPECT_THAT(error_of(skip), HasSubstr("text: is shorter than the text whose first 100 lines"));
  stop = true;
  EXPECT_EQ(error_of(skip), "no error");
}

/// Text that begins as packed data does, for a while.
TEST(TextFile, WhatOnlyBeginsAlikeIsText) {
  for (const std::string& text :
       {"("s, "(a)\n"s, "P"s, "P*"s, "P*M\n"s, "_*M"s, "\x1Fx\n"s, "\x28\xB5x\n"s}) {
    for (const size_t most : {1, 100}) EXPECT_EQ(unpacked(text, most), text);
  }
}

/// By whom it is still copied: never taken for the end of the text.
TEST(TextFile, PackedDataThatEndsEarlyIsAnErrorWhereverItEnds) {
  const std::string text = numbered_lines(40);
  for (const bool gz : {true, false}) {
    const std::string whole = gz ? gzip(text) : zstd(text), name = gz ? "t.gz" : "t.zst";
    for (size_t size = 0; size < whole.size(); ++size) {
      const std::string cut = whole.substr(0, size), place = std::to_string(size);
      ASSERT_EQ(error_of([&] { unpacked(cut, 1 << 20, 50, name); }),
                name + ": the " +
                    (size < (gz ? 2 : 4) ? "packed"
                     : gz                ? "gzip"
                                         : "zstd") +
                    " data ends early, behind byte " + place + (size > 0 ? " of " + place : "") +
                    "; is it whole? Let whatever writes it end, or copy it again");
      // Whatever its name; a single "(" may be a text.
      if (size > 1) {
        ASSERT_THAT(error_of([&] { unpacked(cut, 1); }), HasSubstr(" data ends early")) << size;
        ASSERT_THAT(error_of([&] { unpacked(whole + cut); }), HasSubstr(" data ends early"));
      }
    }
    EXPECT_EQ(unpacked("plain\n", 1, 50, name), "plain\n") << "the content says what it is";
  }
  EXPECT_THAT(error_of([&] { unpacked(gzip(text).substr(0, 1)); }), HasSubstr("gzip data ends"));
}

TEST(TextFile, DamagedPackedDataIsAnError) {
  const std::string text = numbered_lines(300);
  for (const bool gz : {true, false}) {
    const std::string whole = gz ? gzip(text) : zstd(text);
    const size_t begin = gz ? 10 : 6;  // behind the header, of which not every bit matters
    size_t harmless = 0;
    for (size_t at = begin; at < whole.size(); ++at) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
      std::string text_of_it;
      const std::string error = error_of([&] { text_of_it = unpacked(damaged); });
      if (text_of_it == text) {  // a bit that means nothing
        ++harmless;
        continue;
      }
      ASSERT_THAT(error, HasSubstr(gz ? "text: the gzip data " : "text: the zstd data ")) << at;
      ASSERT_THAT(error, HasSubstr(", behind byte ")) << at;
      ASSERT_THAT(error, HasSubstr(" again")) << at;
    }
    EXPECT_LT(harmless, 5u);
    for (const std::string& more : {"more"s, std::string(512, '\0')}) {
      EXPECT_THAT(error_of([&] { unpacked(whole + more); }),
                  AllOf(HasSubstr("other data follows the "),
                        HasSubstr("cut it off, or pack the text again")));
    }
  }
  std::string damaged = gzip(text);
  damaged[damaged.size() - 6] ^= 1;
  EXPECT_EQ(error_of([&] { unpacked(damaged); }),
            "text: the gzip data is damaged (incorrect data check), behind byte " +
                std::to_string(damaged.size() - 4) + " of " + std::to_string(damaged.size()) +
                "; copy it again, or pack the text again");
  EXPECT_THAT(error_of([&] { unpacked(zstd(text, 28)); }),
              HasSubstr("a window beyond --long=27, behind byte 0 of "));
  EXPECT_TRUE(unpacked(zstd(text, 27)) == text);
}

TEST(TextFile, WhatComesBeforeAnEarlyEndIsGiven) {
  const test::TempFolder folder;
  const std::string text = numbered_lines(200000);
  for (const bool gz : {true, false}) {
    const std::string whole = gz ? gzip(text) : zstd(text), file = folder / "cut";
    std::ofstream(file, std::ios::binary) << whole.substr(0, whole.size() / 2);
    LineReader reader(open_text_file(file));
    LineBatch batch;
    uint64_t lines = 0;
    const std::string error = error_of([&] {
      while (reader.read(100, 1 << 20, batch)) {
        EXPECT_EQ(batch.first_line, lines + 1);
        EXPECT_FALSE(batch.mid_line);
        lines += batch.size();
      }
    });
    EXPECT_GT(lines, 80000u);
    EXPECT_THAT(error, AllOf(HasSubstr("cut: the "), HasSubstr(" data ends early, "),
                             HasSubstr(" (after line ")));
    // Passing over the text counts no lines.
    EXPECT_THAT(error_of([&] { LineReader(open_text_file(file)).skip(text.size(), 200000, 0); }),
                AllOf(HasSubstr(" data ends early, "), testing::Not(HasSubstr("after line"))));
  }
}

/// Also in its last line, which had no end, and packed otherwise by then.
TEST(TextFile, ATextThatHasGrownGoesOnBehindWhatIsDone) {
  const std::string text = numbered_lines(500) + "no end", more = text + " yet\nbut now\n";
  const auto open = [](const std::string& bytes) {
    return unpack(std::make_unique<MemorySource>(bytes, 999, "text"));
  };
  for (const std::string& before : {text, gzip(text), zstd(text)}) {
    LineReader first(open(before));
    LineBatch done, last;
    ASSERT_TRUE(first.read(500, 1 << 20, done));
    EXPECT_FALSE(done.mid_line);
    ASSERT_TRUE(first.read(500, 1 << 20, last));
    EXPECT_TRUE(last.mid_line);
    EXPECT_EQ(last.line(0), "no end");
    for (const std::string& grown :
         {more, gzip(text) + gzip(" yet\nbut now\n"), zstd(more), gzip(more)}) {
      LineReader second(open(grown));
      second.skip(done.bytes_consumed, 500, done.text_hash);
      LineBatch rest;
      ASSERT_TRUE(second.read(500, 1 << 20, rest));
      ASSERT_EQ(rest.size(), 2u);
      EXPECT_EQ(rest.first_line, 501u);
      EXPECT_EQ(rest.line(0), "no end yet");
    }
    EXPECT_THAT(error_of([&] {
                  LineReader(open(gzip("X" + text))).skip(done.bytes_consumed, 500, done.text_hash);
                }),
                HasSubstr("text: differs in the first "));
  }
}

/// For progress: how much of the file, as it is stored, the lines read so far took.
TEST(TextFile, ABatchSaysHowMuchOfTheFileItTook) {
  const std::string text = numbered_lines(100000);
  for (const std::string& bytes : {text, gzip(text), zstd(text)}) {
    LineReader reader(unpack(std::make_unique<MemorySource>(bytes, 1 << 20, "text")));
    LineBatch batch;
    while (reader.read(100, 1 << 20, batch)) {
      const double share = static_cast<double>(batch.source_bytes) / bytes.size();
      const double expected = static_cast<double>(batch.bytes_consumed) / text.size();
      // What unpacks it takes some of it ahead.
      ASSERT_NEAR(share, expected, bytes == text ? 1e-9 : 0.12);
    }
    EXPECT_EQ(batch.source_bytes, bytes.size());
    LineReader again(unpack(std::make_unique<MemorySource>(bytes, 1 << 20, "text")));
    again.skip(batch.bytes_consumed, 100000, batch.text_hash);
    EXPECT_EQ(again.source_bytes(), bytes.size());
  }
}

/// Neither that it cannot go on, nor much text of little packed data, keeps a signal waiting.
TEST(TextFile, AStopIsNoEarlyEnd) {
  const test::TempFolder folder;
  const std::string pipe = folder / "pipe", text = numbered_lines(30000);
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::atomic<bool> stop = false;
  for (const std::string& packed : {gzip(text), zstd(text)}) {
    stop = false;
    std::atomic<bool> read = false;
    std::thread writer([&] {
      std::ofstream out(pipe, std::ios::binary);
      out << packed.substr(0, packed.size() / 2) << std::flush;
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      stop = true;
      // The pipe stays open, for a while at least.
      for (int i = 0; i < 300 && !read; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      EXPECT_TRUE(read) << "it waits for the writer";
    });
    LineReader reader(open_text_file(pipe, &stop), 1000, &stop);
    LineBatch batch;
    uint64_t lines = 0;
    const std::string error = error_of([&] {
      while (reader.read(1000, 1 << 20, batch)) lines += batch.size();
    });
    read = true;
    writer.join();
    EXPECT_EQ(error, "no error");
    EXPECT_GT(lines, 5000u);
  }

  const std::string blank = folder / "blank.gz";
  std::ofstream(blank, std::ios::binary) << gzip(std::string(40 << 20, '\n'));
  stop = false;
  const auto source = open_text_file(blank, &stop);
  std::string block(1 << 20, '\0');
  EXPECT_GT(source->read(block.data(), block.size()), 0u);
  stop = true;
  EXPECT_EQ(source->read(block.data(), block.size()), 0u);
  EXPECT_EQ(open_text_file(blank, &stop)->read(block.data(), block.size()), 0u) << "no early end";
}

TEST(TextFile, AllLinesOfAFile) {
  const test::TempFolder folder;
  const auto file = [&](const std::string& bytes) {
    std::ofstream(folder / "t", std::ios::binary) << bytes;
    return folder / "t";
  };
  for (const std::string& bytes : {"one\r\n\ntwo"s, gzip("one\r\n\ntwo"), zstd("one\r\n\ntwo")})
    EXPECT_THAT(read_all_lines(file(bytes)), testing::ElementsAre("one", "", "two"));
  EXPECT_THAT(error_of([&] { read_all_lines(file(gzip(gzip("one\n")))); }),
              HasSubstr("t: is gzip data, expected text in UTF-8; unpack it first (gunzip)"));
  EXPECT_THAT(error_of([&] {
                read_all_lines(
                    file("\xFD"
                         "7zXZ\0\n"s));
              }),
              HasSubstr("is xz data"));
  EXPECT_THAT(error_of([&] { read_all_lines(folder / "none"); }),
              HasSubstr("none: cannot open: No such file"));
}

}  // namespace
}  // namespace xsr
