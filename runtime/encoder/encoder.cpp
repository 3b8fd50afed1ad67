#include "runtime/encoder/encoder.h"

#include <algorithm>
#include <cstring>

namespace xsr {
namespace {

using kernels::GemmEpilogue;

// Work that one thread claims at a time when a single chunk is shared: large enough that a claim
// (about 0.1 µs) is lost in it, small enough that two threads end together.
constexpr int32_t kRowsPerTask = 8;
constexpr int32_t kPanelsPerTask = 4;

/// Rows that a step reads or writes: in f32, in bf16 (split, for bf16x3) for what multiplies
/// so, or both. For products in int8 the f32 rows are quantised right before them.
struct Rows {
  float* wide = nullptr;
  int64_t wide_stride = 0;
  uint16_t* narrow = nullptr;
  int64_t narrow_stride = 0;
};

Rows from_column(Rows rows, int32_t column) {
  if (rows.wide != nullptr) rows.wide += column;
  if (rows.narrow != nullptr) rows.narrow += column;
  return rows;
}

/// The steps of the forward pass over one chunk, each on one thread or shared out over several.
class Steps {
 public:
  Steps(const Encoder& encoder, int32_t num_sentences, Workspace& workspace, ThreadPool* pool)
      : encoder_(encoder),
        config_(encoder.config),
        kernels_(encoder.kernels),
        w_(workspace),
        pool_(pool),
        num_sentences_(num_sentences),
        num_tokens_(workspace.cu_seqlens[num_sentences]),
        C_(config_.hidden_size),
        compute_(encoder.compute),
        x{w_.x, w_.x_stride},
        sum{w_.x, w_.x_stride},
        qkv{w_.qkv, w_.qkv_stride},
        context{w_.context, w_.context_stride},
        hidden{w_.hidden, w_.hidden_stride} {
    if (compute_ == Compute::kBf16 || compute_ == Compute::kBf16x3) {
      const bool halves = compute_ == Compute::kBf16x3;
      x.narrow_stride = context.narrow_stride = halves ? 2 * w_.x_stride : w_.narrow_stride;
      x.narrow = w_.narrow;
      // Where attention writes bf16, nobody reads f32 rows of context. Elsewhere context is rounded
      // when no product needs x any more.
      context.narrow =
          encoder.bf16_attention() ? reinterpret_cast<uint16_t*>(w_.context) : w_.narrow;
      hidden = {nullptr, 0, reinterpret_cast<uint16_t*>(w_.hidden),
                halves ? 2 * w_.hidden_stride : w_.narrow_hidden_stride};
    }
    if (encoder.bf16_attention())
      qkv = {nullptr, 0, reinterpret_cast<uint16_t*>(w_.qkv), w_.narrow_qkv_stride};
  }

  /// x ← LayerNorm(token + position), and made ready as by layernorm().
  void embedding(const EncoderWeights& weights, const LinearWeights* next) {
    split(num_tokens_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      if (weights.table_storage == kernels::Storage::kI8) {
        kernels_.embedding_forward_i8(
            w_.token_ids, w_.positions, first, last, static_cast<const int8_t*>(weights.token),
            weights.token_scales, static_cast<const int8_t*>(weights.position),
            weights.position_scales, weights.token_type, weights.embedding_norm.gamma,
            weights.embedding_norm.beta, eps(), C_, x.wide, x.wide_stride, w_.rstd);
      } else {
        kernels_.embedding_forward_f32(w_.token_ids, w_.positions, first, last, weights.token,
                                       weights.position, weights.table_storage, weights.token_type,
                                       weights.embedding_norm.gamma, weights.embedding_norm.beta,
                                       eps(), C_, x.wide, x.wide_stride, w_.rstd);
      }
      if (next != nullptr) make_ready(x, first, last, *next);
    });
  }

