#include "runtime/encoder/encoder.h"

#include <cstring>

namespace xsr {
namespace {

using kernels::GemmEpilogue;

// Work that one thread claims at a time when a single chunk is shared: large enough that a claim
// (about 0.1 µs) is lost in it, small enough that two threads end together.
constexpr int32_t kRowsPerTask = 8;
constexpr int32_t kPanelsPerTask = 4;

/// The steps of the forward pass over one chunk, each on one thread or shared out over several.
class Steps {
 public:
  Steps(const ModelConfig& config, const kernels::KernelTable& kernels, int32_t num_sentences,
        Workspace& workspace, ThreadPool* pool)
      : config_(config),
        kernels_(kernels),
        w_(workspace),
        pool_(pool),
        num_sentences_(num_sentences),
        num_tokens_(workspace.cu_seqlens[num_sentences]),
        C_(config.hidden_size) {}

  void embedding(const EncoderWeights& weights) {
    split(num_tokens_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.embedding_forward_f32(w_.token_ids, w_.positions, first, last, weights.token,
                                     weights.position, weights.table_storage, weights.token_type,
                                     weights.embedding_norm.gamma, weights.embedding_norm.beta,
                                     eps(), C_, w_.x, w_.x_stride);
    });
  }

  void layernorm(const NormWeights& norm) {
    split(num_tokens_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.layernorm_forward_f32(w_.x, w_.x_stride, first, last, C_, norm.gamma, norm.beta,
                                     eps(), w_.x, w_.x_stride);
    });
  }

  /// out ← f(a · Wᵀ + bias) (+ residual), over `rows` rows
  void gemm(const float* a, int64_t a_stride, int32_t rows, const LinearWeights& linear, float* out,
            int64_t out_stride, Activation activation, const float* residual) {
    const GemmEpilogue epilogue{linear.bias, static_cast<kernels::Activation>(activation), residual,
                                out_stride};
    split(kernels::panel_count(linear.weight.N), kPanelsPerTask,
          [&](int32_t first, int32_t last, int32_t) {
            kernels_.gemm_forward_f32(a, a_stride, rows, linear.weight, first, last, epilogue, out,
                                      out_stride);
          });
  }

  void attention() {
    const int32_t H = config_.num_heads, D = C_ / H;
    split(H, 1, [&](int32_t first, int32_t last, int32_t thread) {
      kernels_.attention_forward_f32(w_.qkv, w_.qkv_stride, w_.cu_seqlens, 0, num_sentences_, first,
                                     last, H, D, w_.context, w_.context_stride, nullptr,
                                     w_.attention_scratch(thread));
    });
  }

  void pool(float* out, int64_t out_stride) {
    kernels_.pooling_forward_f32(w_.x, w_.x_stride, w_.cu_seqlens, 0, num_sentences_, C_,
                                 static_cast<kernels::Pooling>(config_.pooling), out, out_stride);
  }

  void normalize(float* embeddings) {
    kernels_.l2_normalize_forward_f32(embeddings, config_.embedding_size, 0, num_sentences_,
                                      config_.embedding_size);
  }

  int32_t num_tokens() const { return num_tokens_; }

 private:
  float eps() const { return static_cast<float>(config_.layer_norm_eps); }

  template <typename Body>
  void split(int32_t total, int32_t per_task, Body&& body) {
    if (pool_ == nullptr) {
      body(0, total, 0);
      return;
    }
    pool_->for_each((total + per_task - 1) / per_task, [&](int32_t task, int32_t thread) {
      const int32_t first = task * per_task;
      body(first, first + per_task < total ? first + per_task : total, thread);
    });
  }

  const ModelConfig& config_;
  const kernels::KernelTable& kernels_;
  Workspace& w_;
  ThreadPool* pool_;
  int32_t num_sentences_, num_tokens_, C_;
};

}  // namespace

void encode_chunk(const ModelConfig& config, const EncoderWeights& weights,
                  const kernels::KernelTable& kernels, int32_t num_sentences, bool normalize,
                  Workspace& w, ThreadPool* pool, float* embeddings) {
  Steps steps(config, kernels, num_sentences, w, pool);
  const int32_t N = steps.num_tokens();

  steps.embedding(weights);  // token + position, then LayerNorm: [N,C]
  for (const LayerWeights& layer : weights.layers) {
    steps.gemm(w.x, w.x_stride, N, layer.qkv, w.qkv, w.qkv_stride, Activation::kNone,
               nullptr);  // [N,C]·[C,3C]
    steps.attention();
    // x ← x + context·W + b, then its LayerNorm
    steps.gemm(w.context, w.context_stride, N, layer.attention_output, w.x, w.x_stride,
               Activation::kNone, w.x);
    steps.layernorm(layer.attention_norm);
    steps.gemm(w.x, w.x_stride, N, layer.up, w.hidden, w.hidden_stride, config.activation,
               nullptr);  // [N,C]·[C,F]
    // x ← x + hidden·W + b, then its LayerNorm
    steps.gemm(w.hidden, w.hidden_stride, N, layer.down, w.x, w.x_stride, Activation::kNone, w.x);
    steps.layernorm(layer.output_norm);
  }
  if (config.has_pooler) {
    steps.pool(w.pooled, w.pooled_stride);
    steps.gemm(w.pooled, w.pooled_stride, num_sentences, weights.pooler, embeddings,
               config.embedding_size, config.pooler_activation, nullptr);
    for (int32_t b = 0; b < num_sentences;
         ++b) {  // the dense layer's bias must not reach an empty sentence
      if (w.cu_seqlens[b] == w.cu_seqlens[b + 1]) {
        std::memset(embeddings + static_cast<int64_t>(b) * config.embedding_size, 0,
                    sizeof(float) * config.embedding_size);
      }
    }
  } else {
    steps.pool(embeddings, config.embedding_size);
  }
  if (normalize) steps.normalize(embeddings);
}

}  // namespace xsr
