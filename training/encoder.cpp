#include "training/encoder.h"

#include <algorithm>
#include <string>
#include <vector>

#include "training/encoder_parameters.h"
#include "training/workspace.h"

namespace xsr::training {
namespace {

using kernels::Dropout;
using kernels::GemmEpilogue;
using kernels::PackedMatrix;

// What one thread claims at a time. Bits do not depend on these: every step's elements depend on
// their own rows and columns, but for sums over rows, whose blocks the kernels fix.
constexpr int32_t kRowsPerTask = 64;  // of steps that walk rows
static_assert(kRowsPerTask % kernels::kLayernormBlockRows == 0);
constexpr int32_t kGemmRowsPerTask = 192;  // of a product: in L2 while its panels pass
constexpr int32_t kPanelsPerTask = 8;
constexpr int32_t kOutputsPerTask = 384;  // rows of a weight's gradient: the kernel's own block
constexpr int32_t kFewestOutputsPerTask = 32;
constexpr int32_t kSentencesPerTask = 4;
constexpr int32_t kBucketsPerTask = 32;

/// Rows that a step reads or writes: in f32, in bf16 for a product that computes so, or both.
struct Rows {
  float* wide = nullptr;
  uint16_t* narrow = nullptr;
  int64_t stride = 0;  // elements, of both
};

/// A linear layer: where its parameters stand, and its weights as the products read them.
struct Linear : LinearParameters {
  PackedMatrix forward = {};   // W [N, K]
  PackedMatrix backward = {};  // Wᵀ [K, N]
  std::unique_ptr<FlatBuffer> forward_memory = nullptr, backward_memory = nullptr;
  void* forward_panels() const { return forward_memory->data(); }
  void* backward_panels() const { return backward_memory->data(); }
};

using Norm = NormParameters;

Dropout in_stream(Dropout dropout, uint32_t stream) {
  dropout.stream = stream;
  return dropout;
}

}  // namespace

struct Encoder::Weights {
  struct Layer {
    Linear qkv, attention_output, up, down;
    Norm attention_norm, output_norm;
  };
  int64_t token = 0, position = 0;  // offsets into a FlatBuffer
  Norm embedding_norm;
  std::vector<Layer> layers;

  Weights(const ModelConfig& config, const ParameterTable& table, Precision precision) {
    const EncoderParameters places(table, config.num_layers);
    const auto linear = [&](const LinearParameters& at) {
      const int32_t N = at.outputs, K = at.inputs;
      const kernels::Storage storage =
          precision == Precision::kBF16 ? kernels::Storage::kBF16 : kernels::Storage::kF32;
      const auto memory = [&](int32_t outputs, int32_t inputs) {
        const int64_t bytes =
            kernels::packed_elements(outputs, inputs, storage) * kernels::storage_size(storage);
        return std::make_unique<FlatBuffer>((bytes + 3) / 4);
      };
      Linear out{at};
      out.forward_memory = memory(N, K);
      out.backward_memory = memory(K, N);
      out.forward = {out.forward_panels(), storage, N, K};
      out.backward = {out.backward_panels(), storage, K, N};
      return out;
    };
    token = places.token;
    position = places.position;
    embedding_norm = places.embedding_norm;
    for (const EncoderParameters::Layer& at : places.layers) {
      layers.push_back({linear(at.qkv), linear(at.attention_output), linear(at.up), linear(at.down),
                        at.attention_norm, at.output_norm});
    }
  }

  std::vector<const Linear*> linears() const {
    std::vector<const Linear*> all;
    for (const Layer& layer : layers) {
      for (const Linear* linear : {&layer.qkv, &layer.attention_output, &layer.up, &layer.down})
        all.push_back(linear);
    }
    return all;
  }
};

/// Everything of one batch, in one allocation. A `wide` that only the forward pass reads, and not
/// beyond its layer, is shared by all layers.
struct Encoder::Buffers {
  struct Layer {
    Rows x;                          // [N, C]  input of Q, K, V; residual of the attention
    float* qkv = nullptr;            // [N, 3C]
    float* lse = nullptr;            // [N, H]
    Rows context;                    // [N, C]
    float* attention_sum = nullptr;  // [N, C]  input of the attention's LayerNorm
    Rows y;                          // [N, C]  its output; residual of the feed-forward part
    float* up = nullptr;             // [N, F]  before the activation
    Rows hidden;                     // [N, F]  after it
    float* output_sum = nullptr;     // [N, C]  input of the output's LayerNorm
  };
  float* embedding_sum = nullptr;  // [N, C]  input of the embedding's LayerNorm
  std::vector<Layer> layers;
  float* output = nullptr;  // [N, C]

