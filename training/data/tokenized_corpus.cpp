#include "training/data/tokenized_corpus.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "converter/json_text.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/text/line_reader.h"
#include "runtime/text/progress.h"
#include "runtime/text/tokenizer.h"

namespace xsr::training {
namespace {

static_assert(std::endian::native == std::endian::little, "the cache is little-endian");

constexpr char kMagic[8] = {'X', 'S', 'R', 'P', 'A', 'I', 'R', 'S'};
// To be raised with every change of the format, of what a line is, or of what a tokenizer gives.
constexpr uint32_t kVersion = 1;
constexpr uint64_t kAlignment = 64;
constexpr size_t kChunkLines = 1024, kChunkBytes = 1 << 20;  // what one thread tokenises at a time
constexpr int32_t kChunksPerThread = 4;
constexpr int32_t kMostNarrowIds = 65536;  // vocabularies up to here have ids of 16 bits

/// The file: this, the tokens, the records, the description (JSON), each at a multiple of
/// kAlignment but for the last, with zeros between; nothing behind.
struct Header {
  char magic[8];
  uint32_t version;
  int32_t vocab_size;
  uint64_t file_size;
  char key[32];  // of what the cache was made of: 128 bits in hexadecimal
  uint64_t num_pairs, num_tokens;
  uint64_t longest_pair;  // tokens
  uint64_t tokens_offset, records_offset, text_offset, text_size;
  uint64_t tokens_hash, records_hash, text_hash;  // XXH3, 64 bits
  uint64_t header_hash;                           // of the header with this field 0
};
static_assert(sizeof(Header) == 144 && std::has_unique_object_representations_v<Header>);

uint64_t header_hash(Header header) {
  header.header_hash = 0;
  return XXH3_64bits(&header, sizeof header);
}

uint64_t aligned(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

/// Bytes that are kept on the disk until they are wanted again; the file has no name.
class Spool {
 public:
  explicit Spool(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "w+be")) {
    if (file_ == nullptr) fail("create");
    ::unlink(path.c_str());
  }
  ~Spool() { std::fclose(file_); }
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  void write(const void* data, size_t size) {
    if (size > 0 && std::fwrite(data, 1, size, file_) != size) fail("write");
  }
  /// Calls body(data, size) for all of it, in blocks.
  template <typename Body>
  void read_back(const Body& body) {
    std::vector<char> block(1 << 20);
    if (std::fflush(file_) != 0) fail("write");
    std::rewind(file_);
    for (size_t got; (got = std::fread(block.data(), 1, block.size(), file_)) > 0;)
      body(block.data(), got);
    if (std::ferror(file_)) fail("read back");
  }

 private:
  [[noreturn]] void fail(const char* what) {
    const int error = errno;
    throw Error(XSR_STATUS_IO,
                fmt::format("{}: cannot {} the file: {}{}", path_, what,
                            std::system_category().message(error),
                            error == ENOSPC ? ". Free some space and start again" : ""));
  }

  std::string path_;
  std::FILE* file_;
};

/// One process at a time makes caches in a folder; the others wait, for it may be theirs. Where the
/// file system cannot lock a folder nobody waits, and the second writer of a file gets an error.
class FolderTurn {
 public:
  FolderTurn(const std::string& cache_path, const DataLog& log) {
    const std::string folder = std::filesystem::path(cache_path).parent_path();
    fd_ = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (bool said = false; fd_ >= 0 && ::flock(fd_, LOCK_EX | LOCK_NB) != 0; said = true) {
      if (errno != EWOULDBLOCK) break;
      if (log.stopped()) {
        ::close(fd_);
        throw Stopped();
      }
      if (!said && log.say)
        log.say(folder + ": waits for another process that makes a cache in it");
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
  ~FolderTurn() {
    if (fd_ >= 0) ::close(fd_);
  }
  FolderTurn(const FolderTurn&) = delete;
  FolderTurn& operator=(const FolderTurn&) = delete;

 private:
  int fd_ = -1;
};

nlohmann::json to_json(const DropReport& report) {
  return {{"counts", report.counts},
          {"examples", report.examples},
          {"lines", report.lines},
          {"kept", report.kept},
          {"truncated", report.truncated}};
}

DropReport report_from(const nlohmann::json& json) {
  DropReport report;
  json.at("counts").get_to(report.counts);
  json.at("examples").get_to(report.examples);
  json.at("lines").get_to(report.lines);
  json.at("kept").get_to(report.kept);
  json.at("truncated").get_to(report.truncated);
  return report;
}

void merge(const DropReport& from, DropReport& to) {
  for (size_t i = 0; i < kNumDropReasons; ++i) {
    to.counts[i] += from.counts[i];
    for (const std::string& example : from.examples[i]) {
      if (to.examples[i].size() < DropReport::kMaxExamples) to.examples[i].push_back(example);
    }
  }
  to.lines += from.lines;
  to.kept += from.kept;
  to.truncated += from.truncated;
}

/// What the cache is made of, in 128 bits.
std::string make_key(std::span<const LanguagePair> languages, const ModelConfig& c,
                     std::string_view tokenizer_model, const CorpusOptions& o) {
  std::string text = fmt::format("{}\n", kVersion);
  for (const LanguagePair& language : languages) {
    text += "part\n";
    for (const TextFile& file : language.files) {
      text += fmt::format("{} {} {} {} {}\n", file.hash.hex, file.hash.size, file.first_column,
                          file.second_column, file.num_columns);
    }
  }
  const XXH128_hash_t model = XXH3_128bits(tokenizer_model.data(), tokenizer_model.size());
  text += fmt::format("{:016x}{:016x} {} {} {} {} {} {} {} {} {}\n", model.high64, model.low64,
                      static_cast<uint32_t>(c.tokenizer), c.vocab_size, c.max_seq_len, c.lowercase,
                      c.unk_id, c.add_cls, c.cls_id, c.add_sep, c.sep_id);
  text += fmt::format("{} {} {} {} {}\n", o.strict, o.max_line_bytes, o.min_tokens, o.max_tokens,
                      o.max_ratio);
  const XXH128_hash_t key = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", key.high64, key.low64);
}

}  // namespace

void validate(const CorpusOptions& o, int32_t max_seq_len) {
  if (o.min_tokens >= 1 && o.max_tokens >= 0 && o.max_tokens <= max_seq_len &&
      (o.max_tokens == 0 || o.max_tokens >= o.min_tokens) && o.min_tokens <= max_seq_len &&
      (o.max_ratio == 0 || o.max_ratio >= 1) && o.max_line_bytes >= 1) {
    return;
  }
  throw Error(XSR_STATUS_INVALID_ARGUMENT,
              fmt::format("filters of min_tokens {}, max_tokens {}, max_ratio {} make no sense for "
                          "a model of max_seq_len {}; expected 1 ≤ min_tokens ≤ max_tokens ≤ "
                          "max_seq_len (max_tokens may be 0: cut instead of dropped), max_ratio 0 "
                          "or at least 1",
                          o.min_tokens, o.max_tokens, o.max_ratio, max_seq_len));
}

struct TokenizedCorpus::Record {
  uint64_t first_token;
  uint32_t line;  // from 1
  uint16_t length[2];
};

/// The making of a cache.
class CorpusWriter {
 public:
  CorpusWriter(const std::string& path, std::span<const LanguagePair> languages,
               const ModelConfig& config, std::string_view tokenizer_model,
               const CorpusOptions& options, ThreadPool& pool, const DataLog& log)
      : languages_(languages),
        config_(config),
        options_(options),
        pool_(pool),
        log_(log),
        tokenizer_(make_tokenizer(tokenizer_model, config)),
        file_(path),
        spool_(path + ".partial.records") {
    if (tokenizer_ == nullptr) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT, "the model's config names no tokenizer");
    }
    for (int32_t thread = 0; thread < pool.num_threads(); ++thread)
      states_.push_back(tokenizer_->make_state());
    for (const LanguagePair& language : languages)
      for (const TextFile& file : language.files) total_bytes_ += file.hash.size;
    XXH3_64bits_reset(&tokens_hash_);
    XXH3_64bits_reset(&records_hash_);
    file_.pad_to(aligned(sizeof(Header)));
  }

