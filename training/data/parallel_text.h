#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/byte_source.h"

namespace xsr::training {

/// 128 bits of XXH3 over a file's bytes as they are stored, in hexadecimal.
struct ContentHash {
  std::string hex;
  uint64_t size = 0;  // bytes

  bool operator==(const ContentHash&) const = default;
};

/// A file of sentence pairs, one a line, columns separated by TAB. Plain text, gzip or zstd (window
/// up to 2^27 bytes), told by its first bytes.
struct TextFile {
  std::string path;
  int32_t first_column = 1;   // of side 1, from 1
  int32_t second_column = 2;  // of side 2; the other way round swaps the sides
  int32_t num_columns = 0;    // that every line must have; 0: as many as the two columns ask for
  ContentHash hash = {};      // of what is read; empty until hash_texts()
};

/// Throws Error(INVALID_ARGUMENT) when the columns make no sense.
void check(const TextFile& file);

/// The files of one pair of languages.
struct LanguagePair {
  std::string name;  // "en-fr"; for messages and tables
  std::vector<TextFile> files;
};

/// "[NAME=]FILE": without NAME what stands before the first dot of the file's name. Files of one
/// name become one language pair; order is that of the first of each. Throws
/// Error(INVALID_ARGUMENT) for no name, and for "mean": so metrics call the mean of all pairs.
std::vector<LanguagePair> parse_language_pairs(const std::vector<std::string>& files,
                                               const std::vector<int64_t>& columns,
                                               int32_t num_columns);

/// Why a line gives no pair to train on. The first six are faults of the line.
enum class DropReason : uint8_t {
  kFewColumns,
  kManyColumns,
  kEmptySide,
  kLongLine,
  kInvalidUtf8,
  kNulByte,
  kControlPiece,  // a control piece of the tokenizer is a word of the text, which has no encoding
  kNoTokens,      // nothing is left of a side once it is normalised
  kShort,         // fewer than min_tokens
  kLong,          // more than max_tokens
  kRatio,         // one side is more than max_ratio times as long as the other
  kNumReasons,
  kKept = kNumReasons,
};
constexpr size_t kNumDropReasons = static_cast<size_t>(DropReason::kNumReasons);
inline bool is_fault(DropReason reason) { return reason < DropReason::kControlPiece; }
/// "fewer columns than expected", ...
const char* to_string(DropReason reason);

/// What was dropped, and the first few lines of each reason.
struct DropReport {
  static constexpr size_t kMaxExamples = 3;

  std::array<uint64_t, kNumDropReasons> counts{};
  std::array<std::vector<std::string>, kNumDropReasons> examples;  // "FILE:LINE: what was found"
  uint64_t lines = 0;                                              // read
  uint64_t kept = 0;       // pairs; lines = kept + dropped()
  uint64_t truncated = 0;  // kept sentences that were cut to the model's max_seq_len

  uint64_t dropped() const;
  void add(DropReason reason, const std::string& example);
  /// A line at fault, which becomes an example where there is room for one.
  void add(DropReason reason, const TextFile& file, uint64_t number, std::string_view line);
  /// Several lines for people, each "  1,234 lines: reason (FILE:LINE: ..., ...)".
  std::string text() const;
};

/// Finds the two sides in a line, without white space at their ends. cut: the line is only the
/// beginning of one that is too long. kKept, or why not.
DropReason split_pair(std::string_view line, bool cut, const TextFile& file,
                      std::string_view sides[2]);
/// What is the matter with the line, for a message: "has 1 column, expected 2".
std::string describe_drop(DropReason reason, std::string_view line, const TextFile& file);

/// Throws the Error(BAD_FILE) of a language pair whose lines give no pair at all.
[[noreturn]] void throw_no_pair(const std::string& language, const DropReport& report);

/// Throws Error(IO); Stopped once stop, when given, is set.
ContentHash hash_file(const std::string& path, const std::atomic<bool>* stop = nullptr);

/// Checks the files, and hashes those that have no hash yet. Throws as check() and hash_file() do.
void hash_texts(std::span<LanguagePair> languages, const std::atomic<bool>* stop = nullptr);

/// Opens a file for reading, unpacking it when it is packed; it must be a regular file, for
/// training reads it more than once. read() throws Error(BAD_FILE) where the packed data is damaged
/// or ends early, and, at the end, Error(IO) when the bytes read are not those that `expected` was
/// made of (the file shrank, grew or changed since).
std::unique_ptr<ByteSource> open_text(const std::string& path, const ContentHash& expected,
                                      const std::atomic<bool>* stop = nullptr);

}  // namespace xsr::training