  // The backward pass
  float* dx = nullptr;        // [N, C]  of the stream of residuals
  Rows dbranch;               // [N, C]  of a branch that joins it
  float* dcontext = nullptr;  // [N, C]
  Rows dwide;                 // [N, 3C] or [N, F]: of qkv, of hidden and of up
  float* dgamma_parts = nullptr;
  float* dbeta_parts = nullptr;

  int32_t* positions = nullptr;         // [N]
  int32_t* token_buckets = nullptr;     // bucket_rows_memory(N, V)
  int32_t* position_buckets = nullptr;  // bucket_rows_memory(N, P)
  float* attention_scratch(int32_t thread) const { return attention_ + thread * attention_floats_; }
  float* weight_scratch(int32_t thread) const {
    return weight_scratch_ + thread * kernels::kGemmBackwardScratchFloats;
  }

  int64_t C_stride, qkv_stride, F_stride, dwide_stride;

  Buffers(const ModelConfig& config, Precision precision, int32_t num_threads)
      : C_stride(stride(config.hidden_size, precision)),
        qkv_stride(stride(3 * config.hidden_size, precision)),
        F_stride(stride(config.intermediate_size, precision)),
        dwide_stride(std::max(qkv_stride, F_stride)),
        config_(config),
        narrow_(precision == Precision::kBF16),
        num_threads_(num_threads) {}

  /// Makes room for a batch of N tokens whose longest sentence has T.
  void reserve(int32_t N, int32_t T) {
    if (N <= max_tokens_ && T <= longest_ && memory_ != nullptr) return;
    max_tokens_ = std::max(N, max_tokens_);
    longest_ = std::max(T, longest_);
    memory_.reset();
    floats_ = 0;
    lay_out(nullptr);
    memory_ = std::make_unique<FlatBuffer>(floats_);
    floats_ = 0;
    lay_out(memory_->data());
  }

  size_t bytes() const { return sizeof(float) * static_cast<size_t>(floats_); }

 private:
  static int64_t stride(int32_t columns, Precision precision) {
    return precision == Precision::kBF16 ? bf16_row_stride(columns) : row_stride(columns);
  }

  /// Gives every piece its place behind `base`; a base of null counts only.
  void lay_out(float* base) {
    const int64_t N = max_tokens_, H = config_.num_heads;
    const auto place = [&](int64_t words) {  // of 32 bits
      float* at = base == nullptr ? nullptr : base + floats_;
      floats_ += (words + 15) / 16 * 16;
      return at;
    };
    const auto place_narrow = [&](int64_t stride) {
      return narrow_ ? reinterpret_cast<uint16_t*>(place((N * stride + 1) / 2)) : nullptr;
    };
    const auto place_integers = [&](int64_t count) {
      return reinterpret_cast<int32_t*>(place(count));
    };
    dx = place(N * C_stride);
    dcontext = place(N * C_stride);
    dbranch = {place(N * C_stride), place_narrow(C_stride), C_stride};
    dwide = {place(N * dwide_stride), place_narrow(dwide_stride), dwide_stride};
    // The gradients' memory, idle in the forward pass, holds what bf16 products do not read.
    const auto rows = [&](float* shared, int64_t stride) {
      return Rows{narrow_ ? shared : place(N * stride), place_narrow(stride), stride};
    };
    embedding_sum = place(N * C_stride);
    layers.resize(config_.num_layers);
    for (Layer& layer : layers) {
      layer.x = rows(dx, C_stride);
      layer.qkv = place(N * qkv_stride);
      layer.lse = place(N * H);
      layer.context = rows(dcontext, C_stride);
      layer.attention_sum = place(N * C_stride);
      layer.y = rows(dx, C_stride);
      layer.up = place(N * F_stride);
      layer.hidden = rows(dwide.wide, F_stride);
      layer.output_sum = place(N * C_stride);
    }
    output = place(N * C_stride);
    const int64_t parts =
        int64_t{kernels::layernorm_block_count(max_tokens_)} * config_.hidden_size;
    dgamma_parts = place(parts);
    dbeta_parts = place(parts);
    positions = place_integers(N);
    token_buckets = place_integers(kernels::bucket_rows_memory(max_tokens_, config_.vocab_size));
    position_buckets =
        place_integers(kernels::bucket_rows_memory(max_tokens_, config_.num_positions));
    const int32_t D = config_.hidden_size / config_.num_heads;
    attention_floats_ =
        row_stride(std::max(kernels::attention_scratch_floats(longest_, D),
                            kernels::attention_backward_scratch_floats(longest_, D)));
    attention_ = place(num_threads_ * attention_floats_);
    weight_scratch_ = place(num_threads_ * kernels::kGemmBackwardScratchFloats);
  }