  void write(const std::string& key) {
    Header header{};
    header.tokens_offset = file_.size();
    nlohmann::json text;
    for (const LanguagePair& language : languages_) {
      DropReport report;
      const uint64_t first_pair = num_pairs_;
      for (const TextFile& file : language.files) {
        text["files"].push_back({{"first_pair", num_pairs_}});
        add_file(file, report);
        done_bytes_ += file.hash.size;
      }
      text["parts"].push_back({{"first_pair", first_pair},
                               {"num_pairs", num_pairs_ - first_pair},
                               {"drops", to_json(report)}});
      if (num_pairs_ == first_pair) throw_no_pair(language.name, report);
    }
    file_.pad_to(aligned(file_.size()));
    header.records_offset = file_.size();
    spool_.read_back([&](const void* data, size_t size) { file_.write(data, size); });
    file_.pad_to(aligned(file_.size()));
    header.text_offset = file_.size();
    const std::string json = json_text(text);
    file_.write(json.data(), json.size());

    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.vocab_size = config_.vocab_size;
    header.file_size = file_.size();
    std::memcpy(header.key, key.data(), sizeof header.key);
    header.num_pairs = num_pairs_;
    header.num_tokens = num_tokens_;
    header.longest_pair = longest_pair_;
    header.text_size = json.size();
    header.tokens_hash = XXH3_64bits_digest(&tokens_hash_);
    header.records_hash = XXH3_64bits_digest(&records_hash_);
    header.text_hash = XXH3_64bits(json.data(), json.size());
    header.header_hash = header_hash(header);
    file_.overwrite(0, &header, sizeof header);
    file_.commit();
  }