  /// The first layer's product with its inputs known beforehand.
  void qkv_from_table(const QkvTable& table) {
    split(num_tokens_, kRowsPerTask, [&](int32_t first, int32_t last, int32_t) {
      kernels_.qkv_table_forward_f32(w_.token_ids, w_.positions, first, last, table.token(),
                                     table.position(), w_.rstd, table.bias(), 3 * C_, qkv.wide,
                                     qkv.wide_stride, qkv.narrow, qkv.narrow_stride);
    });
  }

  /// x ← LayerNorm(x), and made ready for the product that reads it next (null: none does), a few
  /// rows at a time, so that they are still in the nearest cache.
  void layernorm(const NormWeights& norm, const LinearWeights* next) {
    const auto rows = [&](int32_t first, int32_t last, int32_t) {
      kernels_.layernorm_forward_f32(x.wide, x.wide_stride, first, last, C_, norm.gamma, norm.beta,
                                     eps(), x.wide, x.wide_stride);
      if (next != nullptr) make_ready(x, first, last, *next);
    };
    split(num_tokens_, kRowsPerTask, rows, true);
  }

  /// out ← f(a · Wᵀ + bias) (+ residual); a has been made ready
  void gemm(const Rows& a, const LinearWeights& linear, const Rows& out, Activation activation,
            const Rows* residual = nullptr) {
    const GemmEpilogue epilogue{linear.bias, activation,
                                residual == nullptr ? nullptr : residual->wide,
                                residual == nullptr ? 0 : residual->wide_stride};
    if (encoder_.observer) encoder_.observer(linear, a.wide, a.wide_stride, num_tokens_);
    split(kernels::panel_count(linear.weight.N), kPanelsPerTask,
          [&](int32_t first, int32_t last, int32_t) {
            if (compute_ == Compute::kInt8) {
              kernels_.gemm_forward_i8(w_.quantized, w_.quantized_stride, num_tokens_,
                                       w_.quantized_rows, linear.weight, first, last, epilogue,
                                       out.wide, out.wide_stride, out.narrow, out.narrow_stride);
            } else if (compute_ == Compute::kBf16x3) {
              kernels_.gemm_forward_bf16x3(a.narrow, a.narrow_stride, num_tokens_, linear.split,
                                           first, last, epilogue, out.wide, out.wide_stride,
                                           out.narrow, out.narrow_stride);
            } else if (compute_ == Compute::kBf16) {
              kernels_.gemm_forward_bf16(a.narrow, a.narrow_stride, num_tokens_, linear.weight,
                                         first, last, epilogue, out.wide, out.wide_stride,
                                         out.narrow, out.narrow_stride);
            } else {
              kernels_.gemm_forward_f32(a.wide, a.wide_stride, num_tokens_, linear.weight, first,
                                        last, epilogue, out.wide, out.wide_stride);
            }
          });
  }

  /// context ← attention(x · Wᵀ + bias), as many heads at a time as are to share the rows of qkv.
  void qkv_and_attention(const LinearWeights& linear) {
    const int32_t H = config_.num_heads, D = C_ / H;
    const bool whole = pool_ != nullptr || encoder_.observer;
    const int32_t group = whole ? H : heads_at_a_time(kernels_.isa, config_);
    if (group == H) {
      gemm(x, linear, qkv, Activation::kNone);  // [N,C]·[C,3C]
      return attention();
    }
    const int32_t columns = group * D, panels = columns / kernels::kPanelColumns;
    Rows few = qkv;
    few.wide_stride = few.narrow_stride = 3 * columns + kernels::kPanelColumns;
    for (int32_t h = 0; h < H; h += group) {
      for (int32_t part = 0; part < 3; ++part) {  // [N,C]·[C,columns] each
        const int32_t panel = (part * C_ + h * D) / kernels::kPanelColumns;
        gemm(x, outputs(linear, panel, panel + panels), from_column(few, part * columns),
             Activation::kNone);
      }
      attend(few, group, h);
    }
  }

  /// context ← attention(qkv)
  void attention() { attend(qkv, config_.num_heads, 0); }

