#include "kernels/cuda/emulated.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "kernels/cuda/shared_accesses.h"

#if defined(__SANITIZE_ADDRESS__)
#define XSR_ASAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define XSR_ASAN_FIBERS 1
#endif
#endif
#ifdef XSR_ASAN_FIBERS
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the emulated device switches stacks on x86-64 only"
#endif

// Saves the registers a call keeps and the stack pointer in *from, and goes on where `to` was left.
extern "C" void xsr_emulated_switch(void** from, void* to);
asm(R"(
.text
.globl xsr_emulated_switch
.hidden xsr_emulated_switch
.type xsr_emulated_switch, @function
xsr_emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size xsr_emulated_switch, .-xsr_emulated_switch
)");

// Where the linker puts statically shared memory, with other things of this program or library.
extern "C" [[gnu::visibility("hidden")]] char __bss_start[], _end[];

namespace xsr::cuda::emulated {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // of address space; pages are paid for when touched
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 163 * 1024;  // what a block of an sm_80 can have
// Around the shared memory of a block: NaN in f32 and bf16, and no NaN that arithmetic makes.
constexpr uint32_t kGuard = 0xffdeffde;
constexpr size_t kGuardWords = 64;
constexpr uint32_t kWholeWarp = 0xffffffffu;

[[noreturn]] [[gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
  std::fprintf(stderr, "emulated device: block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  bool wanted;
  size_t group;
};

enum class State { kReady, kAtBarrier, kAtMeeting, kEnded };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kReady;
  dim3 thread;
  unsigned index = 0;
  uint32_t mask = 0;                    // of the meeting it waits at
  const char* operation = nullptr;      // likewise
  unsigned char data[kSlotBytes] = {};  // what it brings
  struct Meeting* meeting = nullptr;    // that let it go
  std::vector<Copy> copies;
  size_t groups = 0;
#ifdef XSR_ASAN_FIBERS
  void* fake_stack = nullptr;
#endif
};

struct Meeting {
  unsigned unread = 0;  // lanes that have not gone on yet
  alignas(16) unsigned char slots[32][kSlotBytes];
};
struct Warp {
  uint32_t lanes = 0, waiting = 0, ended = 0;  // those it has, at meetings, at their end
  uint32_t syncs = 0;                          // __syncwarps of all its lanes so far
  std::vector<std::unique_ptr<Meeting>> meetings;
};

std::mutex launch_mutex;
uint64_t order_seed = 0, launch_count = 0;
std::mt19937_64 order;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<unsigned> ready;
std::vector<char*> stacks;
void* scheduler_stack_pointer = nullptr;
thread_local Fiber* current = nullptr;
const std::function<void()>* body = nullptr;
std::unique_ptr<uint32_t[]> shared_words;
size_t shared_count = 0;
#ifdef XSR_ASAN_FIBERS
void* scheduler_fake_stack = nullptr;
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;
#endif

void to_scheduler([[maybe_unused]] bool ended) {
  Fiber& fiber = *current;
#ifdef XSR_ASAN_FIBERS
  __sanitizer_start_switch_fiber(ended ? nullptr : &fiber.fake_stack, scheduler_bottom,
                                 scheduler_size);
#endif
  xsr_emulated_switch(&fiber.stack_pointer, scheduler_stack_pointer);
#ifdef XSR_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
#ifdef XSR_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
  (*body)();
  current->state = State::kEnded;
  to_scheduler(true);
  std::abort();  // an ended fiber is never run again
}

void to_fiber(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.thread;
#ifdef XSR_ASAN_FIBERS
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
#endif
  xsr_emulated_switch(&scheduler_stack_pointer, fiber.stack_pointer);
  current = nullptr;
#ifdef XSR_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber, unsigned index, dim3 block) {
  if (stacks.size() <= index) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks of %u threads", index + 1);
    stacks.push_back(static_cast<char*>(memory));
  }
  fiber = Fiber();
  fiber.stack = stacks[index];
  fiber.index = index;
  fiber.thread = dim3(index % block.x, index / block.x % block.y, index / (block.x * block.y));
  // As if fiber_main had been about to be returned to: six registers, then its address, with the
  // stack aligned as at a function's start.
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void make_ready(Fiber& fiber) {
  fiber.state = State::kReady;
  ready.push_back(fiber.index);
}

const char* where(const Fiber& fiber) {
  switch (fiber.state) {
    case State::kAtBarrier:
      return "waits at __syncthreads";
    case State::kAtMeeting:
      return fiber.operation;
    case State::kEnded:
      return "has ended";
    case State::kReady:
      break;
  }
  return "runs";
}

/// Lets go the lanes that wait at the same meeting as `fiber`, when all are there.
void close_meeting(Fiber& fiber) {
  const unsigned first = fiber.index / 32 * 32;
  Warp& warp = warps[first / 32];
  warp.waiting |= 1u << fiber.index % 32;
  const uint32_t mask = fiber.mask;
  if (const uint32_t none = mask & ~warp.lanes; none != 0)
    fail("%s of thread %u: its mask %08x names lane %d, which the block does not have",
         fiber.operation, fiber.index, mask, std::countr_zero(none));
  if (const uint32_t gone = mask & warp.ended; gone != 0)
    fail("%s of thread %u waits for thread %d, which has ended", fiber.operation, fiber.index,
         static_cast<int>(first) + std::countr_zero(gone));
  if ((mask & ~warp.waiting) != 0) return;
  const auto unused = [](const std::unique_ptr<Meeting>& meeting) { return meeting->unread == 0; };
  auto at = std::find_if(warp.meetings.begin(), warp.meetings.end(), unused);
  if (at == warp.meetings.end()) at = warp.meetings.insert(at, std::make_unique<Meeting>());
  Meeting& meeting = **at;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fiber& other = fibers[first + lane];
    if (other.mask != mask || strcmp(other.operation, fiber.operation) != 0)
      fail("%s of thread %u with mask %08x meets %s of thread %u with mask %08x", fiber.operation,
           fiber.index, mask, other.operation, other.index, other.mask);
    memcpy(meeting.slots[lane], other.data, kSlotBytes);
    ++meeting.unread;
    other.meeting = &meeting;
    make_ready(other);
  }
  warp.waiting &= ~mask;
  if (mask == kWholeWarp && strcmp(fiber.operation, kSyncwarp) == 0) ++warp.syncs;
}

// ---- Accesses to shared memory

/// Memory of which accesses are followed.
struct Followed {
  uintptr_t begin = 0, size = 0;
  SharedAccesses accesses;

