#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "kernels/cuda/emulated.h"
#include "runtime/device/cuda/device.h"
#include "runtime/error.h"
#include "training/cuda/communicator.h"

namespace xsr::training {
namespace {

/// What the ranks share: a barrier, and where each has its data.
struct Meeting {
  explicit Meeting(size_t ranks) : data(ranks), graphs(ranks) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    const uint64_t now = generation;
    if (++arrived == data.size()) {
      arrived = 0;
      ++generation;
      all.notify_all();
    } else {
      all.wait(lock, [&] { return generation != now || aborted; });
    }
    if (aborted) throw Error(XSR_STATUS_CUDA, "emulated device: another rank has given up");
  }

  std::mutex mutex;
  std::condition_variable all;
  size_t arrived = 0;
  uint64_t generation = 0;
  bool aborted = false;
  std::vector<void*> data;
  std::vector<uint64_t> graphs;
};

class EmulatedCommunicator : public Communicator {
 public:
  EmulatedCommunicator(std::shared_ptr<Meeting> meeting, int32_t rank)
      : meeting_(std::move(meeting)), rank_(rank) {}
  int32_t rank() const override { return rank_; }
  void gather(float* x, const std::vector<int64_t>& starts, cuda::Stream stream) override {
    run(stream, x, [this, x, starts] {
      for (size_t r = 0; r + 1 < starts.size(); ++r) {
        const float* from = static_cast<const float*>(meeting_->data[r]);
        if (from != x) std::copy(from + starts[r], from + starts[r + 1], x + starts[r]);
      }
      meeting_->wait();
    });
  }
  void sum(float* x, int64_t count, cuda::Stream stream) override { add_up(x, count, stream); }
  void sum(double* x, int64_t count, cuda::Stream stream) override { add_up(x, count, stream); }
  void abort() noexcept override {
    const std::lock_guard<std::mutex> lock(meeting_->mutex);
    meeting_->aborted = true;
    meeting_->all.notify_all();
  }

 private:
  /// body(), when every rank's data is known.
  template <typename Body>
  void run(cuda::Stream stream, void* x, Body&& body) {
    const uint64_t graph = stream->capture != nullptr ? ++captured_ : 0;
    const auto piece = [this, x, graph, body = std::forward<Body>(body)] {
      meeting_->data[static_cast<size_t>(rank_)] = x;
      meeting_->graphs[static_cast<size_t>(rank_)] = graph;
      meeting_->wait();
      for (const uint64_t other : meeting_->graphs) {
        if (other != graph)
          throw Error(XSR_STATUS_INTERNAL, "emulated device: the ranks talk in unlike graphs");
      }
      body();
    };
    cuda::check(cuda::emulated::submit(stream, piece), "talking");
  }
  template <typename T>
  void add_up(T* x, int64_t count, cuda::Stream stream) {
    run(stream, x, [this, x, count] {
      std::vector<T> total(static_cast<size_t>(count), T(0));
      for (const void* part : meeting_->data) {
        for (int64_t i = 0; i < count; ++i)
          total[static_cast<size_t>(i)] += static_cast<const T*>(part)[i];
      }
      meeting_->wait();  // all have read
      std::copy(total.begin(), total.end(), x);
    });
  }

  const std::shared_ptr<Meeting> meeting_;
  const int32_t rank_;
  uint64_t captured_ = 0;  // calls
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_communicators(const std::vector<int32_t>& devices) {
  const auto meeting = std::make_shared<Meeting>(devices.size());
  std::vector<std::unique_ptr<Communicator>> all;
  for (size_t r = 0; r < devices.size(); ++r)
    all.push_back(std::make_unique<EmulatedCommunicator>(meeting, static_cast<int32_t>(r)));
  return all;
}

}  // namespace xsr::training
