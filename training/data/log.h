#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

namespace xsr::training {

/// Where long work on the data tells what it does, and hears that it should stop. Any member may be
/// empty. Called by one thread at a time.
struct DataLog {
  std::function<void(const std::string& message)> say;  // a sentence or two for people
  /// About the files of the work under way: bytes as they are stored on the disk.
  std::function<void(uint64_t done_bytes, uint64_t total_bytes, uint64_t lines)> progress;
  const std::atomic<bool>* stop = nullptr;  // set: the work throws Stopped within a second or so

  bool stopped() const { return stop != nullptr && stop->load(std::memory_order_relaxed); }
};

/// Thrown where DataLog::stop was set; what was being written is gone, what was there before is as
/// it was.
struct Stopped {};

/// Messages and a Progress to stderr.
DataLog stderr_data_log(const std::atomic<bool>* stop = nullptr);

}  // namespace xsr::training