  void set(const void* data, size_t bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(data);
    begin = at - at % 2;  // or neighbours would share a place: __bss_start may be odd
    size = at - begin + bytes;
    accesses.resize(size);
  }
};
Followed dynamic_shared, static_shared;

void follow(const void* address, size_t bytes, bool write) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  for (Followed* memory : {&dynamic_shared, &static_shared}) {
    const uintptr_t offset = at - memory->begin;
    if (offset >= memory->size) continue;
    if (current == nullptr) return;  // host code
    const unsigned me = current->index;
    if (const auto conflict = memory->accesses.access(
            offset, std::min(bytes, memory->size - offset), me, warps[me / 32].syncs, write))
      fail("thread %u %s shared memory that thread %u %s, without a barrier between", me,
           write ? "writes" : "reads", conflict->other, conflict->wrote ? "wrote" : "read");
  }
}

void pass_barrier() {
  dynamic_shared.accesses.pass_barrier();
  static_shared.accesses.pass_barrier();
}

void run_block(dim3 block) {
  const unsigned count = block.x * block.y * block.z;
  fibers.resize(count);
  warps.resize((count + 31) / 32);
  for (Warp& warp : warps) warp.lanes = warp.waiting = warp.ended = warp.syncs = 0;
  pass_barrier();
  ready.clear();
  for (unsigned i = 0; i < count; ++i) {
    prepare(fibers[i], i, block);
    ready.push_back(i);
    warps[i / 32].lanes |= 1u << i % 32;
  }
  uint32_t* const shared = shared_words.get() + kGuardWords;
  std::fill_n(shared_words.get(), shared_count + 2 * kGuardWords, kGuard);
  std::fill_n(shared, shared_count, 0xffffffffu);  // NaN in f32 and bf16

  unsigned ended = 0, at_barrier = 0;
  size_t head = 0;  // of `ready`, where it is a queue
  while (ended < count) {
    if (head == ready.size()) {
      if (at_barrier == count) {
        at_barrier = 0;
        pass_barrier();
        ready.clear();
        head = 0;
        for (Fiber& fiber : fibers) make_ready(fiber);
        continue;
      }
      for (const Fiber& a : fibers) {
        for (const Fiber& b : fibers) {
          if (a.state != State::kEnded && strcmp(where(a), where(b)) != 0)
            fail("nothing can go on: thread %u %s%s, thread %u %s%s", a.index,
                 a.state == State::kAtMeeting ? "waits at " : "", where(a), b.index,
                 b.state == State::kAtMeeting ? "waits at " : "", where(b));
        }
      }
      fail("nothing can go on");
    }
    if (order_seed != 0) std::swap(ready[head], ready[head + order() % (ready.size() - head)]);
    Fiber& fiber = fibers[ready[head++]];
    if (head == ready.size()) {
      ready.clear();
      head = 0;
    }
    to_fiber(fiber);
    if (fiber.state == State::kEnded) {
      ++ended;
      warps[fiber.index / 32].ended |= 1u << fiber.index % 32;
    } else if (fiber.state == State::kAtBarrier) {
      ++at_barrier;
    } else {
      close_meeting(fiber);
    }
  }
  for (size_t i = 0; i < kGuardWords; ++i) {
    if (shared_words[i] != kGuard || shared[shared_count + i] != kGuard)
      fail("something wrote outside its %zu bytes of shared memory", shared_count * 4);
  }
}

}  // namespace

