#include "runtime/encoder/cuda/cuda_encoder.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <tuple>

#include "kernels/activation/activation_cuda.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/layernorm/layernorm_cuda.h"
#include "kernels/pooling/pooling_cuda.h"
#include "kernels/storage.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "runtime/device/cuda/token_bucket.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {

using Sentences = std::span<const std::span<const int32_t>>;
using kernels::Storage;

// Sentences of a chunk at most: bounds the memory of embeddings.
constexpr int32_t kMostSentences = 4096;
// A device given less than this takes as long as for this.
constexpr int64_t kLeastShare = 512;
constexpr uint32_t kLeastBucket = 16;  // a tile of attention
// Shapes of chunks whose work is kept as a graph; a corpus comes to some dozens.
constexpr size_t kMostGraphs = 256;
constexpr int32_t kMostColumns = 1024;  // what a row kernel holds

/// Row strides that keep every row at a multiple of 16 bytes, in bf16 too.
int64_t padded(int64_t columns) { return (columns + 7) / 8 * 8; }

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// Collects what is to be copied to a device, then allocates it all at once and fills it.
class Uploads {
 public:
  /// *to [count], which fill(T*) sets on the host.
  template <typename T, typename Fill>
  void add(T** to, int64_t count, Fill&& fill) {
    plan_.add(to, static_cast<size_t>(count));
    jobs_.push_back([=, this, fill = std::forward<Fill>(fill)](Stream stream) {
      std::vector<T> host(static_cast<size_t>(count));
      fill(host.data());
      copy_to_device(*to, host.data(), sizeof(T) * host.size(), stream);
      check_copied(stream);  // the host's copy ends here
    });
  }
  /// *to [count], a copy of from [count].
  template <typename T>
  void copy(T** to, const void* from, int64_t count) {
    plan_.add(to, static_cast<size_t>(count));
    jobs_.push_back([=, this](Stream stream) {
      copy_to_device(*to, from, sizeof(T) * static_cast<size_t>(count), stream);
      check_copied(stream);
    });
  }
  Memory run(const StreamOwner& stream) {
    Memory memory = plan_.allocate(Place::kDevice);
    wait_ = &stream;
    for (const auto& job : jobs_) job(stream.get());
    return memory;
  }

 private:
  void check_copied(Stream) const { wait_->synchronize(); }

  Plan plan_;
  std::vector<std::function<void(Stream)>> jobs_;
  const StreamOwner* wait_ = nullptr;
};

struct DeviceLinear {
  int32_t N = 0, K = 0;
  float* wide = nullptr;       // [N, padded(K)]: one of these two
  uint16_t* narrow = nullptr;  // likewise, bf16
  float* bias = nullptr;       // [N]
  Matrix matrix() const {
    return narrow != nullptr ? Matrix{narrow, padded(K), Dtype::kBf16}
                             : Matrix{wide, padded(K), Dtype::kF32};
  }
};

struct DeviceNorm {
  float *gamma = nullptr, *beta = nullptr;  // [C]
};

struct DeviceLayer {
  DeviceLinear qkv, attention_output, up, down;
  DeviceNorm attention_norm, output_norm;
};

/// A model's weights on one device.
struct DeviceWeights {
  Storage table_storage = Storage::kF32;
  char *token = nullptr, *position = nullptr;
  float* token_type = nullptr;
  DeviceNorm embedding_norm;
  std::vector<DeviceLayer> layers;
  DeviceLinear pooler;
  float *table_token = nullptr, *table_position = nullptr, *table_bias = nullptr;  // QkvTable
  Memory memory;

  DeviceWeights(const ModelConfig& config, const EncoderWeights& file,
                const CudaEncoderOptions& options, const StreamOwner& stream)
      : layers(file.layers.size()) {
    const int64_t C = config.hidden_size;
    const bool bf16 = options.compute == Compute::kBf16;
    Uploads uploads;
    table_storage = file.table_storage == Storage::kI8 ? Storage::kF32 : file.table_storage;
    table(uploads, &token, file.token, file, file.token_scales, config.vocab_size, C);
    table(uploads, &position, file.position, file, file.position_scales, config.num_positions, C);
    if (file.token_type != nullptr) uploads.copy(&token_type, file.token_type, C);
    norm(uploads, embedding_norm, file.embedding_norm, C);
    for (size_t i = 0; i < layers.size(); ++i) {
      DeviceLayer& layer = layers[i];
      const auto to = products(layer);
      const auto from = products(file.layers[i]);
      // Of a table's layer the product is never computed.
      for (size_t k = options.qkv_table != nullptr && i == 0 ? 1 : 0; k < to.size(); ++k)
        linear(uploads, *to[k], *from[k], bf16);
      norm(uploads, layer.attention_norm, file.layers[i].attention_norm, C);
      norm(uploads, layer.output_norm, file.layers[i].output_norm, C);
    }
    // The pooler multiplies in f32 whatever the layers do.
    if (config.has_pooler) linear(uploads, pooler, file.pooler, false);
    if (const QkvTable* from = options.qkv_table) {
      uploads.copy(&table_token, from->token(), config.vocab_size * 3 * C);
      uploads.copy(&table_position, from->position(), config.num_positions * 3 * C);
      uploads.copy(&table_bias, from->bias(), 3 * C);
    }
    memory = uploads.run(stream);
  }

