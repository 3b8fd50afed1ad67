#include "tests/ptx/machine.h"

#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "tests/ptx/operations.h"

namespace xsr::ptx {
namespace {
// NaN in f32, f64 and bf16, and no NaN that arithmetic makes.
constexpr uint64_t kUnset = 0xffdeffdeffdeffde;
constexpr unsigned char kUnsetByte = 0xff;
constexpr size_t kMostShared = 163 * 1024;  // what a block of an sm_80 can have

bool counting = false, counting_opcodes = false;
std::map<std::string, Counts> counted;

/// The kernel's own name, and what it was made for, of the compiler's: a function in a namespace
/// without a name.
std::string plain_name(const std::string& mangled) {
  int status = 0;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (text == nullptr) return mangled;
  std::string name(text);
  std::free(text);
  if (const size_t start = name.rfind("::", name.find_first_of("(<", name.find(")::") + 3));
      start != std::string::npos)
    name.erase(0, start + 2);
  int depth = 0;
  for (size_t k = 0; k < name.size(); ++k) {
    depth += name[k] == '<';
    depth -= name[k] == '>';
    if (name[k] == '(' && depth == 0) name.erase(k);
  }
  return name;
}

}  // namespace

void print_counts() {
  std::printf("%-60s %8s %9s %12s %6s %9s %9s %11s %6s %11s %6s\n", "kernel", "launches", "blocks",
              "warp instr.", "lanes", "mma", "barriers", "sectors", "x", "rounds", "x");
  for (const auto& [name, c] : counted) {
    const auto ratio = [](uint64_t a, uint64_t b) {
      return b == 0 ? 0.0 : static_cast<double>(a) / static_cast<double>(b);
    };
    std::printf(
        "%-60s %8llu %9llu %12llu %6.1f %9llu %9llu %11llu %6.2f %11llu %6.2f\n",
        plain_name(name).substr(0, 60).c_str(), static_cast<unsigned long long>(c.launches),
        static_cast<unsigned long long>(c.blocks), static_cast<unsigned long long>(c.instructions),
        ratio(c.lanes, c.instructions), static_cast<unsigned long long>(c.products),
        static_cast<unsigned long long>(c.barriers),
        static_cast<unsigned long long>(c.global_sectors), ratio(c.global_sectors, c.global_least),
        static_cast<unsigned long long>(c.shared_rounds), ratio(c.shared_rounds, c.shared_least));
  }
  for (const auto& [name, c] : counted) {
    if (c.opcodes.empty()) continue;
    std::vector<std::pair<uint64_t, std::string>> most;
    for (const auto& [opcode, count] : c.opcodes) most.emplace_back(count, opcode);
    std::sort(most.rbegin(), most.rend());
    std::printf("\n%s\n", plain_name(name).c_str());
    for (const auto& [count, opcode] : most)
      std::printf("  %5.1f %%  %s\n",
                  100.0 * static_cast<double>(count) / static_cast<double>(c.instructions),
                  opcode.c_str());
  }
  std::fflush(stdout);
}

void count(bool with_opcodes) {
  counting_opcodes = with_opcodes;
  counting = true;
}
const std::map<std::string, Counts>& counts() { return counted; }

void Warp::fail_at(const Instruction& instruction, const char* format, ...) const {
  std::array<char, 500> what;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what.data(), what.size(), format, arguments);
  va_end(arguments);
  fail("%s, line %u, block (%u, %u, %u), threads from %u: %s", block_->kernel->name.c_str(),
       instruction.line, block_->index.x, block_->index.y, block_->index.z, first_thread_,
       what.data());
}