void set_order(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  order_seed = seed;
  order.seed(seed);
}

uint64_t launches() { return launch_count; }
uint64_t count_launch() {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  ++launch_count;
  return order_seed;
}

namespace {

/// Streams that have been given work, and the threads that gave it last.
struct Given {
  std::weak_ptr<CUstream_st> stream;
  std::thread::id by;
};
std::mutex given_mutex;
std::vector<Given> given;

void note_given(const std::shared_ptr<CUstream_st>& stream) {
  if (stream == nullptr) return;  // a branch of a graph
  const std::lock_guard<std::mutex> lock(given_mutex);
  std::erase_if(given, [](const Given& one) { return one.stream.expired(); });
  const auto at = std::find_if(given.begin(), given.end(),
                               [&](const Given& one) { return one.stream.lock() == stream; });
  if (at != given.end()) {
    at->by = std::this_thread::get_id();
  } else {
    given.push_back({stream, std::this_thread::get_id()});
  }
}

/// Those that this thread was the last to work with. With a seed no other thread may begin to
/// meanwhile: a thread keeps its streams.
std::vector<std::weak_ptr<CUstream_st>> streams_of_thread() {
  const std::lock_guard<std::mutex> lock(given_mutex);
  std::vector<std::weak_ptr<CUstream_st>> own;
  for (const Given& one : given) {
    if (one.by == std::this_thread::get_id()) own.push_back(one.stream);
  }
  return own;
}

}  // namespace

Status refusal() {
  static std::mutex mutex;
  static std::string last;
  static uint64_t count = 0;
  const char* const set = std::getenv("XSR_EMULATED_FAILURE");
  const std::lock_guard<std::mutex> lock(mutex);
  if (set == nullptr) {
    last.clear();
    return 0;
  }
  if (last != set) {
    last = set;
    count = 0;
  }
  constexpr Status kLaunchOutOfResources = 701;  // as CUDA numbers it
  return ++count == std::strtoull(set, nullptr, 10) ? kLaunchOutOfResources : 0;
}