  const ModelConfig& config_;
  const bool narrow_;
  const int32_t num_threads_;
  int32_t max_tokens_ = 0, longest_ = 0;
  int64_t floats_ = 0, attention_floats_ = 0;
  float* attention_ = nullptr;
  float* weight_scratch_ = nullptr;
  std::unique_ptr<FlatBuffer> memory_;
};

/// The steps of both passes over one batch, each shared out over the threads.
class Encoder::Steps {
 public:
  Steps(Encoder& encoder, const PairBatch& batch, const FlatBuffer& values)
      : config_(encoder.config_),
        kernels_(encoder.kernels_),
        threads_(encoder.threads_),
        w_(*encoder.weights_),
        b_(*encoder.buffers_),
        batch_(batch),
        values_(values.data()),
        N_(batch.num_tokens()),
        C_(encoder.config_.hidden_size),
        H_(encoder.config_.num_heads),
        eps_(static_cast<float>(encoder.config_.layer_norm_eps)) {}

  // ---- forward ----

  /// Panels of every weight, of W or of Wᵀ.
  void pack(bool transposed) {
    struct Task {
      const Linear* linear;
      int32_t first, last;
    };
    std::vector<Task> tasks;
    for (const Linear* linear : w_.linears()) {
      const int32_t panels =
          kernels::panel_count((transposed ? linear->backward : linear->forward).N);
      for (int32_t first = 0; first < panels; first += kPanelsPerTask)
        tasks.push_back({linear, first, std::min(first + kPanelsPerTask, panels)});
    }
    threads_.for_each(static_cast<int32_t>(tasks.size()), [&](int32_t task, int32_t) {
      const auto& [linear, first, last] = tasks[task];
      const int32_t N = linear->forward.N, K = linear->forward.K;
      const float* weight = values_ + linear->weight;
      if (transposed) {
        kernels::gemm_pack_transposed_panels(weight, K, N, K, linear->backward.storage, first, last,
                                             linear->backward_panels());
      } else {
        kernels::gemm_pack_panels(weight, K, N, K, linear->forward.storage, first, last,
                                  linear->forward_panels());
      }
    });
  }

  /// sum ← token + position;  out ← dropout(LayerNorm(sum))
  void embedding(const Dropout& dropout, float* sum, const Rows& out) {
    for (int32_t b = 0; b < batch_.num_sentences(); ++b) {
      const int32_t begin = batch_.cu_seqlens[b];
      for (int32_t i = begin; i < batch_.cu_seqlens[b + 1]; ++i)
        b_.positions[i] = config_.position_offset + i - begin;
    }
    split(N_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.embedding_forward_f32(batch_.token_ids.data(), b_.positions, first, last,
                                     values_ + w_.token, values_ + w_.position,
                                     kernels::Storage::kF32, nullptr, nullptr, nullptr, eps_, C_,
                                     sum, b_.C_stride, nullptr);
      norm(w_.embedding_norm, sum, first, last, out);
      kernels_.dropout_forward_f32(out.wide, out.stride, first, last, C_, dropout, nullptr, 0,
                                   out.wide, out.stride);
      narrow(out, first, last, C_);
    });
  }