 private:
  using Record = TokenizedCorpus::Record;

  /// Some lines of a file, and what they give.
  struct Chunk {
    LineBatch lines;
    std::vector<int32_t> ids;
    std::vector<Record> records;  // first_token counts from the chunk's
    DropReport report;
    std::string fault;  // of the first faulty line
  };

  void add_file(const TextFile& file, DropReport& report) {
    LineReader reader(open_text(file.path, file.hash, log_.stop), options_.max_line_bytes,
                      log_.stop);
    // While some chunks are tokenised, one thread reads the next.
    const size_t most = static_cast<size_t>(pool_.num_threads() * kChunksPerThread);
    std::vector<Chunk> now(most), next(most);
    const auto read = [&](std::vector<Chunk>& chunks) {
      size_t n = 0;
      while (n < most && reader.read(kChunkLines, kChunkBytes, chunks[n].lines)) ++n;
      return n;
    };
    size_t count = read(now);
    while (count > 0) {
      size_t next_count = 0;
      pool_.for_each(static_cast<int32_t>(count) + 1, [&](int32_t task, int32_t thread) {
        if (task == 0) {
          next_count = read(next);
        } else {
          tokenize(file, now[static_cast<size_t>(task - 1)], thread);
        }
      });
      if (log_.stopped()) throw Stopped();
      for (size_t i = 0; i < count; ++i) append(now[i], report);
      if (log_.progress) {
        log_.progress(done_bytes_ + reader.source().bytes_read(), total_bytes_, lines_);
      }
      std::swap(now, next);
      count = next_count;
    }
    if (log_.stopped()) throw Stopped();
  }

  void tokenize(const TextFile& file, Chunk& chunk, int32_t thread) const {
    chunk.ids.clear();
    chunk.records.clear();
    chunk.report = DropReport();
    chunk.fault.clear();
    for (size_t i = 0; i < chunk.lines.size(); ++i) {
      const std::string_view line = chunk.lines.line(i);
      const uint64_t number = chunk.lines.first_line + i;
      const size_t first_id = chunk.ids.size();
      Record record{first_id, static_cast<uint32_t>(number), {0, 0}};
      std::string_view sides[2];
      DropReason reason = number > UINT32_MAX
                              ? throw Error(XSR_STATUS_UNSUPPORTED,
                                            file.path + ": has more than 2^32 lines; split it")
                              : split_pair(line, chunk.lines.cut[i] != 0, file, sides);
      uint64_t truncated = 0;
      if (reason == DropReason::kKept) {
        reason = tokenize_sides(sides, thread, chunk.ids, record, &truncated);
      }
      ++chunk.report.lines;
      if (reason == DropReason::kKept) {
        chunk.records.push_back(record);
        ++chunk.report.kept;
        chunk.report.truncated += truncated;
        continue;
      }
      chunk.ids.resize(first_id);
      std::string example;
      auto& examples = chunk.report.examples[static_cast<size_t>(reason)];
      const bool first_fault = is_fault(reason) && chunk.fault.empty();
      if (first_fault || examples.size() < DropReport::kMaxExamples) {
        example = fmt::format("{}:{}", file.path, number);
        if (is_fault(reason)) {
          example += ": " + describe_drop(reason, line, file);
        } else if (reason > DropReason::kNoTokens) {
          example += fmt::format(": {} and {} tokens{}", record.length[0], record.length[1],
                                 truncated > 0 ? " as cut to max_seq_len" : "");
        }
      }
      if (first_fault) chunk.fault = example;
      chunk.report.add(reason, example);
    }
  }