Status submit(Stream stream, std::function<void()> body) {
  const Status status = refusal();
  if (status == 0) give(stream, std::move(body));
  return status;
}

void give(Stream stream, std::function<void()> body) {
  note_given(stream->self);
  CUstream_st::Work work{std::move(body), nullptr, 0};
  if (stream->capture != nullptr) {
    stream->captured.push_back(std::move(work));
  } else {
    stream->pending.push_back(std::move(work));
  }
}

void hold(const std::shared_ptr<CUstream_st>& stream, const std::shared_ptr<CUstream_st>& other,
          uint64_t position) {
  stream->pending.push_back({{}, other, position});
  const auto relate = [](CUstream_st& one, const std::shared_ptr<CUstream_st>& another) {
    std::erase_if(one.related, [&](const std::weak_ptr<CUstream_st>& known) {
      return known.expired() || known.lock() == another;
    });
    one.related.push_back(another);
  };
  relate(*stream, other);
  relate(*other, stream);
}

void drop(Stream stream) {
  stream->done += stream->pending.size();
  stream->pending.clear();
}

namespace {

/// The next piece of a stream's work.
void advance(Stream stream) {
  const std::shared_ptr<CUstream_st> other = stream->pending.front().other;
  // It stays in front meanwhile, so that nobody runs what is behind it.
  if (other != nullptr) wait_for(other.get(), stream->pending.front().position);
  const CUstream_st::Work work = std::move(stream->pending.front());
  stream->pending.pop_front();
  ++stream->done;
  if (work.run) work.run();
}

/// What the stream can do without another one's going on, or some of it.
void run_ahead(Stream stream, uint64_t seed) {
  try {
    while (!stream->pending.empty()) {
      const CUstream_st::Work& next = stream->pending.front();
      if (next.other != nullptr && next.other->done < next.position) return;
      const uint64_t chance = (seed + stream->done) * 0x9E3779B97F4A7C15 >> 62;
      if (seed % 2 == 0 && chance == 0) return;
      advance(stream);
    }
  } catch (...) {
    drop(stream);
    throw;
  }
}

}  // namespace

void wait_for(Stream stream, uint64_t count) {
  if (stream->capture != nullptr) {
    std::fputs("emulated device: a stream that is being captured is waited for\n", stderr);
    std::abort();
  }
  const uint64_t seed = [] {
    const std::lock_guard<std::mutex> lock(launch_mutex);
    return order_seed;
  }();
  const std::vector<std::weak_ptr<CUstream_st>> own =
      seed == 0 ? std::vector<std::weak_ptr<CUstream_st>>() : streams_of_thread();
  try {
    while (stream->done < count) {
      if (seed != 0) {
        std::vector<std::weak_ptr<CUstream_st>> others = stream->related;
        others.insert(others.end(), own.begin(), own.end());
        for (const std::weak_ptr<CUstream_st>& one : others) {
          const std::shared_ptr<CUstream_st> other = one.lock();
          if (other != nullptr && other.get() != stream) run_ahead(other.get(), seed);
        }
      }
      advance(stream);
    }
  } catch (...) {
    drop(stream);
    throw;
  }
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  blockIdx = dim3(0, 0, 0);
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x * block.y * block.z > kMostThreads)
    fail("a block of %u × %u × %u threads", block.x, block.y, block.z);
  if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu)
    fail("a grid of %u × %u × %u blocks", grid.x, grid.y, grid.z);
  if (shared_bytes > kMostShared) fail("%zu bytes of shared memory", shared_bytes);
  ++launch_count;
  body = &thread;
  blockDim = block;
  gridDim = grid;
  shared_count = (shared_bytes + 3) / 4;
  shared_words = std::make_unique<uint32_t[]>(shared_count + 2 * kGuardWords);
  dynamic_shared.set(shared_memory(), shared_count * 4);
  static_shared.set(__bss_start, static_cast<size_t>(_end - __bss_start));
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  // Backwards is as good an order as any, where one is asked for.
  const bool backwards = order_seed % 2 != 0;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = backwards ? blocks - 1 - i : i;
    blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
    run_block(block);
  }
}

