#include "runtime/encoder/cuda/cuda_encoder.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>

#include "kernels/attention/attention_cuda.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/encoder/chunks.h"
#include "runtime/encoder/cuda/lane.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {

// Sentences of a chunk at most: bounds the memory of embeddings.
constexpr int32_t kMostSentences = 4096;
// A device given less than this takes as long as for this.
constexpr int64_t kLeastShare = 512;
constexpr int32_t kMostColumns = 1024;  // what a row kernel holds

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// One device: the weights, and two lanes.
class Device {
 public:
  Device(int32_t number, const ModelConfig& config, const EncoderWeights& weights,
         const CudaEncoderOptions& options, int32_t most_tokens, int32_t most_sentences)
      : number_(number) {
    const SelectedDevice selected(number_);
    stream_.emplace();
    weights_.emplace(config, weights, options, *stream_);
    for (auto& lane : lanes_) lane.emplace(config, *weights_, options, most_tokens, most_sentences);
  }
  ~Device() {
    try {
      const SelectedDevice selected(number_);
      for (auto& lane : lanes_) lane.reset();
      weights_.reset();
      stream_.reset();
    } catch (const Error&) {  // a driver that has gone away
    }
  }

  /// Claims chunks until none is left.
  void embed(Sentences sentences, const std::vector<size_t>& order,
             const std::vector<Chunk>& chunks, std::atomic<size_t>& next, float* embeddings) {
    const SelectedDevice selected(number_);
    try {
      for (size_t turn = 0;; turn ^= 1) {
        Lane& lane = *lanes_[turn];
        lane.finish(embeddings);
        const size_t claimed = next.fetch_add(1, std::memory_order_relaxed);
        if (claimed >= chunks.size()) {
          lanes_[turn ^ 1]->finish(embeddings);
          return;
        }
        lane.start(sentences, order, chunks[claimed]);
      }
    } catch (...) {
      for (auto& lane : lanes_) lane->abandon();  // they read and write what the caller frees
      next.store(chunks.size(), std::memory_order_relaxed);
      throw;
    }
  }

  double measure_resident(Sentences sentences, const std::vector<size_t>& order,
                          const std::vector<Chunk>& chunks, int32_t passes) {
    const SelectedDevice selected(number_);
    std::vector<Memory> inputs;
    std::vector<Shape> shapes;
    size_t most = 0;
    for (const Chunk& chunk : chunks) {
      int32_t tokens = 0;
      for (size_t i = chunk.first; i < chunk.last; ++i)
        tokens += static_cast<int32_t>(sentences[order[i]].size());
      most = std::max(
          most,
          Lane::shape_of(tokens, static_cast<int32_t>(chunk.last - chunk.first)).input_size());
    }
    std::vector<int32_t> packed(most);
    for (const Chunk& chunk : chunks) {
      shapes.push_back(lanes_[0]->pack(sentences, order, chunk, packed.data()));
      const size_t bytes = sizeof(int32_t) * shapes.back().input_size();
      inputs.emplace_back(Place::kDevice, bytes);
      copy_to_device(inputs.back().data(), packed.data(), bytes, stream_->get());
      stream_->synchronize();
    }
    std::vector<double> seconds;
    constexpr int32_t kUntimed = 3;  // as it stands, captured, once more
    const auto run = [&](size_t c) {
      lanes_[c % 2]->run_resident(static_cast<const int32_t*>(inputs[c].data()), shapes[c]);
    };
    Event start, end;
    for (int32_t pass = -kUntimed; pass < passes; ++pass) {
      const auto before = std::chrono::steady_clock::now();
      if (chunks.size() == 1) {
        // The device is at work when the first event comes: an idle one would pass it at once, and
        // what the host takes to launch the rest would count.
        run(0);
        start.record(lanes_[0]->stream());
      }
      for (size_t c = 0; c < chunks.size(); ++c) run(c);
      if (chunks.size() == 1) end.record(lanes_[0]->stream());
      for (const auto& lane : lanes_) lane->synchronize();
      const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - before;
      // One chunk is a launch; what the host waits besides is not the device's.
      if (pass >= 0)
        seconds.push_back(chunks.size() == 1 ? end.milliseconds_since(start) / 1e3 : wall.count());
    }
    return median(seconds);
  }