 private:
  static void table(Uploads& uploads, char** to, const void* from, const EncoderWeights& file,
                    const float* scales, int64_t rows, int64_t C) {
    if (file.table_storage != Storage::kI8) {
      uploads.copy(to, from, rows * C * kernels::storage_size(file.table_storage));
      return;
    }
    uploads.add(to, rows * C * static_cast<int64_t>(sizeof(float)), [=](char* host) {
      const int8_t* values = static_cast<const int8_t*>(from);
      for (int64_t i = 0; i < rows * C; ++i) {
        const float value = static_cast<float>(values[i]) * scales[i / C];
        std::memcpy(host + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
      }
    });
  }

  static void norm(Uploads& uploads, DeviceNorm& to, const NormWeights& from, int64_t C) {
    uploads.copy(&to.gamma, from.gamma, C);
    uploads.copy(&to.beta, from.beta, C);
  }

  static void linear(Uploads& uploads, DeviceLinear& to, const LinearWeights& from, bool bf16) {
    const kernels::PackedMatrix w = from.weight;
    to.N = w.N;
    to.K = w.K;
    const int64_t stride = padded(w.K);
    const auto fill = [w, stride](auto* host, auto&& convert) {
      for (int32_t n = 0; n < w.N; ++n) {
        for (int32_t k = 0; k < w.K; ++k)
          host[n * stride + k] = convert(kernels::gemm_packed_element(w, n, k));
      }
    };
    if (bf16) {
      uploads.add(&to.narrow, w.N * stride,
                  [fill](uint16_t* host) { fill(host, kernels::bf16_from_f32); });
    } else {
      uploads.add(&to.wide, w.N * stride,
                  [fill](float* host) { fill(host, [](float value) { return value; }); });
    }
    uploads.copy(&to.bias, from.bias, w.N);
  }
};

/// Sentences [first, last) of those that have tokens.
struct Chunk {
  size_t first, last;
};

/// What a chunk is filled up to.
struct Shape {
  int32_t tokens, sentences;
  int32_t tiles() const { return attention_tile_count(tokens, sentences); }
  /// int32_t of its token ids, positions, cu_seqlens and tiles, one behind the other.
  size_t input_size() const {
    return 2 * static_cast<size_t>(tokens) + static_cast<size_t>(sentences) + 1 +
           3 * static_cast<size_t>(tiles());
  }
};
static_assert(sizeof(AttentionTile) == 3 * sizeof(int32_t));

/// One chunk under way: a stream with all that it needs. Two take turns on a device, so that one is
/// copied from and to while the other computes.
class Lane {
 public:
  Lane(const ModelConfig& config, const DeviceWeights& weights, const CudaEncoderOptions& options,
       int32_t most_tokens, int32_t most_sentences)
      : config_(config),
        weights_(weights),
        bf16_(options.compute == Compute::kBf16),
        normalize_(options.normalize),
        C_(config.hidden_size),
        F_(config.intermediate_size),
        E_(config.embedding_size),
        gemm_(options.compute == Compute::kTf32) {
    const Shape most = shape_of(most_tokens, most_sentences);
    const size_t N = static_cast<size_t>(most.tokens), B = static_cast<size_t>(most.sentences);
    const auto floats = [](size_t rows, int32_t columns) {
      return rows * static_cast<size_t>(padded(columns));
    };
    Plan plan;
    plan.add(&input_, most.input_size());
    plan.add(&x_, floats(N, C_));
    plan.add(&narrow_, bf16_ ? floats(N, C_) : 0);
    plan.add(&qkv_, floats(N, 3 * C_));
    plan.add(&context_, bf16_ ? 0 : floats(N, C_));
    plan.add(&hidden_, floats(N, F_));
    plan.add(&hidden_narrow_, bf16_ ? floats(N, F_) : 0);
    plan.add(&rstd_, N);
    plan.add(&pooled_, config.has_pooler ? floats(B, C_) : 0);
    plan.add(&out_, B * static_cast<size_t>(E_));
    memory_ = plan.allocate(Place::kDevice);
    Plan pinned;
    pinned.add(&host_input_, most.input_size());
    pinned.add(&host_out_, B * static_cast<size_t>(E_));
    pinned_ = pinned.allocate(Place::kPinned);
  }
  ~Lane() { abandon(); }

