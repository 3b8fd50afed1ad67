#pragma once
// Carries kernels out as PTX defines them, warp by warp. Lanes that branch apart run one after the
// other, those that are behind first. As bad as it can be: warps and blocks run in the order of a
// seed; cp.async copies at the wait; registers hold NaN at first, and shared memory does;
// ex2.approx and rcp.approx are off by up to a unit in the last place; the tensor cores' sums are
// cut off as theirs are.
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/shared_accesses.h"
#include "tests/ptx/program.h"

namespace xsr::ptx {

struct Size {
  uint32_t x = 1, y = 1, z = 1;
};

/// Runs every block of the grid. Ends the program with a message where a device would hang or what
/// it does would be undefined: lanes that do not all come to a shuffle or barrier, shared memory
/// that two threads use without a barrier between, addresses outside it or not aligned.
/// parameters [kernel.parameter_bytes]. One launch at a time.
void run(const Kernel& kernel, Size grid, Size block, size_t dynamic_shared,
         const std::vector<unsigned char>& parameters, uint64_t seed);

/// What a kernel has done so far, of all its launches; what a device spends its time on, but for
/// the time itself.
struct Counts {
  uint64_t launches = 0, blocks = 0;
  uint64_t instructions = 0, lanes = 0;  // of a warp; times its lanes that took part
  uint64_t products = 0;                 // mma
  uint64_t barriers = 0;                 // of a warp at a barrier of the block
  // Accesses of a warp to global memory, and the sectors of 32 bytes that they touch; beside it how
  // many their bytes would fill.
  uint64_t global_accesses = 0, global_sectors = 0, global_least = 0;
  // Likewise the rounds over the banks of shared memory that they take.
  uint64_t shared_accesses = 0, shared_rounds = 0, shared_least = 0;
  std::map<std::string, uint64_t> opcodes;  // of a warp
};
/// Counts from now on, with each kernel's opcodes where they are wanted; a run takes longer.
void count(bool with_opcodes);
/// By the kernels' names, since count().
const std::map<std::string, Counts>& counts();
/// A table of it to stdout.
void print_counts();

/// What a block shares.
struct Block {
  const Kernel* kernel = nullptr;
  Counts* counts = nullptr;  // null: nothing is counted
  const unsigned char* parameters = nullptr;
  std::vector<unsigned char> shared;
  cuda::emulated::SharedAccesses accesses;
  Size index;
};

/// 32 threads and what they hold.
class Warp {
 public:
  void prepare(Block& block, uint32_t index, uint32_t threads, Size block_size, Size grid);
  void begin_block();
  /// Runs until every lane has ended or waits for the block.
  void run();

  uint64_t* reg(uint32_t index) { return &registers_[static_cast<size_t>(index) * 32]; }
  bool ended() const { return (present_ & ~ended_) == 0; }
  bool at_barrier() const { return present_ == at_barrier_; }
  void pass_barrier() { at_barrier_ = 0; }
  uint32_t lanes_at_barrier() const { return at_barrier_; }
  uint32_t present() const { return present_; }
  uint32_t sync_count() const { return syncs_; }
  void count_sync() { ++syncs_; }

  /// Where `bytes` at an address of a lane are; checks what can be.
  unsigned char* memory(const Instruction& instruction, uint64_t address, uint32_t lane,
                        size_t bytes, bool write);
  void copy_async(const Instruction& instruction, uint32_t lane, uint64_t shared, uint64_t global,
                  uint32_t bytes);
  void copy_commit(uint32_t lane);
  void copy_wait(const Instruction& instruction, uint32_t lane, uint64_t pending);
  uint64_t shared_base() const { return reinterpret_cast<uint64_t>(block_->shared.data()); }
  [[noreturn, gnu::format(printf, 3, 4)]] void fail_at(const Instruction& instruction,
                                                       const char* format, ...) const;

  uint32_t carry[32] = {};  // the condition code

 private:
  struct Copy {
    uint64_t shared, global;
    uint32_t bytes;
    size_t group;
  };
  void count(const Instruction& instruction, uint32_t lanes);
  uint32_t meeting_mask(const Instruction& instruction, uint32_t lanes);

  Block* block_ = nullptr;
  uint32_t first_thread_ = 0;
  uint32_t present_ = 0, ended_ = 0, at_barrier_ = 0, at_meeting_ = 0;
  uint32_t syncs_ = 0;
  uint32_t pc_[32] = {};
  std::vector<uint64_t> registers_;
  std::vector<unsigned char> local_;
  std::vector<Copy> copies_[32];
  size_t groups_[32] = {};
};

}  // namespace xsr::ptx
