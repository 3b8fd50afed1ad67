#include "converter/zip.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "runtime/error.h"

namespace xsr {
namespace {

template <typename T>
T load(std::span<const unsigned char> bytes, uint64_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

constexpr uint32_t kLocalHeader = 0x04034b50, kDirectoryHeader = 0x02014b50,
                   kEndOfDirectory = 0x06054b50, kEndOfDirectory64 = 0x06064b50,
                   kLocator64 = 0x07064b50;
constexpr uint64_t kLocalHeaderSize = 30, kDirectoryHeaderSize = 46, kEndSize = 22, kEndSize64 = 56,
                   kLocatorSize = 20;

}  // namespace

ZipArchive::ZipArchive(std::span<const unsigned char> file, const std::string& name) : name_(name) {
  read_directory(file);
  // The keys view the entries' names, which stay where they are from here on.
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (!index_.emplace(entries_[i].name, i).second) {
      bad(fmt::format("zip entry {} occurs twice", entries_[i].name));
    }
  }
}

void ZipArchive::bad(const std::string& what) const {
  throw Error(XSR_STATUS_BAD_FILE, fmt::format("{}: {}", name_, what));
}

void ZipArchive::unsupported(const std::string& what) const {
  throw Error(XSR_STATUS_UNSUPPORTED, fmt::format("{}: {}", name_, what));
}

void ZipArchive::read_directory(std::span<const unsigned char> file) {
  const Directory directory = find_directory(file);
  entries_.reserve(directory.count);
  std::vector<std::pair<uint64_t, uint64_t>> ranges;  // [local header, end of data)
  uint64_t inflated = 0;                              // bytes of all deflated entries
  uint64_t at = directory.begin;
  for (uint64_t i = 0; i < directory.count; ++i) {
    Entry e = read_entry(file, directory, i, &at);
    has_checksums_ |= e.crc != 0;
    if (e.method == 8 &&
        (__builtin_add_overflow(inflated, e.size, &inflated) ||
         (inflated > kFreeBytes && (inflated - kFreeBytes) / kMaxTotalRatio > file.size()))) {
      bad(
          fmt::format("the zip entries up to {} inflate to more than {} times the {} bytes of the "
                      "file: a zip bomb? Save the "
                      "checkpoint with torch.save, which does not compress",
                      e.name, kMaxTotalRatio, file.size()));
    }
    ranges.emplace_back(e.header, e.offset + e.data.size());
    entries_.push_back(std::move(e));
  }
  if (at != directory.end) {
    bad(fmt::format("{} bytes follow the last zip directory entry at byte {}", directory.end - at,
                    at));
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) {
      bad(fmt::format("two zip entries overlap at byte {}", ranges[i].first));
    }
  }
  if (!ranges.empty() && ranges[0].first != 0) {
    bad(fmt::format("{} bytes stand before the first zip entry, expected none", ranges[0].first));
  }
}