void* shared_memory() { return shared_words.get() + kGuardWords; }

void sync_threads() {
  current->state = State::kAtBarrier;
  to_scheduler(false);
}

const unsigned char* meet_bytes(uint32_t mask, const char* operation, const void* data,
                                size_t size) {
  Fiber& fiber = *current;
  if ((mask >> (fiber.index % 32) & 1) == 0)
    fail("%s of thread %u: its mask %08x does not name its own lane", operation, fiber.index, mask);
  memcpy(fiber.data, data, size);
  fiber.mask = mask;
  fiber.operation = operation;
  fiber.state = State::kAtMeeting;
  to_scheduler(false);
  --fiber.meeting->unread;  // nobody else runs until this fiber has read
  return fiber.meeting->slots[0];
}

void expect_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("%zu bytes at once of thread %u with an address that is not aligned to them", bytes,
         current->index);
  }
}

void load_matrix_x4(uint32_t (&r)[4], const uint16_t* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail("ldmatrix of thread %u from an address that is not 16-byte aligned", current->index);
  // What is in memory when a lane comes: it waits for the others, but not for what they write.
  struct Row {
    uint16_t element[8];
  } mine;
  memcpy(&mine, row, sizeof mine);
  follow(row, sizeof mine, false);
  const auto rows = meet(kWholeWarp, transposed ? "ldmatrix.trans" : "ldmatrix", mine);
  const int lane = static_cast<int>(threadIdx.x % 32), line = lane / 4, pair = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int from_row, int column) {
      return rows[8 * i + from_row].element[column];
    };
    const uint32_t low = transposed ? element(pair, line) : element(line, pair);
    const uint32_t high = transposed ? element(pair + 1, line) : element(line, pair + 1);
    r[i] = low | high << 16;
  }
}

void copy_16_async(void* shared, const void* global, bool wanted) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail("cp.async of thread %u with an address that is not 16-byte aligned", current->index);
  current->copies.push_back({shared, global, wanted, current->groups});
  // It may land at once, or at the wait.
  memset(shared, 0xff, 16);
  follow(shared, 16, true);
}

void copy_commit() { ++current->groups; }

void copy_wait(size_t pending) {
  Fiber& fiber = *current;
  std::vector<Copy> later;
  for (const Copy& copy : fiber.copies) {
    if (copy.group + pending >= fiber.groups) {
      later.push_back(copy);
      continue;
    }
    follow(copy.to, 16, true);
    if (copy.wanted) {
      memcpy(copy.to, copy.from, 16);
    } else {
      memset(copy.to, 0, 16);
    }
  }
  fiber.copies.swap(later);
}

}  // namespace xsr::cuda::emulated

#ifdef XSR_FOLLOW_ACCESSES
// What compilers call for every access of a file compiled with -fsanitize=thread, which nothing is
// linked with: here instead of ThreadSanitizer's run time, which knows no fibers. Host code of
// those files comes by too.
#define XSR_ACCESSES(bytes)                                               \
  void __tsan_read##bytes(void* p) { follow(p, bytes, false); }           \
  void __tsan_write##bytes(void* p) { follow(p, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* p) { follow(p, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* p) { follow(p, bytes, true); } \
  void __tsan_read_write##bytes(void* p) { follow(p, bytes, true); }      \
  void __tsan_unaligned_read_write##bytes(void* p) { follow(p, bytes, true); }
extern "C" {
using xsr::cuda::emulated::follow;
XSR_ACCESSES(1)
XSR_ACCESSES(2)
XSR_ACCESSES(4)
XSR_ACCESSES(8)
XSR_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { follow(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { follow(p, bytes, true); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  follow(from, bytes, false);
  follow(to, bytes, true);
  return memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  follow(to, bytes, true);
  return memset(to, value, bytes);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
#endif
