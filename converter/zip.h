#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace xsr {

/// Reads a zip archive by its central directory. Stored entries are read in place, deflated ones
/// inflated on request. Everything is checked before use: one disk, no encryption, no entry that
/// overlaps another or the directory, no name twice, no bytes before or after the archive; what is
/// odd is refused by name.
class ZipArchive {
 public:
  struct Entry {
    std::string name;
    uint16_t method = 0;  // 0 stored, 8 deflated
    uint32_t crc = 0;
    uint64_t size = 0;                    // uncompressed bytes
    std::span<const unsigned char> data;  // as it lies in the file
    uint64_t header = 0;                  // offset of the local header in the file
    uint64_t offset = 0;                  // of data in the file
  };
  /// An entry may inflate to at most kMaxRatio times its compressed size (the first kFreeBytes are
  /// free), all entries together to kMaxTotalRatio times the file's (likewise): weights do not
  /// compress that far, bombs do.
  static constexpr uint64_t kMaxRatio = 200;
  static constexpr uint64_t kMaxTotalRatio = 32;
  static constexpr uint64_t kFreeBytes = 1 << 20;

  /// Throws Error(BAD_FILE, UNSUPPORTED); name is for messages.
  ZipArchive(std::span<const unsigned char> file, const std::string& name);

  std::span<const Entry> entries() const { return entries_; }
  const Entry* find(std::string_view name) const;  // null when there is none
  /// False where the CRC-32 of every entry is said to be 0: torch.save without compute_crc32.
  bool has_checksums() const { return has_checksums_; }
  /// The contents of an entry, its CRC-32 checked where the archive has any. A deflated one is
  /// inflated into buffer, which must outlive the result.
  std::span<const unsigned char> read(const Entry& entry, std::vector<unsigned char>& buffer) const;

 private:
  struct Directory {
    uint64_t begin, end, count;  // offsets in the file; entries
  };

  void read_directory(std::span<const unsigned char> file);
  Directory find_directory(std::span<const unsigned char> file) const;
  /// Entry i of the directory, which stands at *place; moves *place behind it.
  Entry read_entry(std::span<const unsigned char> file, const Directory& directory, uint64_t i,
                   uint64_t* place) const;
  [[noreturn]] void bad(const std::string& what) const;
  [[noreturn]] void unsupported(const std::string& what) const;

  std::string name_;
  std::vector<Entry> entries_;
  bool has_checksums_ = false;
  std::unordered_map<std::string_view, size_t> index_;
};

}  // namespace xsr
