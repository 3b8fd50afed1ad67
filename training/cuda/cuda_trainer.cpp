#include "training/cuda/cuda_trainer.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "kernels/attention/attention_training_cuda.h"
#include "training/cuda/communicator.h"
#include "training/cuda/device_trainer.h"

namespace xsr::training {
namespace {

using cuda::StepOutcome;
using kernels::Dropout;

/// A thread that runs what it is given, one after the other.
class Worker {
 public:
  Worker() : thread_([this] { work(); }) {}
  ~Worker() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void start(std::function<void()> job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = std::move(job);
    }
    changed_.notify_all();
  }
  /// Throws what the job threw.
  void finish() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !job_; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || job_; });
      if (!job_) return;
      lock.unlock();
      std::exception_ptr error;
      try {
        job_();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      error_ = error;
      job_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;
  std::exception_ptr error_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

/// The devices that train together: all keep the same model.
class CudaTrainer::Crew {
 public:
  Crew(const ModelConfig& config, const StepConfig& step, const ParameterTable& table,
       const CudaTrainerOptions& options) {
    std::vector<std::unique_ptr<Communicator>> communicators(options.devices.size());
    if (options.devices.size() > 1 || options.exchange)
      communicators = make_communicators(options.devices);
    for (size_t r = 0; r < options.devices.size(); ++r) {
      ranks_.push_back(std::make_unique<DeviceTrainer>(
          config, step, table, options, options.devices[r], std::move(communicators[r])));
    }
    if (ranks_.size() > 1) workers_ = std::vector<Worker>(ranks_.size());
  }
  ~Crew() {
    for (const auto& rank : ranks_) rank->forget_graphs();  // before the first communicator ends
  }

  DeviceTrainer& first() { return *ranks_.front(); }

  /// A step; `next`, when given, is made ready meanwhile.
  const StepOutcome& step(const PairBatch& batch, const Dropout& dropout,
                          const kernels::AdamStep& adam, const PairBatch* next) {
    return run(batch, dropout, adam, [this, next](DeviceTrainer& device) {
      device.step([this, next, &device] {
        if (next == nullptr) return;
        const bool is_first = &device == &first();
        if (is_first) next_.reset();
        try {
          device.prepare(*next);
          if (is_first) next_.emplace(*next);
        } catch (const std::exception&) {  // said when the batch's own step builds it
        }
      });
    });
  }
  /// Whether every device had its share of the last batch ready beforehand.
  bool took_prepared() const { return took_prepared_; }

  /// Gives every device its share of the batch and runs body(DeviceTrainer&) on each.
  template <typename Body>
  const StepOutcome& run(const PairBatch& batch, const Dropout& dropout,
                         const kernels::AdamStep& adam, Body&& body) {
    for (const State state :
         {State::kValue, State::kFirstMoment, State::kSecondMoment, State::kMaxSecondMoment}) {
      DeviceTrainer::Mirror* mirror = first().mirror(state);
      if (mirror == nullptr || mirror->newer != DeviceTrainer::Mirror::kHost) continue;
      for (const auto& rank : ranks_) rank->upload(state, mirror->host);
    }
    // Memory is got before any device waits for another.
    const bool is_next = next_ && *next_ == batch;
    took_prepared_ = is_next;
    for (const auto& rank : ranks_) took_prepared_ &= rank->take(batch, is_next, dropout, adam);
    const auto lost = [](const auto& rank) { return rank->has_lost_graphs(); };
    if (std::any_of(ranks_.begin(), ranks_.end(), lost)) {
      for (const auto& rank : ranks_) rank->forget_graphs();
    }
    if (workers_.empty()) {
      body(first());
      return first().outcome();
    }
    for (size_t r = 0; r < ranks_.size(); ++r) {
      workers_[r].start([this, r, &body] {
        try {
          body(*ranks_[r]);
        } catch (...) {
          for (const auto& rank : ranks_) rank->abort();
          throw;
        }
      });
    }
    std::exception_ptr error;
    for (Worker& worker : workers_) {
      try {
        worker.finish();
      } catch (...) {
        if (!error) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return first().outcome();
  }

 private:
  std::vector<std::unique_ptr<DeviceTrainer>> ranks_;
  std::vector<Worker> workers_;
  std::optional<PairBatch> next_;  // that the devices prepared last
  bool took_prepared_ = false;
};

CudaTrainer::CudaTrainer(const ModelConfig& config, const StepConfig& step,
                         const CudaTrainerOptions& options)
    : Trainer(config, step) {
  for (const cuda::DeviceInfo& info : cuda::require_devices(options.devices))
    device_ += (device_.empty() ? "" : ", ") + info.name;
  const int32_t D = config.hidden_size / config.num_heads;
  if (config.hidden_size % 4 != 0 || config.intermediate_size % 4 != 0 ||
      D > cuda::kMaxTrainingHeadDim) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                "hidden_size " + std::to_string(config.hidden_size) + ", intermediate_size " +
                    std::to_string(config.intermediate_size) + " and head_dim " +
                    std::to_string(D) +
                    ": training on a CUDA device takes sizes that 4 divides, and heads of up to " +
                    std::to_string(cuda::kMaxTrainingHeadDim));
  }
  if (options.devices.empty() || options.vocabulary_tile < 0 || options.vocabulary_tile % 16 != 0) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                std::to_string(options.devices.size()) + " devices and a vocabulary_tile of " +
                    std::to_string(options.vocabulary_tile) +
                    ", expected at least one and a multiple of 16, or 0");
  }
  crew_ = std::make_unique<Crew>(config_, step_, table_, options);
}