  static Shape shape_of(int32_t tokens, int32_t sentences) {
    return {token_bucket(tokens, kLeastBucket),
            static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(sentences)))};
  }

  /// Gives the device a chunk: the sentences order[chunk.first .. chunk.last).
  void start(Sentences sentences, const std::vector<size_t>& order, Chunk chunk) {
    order_ = &order;
    chunk_ = chunk;
    const Shape shape = pack(sentences, order, chunk, host_input_);
    enqueue(shape, true);
    busy_ = true;
  }

  /// Waits for the chunk that was started, if one was, and puts its rows where they belong.
  void finish(float* embeddings) {
    if (!busy_) return;
    busy_ = false;
    stream_.synchronize();
    const size_t row = static_cast<size_t>(E_);
    for (size_t i = chunk_.first; i < chunk_.last; ++i) {
      std::memcpy(embeddings + (*order_)[i] * row, host_out_ + (i - chunk_.first) * row,
                  sizeof(float) * row);
    }
  }

  /// Waits for whatever is under way, whose results nobody wants.
  void abandon() noexcept {
    busy_ = false;
    try {
      stream_.synchronize();
    } catch (const Error&) {  // said when it happened, or by the next call
    }
  }

  /// The input of a chunk as start() would copy it, for run_resident.
  Shape pack(Sentences sentences, const std::vector<size_t>& order, Chunk chunk,
             int32_t* input) const {
    int32_t num_tokens = 0;
    for (size_t i = chunk.first; i < chunk.last; ++i)
      num_tokens += static_cast<int32_t>(sentences[order[i]].size());
    const int32_t B = static_cast<int32_t>(chunk.last - chunk.first);
    const Shape shape = shape_of(num_tokens, B);
    const Input at(input, shape);
    int32_t token = 0;
    at.cu_seqlens[0] = 0;
    for (size_t i = chunk.first; i < chunk.last; ++i) {
      const std::span<const int32_t> ids = sentences[order[i]];
      std::memcpy(at.token_ids + token, ids.data(), ids.size_bytes());
      for (size_t t = 0; t < ids.size(); ++t)
        at.positions[token++] = config_.position_offset + static_cast<int32_t>(t);
      at.cu_seqlens[i - chunk.first + 1] = token;
    }
    // What fills up: tokens of no sentence, sentences of no tokens, tiles of no rows.
    for (; token < shape.tokens; ++token) {
      at.token_ids[token] = 0;
      at.positions[token] = config_.position_offset;
    }
    for (int32_t b = B; b < shape.sentences; ++b) at.cu_seqlens[b + 1] = num_tokens;
    const int32_t tiles = attention_tiles(at.cu_seqlens, B, at.tiles);
    std::memset(at.tiles + tiles, 0, sizeof(AttentionTile) * (shape.tiles() - tiles));
    return shape;
  }

  /// The chunk whose input is on the device already; its embeddings stay there.
  void run_resident(const int32_t* input, Shape shape) {
    copy_on_device(input_, input, sizeof(int32_t) * shape.input_size(), stream());
    enqueue(shape, false);
  }

  Stream stream() const { return stream_.get(); }
  void synchronize() const { stream_.synchronize(); }
  size_t graphs() const { return graphs_.size(); }
  Gemm& gemm() { return gemm_; }

 private:
  struct Input {
    int32_t *token_ids, *positions, *cu_seqlens;
    AttentionTile* tiles;
    Input(int32_t* data, const Shape& shape)
        : token_ids(data),
          positions(data + shape.tokens),
          cu_seqlens(positions + shape.tokens),
          tiles(reinterpret_cast<AttentionTile*>(cu_seqlens + shape.sentences + 1)) {}
  };

  /// The whole forward pass, copies too where they are wanted: from the second time that a shape
  /// comes as one graph. The first time runs as it stands, since kernels are loaded and algorithms
  /// chosen outside a capture, and a shape that comes once is worth no graph.
  void enqueue(Shape shape, bool copies) {
    const auto work = [&] {
      if (copies)
        copy_to_device(input_, host_input_, sizeof(int32_t) * shape.input_size(), stream());
      forward(shape);
      if (copies) {
        copy_to_host(host_out_, out_,
                     sizeof(float) * static_cast<size_t>(shape.sentences) * static_cast<size_t>(E_),
                     stream());
      }
    };
    const Key key{shape.tokens, shape.sentences, copies};
    auto at = graphs_.find(key);
    if (at == graphs_.end()) {
      work();
      if (graphs_.size() < kMostGraphs) graphs_.emplace(key, Graph());
      return;
    }
    if (!at->second) at->second = Graph::capture(stream(), work);
    at->second.launch(stream());
  }

  void forward(const Shape& shape) {
    const Input at(input_, shape);
    const int32_t N = shape.tokens, B = shape.sentences, H = config_.num_heads;
    const int64_t x_stride = padded(C_), qkv_stride = padded(3 * C_);
    const float eps = static_cast<float>(config_.layer_norm_eps);
    check(embedding_forward_cuda(at.token_ids, at.positions, N, weights_.token, weights_.position,
                                 weights_.table_storage, weights_.token_type,
                                 weights_.embedding_norm.gamma, weights_.embedding_norm.beta, eps,
                                 C_, x_, x_stride, narrow_, x_stride, rstd_, stream()),
          "embedding");
    const Matrix x =
        bf16_ ? Matrix{narrow_, x_stride, Dtype::kBf16} : Matrix{x_, x_stride, Dtype::kF32};
    const Matrix context = bf16_ ? x : Matrix{context_, x_stride, Dtype::kF32};
    const int64_t hidden_stride = padded(F_);
    const Matrix hidden = bf16_ ? Matrix{hidden_narrow_, hidden_stride, Dtype::kBf16}
                                : Matrix{hidden_, hidden_stride, Dtype::kF32};
    const auto normalise = [&](const DeviceNorm& norm) {
      check(layernorm_forward_cuda(x_, x_stride, N, C_, norm.gamma, norm.beta, eps, x_, x_stride,
                                   narrow_, x_stride, stream()),
            "layer norm");
    };
    for (const DeviceLayer& layer : weights_.layers) {
      if (weights_.table_token != nullptr && &layer == &weights_.layers.front()) {
        check(qkv_table_forward_cuda(at.token_ids, at.positions, N, weights_.table_token,
                                     weights_.table_position, rstd_, weights_.table_bias, 3 * C_,
                                     qkv_, qkv_stride, stream()),
              "looking up Q, K and V");
      } else {
        product(N, x, layer.qkv, qkv_, qkv_stride);
      }
      // x and its bf16 copy wait for no product here, so context takes that copy's place.
      if (bf16_) {
        check(attention_forward_bf16_cuda(qkv_, qkv_stride, at.tiles, shape.tiles(), H, C_ / H,
                                          narrow_, x_stride, nullptr, stream()),
              "attention");
      } else {
        check(attention_forward_f32_cuda(qkv_, qkv_stride, at.tiles, shape.tiles(), H, C_ / H,
                                         context_, x_stride, nullptr, stream()),
              "attention");
      }
      product(N, context, layer.attention_output, x_, x_stride, x_);
      normalise(layer.attention_norm);
      product(N, x, layer.up, hidden_, hidden_stride);
      check(activation_forward_cuda(hidden_, hidden_stride, N, F_, config_.activation,
                                    bf16_ ? nullptr : hidden_, hidden_stride, hidden_narrow_,
                                    hidden_stride, stream()),
            "activation");
      product(N, hidden, layer.down, x_, x_stride, x_);
      normalise(layer.output_norm);
    }
    float* const pooled = config_.has_pooler ? pooled_ : out_;
    const int64_t pooled_stride = config_.has_pooler ? x_stride : E_;
    check(pooling_forward_cuda(x_, x_stride, at.cu_seqlens, B, C_, config_.pooling, pooled,
                               pooled_stride, stream()),
          "pooling");
    if (config_.has_pooler) {
      product(B, {pooled_, pooled_stride, Dtype::kF32}, weights_.pooler, out_, E_);
      if (config_.pooler_activation != Activation::kNone) {
        check(activation_forward_cuda(out_, E_, B, E_, config_.pooler_activation, out_, E_, nullptr,
                                      0, stream()),
              "activation");
      }
    }
    if (normalize_) check(l2_normalize_forward_cuda(out_, E_, B, E_, stream()), "normalising");
  }

  /// out [M, N] ← a · Wᵀ + bias (+ residual, which may be out)
  void product(int32_t M, const Matrix& a, const DeviceLinear& linear, float* out,
               int64_t out_stride, const float* residual = nullptr) {
    Product p;
    p.M = M;
    p.N = linear.N;
    p.K = linear.K;
    p.a = a;
    p.b = linear.matrix();
    p.bias = linear.bias;
    p.c = residual;
    p.c_stride = residual == nullptr ? 0 : out_stride;
    p.out = out;
    p.out_stride = out_stride;
    gemm_.run(p, stream());
  }

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  const bool bf16_, normalize_;
  const int32_t C_, F_, E_;
  StreamOwner stream_;
  Gemm gemm_;
  Memory memory_, pinned_;
  int32_t *input_ = nullptr, *host_input_ = nullptr;
  float* x_ = nullptr;                 // [N, C]
  uint16_t* narrow_ = nullptr;         // [N, C] bf16: of x or of context, whichever is multiplied
  float* qkv_ = nullptr;               // [N, 3C]
  float* context_ = nullptr;           // [N, C]
  float* hidden_ = nullptr;            // [N, F]
  uint16_t* hidden_narrow_ = nullptr;  // [N, F] bf16
  float* rstd_ = nullptr;              // [N]
  float* pooled_ = nullptr;            // [B, C]
  float *out_ = nullptr, *host_out_ = nullptr;  // [B, E]
  using Key = std::tuple<int32_t, int32_t, bool>;
  std::map<Key, Graph> graphs_;
  const std::vector<size_t>* order_ = nullptr;
  Chunk chunk_ = {};
  bool busy_ = false;
};

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
    Event start, end;
    for (int32_t pass = -kUntimed; pass < passes; ++pass) {
      const auto before = std::chrono::steady_clock::now();
      if (chunks.size() == 1) start.record(lanes_[0]->stream());
      for (size_t c = 0; c < chunks.size(); ++c)
        lanes_[c % 2]->run_resident(static_cast<const int32_t*>(inputs[c].data()), shapes[c]);
      if (chunks.size() == 1) end.record(lanes_[0]->stream());
      for (const auto& lane : lanes_) lane->synchronize();
      const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - before;
      // One chunk is a launch; what the host waits besides is not the device's.
      if (pass >= 0)
        seconds.push_back(chunks.size() == 1 ? end.milliseconds_since(start) / 1e3 : wall.count());
    }
    return median(seconds);
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
    Product p;
    p.M = p.N = p.K = n;
    p.a = {a, n, dtype};
    p.b = {b, n, dtype};
    p.out = out;
    p.out_stride = n;
    double best = 0;
    Event start, end;
    for (int32_t round = 0; round < 12; ++round) {
      start.record(stream);
      lanes_[0]->gemm().run(p, stream);
      end.record(stream);
      end.wait();
      const double seconds = end.milliseconds_since(start) / 1e3;
      if (round > 1) best = std::max(best, 2.0 * n * n * n / seconds);
    }
    return best;
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

 private:
  /// Sets order_, the sentences that have tokens, and chunks_ of them, enough for the devices.
  void cut(Sentences sentences, size_t devices) {
    order_.clear();
    int64_t num_tokens = 0;
    for (size_t i = 0; i < sentences.size(); ++i) {
      if (sentences[i].empty()) continue;
      order_.push_back(i);
      num_tokens += static_cast<int64_t>(sentences[i].size());
    }
    const int64_t ways = static_cast<int64_t>(devices);
    const int64_t limit = std::min<int64_t>(
        chunk_tokens_, std::max<int64_t>((num_tokens + ways - 1) / ways, kLeastShare));
    chunks_.clear();
    int64_t tokens = 0;
    for (size_t i = 0; i < order_.size(); ++i) {
      const int64_t size = static_cast<int64_t>(sentences[order_[i]].size());
      const bool full =
          !chunks_.empty() && (tokens + size > limit ||
                               i - chunks_.back().first == static_cast<size_t>(most_sentences_));
      if (chunks_.empty() || full) {
        chunks_.push_back({i, i});
        tokens = 0;
      }
      chunks_.back().last = i + 1;
      tokens += size;
    }
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
