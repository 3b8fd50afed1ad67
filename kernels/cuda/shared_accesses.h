#pragma once
// Who has used which bytes of a block's shared memory since the last barrier: finds what compute-
// sanitizer's racecheck would, whatever order the threads run in.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace xsr::cuda::emulated {

class SharedAccesses {
 public:
  /// Of so many bytes from now on.
  void resize(size_t bytes) {
    if (cells_.size() < bytes / 2 + 1) cells_.resize(bytes / 2 + 1);  // others are of a time before
  }
  /// A barrier of the whole block, or a new block.
  void pass_barrier() { ++now_; }

  struct Conflict {
    unsigned other = 0;  // the thread
    bool wrote = false;  // or read
  };
  /// Thread `me`, whose warp has had `syncs` __syncwarps of all its lanes, uses bytes
  /// [offset, offset + bytes).
  std::optional<Conflict> access(size_t offset, size_t bytes, unsigned me, uint32_t syncs,
                                 bool write) {
    for (size_t i = offset / 2; 2 * i < offset + bytes; ++i) {
      if (const auto conflict = access_cell(cells_[i], me, syncs, write)) return conflict;
    }
    return std::nullopt;
  }

 private:
  /// Who has used two bytes since the last barrier.
  struct Cell {
    enum class Readers : uint8_t { kNone, kOne, kOfAWarp, kOfTheBlock };
    uint64_t time = 0;
    bool written = false;
    Readers readers = Readers::kNone;
    uint16_t writer = 0, reader = 0;              // threads; the last reader, where there are more
    uint32_t writer_syncs = 0, reader_syncs = 0;  // the syncs of their warps at that time
  };

  std::optional<Conflict> access_cell(Cell& cell, unsigned me, uint32_t syncs, bool write) const {
    if (cell.time != now_) {
      cell = Cell();
      cell.time = now_;
    }
    const bool same_warp = cell.reader / 32u == me / 32;
    if (cell.written && cell.writer != me &&
        (cell.writer / 32u != me / 32 || cell.writer_syncs == syncs))
      return Conflict{cell.writer, true};
    using Readers = Cell::Readers;
    const bool read_before_me =  // by nobody that a barrier does not keep from this access
        cell.readers == Readers::kNone || (cell.readers == Readers::kOne && cell.reader == me) ||
        (cell.readers != Readers::kOfTheBlock && same_warp && cell.reader_syncs != syncs);
    if (write) {
      if (!read_before_me) return Conflict{cell.reader, false};
      cell.written = true;
      cell.writer = static_cast<uint16_t>(me);
      cell.writer_syncs = syncs;
      cell.readers = Readers::kNone;
      return std::nullopt;
    }
    if (read_before_me) {
      cell.readers = Readers::kOne;
    } else if (cell.readers != Readers::kOfTheBlock) {
      cell.readers = same_warp ? Readers::kOfAWarp : Readers::kOfTheBlock;
    } else if (cell.reader == me) {
      return std::nullopt;  // keeps another in mind for the message
    }
    cell.reader = static_cast<uint16_t>(me);
    cell.reader_syncs = syncs;
    return std::nullopt;
  }

  uint64_t now_ = 1;  // the times between two barriers, counted over all blocks
  std::vector<Cell> cells_;
};

}  // namespace xsr::cuda::emulated
