#include "runtime/encoder/cuda/lane.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/activation/activation_cuda.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/layernorm/layernorm_cuda.h"
#include "kernels/pooling/pooling_cuda.h"
#include "runtime/device/cuda/token_bucket.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {

constexpr uint32_t kLeastBucket = 16;  // a tile of attention
// Shapes of chunks whose work is kept as a graph; a corpus comes to some dozens.
constexpr size_t kMostGraphs = 256;

}  // namespace

int32_t Shape::tiles() const { return attention_tile_count(tokens, sentences); }

size_t Shape::input_size() const {
  static_assert(sizeof(AttentionTile) == 3 * sizeof(int32_t));
  return 2 * static_cast<size_t>(tokens) + static_cast<size_t>(sentences) + 1 +
         3 * static_cast<size_t>(tiles());
}

/// Where the parts of an input are.
struct Lane::Input {
  int32_t *token_ids, *positions, *cu_seqlens;
  AttentionTile* tiles;
  Input(int32_t* data, const Shape& shape)
      : token_ids(data),
        positions(data + shape.tokens),
        cu_seqlens(positions + shape.tokens),
        tiles(reinterpret_cast<AttentionTile*>(cu_seqlens + shape.sentences + 1)) {}
};

Lane::Lane(const ModelConfig& config, const DeviceWeights& weights,
           const CudaEncoderOptions& options, int32_t most_tokens, int32_t most_sentences)
    : config_(config),
      weights_(weights),
      bf16_(options.compute == Compute::kBf16),
      normalize_(options.normalize),
      first_tokens_(config.pooling == Pooling::kCls && config.num_layers > 0),
      C_(config.hidden_size),
      F_(config.intermediate_size),
      E_(config.embedding_size),
      gemm_(options.compute == Compute::kTf32) {
  const Shape most = shape_of(most_tokens, most_sentences);
  const size_t N = static_cast<size_t>(most.tokens), B = static_cast<size_t>(most.sentences);
  const size_t first = first_tokens_ ? B : 0;  // their bucket can be wider than that of tokens
  const auto floats = [](size_t rows, int32_t columns) {
    return rows * static_cast<size_t>(padded(columns));
  };
  Plan plan;
  plan.add(&input_, most.input_size());
  plan.add(&x_, floats(N, C_));
  plan.add(&narrow_, bf16_ ? floats(N, C_) : 0);
  plan.add(&qkv_, bf16_ ? 0 : floats(N, 3 * C_));
  plan.add(&context_, bf16_ ? 0 : floats(N, C_));
  plan.add(&hidden_, bf16_ ? 0 : floats(std::max(N, first), F_));
  plan.add(&qkv_narrow_, bf16_ ? floats(N, 3 * C_) : 0);
  plan.add(&hidden_narrow_, bf16_ ? floats(std::max(N, first), F_) : 0);
  plan.add(&first_x_, floats(first, C_));
  plan.add(&first_context_, bf16_ ? 0 : floats(first, C_));
  plan.add(&first_narrow_, bf16_ ? floats(first, C_) : 0);
  plan.add(&rstd_, N);
  plan.add(&pooled_, config.has_pooler ? floats(B, C_) : 0);
  plan.add(&out_, B * static_cast<size_t>(E_));
  memory_ = plan.allocate(Place::kDevice);
  Plan pinned;
  pinned.add(&host_input_, most.input_size());
  pinned.add(&host_out_, B * static_cast<size_t>(E_));
  pinned_ = pinned.allocate(Place::kPinned);
}
Lane::~Lane() { abandon(); }

Shape Lane::shape_of(int32_t tokens, int32_t sentences) {
  return {token_bucket(tokens, kLeastBucket),
          static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(sentences)))};
}

void Lane::start(Sentences sentences, const std::vector<size_t>& order, Chunk chunk) {
  order_ = &order;
  chunk_ = chunk;
  const Shape shape = pack(sentences, order, chunk, host_input_);
  enqueue(shape, true);
  busy_ = true;
}

void Lane::finish(float* embeddings) {
  if (!busy_) return;
  busy_ = false;
  stream_.synchronize();
  const size_t row = static_cast<size_t>(E_);
  for (size_t i = chunk_.first; i < chunk_.last; ++i) {
    std::memcpy(embeddings + (*order_)[i] * row, host_out_ + (i - chunk_.first) * row,
                sizeof(float) * row);
  }
}

void Lane::abandon() noexcept {
  busy_ = false;
  try {
    stream_.synchronize();
  } catch (const Error&) {  // said when it happened, or by the next call
  }
}