void Warp::prepare(Block& block, uint32_t index, uint32_t threads, Size block_size, Size grid) {
  block_ = &block;
  first_thread_ = 32 * index;
  const uint32_t count = std::min(32u, threads - first_thread_);
  present_ = count == 32 ? UINT32_MAX : (1u << count) - 1;
  const Kernel& kernel = *block.kernel;
  registers_.assign(static_cast<size_t>(kernel.registers) * 32, kUnset);
  local_.assign(kernel.local_bytes * 32, kUnsetByte);
  for (const Constant& constant : kernel.constants)
    std::fill_n(reg(constant.reg), 32, constant.value);
  for (const auto& [to, special] : kernel.specials) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t thread = first_thread_ + lane;
      uint32_t value = 0;
      switch (special) {
        case Special::kThreadX:
          value = thread % block_size.x;
          break;
        case Special::kThreadY:
          value = thread / block_size.x % block_size.y;
          break;
        case Special::kThreadZ:
          value = thread / (block_size.x * block_size.y);
          break;
        case Special::kThreadsX:
          value = block_size.x;
          break;
        case Special::kThreadsY:
          value = block_size.y;
          break;
        case Special::kThreadsZ:
          value = block_size.z;
          break;
        case Special::kBlocksX:
          value = grid.x;
          break;
        case Special::kBlocksY:
          value = grid.y;
          break;
        case Special::kBlocksZ:
          value = grid.z;
          break;
        case Special::kLane:
          value = lane;
          break;
        case Special::kBlockX:
        case Special::kBlockY:
        case Special::kBlockZ:
          break;  // begin_block()
      }
      reg(to)[lane] = value;
    }
  }
}

void Warp::begin_block() {
  ended_ = at_barrier_ = at_meeting_ = syncs_ = 0;
  std::fill(std::begin(pc_), std::end(pc_), 0u);
  std::fill(std::begin(groups_), std::end(groups_), size_t{0});
  for (std::vector<Copy>& copies : copies_) copies.clear();
  for (const auto& [to, special] : block_->kernel->specials) {
    if (special == Special::kBlockX) std::fill_n(reg(to), 32, block_->index.x);
    if (special == Special::kBlockY) std::fill_n(reg(to), 32, block_->index.y);
    if (special == Special::kBlockZ) std::fill_n(reg(to), 32, block_->index.z);
  }
}

/// The mask that all of these lanes give, each one of it.
uint32_t Warp::meeting_mask(const Instruction& instruction, uint32_t lanes) {
  const uint64_t* const masks = reg(instruction.from[11]);
  const uint32_t mask = static_cast<uint32_t>(masks[std::countr_zero(lanes)]);
  for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const uint32_t lane = static_cast<uint32_t>(std::countr_zero(rest));
    if (static_cast<uint32_t>(masks[lane]) != mask || (mask >> lane & 1) == 0)
      fail_at(instruction, "lane %u comes with mask %08x, another with %08x", lane,
              static_cast<uint32_t>(masks[lane]), mask);
  }
  // A warp at the end of a block may name lanes that there are none of only where all are meant.
  if ((mask & ~present_) != 0)
    fail_at(instruction, "mask %08x names lanes that the block does not have", mask);
  if ((mask & ended_) != 0)
    fail_at(instruction, "mask %08x names lanes that have ended: %08x", mask, ended_);
  return mask;
}