  /// Of what work() gives the first lane's stream, the shortest of ten times.
  template <typename Work>
  double least_seconds(Work&& work) {
    constexpr int32_t kUntimed = 2;
    const Stream stream = lanes_[0]->stream();
    double least = INFINITY;
    Event start, end;
    for (int32_t round = -kUntimed; round < 10; ++round) {
      start.record(stream);
      work();
      end.record(stream);
      end.wait();
      if (round >= 0) least = std::min(least, end.milliseconds_since(start) / 1e3);
    }
    return least;
  }

  double measure_peak(Dtype dtype, bool emulated) {
    const SelectedDevice selected(number_);
    const int32_t n = emulated ? 64 : 8192;
    const size_t count = static_cast<size_t>(n) * static_cast<size_t>(n);
    const size_t bytes = count * (dtype == Dtype::kBf16 ? sizeof(uint16_t) : sizeof(float));
    float* out = nullptr;
    char *a = nullptr, *b = nullptr;
    Plan plan;
    plan.add(&a, bytes);
    plan.add(&b, bytes);
    plan.add(&out, count);
    const Memory memory = plan.allocate(Place::kDevice);
    // Random values: zeros draw less power and run at a higher clock. A piece of them, repeated.
    std::minstd_rand random(1);
    std::vector<char> host(std::min(bytes, size_t{1} << 20));
    for (size_t i = 0; i < host.size() / (bytes / count); ++i) {
      const float value = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
      if (dtype == Dtype::kBf16) {
        const uint16_t narrow = kernels::bf16_from_f32(value);
        std::memcpy(&host[i * sizeof narrow], &narrow, sizeof narrow);
      } else {
        std::memcpy(&host[i * sizeof value], &value, sizeof value);
      }
    }
    const Stream stream = lanes_[0]->stream();
    for (char* to : {a, b}) {
      for (size_t at = 0; at < bytes; at += host.size())
        copy_to_device(to + at, host.data(), std::min(host.size(), bytes - at), stream);
    }
    lanes_[0]->synchronize();
    const Product p{n, n, n, {a, n, dtype}, {b, n, dtype}, out, n};
    return 2.0 * n * n * n / least_seconds([&] { lanes_[0]->gemm().run(p, stream); });
  }

  double measure_bandwidth(bool emulated) {
    const SelectedDevice selected(number_);
    const size_t bytes = size_t{1} << (emulated ? 16 : 29);  // far beyond any L2
    const Memory from(Place::kDevice, bytes), to(Place::kDevice, bytes);
    fill_zero(from.data(), bytes, lanes_[0]->stream());
    return 2.0 * static_cast<double>(bytes) / least_seconds([&] {
             copy_on_device(to.data(), from.data(), bytes, lanes_[0]->stream());
           });
  }

 private:
  const int32_t number_;
  std::optional<StreamOwner> stream_;
  std::optional<DeviceWeights> weights_;
  std::optional<Lane> lanes_[2];
};