CudaTrainer::~CudaTrainer() = default;

StepResult CudaTrainer::take_step(const PairBatch& batch, double learning_rate,
                                  const PairBatch* next) {
  const int64_t number = steps_ + 1;
  const StepOutcome& outcome = crew_->step(batch, dropout(step_.dropout, number),
                                           adam_step(step_.optimizer, number, learning_rate), next);
  StepResult result;
  result.learning_rate = learning_rate;
  result.prepared = crew_->took_prepared();
  result.loss = crew_->first().parts(outcome);
  result.gradient_norm = outcome.gradient_norm;
  for (const LossPart& part : result.loss.parts) {
    if (!std::isfinite(part.value)) not_finite("loss " + std::string(part.name), number);
  }
  if (!std::isfinite(result.gradient_norm)) {
    const Parameter* first = first_non_finite(table_, gradients());
    not_finite(first == nullptr ? "gradient norm" : "gradient " + first->name, number);
  }
  steps_ = number;
  return result;
}

LossParts CudaTrainer::evaluate(const PairBatch& batch, bool with_dropout) {
  return crew_->first().parts(crew_->run(batch, dropout(with_dropout ? step_.dropout : 0, steps_),
                                         {}, [](DeviceTrainer& device) { device.evaluate(true); }));
}

void CudaTrainer::embed(const PairBatch& batch) {
  crew_->run(batch, dropout(0, steps_), {}, [](DeviceTrainer& device) { device.evaluate(false); });
}

const std::vector<float>& CudaTrainer::embeddings() const { return crew_->first().embeddings(); }

std::string CudaTrainer::device() const { return device_; }

const FlatBuffer* CudaTrainer::read(State state) const {
  DeviceTrainer::Mirror* mirror = crew_->first().mirror(state);
  if (mirror == nullptr) return nullptr;
  crew_->first().download(*mirror);
  return &mirror->host;
}

FlatBuffer* CudaTrainer::write(State state) {
  DeviceTrainer::Mirror* mirror = crew_->first().mirror(state);
  if (mirror == nullptr) return nullptr;
  crew_->first().download(*mirror);
  mirror->newer = DeviceTrainer::Mirror::kHost;
  return &mirror->host;
}

const FlatBuffer& CudaTrainer::gradients() const {
  crew_->first().download(crew_->first().gradients());
  return crew_->first().gradients().host;
}

}  // namespace xsr::training