void Warp::run() {
  const std::vector<Instruction>& code = block_->kernel->code;
  while (true) {
    const uint32_t runnable = present_ & ~(ended_ | at_barrier_ | at_meeting_);
    if (runnable == 0) {
      if (at_meeting_ == 0) return;
      const uint32_t lane = static_cast<uint32_t>(std::countr_zero(at_meeting_));
      fail_at(code[pc_[lane]],
              "lanes %08x wait here or elsewhere for lanes that never come; %08x have ended, %08x "
              "wait at a barrier",
              at_meeting_, ended_, at_barrier_);
    }
    // Those that are furthest behind, until they catch up with the next.
    uint32_t pc = UINT32_MAX, next = UINT32_MAX, lanes = 0;
    for (uint32_t rest = runnable; rest != 0; rest &= rest - 1) {
      const uint32_t lane = static_cast<uint32_t>(std::countr_zero(rest));
      if (pc_[lane] < pc) {
        next = pc;
        pc = pc_[lane];
        lanes = 0;
      }
      if (pc_[lane] == pc) {
        lanes |= 1u << lane;
      } else {
        next = std::min(next, pc_[lane]);
      }
    }
    const auto leave_at = [&](uint32_t which, uint32_t where) {
      for (uint32_t rest = which; rest != 0; rest &= rest - 1) pc_[std::countr_zero(rest)] = where;
    };
    while (lanes != 0) {
      if (pc >= next) {
        leave_at(lanes, pc);
        break;
      }
      const Instruction& instruction = code[pc];
      uint32_t active = lanes;
      if (instruction.guard != Instruction::kNone) {
        const uint64_t* const guard = reg(instruction.guard);
        uint32_t holds = 0;
        for (uint32_t lane = 0; lane < 32; ++lane)
          holds |= static_cast<uint32_t>(guard[lane] & 1) << lane;
        active &= instruction.unless ? ~holds : holds;
      }
      if (block_->counts != nullptr) count(instruction, active);
      if (instruction.kind == Kind::kPlain) {
        if (active != 0) instruction.execute(*this, instruction, active);
        ++pc;
      } else if (instruction.kind == Kind::kBranch) {
        if (active == lanes) {
          pc = instruction.target;
        } else if (active == 0) {
          ++pc;
        } else {
          leave_at(active, instruction.target);
          leave_at(lanes & ~active, pc + 1);
          break;
        }
      } else if (instruction.kind == Kind::kExit) {
        ended_ |= active;
        lanes &= ~active;
        ++pc;
      } else if (instruction.kind == Kind::kBarrier) {
        at_barrier_ |= lanes;
        leave_at(lanes, pc + 1);
        break;
      } else {
        if (active != lanes) fail_at(instruction, "a guarded meeting of lanes");
        const uint32_t mask = meeting_mask(instruction, lanes);
        uint32_t here = lanes;
        for (uint32_t rest = at_meeting_; rest != 0; rest &= rest - 1) {
          const uint32_t lane = static_cast<uint32_t>(std::countr_zero(rest));
          if (pc_[lane] == pc && (mask >> lane & 1) != 0) here |= 1u << lane;
        }
        if (here == mask) {
          meeting_mask(instruction, here);
          at_meeting_ &= ~here;
          instruction.execute(*this, instruction, here);
          leave_at(here, pc + 1);
        } else {
          at_meeting_ |= lanes;
          leave_at(lanes, pc);
        }
        break;
      }
    }
  }
}

namespace {

/// Rounds over the 32 banks, each of which gives four bytes of one place a round: lanes of 8 bytes
/// come in two groups, of 16 in four.
uint64_t rounds_over_banks(const std::array<uint64_t, 32>& address, uint32_t lanes,
                           uint32_t bytes) {
  const uint32_t lanes_at_once = bytes <= 4 ? 32 : 128 / bytes;
  uint64_t rounds = 0;
  for (uint32_t first = 0; first < 32; first += lanes_at_once) {
    std::array<std::vector<uint64_t>, 32> places;  // of each bank
    for (uint32_t lane = first; lane < first + lanes_at_once; ++lane) {
      if ((lanes >> lane & 1) == 0) continue;
      for (uint64_t word = address[lane] / 4; word <= (address[lane] + bytes - 1) / 4; ++word) {
        std::vector<uint64_t>& of_bank = places[word % 32];
        if (std::find(of_bank.begin(), of_bank.end(), word) == of_bank.end())
          of_bank.push_back(word);
      }
    }
    size_t most = 0;
    for (const std::vector<uint64_t>& of_bank : places) most = std::max(most, of_bank.size());
    rounds += most;
  }
  return rounds;
}

}  // namespace