ZipArchive::Directory ZipArchive::find_directory(std::span<const unsigned char> file) const {
  // The end record: its comment, at most 65535 bytes, must end where the file ends.
  if (file.size() < kEndSize) bad("the zip archive has no end record: truncated?");
  uint64_t end = file.size() - kEndSize;
  const uint64_t lowest = end > 65535 ? end - 65535 : 0;
  std::string mismatch;  // of the end record nearest to the end of the file
  for (;; --end) {
    if (load<uint32_t>(file, end) == kEndOfDirectory) {
      const uint64_t follow = file.size() - end - kEndSize,
                     comment = load<uint16_t>(file, end + 20);
      if (follow == comment) break;
      if (mismatch.empty()) {
        mismatch =
            fmt::format("the zip end record at byte {} has a comment of {} bytes, but {} follow",
                        end, comment, follow);
      }
    }
    if (end == lowest) {
      bad(mismatch.empty() ? "the zip archive has no end record at the end of the file: truncated?"
                           : mismatch);
    }
  }
  uint64_t disk = load<uint16_t>(file, end + 4), directory_disk = load<uint16_t>(file, end + 6);
  uint64_t on_disk = load<uint16_t>(file, end + 8), count = load<uint16_t>(file, end + 10);
  uint64_t directory_size = load<uint32_t>(file, end + 12),
           directory = load<uint32_t>(file, end + 16);
  uint64_t directory_end = end;
  if (end >= kLocatorSize && load<uint32_t>(file, end - kLocatorSize) == kLocator64) {
    const uint64_t locator = end - kLocatorSize;
    const uint64_t end64 = load<uint64_t>(file, locator + 8);
    if (load<uint32_t>(file, locator + 4) != 0 || load<uint32_t>(file, locator + 16) > 1) {
      unsupported(
          fmt::format("the zip archive spans {} disks", load<uint32_t>(file, locator + 16)));
    }
    if (locator < kEndSize64 || end64 > locator - kEndSize64 ||
        load<uint32_t>(file, end64) != kEndOfDirectory64) {
      bad(fmt::format("the zip64 locator points to byte {}, where there is no zip64 end record",
                      end64));
    }
    const uint64_t record = load<uint64_t>(file, end64 + 4);
    if (record != locator - end64 - 12) {
      bad(fmt::format("the zip64 end record says it is {} bytes, expected {}", record,
                      locator - end64 - 12));
    }
    disk = load<uint32_t>(file, end64 + 16);
    directory_disk = load<uint32_t>(file, end64 + 20);
    on_disk = load<uint64_t>(file, end64 + 24);
    count = load<uint64_t>(file, end64 + 32);
    directory_size = load<uint64_t>(file, end64 + 40);
    directory = load<uint64_t>(file, end64 + 48);
    directory_end = end64;
  }
  if (disk != 0 || directory_disk != 0 || on_disk != count)
    unsupported("the zip archive spans several disks");
  if (directory > directory_end || directory_size != directory_end - directory) {
    bad(fmt::format("the zip directory is said to be {} bytes at byte {}, but must end at byte {}",
                    directory_size, directory, directory_end));
  }
  if (count > directory_size / kDirectoryHeaderSize) {
    bad(fmt::format(
        "the zip directory is said to have {} entries, but its {} bytes hold {} at most", count,
        directory_size, directory_size / kDirectoryHeaderSize));
  }
  return {directory, directory_end, count};
}

ZipArchive::Entry ZipArchive::read_entry(std::span<const unsigned char> file,
                                         const Directory& directory, uint64_t i,
                                         uint64_t* place) const {
  const uint64_t at = *place;
  if (directory.end - at < kDirectoryHeaderSize || load<uint32_t>(file, at) != kDirectoryHeader) {
    bad(fmt::format("zip directory entry {} of {} at byte {} is no directory entry", i + 1,
                    directory.count, at));
  }
  const uint16_t flags = load<uint16_t>(file, at + 8);
  Entry e;
  e.method = load<uint16_t>(file, at + 10);
  e.crc = load<uint32_t>(file, at + 16);
  uint64_t compressed = load<uint32_t>(file, at + 20);
  e.size = load<uint32_t>(file, at + 24);
  const uint64_t name_size = load<uint16_t>(file, at + 28),
                 extra_size = load<uint16_t>(file, at + 30);
  const uint64_t comment_size = load<uint16_t>(file, at + 32);
  e.header = load<uint32_t>(file, at + 42);
  const uint64_t size = kDirectoryHeaderSize + name_size + extra_size + comment_size;
  if (directory.end - at < size)
    bad(fmt::format("zip directory entry {} at byte {} reaches beyond the directory", i + 1, at));
  e.name.assign(reinterpret_cast<const char*>(file.data() + at + kDirectoryHeaderSize), name_size);
  for (const char c : e.name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      bad(fmt::format("the name of zip directory entry {} contains the control character 0x{:02x}",
                      i + 1, static_cast<unsigned char>(c)));
    }
  }
  // zip64: the fields that are all ones stand in the extra field 1, in this order.
  const bool size64 = e.size == 0xffffffff, compressed64 = compressed == 0xffffffff,
             local64 = e.header == 0xffffffff;
  if (size64 || compressed64 || local64) {
    uint64_t x = at + kDirectoryHeaderSize + name_size;
    const uint64_t extra_end = x + extra_size;
    bool found = false;
    while (!found && extra_end - x >= 4) {
      const uint16_t id = load<uint16_t>(file, x), bytes = load<uint16_t>(file, x + 2);
      x += 4;
      if (bytes > extra_end - x) break;
      if (id == 1 && bytes >= 8u * (size64 + compressed64 + local64)) {
        for (auto [wide, field] :
             {std::pair{size64, &e.size}, {compressed64, &compressed}, {local64, &e.header}}) {
          if (!wide) continue;
          *field = load<uint64_t>(file, x);
          x += 8;
        }
        found = true;
      }
      if (!found) x += bytes;
    }
    if (!found) bad(fmt::format("zip entry {} has sizes of zip64 but no zip64 field", e.name));
  }
  if (flags & 0x41) unsupported(fmt::format("zip entry {} is encrypted", e.name));
  if (flags & 0x20) unsupported(fmt::format("zip entry {} is patch data", e.name));
  if (e.method != 0 && e.method != 8) {
    unsupported(
        fmt::format("zip entry {} uses compression method {}, expected 0 (stored) or 8 (deflate)",
                    e.name, e.method));
  }
  if (e.method == 0 && compressed != e.size) {
    bad(fmt::format("zip entry {} is stored, but has {} bytes in the file and {} outside", e.name,
                    compressed, e.size));
  }
  if (e.header > directory.begin || directory.begin - e.header < kLocalHeaderSize ||
      load<uint32_t>(file, e.header) != kLocalHeader) {
    bad(fmt::format("zip entry {} points to byte {}, where there is no local header", e.name,
                    e.header));
  }
  const uint64_t local_name = load<uint16_t>(file, e.header + 26),
                 local_extra = load<uint16_t>(file, e.header + 28);
  e.offset = e.header + kLocalHeaderSize + local_name + local_extra;
  if (e.offset > directory.begin || compressed > directory.begin - e.offset) {
    bad(fmt::format(
        "zip entry {} has {} bytes at byte {}, which reach into the directory at byte {}", e.name,
        compressed, e.offset, directory.begin));
  }
  if (local_name != name_size ||
      std::memcmp(file.data() + e.header + kLocalHeaderSize, e.name.data(), name_size) != 0) {
    bad(fmt::format("zip entry {} has another name in its local header at byte {}", e.name,
                    e.header));
  }
  if (load<uint16_t>(file, e.header + 8) != e.method) {
    bad(fmt::format(
        "zip entry {} has compression method {} in its local header, {} in the directory", e.name,
        load<uint16_t>(file, e.header + 8), e.method));
  }
  if (e.method == 8 && e.size > kFreeBytes && (e.size - kFreeBytes) / kMaxRatio > compressed) {
    bad(
        fmt::format("zip entry {} inflates from {} to {} bytes, more than {} times: a zip bomb? "
                    "Save the checkpoint with "
                    "torch.save, which does not compress",
                    e.name, compressed, e.size, kMaxRatio));
  }
  e.data = file.subspan(e.offset, compressed);
  *place = at + size;
  return e;
}