  DropReason tokenize_sides(const std::string_view sides[2], int32_t thread,
                            std::vector<int32_t>& ids, Record& record, uint64_t* truncated) const {
    const int32_t limit = config_.max_seq_len;
    bool too_long = false;
    for (int side : {0, 1}) {
      const size_t before = ids.size();
      try {
        const Tokenizer::Result result =
            tokenizer_->encode(sides[side], static_cast<size_t>(limit), ids,
                               states_[static_cast<size_t>(thread)].get());
        *truncated += result.truncated;
        too_long |=
            options_.max_tokens > 0 &&
            (result.truncated || ids.size() - before > static_cast<size_t>(options_.max_tokens));
      } catch (const Error& error) {
        if (error.status() != XSR_STATUS_BAD_FILE) throw;
        return DropReason::kControlPiece;
      }
      record.length[side] = static_cast<uint16_t>(ids.size() - before);
    }
    const auto [shorter, longer] = std::minmax(record.length[0], record.length[1]);
    if (shorter == 0) return DropReason::kNoTokens;
    if (shorter < options_.min_tokens) return DropReason::kShort;
    if (too_long) return DropReason::kLong;
    if (options_.max_ratio > 0 && longer > options_.max_ratio * shorter) return DropReason::kRatio;
    return DropReason::kKept;
  }

  void append(Chunk& chunk, DropReport& report) {
    if (options_.strict && !chunk.fault.empty()) {
      throw Error(XSR_STATUS_BAD_FILE,
                  chunk.fault + ". Mend the line, or leave strict off to have such lines dropped");
    }
    merge(chunk.report, report);
    lines_ += chunk.report.lines;
    for (Record& record : chunk.records) {
      record.first_token += num_tokens_;
      longest_pair_ = std::max<uint64_t>(longest_pair_, record.length[0] + record.length[1]);
    }
    num_pairs_ += chunk.records.size();
    num_tokens_ += chunk.ids.size();
    if (config_.vocab_size <= kMostNarrowIds) {
      narrow_.assign(chunk.ids.begin(), chunk.ids.end());
      append_tokens(narrow_.data(), narrow_.size() * sizeof(uint16_t));
    } else {
      append_tokens(chunk.ids.data(), chunk.ids.size() * sizeof(int32_t));
    }
    const size_t size = chunk.records.size() * sizeof(Record);
    spool_.write(chunk.records.data(), size);
    XXH3_64bits_update(&records_hash_, chunk.records.data(), size);
  }
  void append_tokens(const void* data, size_t size) {
    file_.write(data, size);
    XXH3_64bits_update(&tokens_hash_, data, size);
  }