Shape Lane::pack(Sentences sentences, const std::vector<size_t>& order, Chunk chunk,
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

void Lane::run_resident(const int32_t* input, Shape shape) {
  copy_on_device(input_, input, sizeof(int32_t) * shape.input_size(), stream());
  enqueue(shape, false);
}

void Lane::enqueue(Shape shape, bool copies) {
  const auto work = [&] {
    if (copies) copy_to_device(input_, host_input_, sizeof(int32_t) * shape.input_size(), stream());
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

void Lane::forward(const Shape& shape) {
  const Input at(input_, shape);
  const int32_t N = shape.tokens, B = shape.sentences, H = config_.num_heads;
  int32_t M = N;  // rows that go on
  float* rows = x_;
  uint16_t* narrow = narrow_;
  const int64_t x_stride = padded(C_), qkv_stride = padded(3 * C_);
  const float eps = static_cast<float>(config_.layer_norm_eps);
  check(embedding_forward_cuda(at.token_ids, at.positions, N, weights_.token, weights_.position,
                               weights_.table_storage, weights_.token_type,
                               weights_.embedding_norm.gamma, weights_.embedding_norm.beta, eps, C_,
                               x_, x_stride, narrow_, x_stride, rstd_, stream()),
        "embedding");
  const auto x = [&] {
    return bf16_ ? Matrix{narrow, x_stride, Dtype::kBf16} : Matrix{rows, x_stride, Dtype::kF32};
  };
  const int64_t hidden_stride = padded(F_);
  const Matrix hidden = bf16_ ? Matrix{hidden_narrow_, hidden_stride, Dtype::kBf16}
                              : Matrix{hidden_, hidden_stride, Dtype::kF32};
  const auto normalise = [&](const DeviceNorm& norm, float* to, int64_t to_stride) {
    check(layernorm_forward_cuda(rows, x_stride, M, C_, norm.gamma, norm.beta, eps, to, to_stride,
                                 narrow, x_stride, stream()),
          "layer norm");
  };
  float* const pooled = config_.has_pooler ? pooled_ : out_;
  const int64_t pooled_stride = config_.has_pooler ? x_stride : E_;
  for (const DeviceLayer& layer : weights_.layers) {
    const float* qkv_bias = layer.qkv.bias;  // which a product into bf16 leaves to the attention
    if (weights_.table_token != nullptr && &layer == &weights_.layers.front()) {
      check(qkv_table_forward_cuda(at.token_ids, at.positions, N, weights_.table_token,
                                   weights_.table_position, rstd_, weights_.table_bias, 3 * C_,
                                   qkv_, qkv_narrow_, qkv_stride, stream()),
            "looking up Q, K and V");
      qkv_bias = nullptr;
    } else if (bf16_) {
      product_without_bias(N, x(), layer.qkv, qkv_narrow_, qkv_stride);
    } else {
      product(N, x(), layer.qkv, qkv_, qkv_stride);
    }
    // x and its bf16 copy wait for no product here, so context takes that copy's place.
    if (bf16_) {
      check(attention_forward_bf16_cuda(qkv_narrow_, qkv_stride, qkv_bias, at.tiles, shape.tiles(),
                                        H, C_ / H, narrow_, x_stride, nullptr, stream()),
            "attention");
    } else {
      check(attention_forward_f32_cuda(qkv_, qkv_stride, at.tiles, shape.tiles(), H, C_ / H,
                                       context_, x_stride, nullptr, stream()),
            "attention");
    }
    float* context = context_;
    const bool only_first = first_tokens_ && &layer == &weights_.layers.back();
    if (only_first) {
      const auto keep = [&](const float* from, float* to) {
        check(pooling_forward_cuda(from, x_stride, at.cu_seqlens, B, C_, Pooling::kCls, to,
                                   x_stride, stream()),
              "first rows");
        return to;
      };
      M = B;
      rows = keep(rows, first_x_);
      if (bf16_) {
        check(first_rows_bf16_cuda(narrow, x_stride, at.cu_seqlens, B, C_, first_narrow_, x_stride,
                                   stream()),
              "first rows");
        narrow = first_narrow_;
      } else {
        context = keep(context, first_context_);
      }
    }
    product(M, bf16_ ? x() : Matrix{context, x_stride, Dtype::kF32}, layer.attention_output, rows,
            x_stride, rows);
    normalise(layer.attention_norm, rows, x_stride);
    if (bf16_) {
      product_without_bias(M, x(), layer.up, hidden_narrow_, hidden_stride);
      check(
          activation_forward_bf16_cuda(hidden_narrow_, hidden_stride, layer.up.bias, M, F_,
                                       config_.activation, hidden_narrow_, hidden_stride, stream()),
          "activation");
    } else {
      product(M, x(), layer.up, hidden_, hidden_stride);
      check(activation_forward_cuda(hidden_, hidden_stride, M, F_, config_.activation, hidden_,
                                    hidden_stride, stream()),
            "activation");
    }
    product(M, hidden, layer.down, rows, x_stride, rows);
    normalise(layer.output_norm, only_first ? pooled : rows, only_first ? pooled_stride : x_stride);
  }
  if (!first_tokens_) {
    check(pooling_forward_cuda(x_, x_stride, at.cu_seqlens, B, C_, config_.pooling, pooled,
                               pooled_stride, stream()),
          "pooling");
  }
  if (config_.has_pooler) {
    product(B, {pooled_, pooled_stride, Dtype::kF32}, weights_.pooler, out_, E_);
    if (config_.pooler_activation != Activation::kNone) {
      check(activation_forward_cuda(out_, E_, B, E_, config_.pooler_activation, out_, E_, stream()),
            "activation");
    }
  }
  if (normalize_) check(l2_normalize_forward_cuda(out_, E_, B, E_, stream()), "normalising");
}

void Lane::product(int32_t M, const Matrix& a, const DeviceLinear& linear, float* out,
                   int64_t out_stride, const float* residual) {
  Product p{M, linear.N, linear.K, a, linear.matrix(), out, out_stride};
  p.bias = linear.bias;
  p.c = residual;
  p.c_stride = residual == nullptr ? 0 : out_stride;
  gemm_.run(p, stream());
}

void Lane::product_without_bias(int32_t M, const Matrix& a, const DeviceLinear& linear,
                                uint16_t* out, int64_t out_stride) {
  Product p{M, linear.N, linear.K, a, linear.matrix(), out, out_stride};
  p.out_dtype = Dtype::kBf16;
  gemm_.run(p, stream());
}

}  // namespace xsr::cuda