  /// From here on each sentence is its first token alone, where pooling reads no other.
  void keep_first_tokens() {
    int32_t kept = 0, first = 0;
    for (int32_t b = 0; b < num_sentences_; ++b) {
      const int32_t end = w_.cu_seqlens[b + 1];
      if (first < end) {
        move_row(x.wide, x.wide_stride, first, kept);
        if (attention_writes_bf16()) {
          move_row(context.narrow, context.narrow_stride, first, kept);
        } else {
          move_row(context.wide, context.wide_stride, first, kept);
        }
        ++kept;
      }
      w_.cu_seqlens[b + 1] = kept;
      first = end;
    }
    num_tokens_ = kept;
  }

  void make_context_ready(const LinearWeights& next) {
    if (!attention_writes_bf16()) make_ready(context, next);
  }

  /// All rows of context or hidden.
  void make_ready(const Rows& rows, const LinearWeights& linear) {
    if (compute_ != Compute::kInt8 && rows.narrow == nullptr) return;  // f32 is ready
    split(num_tokens_, kRowsPerTask,
          [&](int32_t first, int32_t last, int32_t) { make_ready(rows, first, last, linear); });
  }

  void pool(float* out, int64_t out_stride) {
    kernels_.pooling_forward_f32(x.wide, x.wide_stride, w_.cu_seqlens, 0, num_sentences_, C_,
                                 config_.pooling, out, out_stride);
  }

  /// embeddings ← f(pooled · Wᵀ + bias), one row a sentence; a sentence without tokens keeps its
  /// zeros.
  void pooler(const LinearWeights& linear, float* embeddings) {
    const GemmEpilogue epilogue{linear.bias, config_.pooler_activation, nullptr, 0};
    kernels_.gemm_forward_f32(w_.pooled, w_.pooled_stride, num_sentences_, linear.weight, 0,
                              kernels::panel_count(linear.weight.N), epilogue, embeddings,
                              config_.embedding_size);
    for (int32_t b = 0; b < num_sentences_; ++b) {
      if (w_.cu_seqlens[b] != w_.cu_seqlens[b + 1]) continue;
      std::memset(embeddings + static_cast<int64_t>(b) * config_.embedding_size, 0,
                  sizeof(float) * config_.embedding_size);
    }
  }

  void normalize(float* embeddings) {
    kernels_.l2_normalize_forward_f32(embeddings, config_.embedding_size, 0, num_sentences_,
                                      config_.embedding_size);
  }

 private:
  bool attention_writes_bf16() const {
    return encoder_.bf16_attention() && context.narrow != nullptr;
  }

  template <typename T>
  void move_row(T* rows, int64_t stride, int32_t from, int32_t to) const {
    if (from != to) std::memcpy(rows + to * stride, rows + from * stride, sizeof(T) * C_);
  }

  /// Heads [first, first + count) of context ← attention over the rows of `few`, [N, 3, count, D].
  void attend(const Rows& few, int32_t count, int32_t first) {
    const int32_t D = C_ / config_.num_heads;
    const Rows out = from_column(context, first * D);
    float* const wide = attention_writes_bf16() ? nullptr : out.wide;
    split(count, 1, [&](int32_t begin, int32_t end, int32_t thread) {
      if (encoder_.bf16_attention()) {
        kernels_.attention_forward_bf16(
            few.narrow, few.narrow_stride, w_.cu_seqlens, 0, num_sentences_, begin, end, count, D,
            wide, out.wide_stride, out.narrow, out.narrow_stride, w_.attention_scratch(thread));
      } else {
        kernels_.attention_forward_f32(few.wide, few.wide_stride, w_.cu_seqlens, 0, num_sentences_,
                                       begin, end, count, D, wide, out.wide_stride, nullptr,
                                       w_.attention_scratch(thread));
      }
    });
  }

  float eps() const { return static_cast<float>(config_.layer_norm_eps); }