  std::span<const LanguagePair> languages_;
  const ModelConfig& config_;
  const CorpusOptions& options_;
  ThreadPool& pool_;
  const DataLog& log_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<std::unique_ptr<Tokenizer::State>> states_;  // [threads]
  PartialFile file_;
  Spool spool_;  // of the records
  XXH3_state_t tokens_hash_, records_hash_;
  std::vector<uint16_t> narrow_;
  uint64_t num_pairs_ = 0, num_tokens_ = 0, longest_pair_ = 0, lines_ = 0;
  uint64_t done_bytes_ = 0, total_bytes_ = 0;
};

/// Validates all of the file. Throws Error(BAD_FILE) saying what is wrong with it.
TokenizedCorpus::TokenizedCorpus(const std::string& path, const std::string& key, ThreadPool& pool)
    : map_(std::make_unique<MappedFile>(path, " the corpus cache")) {
  const auto bytes = map_->bytes();
  const auto require = [&](bool good, const char* what) {
    if (!good) throw Error(XSR_STATUS_BAD_FILE, what);
  };
  Header h;
  require(bytes.size() >= sizeof h, "it is too short");
  std::memcpy(&h, bytes.data(), sizeof h);
  require(std::memcmp(h.magic, kMagic, sizeof kMagic) == 0, "it is no corpus cache");
  require(h.version == kVersion, "another version of xsr-train made it");
  require(h.header_hash == header_hash(h), "its header is damaged");
  require(std::string_view(h.key, sizeof h.key) == key,
          "the data, the tokenizer or the options have changed");
  wide_ = h.vocab_size > kMostNarrowIds;
  const uint64_t id_bytes = wide_ ? sizeof(int32_t) : sizeof(uint16_t);
  require(h.file_size == bytes.size(), "it has been cut or has grown");
  // Each takes a byte at least, so no product below overflows.
  require(h.num_tokens <= h.file_size && h.num_pairs <= h.file_size &&
              h.tokens_offset == aligned(sizeof h) &&
              h.records_offset == aligned(h.tokens_offset + h.num_tokens * id_bytes) &&
              h.text_offset == aligned(h.records_offset + h.num_pairs * sizeof(Record)) &&
              h.text_offset <= h.file_size && h.text_size == h.file_size - h.text_offset,
          "its sections are not in place");
  tokens_ = bytes.data() + h.tokens_offset;
  records_ = reinterpret_cast<const Record*>(bytes.data() + h.records_offset);
  num_pairs_ = h.num_pairs;
  num_tokens_ = h.num_tokens;
  vocab_size_ = h.vocab_size;
  longest_pair_ = h.longest_pair;
  const char* text = reinterpret_cast<const char*>(bytes.data() + h.text_offset);
  require(XXH3_64bits(text, h.text_size) == h.text_hash, "its description is damaged");
  require(XXH3_64bits(records_, num_pairs_ * sizeof(Record)) == h.records_hash,
          "its records are damaged");
  require(XXH3_64bits(tokens_, num_tokens_ * id_bytes) == h.tokens_hash, "its tokens are damaged");

  // Whatever the hashes say, nothing is read outside, and no row of a table beyond its last.
  constexpr uint64_t kBlock = 1 << 20;
  std::atomic<bool> inside{true};
  const auto blocks = [&](uint64_t n) { return static_cast<int32_t>((n + kBlock - 1) / kBlock); };
  pool.for_each(blocks(num_pairs_), [&](int32_t block, int32_t) {
    const uint64_t first = static_cast<uint64_t>(block) * kBlock;
    bool good = true;
    for (uint64_t i = first; i < std::min(num_pairs_, first + kBlock); ++i) {
      const Record& r = records_[i];
      const uint64_t length = static_cast<uint64_t>(r.length[0]) + r.length[1];
      good &= r.length[0] > 0 && r.length[1] > 0 && r.first_token <= num_tokens_ &&
              length <= num_tokens_ - r.first_token && length <= longest_pair_;
    }
    if (!good) inside = false;
  });
  pool.for_each(blocks(num_tokens_), [&](int32_t block, int32_t) {
    const uint64_t first = static_cast<uint64_t>(block) * kBlock;
    const uint64_t last = std::min(num_tokens_, first + kBlock);
    uint32_t largest = 0;
    if (wide_) {
      const uint32_t* ids = reinterpret_cast<const uint32_t*>(tokens_);
      for (uint64_t i = first; i < last; ++i) largest = std::max(largest, ids[i]);
    } else {
      const uint16_t* ids = reinterpret_cast<const uint16_t*>(tokens_);
      for (uint64_t i = first; i < last; ++i) largest = std::max<uint32_t>(largest, ids[i]);
    }
    if (largest >= static_cast<uint32_t>(vocab_size_)) inside = false;
  });
  require(inside, "it names tokens that are not there");

  try {
    const nlohmann::json json = parse_json({text, h.text_size});
    for (const auto& part : json.at("parts")) {
      parts_.push_back(
          {"", part.at("first_pair"), part.at("num_pairs"), report_from(part.at("drops"))});
    }
    for (const auto& file : json.at("files"))
      files_.push_back({"", ContentHash(), file.at("first_pair")});
  } catch (const nlohmann::json::exception&) {
    require(false, "its description is damaged");
  }
  uint64_t end = 0;
  for (const Part& part : parts_) {
    require(part.first_pair == end && part.num_pairs <= num_pairs_ - end,
            "its description does not fit its pairs");
    end += part.num_pairs;
  }
  require(end == num_pairs_, "its description does not fit its pairs");
  const auto earlier = [](const File& a, const File& b) { return a.first_pair < b.first_pair; };
  require(!files_.empty() && files_[0].first_pair == 0 &&
              std::is_sorted(files_.begin(), files_.end(), earlier),
          "its description does not fit its files");
}

std::shared_ptr<const TokenizedCorpus> TokenizedCorpus::open_or_build(
    const std::string& cache_path, std::vector<LanguagePair> languages, const ModelConfig& config,
    std::string_view tokenizer_model, const CorpusOptions& options, ThreadPool& pool,
    const DataLog& log) {
  validate(options, config.max_seq_len);
  if (config.max_seq_len > UINT16_MAX) {
    throw Error(XSR_STATUS_UNSUPPORTED, fmt::format("max_seq_len is {}, expected at most {}",
                                                    config.max_seq_len, UINT16_MAX));
  }
  if (languages.empty()) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT, "there is no training data; name a file");
  }
  for (const LanguagePair& language : languages) {
    if (language.files.empty())
      throw Error(XSR_STATUS_INVALID_ARGUMENT, language.name + ": has no files");
  }
  hash_texts(languages, log.stop);
  const std::string key = make_key(languages, config, tokenizer_model, options);
  std::shared_ptr<TokenizedCorpus> corpus;
  const auto open = [&] {
    corpus.reset(new TokenizedCorpus(cache_path, key, pool));
    if (corpus->vocab_size_ != config.vocab_size)
      throw Error(XSR_STATUS_BAD_FILE, "it is of another vocabulary");
    if (corpus->parts_.size() != languages.size())
      throw Error(XSR_STATUS_BAD_FILE, "it has another number of language pairs");
    size_t next_file = 0;
    for (size_t l = 0; l < languages.size(); ++l) {
      corpus->parts_[l].name = languages[l].name;
      for (const TextFile& text : languages[l].files) {
        if (next_file == corpus->files_.size())
          throw Error(XSR_STATUS_BAD_FILE, "it has another number of files");
        File& file = corpus->files_[next_file++];
        file.path = text.path;
        file.hash = text.hash;
      }
    }
  };
  // Why the cache has to be made; empty where it is open.
  const auto try_to_open = [&]() -> std::string {
    if (!std::filesystem::exists(cache_path)) return "there is none yet";
    try {
      open();
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  if (try_to_open().empty()) return corpus;
  const FolderTurn turn(cache_path, log);
  const std::string reason = try_to_open();  // again: another process may have made it
  if (reason.empty()) return corpus;
  if (log.say) log.say(fmt::format("{}: making the corpus cache: {}", cache_path, reason));
  CorpusWriter(cache_path, languages, config, tokenizer_model, options, pool, log).write(key);
  try {
    open();
  } catch (const Error& error) {
    throw Error(XSR_STATUS_IO,
                fmt::format("{}: written, but what is read back is not what was written: {}. Is "
                            "something else writing to this file, or the disk failing?",
                            cache_path, error.what()));
  }
  corpus->built_ = true;
  if (log.say) {
    for (const Part& part : corpus->parts_) {
      const DropReport& drops = part.drops;
      std::string text = fmt::format("{}: {} pairs of {} lines", part.name,
                                     with_separators(part.num_pairs), with_separators(drops.lines));
      if (drops.truncated > 0) {
        text += fmt::format(", {} sentences cut to {} tokens", with_separators(drops.truncated),
                            config.max_seq_len);
      }
      if (drops.dropped() > 0) text += ", dropped:\n" + drops.text();
      log.say(text);
    }
  }
  return corpus;
}

int32_t TokenizedCorpus::length(uint64_t pair, int side) const {
  return records_[pair].length[side];
}

std::pair<const unsigned char*, size_t> TokenizedCorpus::stored(uint64_t pair, int side) const {
  const Record& r = records_[pair];
  const size_t id_bytes = wide_ ? sizeof(int32_t) : sizeof(uint16_t);
  const uint64_t first = r.first_token + (side == 0 ? 0 : r.length[0]);
  return {tokens_ + first * id_bytes, r.length[side]};
}

void TokenizedCorpus::append_ids(uint64_t pair, int side, std::vector<int32_t>& ids) const {
  const auto [data, count] = stored(pair, side);
  if (wide_) {
    const int32_t* from = reinterpret_cast<const int32_t*>(data);
    ids.insert(ids.end(), from, from + count);
  } else {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(data);
    ids.insert(ids.end(), from, from + count);
  }
}

uint64_t TokenizedCorpus::sentence_hash(uint64_t pair, int side) const {
  const auto [data, count] = stored(pair, side);
  return XXH3_64bits(data, count * (wide_ ? sizeof(int32_t) : sizeof(uint16_t)));
}

std::string TokenizedCorpus::place(uint64_t pair) const {
  const auto file = std::prev(
      std::upper_bound(files_.begin(), files_.end(), pair,
                       [](uint64_t number, const File& f) { return number < f.first_pair; }));
  return fmt::format("{}:{}", file->path, records_[pair].line);
}

}  // namespace xsr::training