  /// out ← a · Wᵀ + bias
  void gemm(const Rows& a, const Linear& linear, float* out, int64_t out_stride) {
    product(a, linear.forward, {values_ + linear.bias, Activation::kNone, nullptr, 0}, out,
            out_stride);
  }

  void attention(const Dropout& dropout, Buffers::Layer& layer) {
    split(batch_.num_sentences(), kSentencesPerTask,
          [&](int32_t first, int32_t last, int32_t thread) {
            for (int32_t b = first; b < last; ++b) {
              read_sentence_ahead(layer.qkv, b_.qkv_stride, 3 * C_, b);
              kernels_.attention_dropout_forward_f32(layer.qkv, b_.qkv_stride, cu_seqlens(), b,
                                                     b + 1, 0, H_, H_, C_ / H_, dropout,
                                                     layer.context.wide, layer.context.stride,
                                                     layer.lse, b_.attention_scratch(thread));
            }
            narrow(layer.context, cu_seqlens()[first], cu_seqlens()[last], C_);
          });
  }

  /// sum ← residual + dropout(sum);  out ← LayerNorm(sum)
  void add_and_norm(const Dropout& dropout, const Rows& residual, const Norm& parameters,
                    float* sum, const Rows& out) {
    split(N_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.dropout_forward_f32(sum, b_.C_stride, first, last, C_, dropout, residual.wide,
                                   residual.stride, sum, b_.C_stride);
      norm(parameters, sum, first, last, out);
      narrow(out, first, last, C_);
    });
  }

  /// out ← f(in)
  void activation(const float* in, const Rows& out) {
    const int32_t F = config_.intermediate_size;
    split(N_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      for (int32_t i = first; i < last; ++i) {
        kernels_.activation_forward_f32(in + i * b_.F_stride, F, config_.activation,
                                        out.wide + i * out.stride);
      }
      narrow(out, first, last, F);
    });
  }

  void pool(const float* x, float* u, int64_t u_stride) {
    split(batch_.num_sentences(), kSentencesPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.pooling_forward_f32(x, b_.C_stride, cu_seqlens(), first, last, C_, config_.pooling,
                                   u, u_stride);
    });
  }

  // ---- backward; each names the line it undoes ----

  /// pool
  void unpool(const float* x, const float* du, int64_t du_stride, float* dx) {
    split(batch_.num_sentences(), kSentencesPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.pooling_backward_f32(x, b_.C_stride, du, du_stride, cu_seqlens(), first, last, C_,
                                    config_.pooling, dx, b_.C_stride);
    });
  }

  /// add_and_norm: dx, of its result, becomes that of the sum, which is the residual's too;
  /// dbranch ← that of the sum before dropout
  void unadd_and_unnorm(const Dropout& dropout, const Norm& parameters, const float* sum, float* dx,
                        const Rows& dbranch, FlatBuffer& gradients) {
    split(N_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      unnorm(parameters, sum, first, last, dx);
      kernels_.dropout_forward_f32(dx, b_.C_stride, first, last, C_, dropout, nullptr, 0,
                                   dbranch.wide, dbranch.stride);
      narrow(dbranch, first, last, C_);
    });
    norm_gradient(parameters, gradients);
  }

  /// gemm: the gradients of W and bias
  void weight_gradient(const Rows& dout, const Rows& a, const Linear& linear,
                       FlatBuffer& gradients) {
    const int32_t K = linear.forward.K;
    float* dw = gradients.data() + linear.weight;
    float* dbias = gradients.data() + linear.bias;
    // Large blocks read a less often, small ones occupy all threads.
    const int32_t N = linear.forward.N;
    const int32_t share = (N / (2 * threads_.num_threads()) + 31) / 32 * 32;
    const int32_t outputs = std::clamp(share, kFewestOutputsPerTask, kOutputsPerTask);
    split(N, outputs, [&](int32_t first, int32_t last, int32_t thread) {
      if (dout.narrow != nullptr) {
        kernels_.gemm_backward_weight_bf16(dout.narrow, dout.stride, a.narrow, a.stride, N_, first,
                                           last, K, true, dw, K, b_.weight_scratch(thread));
      } else {
        kernels_.gemm_backward_weight_f32(dout.wide, dout.stride, a.wide, a.stride, N_, first, last,
                                          K, true, dw, K, b_.weight_scratch(thread));
      }
      kernels_.column_sum_f32(dout.wide, dout.stride, N_, first, last, true, dbias);
    });
  }

  /// gemm: da ← dout · W (+ da)
  void input_gradient(const Rows& dout, const Linear& linear, float* da, int64_t da_stride,
                      bool accumulate) {
    product(dout, linear.backward,
            {nullptr, Activation::kNone, accumulate ? da : nullptr, accumulate ? da_stride : 0}, da,
            da_stride);
  }

  /// activation: d, of its result, becomes that of its input
  void unactivation(const float* in, const Rows& d) {
    const int32_t F = config_.intermediate_size;
    split(N_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      for (int32_t i = first; i < last; ++i) {
        float* row = d.wide + i * d.stride;
        kernels_.activation_backward_f32(in + i * b_.F_stride, row, F, config_.activation, row);
      }
      narrow(d, first, last, F);
    });
  }

  /// attention
  void unattention(const Dropout& dropout, const Buffers::Layer& layer, const float* dcontext,
                   const Rows& dqkv) {
    split(batch_.num_sentences(), kSentencesPerTask,
          [&](int32_t first, int32_t last, int32_t thread) {
            for (int32_t b = first; b < last; ++b) {
              read_sentence_ahead(layer.qkv, b_.qkv_stride, 3 * C_, b);
              read_sentence_ahead(dcontext, b_.C_stride, C_, b);
              read_sentence_ahead(dqkv.wide, dqkv.stride, 3 * C_, b);
              kernels_.attention_backward_f32(layer.qkv, b_.qkv_stride, cu_seqlens(), b, b + 1, 0,
                                              H_, H_, C_ / H_, layer.lse, dropout, dcontext,
                                              b_.C_stride, dqkv.wide, dqkv.stride,
                                              b_.attention_scratch(thread));
            }
            narrow(dqkv, cu_seqlens()[first], cu_seqlens()[last], 3 * C_);
          });
  }

  /// embedding
  void unembedding(const Dropout& dropout, const float* sum, float* dx, FlatBuffer& gradients) {
    split(N_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.dropout_forward_f32(dx, b_.C_stride, first, last, C_, dropout, nullptr, 0, dx,
                                   b_.C_stride);
      unnorm(w_.embedding_norm, sum, first, last, dx);
    });
    norm_gradient(w_.embedding_norm, gradients);
    const kernels::RowBuckets tokens = kernels::bucket_rows(
        batch_.token_ids.data(), N_, config_.vocab_size, config_.pad_id, b_.token_buckets);
    const kernels::RowBuckets positions =
        kernels::bucket_rows(b_.positions, N_, config_.num_positions, -1, b_.position_buckets);
    scatter(dx, tokens, gradients.data() + w_.token);
    scatter(dx, positions, gradients.data() + w_.position);
  }

 private:
  const int32_t* cu_seqlens() const { return batch_.cu_seqlens.data(); }

  void read_sentence_ahead(const float* rows, int64_t stride, int32_t columns, int32_t b) const {
    const int32_t begin = cu_seqlens()[b];
    read_ahead(rows + begin * stride, 4 * stride, 4 * int64_t{columns},
               cu_seqlens()[b + 1] - begin);
  }

  void product(const Rows& a, const PackedMatrix& w, GemmEpilogue epilogue, float* out,
               int64_t out_stride) {
    const int32_t panels = kernels::panel_count(w.N);
    const int32_t groups = (panels + kPanelsPerTask - 1) / kPanelsPerTask;
    const int32_t blocks = (N_ + kGemmRowsPerTask - 1) / kGemmRowsPerTask;
    threads_.for_each(blocks * groups, [&](int32_t task, int32_t) {
      const int32_t row = task / groups * kGemmRowsPerTask;
      const int32_t M = std::min(kGemmRowsPerTask, N_ - row);
      const int32_t first = task % groups * kPanelsPerTask;
      const int32_t last = std::min(first + kPanelsPerTask, panels);
      GemmEpilogue at = epilogue;
      if (at.residual != nullptr) {
        at.residual += row * at.residual_stride;
        const int32_t column = first * kernels::kPanelColumns;
        const int64_t columns = std::min(w.N - column, kPanelsPerTask * kernels::kPanelColumns);
        read_ahead(at.residual + column, 4 * at.residual_stride, 4 * columns, M);
      }
      if (a.narrow != nullptr) {
        kernels_.gemm_forward_bf16(a.narrow + row * a.stride, a.stride, M, w, first, last, at,
                                   out + row * out_stride, out_stride, nullptr, 0);
      } else {
        kernels_.gemm_forward_f32(a.wide + row * a.stride, a.stride, M, w, first, last, at,
                                  out + row * out_stride, out_stride);
      }
    });
  }

  void norm(const Norm& parameters, const float* x, int32_t first, int32_t last, const Rows& out) {
    kernels_.layernorm_forward_f32(x, b_.C_stride, first, last, C_, values_ + parameters.gamma,
                                   values_ + parameters.beta, eps_, out.wide, out.stride);
  }

  void unnorm(const Norm& parameters, const float* x, int32_t first, int32_t last, float* dx) {
    constexpr int32_t kRows = kernels::kLayernormBlockRows;
    kernels_.layernorm_backward_f32(x, b_.C_stride, dx, b_.C_stride, N_, first / kRows,
                                    (last + kRows - 1) / kRows, C_, values_ + parameters.gamma,
                                    eps_, dx, b_.C_stride, b_.dgamma_parts, b_.dbeta_parts);
  }

  void norm_gradient(const Norm& parameters, FlatBuffer& gradients) {
    const int32_t blocks = kernels::layernorm_block_count(N_);
    kernels_.column_sum_f32(b_.dgamma_parts, C_, blocks, 0, C_, true,
                            gradients.data() + parameters.gamma);
    kernels_.column_sum_f32(b_.dbeta_parts, C_, blocks, 0, C_, true,
                            gradients.data() + parameters.beta);
  }

  void scatter(const float* de, const kernels::RowBuckets& buckets, float* dtable) {
    split(buckets.count, kBucketsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.embedding_backward_f32(de, b_.C_stride, buckets, first, last, C_, dtable);
    });
  }

  void narrow(const Rows& rows, int32_t first, int32_t last, int32_t columns) {
    if (rows.narrow == nullptr) return;
    kernels_.narrow_forward_bf16(rows.wide, rows.stride, first, last, columns, rows.narrow,
                                 rows.stride);
  }

  template <typename Body>
  void split(int32_t total, int32_t per_task, Body&& body) {
    threads_.for_each((total + per_task - 1) / per_task, [&](int32_t task, int32_t thread) {
      const int32_t first = task * per_task;
      body(first, std::min(first + per_task, total), thread);
    });
  }

  const ModelConfig& config_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  const Weights& w_;
  Buffers& b_;
  const PairBatch& batch_;
  const float* values_;
  const int32_t N_, C_, H_;
  const float eps_;
};

