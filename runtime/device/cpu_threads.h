#pragma once
#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace xsr {

/// Processors this process may use: its affinity mask, cut to the cgroup CPU quota (rounded up). At
/// least 1.
int32_t usable_cpus();

/// A fixed set of threads that run short parallel loops for one caller at a time.
///
/// Tasks are claimed from a shared counter, by the caller too: a thread that is late, asleep or
/// robbed of its core by a neighbour claims nothing, and the caller does its share. Nobody waits
/// for a thread that holds no task. Idle threads spin for about 50 µs, the time between the loops
/// of one forward pass, then sleep; where there are more threads than processors they sleep at
/// once. In a child of fork(), which has none of them, the caller does it all.
class ThreadPool {
 public:
  /// num_threads counts the caller: 1 starts no thread; 0: usable_cpus(). Throws
  /// Error(OUT_OF_MEMORY) when a thread cannot be started.
  explicit ThreadPool(int32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t num_threads() const { return num_threads_; }

  /// Calls body(task, thread) once for every task in [0, total), thread in [0, num_threads);
  /// returns when all are done. The first exception of a body is thrown again here, after the
  /// others have finished.
  template <typename Body>
  void for_each(int32_t total, Body&& body) {
    if (num_threads_ == 1 || total <= 1) {
      for (int32_t task = 0; task < total; ++task) body(task, 0);
      return;
    }
    for (int32_t first = 0; first < total; first += kMaxTasks) {
      const int32_t count = total - first < kMaxTasks ? total - first : kMaxTasks;
      struct Context {
        std::remove_reference_t<Body>* body;
        int32_t first;
      } context{&body, first};
      run(
          [](void* opaque, int32_t task, int32_t thread) {
            const Context* c = static_cast<const Context*>(opaque);
            (*c->body)(c->first + task, thread);
          },
          &context, count);
    }
  }

 private:
  using Function = void (*)(void* context, int32_t task, int32_t thread);
  struct Job {
    std::atomic<Function> function{nullptr};
    std::atomic<void*> context{nullptr};
  };
  static constexpr int32_t kMaxTasks = 0xffff;

  ThreadPool(int32_t num_threads, int32_t cpus);
  void run(Function function, void* context, int32_t total);
  bool claim_and_do(int32_t thread);
  void work(int32_t thread);
  void stop_and_join();

  const int32_t num_threads_;
  const bool may_spin_;
  // stage (32 bits) | number of tasks (16) | next task (16): a claim is one compare-and-swap, and a
  // thread that slept through a stage cannot claim from it.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int32_t> finished_{0};
  alignas(64) std::atomic<int32_t> wake_{0};
  std::atomic<bool> stop_{false};
  Job jobs_[2];  // of the even and the odd stages
  std::mutex error_mutex_;
  std::exception_ptr error_;
  const pid_t process_;  // whose threads they are
  std::unique_ptr<std::vector<std::thread>> threads_;
};

}  // namespace xsr
