#include "runtime/device/cpu_threads.h"

#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <new>
#include <string>
#include <system_error>

#include "runtime/device/cgroup.h"
#include "runtime/error.h"

namespace xsr {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);

void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

/// Spins until ready() or the time is over.
template <typename Ready>
bool spin_until(Ready&& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

uint32_t stage_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
int32_t total_of(uint64_t ticket) { return static_cast<int32_t>((ticket >> 16) & 0xffff); }
int32_t next_of(uint64_t ticket) { return static_cast<int32_t>(ticket & 0xffff); }
bool has_task(uint64_t ticket) { return next_of(ticket) < total_of(ticket); }

}  // namespace

int32_t usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int32_t count = sched_getaffinity(0, sizeof set, &set) == 0
                            ? CPU_COUNT(&set)
                            : static_cast<int32_t>(std::thread::hardware_concurrency());
  return cpus_within(count, cgroup_cpus());
}

ThreadPool::ThreadPool(int32_t num_threads)
    : ThreadPool(num_threads, num_threads == 1 ? 1 : usable_cpus()) {}

ThreadPool::ThreadPool(int32_t num_threads, int32_t cpus)
    : num_threads_(num_threads == 0 ? cpus : num_threads),
      may_spin_(num_threads_ <= cpus),
      process_(::getpid()),
      threads_(std::make_unique<std::vector<std::thread>>()) {
  try {
    threads_->reserve(static_cast<size_t>(num_threads_) - 1);
    for (int32_t thread = 1; thread < num_threads_; ++thread)
      threads_->emplace_back(&ThreadPool::work, this, thread);
  } catch (const std::system_error& e) {
    const std::string started = std::to_string(threads_->size());
    stop_and_join();
    throw Error(XSR_STATUS_OUT_OF_MEMORY, "cannot start " + std::to_string(num_threads_) +
                                              " threads: " + e.what() + " after " + started +
                                              "; ask for fewer threads");
  } catch (const std::bad_alloc&) {
    stop_and_join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (::getpid() == process_) {
    stop_and_join();
  } else {
    // fork() has not copied them: none can be joined, and their memory may be other threads' now.
    static_cast<void>(threads_.release());
  }
}

void ThreadPool::stop_and_join() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& thread : *threads_) thread.join();
}

bool ThreadPool::claim_and_do(int32_t thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (has_task(ticket)) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
      continue;
    // The stage cannot end before this task is counted as finished, so its job stays in place.
    const Job& job = jobs_[stage_of(ticket) & 1];
    try {
      job.function.load(std::memory_order_relaxed)(job.context.load(std::memory_order_relaxed),
                                                   next_of(ticket), thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == total_of(ticket))
      finished_.notify_one();
    return true;
  }
  return false;
}

void ThreadPool::run(Function function, void* context, int32_t total) {
  const uint32_t stage = stage_of(ticket_.load(std::memory_order_relaxed)) + 1;
  jobs_[stage & 1].function.store(function, std::memory_order_relaxed);
  jobs_[stage & 1].context.store(context, std::memory_order_relaxed);
  finished_.store(0, std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(stage) << 32 | static_cast<uint64_t>(total) << 16,
                std::memory_order_release);
  wake_.fetch_add(1);
  wake_.notify_all();  // no system call when nobody sleeps
  while (claim_and_do(0)) {
  }
  const auto all_finished = [&] { return finished_.load(std::memory_order_acquire) == total; };
  if (!may_spin_ || !spin_until(all_finished)) {
    for (int32_t finished = finished_.load(std::memory_order_acquire); finished != total;
         finished = finished_.load(std::memory_order_acquire)) {
      finished_.wait(finished, std::memory_order_acquire);
    }
  }
  if (error_) {
    std::exception_ptr error;
    {
      const std::lock_guard<std::mutex> lock(error_mutex_);
      std::swap(error, error_);
    }
    std::rethrow_exception(error);
  }
}

void ThreadPool::work(int32_t thread) {
  for (;;) {
    // Before stop_ is looked at: what stops the threads sets that first and then changes wake_, so
    // that one who misses it does not sleep.
    const int32_t wake = wake_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    if (claim_and_do(thread)) continue;
    const auto something_to_do = [&] { return wake_.load(std::memory_order_relaxed) != wake; };
    if (may_spin_ && spin_until(something_to_do)) continue;
    wake_.wait(wake, std::memory_order_acquire);
  }
}

}  // namespace xsr