Encoder::Encoder(const ModelConfig& config, const ParameterTable& table, Precision precision,
                 const kernels::KernelTable& kernels, ThreadPool& threads)
    : config_(config),
      kernels_(kernels),
      threads_(threads),
      weights_(std::make_unique<Weights>(config, table, precision)),
      buffers_(std::make_unique<Buffers>(config_, precision, threads.num_threads())) {}

Encoder::~Encoder() = default;

size_t Encoder::bytes() const { return buffers_->bytes(); }

void Encoder::forward(const PairBatch& batch, const FlatBuffer& values, const Dropout& dropout,
                      float* u, int64_t u_stride) {
  int32_t longest = 0;
  for (int32_t b = 0; b < batch.num_sentences(); ++b)
    longest = std::max(longest, batch.cu_seqlens[b + 1] - batch.cu_seqlens[b]);
  buffers_->reserve(batch.num_tokens(), longest);
  Buffers& b = *buffers_;
  Steps s(*this, batch, values);
  const int32_t L = config_.num_layers, H = config_.num_heads;
  const Rows last{b.output, nullptr, b.C_stride};

  s.pack(false);
  s.embedding(in_stream(dropout, embedding_stream()), b.embedding_sum,
              L > 0 ? b.layers[0].x : last);
  for (int32_t i = 0; i < L; ++i) {
    const Weights::Layer& w = weights_->layers[i];
    Buffers::Layer& at = b.layers[i];
    s.gemm(at.x, w.qkv, at.qkv, b.qkv_stride);  // [N,C]·[C,3C]
    s.attention(in_stream(dropout, probabilities_stream(i, H)), at);
    s.gemm(at.context, w.attention_output, at.attention_sum, b.C_stride);  // [N,C]·[C,C]
    s.add_and_norm(in_stream(dropout, attention_output_stream(i, H)), at.x, w.attention_norm,
                   at.attention_sum, at.y);
    s.gemm(at.y, w.up, at.up, b.F_stride);  // [N,C]·[C,F]
    s.activation(at.up, at.hidden);
    s.gemm(at.hidden, w.down, at.output_sum, b.C_stride);  // [N,F]·[F,C]
    s.add_and_norm(in_stream(dropout, output_stream(i, H)), at.y, w.output_norm, at.output_sum,
                   i + 1 < L ? b.layers[i + 1].x : last);
  }
  s.pool(b.output, u, u_stride);
}