  /// The f32 rows [first, last) in the numbers that the product reads.
  void make_ready(const Rows& rows, int32_t first, int32_t last, const LinearWeights& linear) {
    if (compute_ == Compute::kInt8) {
      // x, context and hidden take turns in the one buffer.
      kernels_.quantize_forward_u8(rows.wide, rows.wide_stride, first, last, linear.weight.K,
                                   linear.input_range, w_.quantized, w_.quantized_stride,
                                   w_.quantized_rows);
    } else if (rows.narrow != nullptr) {
      const auto narrow = compute_ == Compute::kBf16x3 ? kernels_.split_forward_bf16x3
                                                       : kernels_.narrow_forward_bf16;
      narrow(rows.wide, rows.wide_stride, first, last, C_, rows.narrow, rows.narrow_stride);
    }
  }

  /// body(first, last, thread) for ranges that make up [0, total): of per_task over the pool;
  /// without one everything at once, unless it is wanted in pieces all the same.
  template <typename Body>
  void split(int32_t total, int32_t per_task, Body&& body, bool in_pieces = false) {
    if (pool_ == nullptr && !in_pieces) return body(0, total, 0);
    const int32_t tasks = (total + per_task - 1) / per_task;
    const auto piece = [&](int32_t task, int32_t thread) {
      const int32_t first = task * per_task;
      body(first, std::min(first + per_task, total), thread);
    };
    if (pool_ != nullptr) return pool_->for_each(tasks, piece);
    for (int32_t task = 0; task < tasks; ++task) piece(task, 0);
  }

  const Encoder& encoder_;
  const ModelConfig& config_;
  const kernels::KernelTable& kernels_;
  Workspace& w_;
  ThreadPool* pool_;
  int32_t num_sentences_, num_tokens_, C_;
  Compute compute_;

 public:
  Rows x;        // [N, C]
  Rows sum;      // x again, as the f32 output of a product whose LayerNorm comes next
  Rows qkv;      // [N, 3C]
  Rows context;  // [N, C]
  Rows hidden;   // [N, F]
};

}  // namespace

int32_t heads_at_a_time(kernels::Isa isa, const ModelConfig& config) {
  constexpr int32_t kFew = 2;
  const int32_t H = config.num_heads, D = config.hidden_size / H;
  const bool whole_panels = H % kFew == 0 && kFew * D % kernels::kPanelColumns == 0;
  return isa == kernels::Isa::kAmx && whole_panels ? kFew : H;
}

void encode_chunk(const Encoder& encoder, int32_t num_sentences, Workspace& w, ThreadPool* pool,
                  float* embeddings) {
  const EncoderWeights& weights = encoder.weights;
  const ModelConfig& config = encoder.config;
  Steps s(encoder, num_sentences, w, pool);

  const std::vector<LayerWeights>& layers = weights.layers;
  const bool from_table = encoder.qkv_table != nullptr;
  // token + position, then LayerNorm: [N,C]
  s.embedding(weights, from_table || layers.empty() ? nullptr : &layers.front().qkv);
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerWeights& layer = layers[i];
    if (from_table && i == 0) {
      s.qkv_from_table(*encoder.qkv_table);
      s.attention();
    } else {
      s.qkv_and_attention(layer.qkv);
    }
    if (i + 1 == layers.size() && config.pooling == Pooling::kCls) s.keep_first_tokens();
    s.make_context_ready(layer.attention_output);
    s.gemm(s.context, layer.attention_output, s.sum, Activation::kNone,
           &s.sum);  // x ← x + context·W + b
    s.layernorm(layer.attention_norm, &layer.up);
    s.gemm(s.x, layer.up, s.hidden, config.activation);  // [N,C]·[C,F]
    if (encoder.compute == Compute::kInt8) s.make_ready(s.hidden, layer.down);
    s.gemm(s.hidden, layer.down, s.sum, Activation::kNone, &s.sum);  // x ← x + hidden·W + b
    s.layernorm(layer.output_norm, i + 1 < layers.size() ? &layers[i + 1].qkv : nullptr);
  }
  if (config.has_pooler) {
    s.pool(w.pooled, w.pooled_stride);
    s.pooler(weights.pooler, embeddings);
  } else {
    s.pool(embeddings, config.embedding_size);
  }
  if (encoder.normalize) s.normalize(embeddings);
}

}  // namespace xsr