class CudaEncoder : public DeviceEncoder {
 public:
  CudaEncoder(const ModelConfig& config, const EncoderWeights& weights,
              const CudaEncoderOptions& options)
      : config_(config),
        chunk_tokens_(options.chunk_tokens),
        dtype_(options.compute == Compute::kBf16 ? Dtype::kBf16 : Dtype::kF32) {
    const std::vector<DeviceInfo> infos = require_devices(options.devices);
    for (const DeviceInfo& info : infos) {
      // cuBLASLt's algorithms follow the device, and a row's bits the algorithm.
      if (info.name != infos.front().name) {
        throw Error(XSR_STATUS_UNSUPPORTED,
                    "devices of two kinds, " + infos.front().name + " and " + info.name +
                        ", would give a sentence different bits; choose devices of one kind");
      }
      name_ += (name_.empty() ? "" : ", ") + info.name;
    }
    emulated_ = infos.front().compute_capability == 0;
    const int32_t D = config.hidden_size / config.num_heads;
    if (config.hidden_size > kMostColumns || D > kMostHeadDim) {
      throw Error(XSR_STATUS_UNSUPPORTED, "hidden_size " + std::to_string(config.hidden_size) +
                                              " and head_dim " + std::to_string(D) +
                                              ": a CUDA device takes hidden sizes up to " +
                                              std::to_string(kMostColumns) + " and heads up to " +
                                              std::to_string(kMostHeadDim) + "; use the CPU");
    }
    // Sentences are never split, so a chunk has room for the longest.
    const int32_t room = std::max(chunk_tokens_, config.max_seq_len);
    most_sentences_ = std::min(room, kMostSentences);
    for (const int32_t device : options.devices) {
      devices_.push_back(
          std::make_unique<Device>(device, config_, weights, options, room, most_sentences_));
    }
    if (devices_.size() > 1) pool_.emplace(static_cast<int32_t>(devices_.size()));
  }

  const std::string& name() const override { return name_; }

  void embed(Sentences sentences, float* embeddings) override {
    cut(sentences, devices_.size());
    const size_t row = static_cast<size_t>(config_.embedding_size);
    for (size_t i = 0; i < sentences.size(); ++i) {
      if (sentences[i].empty()) std::memset(embeddings + i * row, 0, sizeof(float) * row);
    }
    std::atomic<size_t> next{0};
    const auto work = [&](Device& device) {
      device.embed(sentences, order_, chunks_, next, embeddings);
    };
    if (chunks_.size() <= 1 || !pool_) {
      if (!chunks_.empty()) work(*devices_.front());
      return;
    }
    pool_->for_each(static_cast<int32_t>(devices_.size()),
                    [&](int32_t device, int32_t) { work(*devices_[device]); });
  }

  double measure_resident(Sentences sentences, int32_t passes) override {
    cut(sentences, 1);
    return devices_.front()->measure_resident(sentences, order_, chunks_, passes);
  }

  double measure_peak() override { return devices_.front()->measure_peak(dtype_, emulated_); }
  double measure_bandwidth() override { return devices_.front()->measure_bandwidth(emulated_); }

 private:
  /// Sets order_, the sentences that have tokens, and chunks_ of them, enough for the devices.
  void cut(Sentences sentences, size_t devices) {
    order_.clear();
    for (size_t i = 0; i < sentences.size(); ++i) {
      if (!sentences[i].empty()) order_.push_back(i);
    }
    const std::vector<size_t> borders =
        cut_chunks(order_.size(), [&](size_t i) { return sentences[order_[i]].size(); },
                   {chunk_tokens_, kLeastShare, static_cast<int64_t>(devices),
                    static_cast<size_t>(most_sentences_)});
    chunks_.clear();
    for (size_t c = 0; c + 1 < borders.size(); ++c) chunks_.push_back({borders[c], borders[c + 1]});
  }

  const ModelConfig config_;
  const int32_t chunk_tokens_;
  const Dtype dtype_;
  int32_t most_sentences_ = 0;
  bool emulated_ = false;
  std::string name_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::optional<ThreadPool> pool_;  // a thread a device
  std::vector<size_t> order_;
  std::vector<Chunk> chunks_;
};

}  // namespace

std::unique_ptr<DeviceEncoder> make_encoder(const ModelConfig& config,
                                            const EncoderWeights& weights,
                                            const CudaEncoderOptions& options) {
  return std::make_unique<CudaEncoder>(config, weights, options);
}

}  // namespace xsr::cuda