void Encoder::backward(const PairBatch& batch, const FlatBuffer& values, const Dropout& dropout,
                       const float* du, int64_t du_stride, FlatBuffer& gradients) {
  Buffers& b = *buffers_;
  Steps s(*this, batch, values);
  const int32_t H = config_.num_heads;

  s.pack(true);
  s.unpool(b.output, du, du_stride, b.dx);  // s.pool
  for (int32_t i = config_.num_layers - 1; i >= 0; --i) {
    const Weights::Layer& w = weights_->layers[i];
    const Buffers::Layer& at = b.layers[i];
    // s.add_and_norm(…, w.output_norm, …)
    s.unadd_and_unnorm(in_stream(dropout, output_stream(i, H)), w.output_norm, at.output_sum, b.dx,
                       b.dbranch, gradients);
    // s.gemm(at.hidden, w.down, …)
    s.weight_gradient(b.dbranch, at.hidden, w.down, gradients);
    s.input_gradient(b.dbranch, w.down, b.dwide.wide, b.dwide.stride, false);
    s.unactivation(at.up, b.dwide);  // s.activation
    // s.gemm(at.y, w.up, …)
    s.weight_gradient(b.dwide, at.y, w.up, gradients);
    s.input_gradient(b.dwide, w.up, b.dx, b.C_stride, true);
    // s.add_and_norm(…, w.attention_norm, …)
    s.unadd_and_unnorm(in_stream(dropout, attention_output_stream(i, H)), w.attention_norm,
                       at.attention_sum, b.dx, b.dbranch, gradients);
    // s.gemm(at.context, w.attention_output, …)
    s.weight_gradient(b.dbranch, at.context, w.attention_output, gradients);
    s.input_gradient(b.dbranch, w.attention_output, b.dcontext, b.C_stride, false);
    // s.attention
    s.unattention(in_stream(dropout, probabilities_stream(i, H)), at, b.dcontext, b.dwide);
    // s.gemm(at.x, w.qkv, …)
    s.weight_gradient(b.dwide, at.x, w.qkv, gradients);
    s.input_gradient(b.dwide, w.qkv, b.dx, b.C_stride, true);
  }
  s.unembedding(in_stream(dropout, embedding_stream()), b.embedding_sum, b.dx, gradients);
}

}  // namespace xsr::training