const ZipArchive::Entry* ZipArchive::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

std::span<const unsigned char> ZipArchive::read(const Entry& entry,
                                                std::vector<unsigned char>& buffer) const {
  std::span<const unsigned char> out = entry.data;
  if (entry.method == 8) {
    buffer.resize(entry.size);
    z_stream z{};
    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
      throw Error(XSR_STATUS_OUT_OF_MEMORY, "cannot start zlib");
    // zlib counts in 32 bits, entries in 64; a spare byte of output shows an entry that is longer
    // than it says.
    unsigned char spare;
    uint64_t in = 0, done = 0;
    int result = Z_OK;
    while (result == Z_OK) {
      constexpr uint64_t kStep = 1 << 30;
      const uint64_t give = std::min(kStep, entry.data.size() - in),
                     room = std::min(kStep, entry.size - done);
      z.next_in = const_cast<unsigned char*>(entry.data.data() + in);
      z.avail_in = static_cast<uInt>(give);
      z.next_out = room > 0 ? buffer.data() + done : &spare;
      z.avail_out = room > 0 ? static_cast<uInt>(room) : 1;
      result = inflate(&z, Z_NO_FLUSH);
      in += give - z.avail_in;
      if (room > 0) {
        done += room - z.avail_out;
      } else if (z.avail_out == 0) {
        result = Z_BUF_ERROR;
      }
    }
    inflateEnd(&z);
    if (result != Z_STREAM_END || done != entry.size || in != entry.data.size()) {
      bad(
          fmt::format("zip entry {} does not inflate to the {} bytes the directory says ({} after "
                      "{} of {} compressed bytes)",
                      entry.name, entry.size, done, in, entry.data.size()));
    }
    out = buffer;
  }
  if (!has_checksums_) return out;
  const uLong crc = crc32_z(0, out.data(), out.size());
  if (crc != entry.crc) {
    bad(fmt::format("zip entry {} has CRC-32 {:08x}, expected {:08x}: damaged?", entry.name, crc,
                    entry.crc));
  }
  return out;
}

}  // namespace xsr
