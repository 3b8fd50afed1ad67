#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "training/data/pair_sampler.h"

namespace xsr::training {

/// Batches made ahead of time by a thread of its own; the batches are those of the sampler.
class PairStream {
 public:
  /// The first batch is the one at position. depth: batches made ahead, at least 1.
  PairStream(PairSampler sampler, DataPosition position, int32_t depth = 4);
  ~PairStream();
  PairStream(const PairStream&) = delete;
  PairStream& operator=(const PairStream&) = delete;

  /// Swaps the next batch into batch. Throws what the sampler threw.
  void next(PairBatch& batch);
  /// The batch that next() will give, where it is made already, else null. Valid until next().
  const PairBatch* peek();
  /// Of the batch that next() will give: what a checkpoint keeps.
  const DataPosition& position() const { return position_; }

 private:
  struct Made {
    PairBatch batch;
    DataPosition after;
  };
  void work(DataPosition position);

  PairSampler sampler_;
  DataPosition position_;
  const size_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Made> made_;
  std::deque<PairBatch> spare_;  // buffers to use again
  std::exception_ptr error_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace xsr::training
