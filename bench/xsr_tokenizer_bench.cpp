// The tokenizer of a model on the lines of text files, one thread, beside the SentencePiece
// library, by Google Benchmark. Where ids differ from the library's, nothing is timed.
//
//     xsr_tokenizer_bench MODEL.xsr TEXT... [--benchmark_repetitions=9]
//
// library: ids only, of lines that were repaired and lower-cased beforehand. no_memo, cold (an
// empty memo for each pass over the file), warm: all of it. open: making the tokenizer from its
// bytes.
#include <benchmark/benchmark.h>
#include <sentencepiece_processor.h>

#include <cstdio>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "input/text_file.h"
#include "runtime/error.h"
#include "runtime/format/xsr_file.h"
#include "runtime/text/lowercase.h"
#include "runtime/text/standard_streams.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/utf8.h"

namespace xsr::bench {
namespace {

constexpr size_t kNoLimit = size_t{1} << 20;

struct Text {
  std::string name;
  std::vector<std::string> lines, prepared;  // prepared: as the library gets them
  int64_t bytes = 0, tokens = 0;
};

struct Subject {
  std::unique_ptr<XsrFile> file;
  std::unique_ptr<Tokenizer> tokenizer;
  sentencepiece::SentencePieceProcessor library;
  std::list<Text> texts;
};

/// Reads a file and compares the ids; false when some differ.
bool add_text(Subject& subject, const std::string& path) {
  Text text;
  text.name = path.substr(path.rfind('/') + 1);
  const auto state = subject.tokenizer->make_state();
  for (const std::string& line : read_all_lines(path)) {
    std::string repaired, prepared;
    sanitize_utf8(line, repaired);
    if (subject.file->config().lowercase) {
      append_lowercase(repaired, prepared);
    } else {
      prepared = repaired;
    }
    std::vector<int> expected;
    (void)subject.library.Encode({prepared.data(), prepared.size()}, &expected);
    for (int pass = 0; pass < 2; ++pass) {
      std::vector<int32_t> ids;
      subject.tokenizer->encode(line, kNoLimit, ids, state.get());
      if (ids != expected) {
        std::fprintf(stderr, "%s: the ids are not the library's: %s\n", path.c_str(), line.c_str());
        return false;
      }
    }
    text.bytes += static_cast<int64_t>(line.size());
    text.tokens += static_cast<int64_t>(expected.size());
    text.lines.push_back(line);
    text.prepared.push_back(prepared);
  }
  if (text.lines.empty()) throw Error(XSR_STATUS_BAD_FILE, path + ": has no lines");
  subject.texts.push_back(std::move(text));
  return true;
}

void report(benchmark::State& run, const Text& text) {
  const double passes = static_cast<double>(run.iterations());
  using benchmark::Counter;
  run.counters["tokens/s"] = Counter(passes * static_cast<double>(text.tokens), Counter::kIsRate);
  run.counters["sentences/s"] =
      Counter(passes * static_cast<double>(text.lines.size()), Counter::kIsRate);
  run.SetBytesProcessed(static_cast<int64_t>(run.iterations()) * text.bytes);
}

void time_library(benchmark::State& run, const Subject& subject, const Text& text) {
  std::vector<int> ids;
  for (auto _ : run) {
    for (const std::string& line : text.prepared) {
      (void)subject.library.Encode({line.data(), line.size()}, &ids);
      benchmark::DoNotOptimize(ids.data());
    }
  }
  report(run, text);
}

enum class Memo { kNone, kCold, kWarm };

void time_ours(benchmark::State& run, const Subject& subject, const Text& text, Memo memo) {
  std::unique_ptr<Tokenizer::State> state;
  std::vector<int32_t> ids;
  const auto pass = [&] {
    for (const std::string& line : text.lines) {
      ids.clear();
      subject.tokenizer->encode(line, kNoLimit, ids, state.get());
      benchmark::DoNotOptimize(ids.data());
    }
  };
  if (memo == Memo::kWarm) {
    state = subject.tokenizer->make_state();
    pass();
  }
  for (auto _ : run) {
    if (memo == Memo::kCold) state = subject.tokenizer->make_state();
    pass();
  }
  report(run, text);
}

/// tables: the file's, or none, and then they are made from the model.
void time_open(benchmark::State& run, const Subject& subject,
               std::span<const unsigned char> tables) {
  for (auto _ : run) {
    benchmark::DoNotOptimize(
        make_tokenizer(subject.file->tokenizer(), tables, subject.file->config()));
  }
}

void time_open_library(benchmark::State& run, const Subject& subject) {
  const std::string_view blob = subject.file->tokenizer();
  for (auto _ : run) {
    sentencepiece::SentencePieceProcessor library;
    (void)library.LoadFromSerializedProto({blob.data(), blob.size()});
  }
}

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL.xsr TEXT... [--benchmark_...]\n", argv[0]);
    return 2;
  }
  Subject subject;
  subject.file = XsrFile::open(argv[1]);
  const std::string_view blob = subject.file->tokenizer();
  subject.tokenizer = make_tokenizer(blob, subject.file->config());
  if (subject.tokenizer == nullptr ||
      !subject.library.LoadFromSerializedProto({blob.data(), blob.size()}).ok()) {
    std::fprintf(stderr, "%s: no SentencePiece tokenizer in it\n", argv[1]);
    return 1;
  }
  for (int i = 2; i < argc; ++i) {
    if (!add_text(subject, argv[i])) return 1;
  }
  const auto add = [](const std::string& name, auto function) {
    benchmark::RegisterBenchmark(name.c_str(), function)->Unit(benchmark::kMicrosecond);
  };
  add("open/library", [&](benchmark::State& s) { time_open_library(s, subject); });
  add("open/xsr",
      [&](benchmark::State& s) { time_open(s, subject, subject.file->tokenizer_tables()); });
  add("open/xsr_without_tables", [&](benchmark::State& s) { time_open(s, subject, {}); });
  for (const Text& text : subject.texts) {
    const std::string name = "encode/" + text.name + "/";
    add(name + "library", [&](benchmark::State& s) { time_library(s, subject, text); });
    add(name + "no_memo", [&](benchmark::State& s) { time_ours(s, subject, text, Memo::kNone); });
    add(name + "cold", [&](benchmark::State& s) { time_ours(s, subject, text, Memo::kCold); });
    add(name + "warm", [&](benchmark::State& s) { time_ours(s, subject, text, Memo::kWarm); });
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace xsr::bench

int main(int argc, char** argv) {
  return xsr::run_tool("xsr_tokenizer_bench", [&] { return xsr::bench::run(argc, argv); });
}
