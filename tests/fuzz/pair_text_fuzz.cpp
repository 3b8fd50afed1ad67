// Any bytes as a file of sentence pairs, as they stand (a damaged .gz or .zst among them) or packed
// soundly: an Error, or the lines that a plain search for their ends finds.
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/text/line_reader.h"
#include "runtime/text/utf8.h"
#include "tests/fuzz/edits.h"
#include "tests/support/packing.h"
#include "training/data/parallel_text.h"

namespace {

using namespace xsr::training;
using xsr::fuzz::require;
using xsr::test::gzip;
using xsr::test::zstd;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const bool ended = end < text.size();
    lines.push_back(text.substr(at, end - at));
    if (ended && !lines.back().empty() && lines.back().back() == '\r') lines.back().pop_back();
    at = end + 1;
  }
  return lines;
}

/// As gzip, as a frame of zstd, or as a frame that zstd skips.
bool begins_as_packed(std::string_view text) {
  return text.starts_with("\x1F\x8B") || text.starts_with("\x28\xB5\x2F\xFD") ||
         (text.size() >= 4 && (text[0] & 0xF0) == 0x50 &&
          text.substr(1).starts_with("\x2A\x4D\x18"));
}

/// As bzip2 or a zip archive: bytes that are UTF-8 and yet no text.
bool begins_as_archive(std::string_view text) {
  return text.starts_with("BZh91AY&SY") || text.starts_with("PK\x03\x04");
}

void check_line(std::string_view line, bool cut, const TextFile& file) {
  std::string_view sides[2];
  const DropReason reason = split_pair(line, cut, file, sides);
  if (reason != DropReason::kKept) {
    require(!describe_drop(reason, line, file).empty());
    return;
  }
  require(xsr::is_valid_utf8(line));
  for (const std::string_view side : sides) {
    require(!side.empty() && side.data() >= line.data() &&
            side.data() + side.size() <= line.data() + line.size() && side.find('\t') == side.npos);
  }
}

}  // namespace

/// The first byte: packed how, and the longest line; the second: the columns, and the reader's
/// block.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t size) {
  static const xsr::fuzz::MemoryFile memory;
  if (size < 2) return 0;
  const std::string text(reinterpret_cast<const char*>(input) + 2, size - 2);
  const int packing = input[0] & 3;  // 2, 3: as it stands
  const size_t longest = 1 + (input[0] >> 2), block = 1 + (input[1] >> 4);
  TextFile file{memory.path()};
  file.first_column = 1 + (input[1] & 3);
  file.second_column = 1 + (input[1] >> 2 & 3);
  memory.write(packing == 0 ? gzip(text) : packing == 1 ? zstd(text) : text);
  constexpr size_t kMostLines = 1 << 16;  // a few packed bytes may be many
  std::vector<std::string> found;
  std::vector<bool> cut;
  try {
    check(file);
    xsr::LineReader reader(open_text(file.path, hash_file(file.path)), longest, nullptr, block);
    xsr::LineBatch batch;
    while (found.size() < kMostLines && reader.read(7, 100, batch)) {
      for (size_t i = 0; i < batch.size(); ++i) {
        require(batch.line(i).size() <= longest && batch.line(i).find('\n') == text.npos);
        check_line(batch.line(i), batch.cut[i] != 0, file);
        found.emplace_back(batch.line(i));
        cut.push_back(batch.cut[i] != 0);
      }
    }
  } catch (const xsr::Error& error) {
    require(error.status() == XSR_STATUS_INVALID_ARGUMENT ||
            ((packing > 1 || !xsr::is_valid_utf8(text) || begins_as_archive(text)) &&
             error.status() == XSR_STATUS_BAD_FILE));
    return 0;
  }
  if (packing > 1 && begins_as_packed(text)) return 0;
  const std::vector<std::string> expected = lines_of(text);
  require(expected.size() == found.size());
  for (size_t i = 0; i < found.size(); ++i) {
    require(cut[i] == (expected[i].size() > longest));
    require(cut[i] ? expected[i].starts_with(found[i]) && found[i].size() + 4 > longest
                   : expected[i] == found[i]);
  }
  return 0;
}
