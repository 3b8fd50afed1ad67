#include "training/data/pair_stream.h"

#include <algorithm>
#include <utility>

namespace xsr::training {

PairStream::PairStream(PairSampler sampler, DataPosition position, int32_t depth)
    : sampler_(std::move(sampler)),
      position_(position),
      depth_(static_cast<size_t>(std::max(1, depth))),
      thread_([this, position] { work(position); }) {}

PairStream::~PairStream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void PairStream::work(DataPosition position) {
  Made made;
  for (;;) {
    std::exception_ptr error;
    try {
      sampler_.next(position, made.batch);
    } catch (...) {
      error = std::current_exception();
    }
    made.after = position;
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return stop_ || made_.size() < depth_; });
    if (stop_) return;
    error_ = error;
    if (!error) made_.push_back(std::move(made));
    made.batch = PairBatch();
    if (!spare_.empty()) {
      made.batch = std::move(spare_.back());
      spare_.pop_back();
    }
    lock.unlock();
    changed_.notify_all();
    if (error) return;
  }
}

const PairBatch* PairStream::peek() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return made_.empty() ? nullptr : &made_.front().batch;  // which push_back does not move
}

void PairStream::next(PairBatch& batch) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return !made_.empty() || error_; });
  if (made_.empty()) std::rethrow_exception(error_);
  std::swap(batch, made_.front().batch);
  position_ = made_.front().after;
  spare_.push_back(std::move(made_.front().batch));
  made_.pop_front();
  lock.unlock();
  changed_.notify_all();
}

}  // namespace xsr::training