void Warp::count(const Instruction& i, uint32_t lanes) {
  Counts& counts = *block_->counts;
  ++counts.instructions;
  if (counting_opcodes)
    ++counts
          .opcodes[block_->kernel->opcodes[static_cast<size_t>(&i - block_->kernel->code.data())]];
  counts.lanes += static_cast<uint64_t>(std::popcount(lanes));
  counts.barriers += i.kind == Kind::kBarrier;
  counts.products += i.execute == &mma_m16n8k16_bf16;
  if (i.bytes == 0 || lanes == 0) return;
  const auto add = [&](Space space, uint32_t from) {
    std::array<uint64_t, 32> address;
    for (uint32_t lane = 0; lane < 32; ++lane)
      address[lane] = reg(from)[lane] + static_cast<uint64_t>(i.offset);
    const uint64_t first = address[static_cast<size_t>(std::countr_zero(lanes))];
    if (space == Space::kGeneric)
      space = first - shared_base() < block_->shared.size() ? Space::kShared : Space::kGlobal;
    const uint64_t bytes = static_cast<uint64_t>(std::popcount(lanes)) * i.bytes;
    if (space == Space::kShared) {
      ++counts.shared_accesses;
      counts.shared_rounds += rounds_over_banks(address, lanes, i.bytes);
      counts.shared_least += (bytes + 127) / 128;
    } else if (space == Space::kGlobal) {
      std::vector<uint64_t> sectors;
      for (uint32_t lane = 0; lane < 32; ++lane) {
        if ((lanes >> lane & 1) != 0) sectors.push_back(address[lane] / 32);
      }
      std::sort(sectors.begin(), sectors.end());
      ++counts.global_accesses;
      counts.global_sectors +=
          static_cast<uint64_t>(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
      counts.global_least += (bytes + 31) / 32;
    }
  };
  if (i.execute == &copy_16_async) {
    add(Space::kShared, i.from[0]);
    add(Space::kGlobal, i.from[1]);
  } else {
    add(i.space, i.from[0]);
  }
}

unsigned char* Warp::memory(const Instruction& i, uint64_t address, uint32_t lane, size_t bytes,
                            bool write) {
  if (address % bytes != 0)
    fail_at(i, "lane %u: address %llx is not aligned to %zu bytes", lane,
            static_cast<unsigned long long>(address), bytes);
  Space space = i.space;
  const uint64_t shared = shared_base();
  if (space == Space::kGeneric && address - shared < block_->shared.size()) {
    space = Space::kShared;
    address -= shared;
  }
  const auto inside = [&](size_t size, const char* what) {
    if (address > size || bytes > size - address)
      fail_at(i, "lane %u: %zu bytes at %llu of %zu bytes of %s", lane, bytes,
              static_cast<unsigned long long>(address), size, what);
  };
  switch (space) {
    case Space::kShared: {
      inside(block_->shared.size(), "shared memory");
      const unsigned me = first_thread_ + lane;
      if (const auto conflict = block_->accesses.access(address, bytes, me, syncs_, write))
        fail_at(i, "thread %u %s shared memory that thread %u %s, without a barrier between", me,
                write ? "writes" : "reads", conflict->other, conflict->wrote ? "wrote" : "read");
      return block_->shared.data() + address;
    }
    case Space::kLocal:
      inside(block_->kernel->local_bytes, "local memory");
      return local_.data() + lane * block_->kernel->local_bytes + address;
    case Space::kParameter:
      inside(block_->kernel->parameter_bytes, "parameters");
      if (write) fail_at(i, "a parameter is written");
      return const_cast<unsigned char*>(block_->parameters) + address;
    case Space::kGeneric:
    case Space::kGlobal:
      break;
  }
  if (address < 65536)
    fail_at(i, "lane %u: global address %llx", lane, static_cast<unsigned long long>(address));
  return reinterpret_cast<unsigned char*>(address);
}

void Warp::copy_async(const Instruction& i, uint32_t lane, uint64_t shared, uint64_t global,
                      uint32_t bytes) {
  Instruction place = i;
  place.space = Space::kShared;
  unsigned char* const to =
      memory(place, shared, lane, 16, true);  // it may land at once, or at the wait
  std::memset(to, kUnsetByte, 16);
  if (bytes != 0) {
    place.space = Space::kGlobal;
    memory(place, global, lane, 16, false);
  }
  copies_[lane].push_back({shared, global, bytes, groups_[lane]});
}
void Warp::copy_commit(uint32_t lane) { ++groups_[lane]; }
void Warp::copy_wait(const Instruction& i, uint32_t lane, uint64_t pending) {
  Instruction place = i;
  std::vector<Copy> later;
  for (const Copy& copy : copies_[lane]) {
    if (copy.group + pending >= groups_[lane]) {
      later.push_back(copy);
      continue;
    }
    place.space = Space::kShared;
    unsigned char* const to = memory(place, copy.shared, lane, 16, true);
    std::memset(to, 0, 16);
    if (copy.bytes != 0) std::memcpy(to, reinterpret_cast<const void*>(copy.global), copy.bytes);
  }
  copies_[lane].swap(later);
}

void run(const Kernel& kernel, Size grid, Size block_size, size_t dynamic_shared,
         const std::vector<unsigned char>& parameters, uint64_t seed) {
  const uint64_t threads = uint64_t{block_size.x} * block_size.y * block_size.z;
  if (threads == 0 || threads > kernel.most_threads)
    fail("%s: a block of %u × %u × %u threads, at most %u", kernel.name.c_str(), block_size.x,
         block_size.y, block_size.z, kernel.most_threads);
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu)
    fail("%s: a grid of %u × %u × %u blocks", kernel.name.c_str(), grid.x, grid.y, grid.z);
  const size_t shared_bytes = kernel.static_shared + dynamic_shared;
  if (shared_bytes > kMostShared)
    fail("%s: %zu bytes of shared memory", kernel.name.c_str(), shared_bytes);
  Block block;
  block.kernel = &kernel;
  if (counting) {
    block.counts = &counted[kernel.name];
    ++block.counts->launches;
    block.counts->blocks += uint64_t{grid.x} * grid.y * grid.z;
  }
  block.parameters = parameters.data();
  block.shared.resize(shared_bytes);
  block.accesses.resize(shared_bytes);
  std::vector<Warp> warps((threads + 31) / 32);
  for (uint32_t w = 0; w < warps.size(); ++w)
    warps[w].prepare(block, w, static_cast<uint32_t>(threads), block_size, grid);
  std::vector<uint32_t> order(warps.size());
  for (uint32_t w = 0; w < order.size(); ++w) order[w] = w;
  std::mt19937_64 random(seed);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t k = 0; k < blocks; ++k) {
    const uint64_t b = seed % 2 != 0 ? blocks - 1 - k : k;  // backwards is as good an order as any
    block.index = {static_cast<uint32_t>(b % grid.x), static_cast<uint32_t>(b / grid.x % grid.y),
                   static_cast<uint32_t>(b / grid.x / grid.y)};
    std::ranges::fill(block.shared, kUnsetByte);
    for (Warp& warp : warps) warp.begin_block();
    while (true) {
      block.accesses.pass_barrier();
      if (seed != 0) std::shuffle(order.begin(), order.end(), random);
      for (const uint32_t w : order) warps[w].run();
      if (std::all_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.ended(); }))
        break;
      for (Warp& warp : warps) {
        if (!warp.at_barrier())
          fail("%s, block (%u, %u, %u): some threads wait at a barrier, others have ended",
               kernel.name.c_str(), block.index.x, block.index.y, block.index.z);
        warp.pass_barrier();
      }
    }
  }
}

}  // namespace xsr::ptx
