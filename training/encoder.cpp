#include "training/encoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "training/encoder_parameters.h"
#include "training/workspace.h"

namespace xsr::training {
namespace {

using kernels::Dropout;
using kernels::GemmEpilogue;
using kernels::PackedMatrix;

// Bits do not depend on these but for kChunkRows, which fixes the parts that sums over rows are
// made of: every other element depends on its own row and column.
constexpr int32_t kChunkRows = 128;
constexpr int32_t kPanelsPerTask = 8;
constexpr int32_t kOutputsPerTask = 384;  // rows of a weight's gradient: the kernel's own block
constexpr int32_t kFewestOutputsPerTask = 32;
constexpr int32_t kBucketsPerTask = 32;

/// Columns of a batch's blocks in 8 bits, for a weight's gradient (kernels::quantize_columns_i8).
struct Columns {
  uint32_t* lanes = nullptr;  // [steps, columns]; null = not kept
  int64_t stride = 0;
  float* scales = nullptr;  // [blocks, columns]
  int32_t* sums = nullptr;  // likewise
};

/// Rows that a step reads or writes: in f32, in bf16 for a product that computes so, or both; and
/// in 8 bits for a weight's gradient.
struct Rows {
  float* wide = nullptr;
  int64_t stride = 0;  // floats
  uint16_t* narrow = nullptr;
  int64_t narrow_stride = 0;
  Columns columns = {};
};

Rows from_column(Rows rows, int32_t column) {
  if (rows.wide != nullptr) rows.wide += column;
  if (rows.narrow != nullptr) rows.narrow += column;
  return rows;
}

/// Whole sentences that one thread takes through the steps: what one step writes the next reads
/// from L2.
struct Chunk {
  int32_t index;
  int32_t first_sentence, last_sentence;
  int32_t first, last;       // rows
  int32_t first_norm_block;  // of its LayerNorm's parts, kLayernormBlockRows rows each
  int32_t first_block;       // of rows whose columns stand in 8 bits, at most kMaxRowsI8 each
  int32_t first_step;        // of four such rows
  int32_t norm_blocks() const { return kernels::layernorm_block_count(last - first); }
  int32_t blocks() const { return block_count(last - first, kernels::kMaxRowsI8); }
  int32_t block_rows(int32_t block) const {
    return std::min(last - first - block * kernels::kMaxRowsI8, kernels::kMaxRowsI8);
  }
};

/// As few sentences each as have kChunkRows rows, and for the last quarter of the rows half of
/// that: many threads then come to their ends at about the same time. Depends on the batch alone.
std::vector<Chunk> cut(const PairBatch& batch) {
  std::vector<Chunk> chunks;
  const std::vector<int32_t>& ends = batch.cu_seqlens;
  const int32_t S = batch.num_sentences(), N = batch.num_tokens();
  int32_t first = 0, norm_block = 0, block = 0, step = 0;
  for (int32_t b = 0; b < S; ++b) {
    const int32_t wanted = ends[first] < N - N / 4 ? kChunkRows : kChunkRows / 2;
    if (ends[b + 1] - ends[first] < wanted && b + 1 < S) continue;
    const int32_t index = static_cast<int32_t>(chunks.size());
    chunks.push_back({index, first, b + 1, ends[first], ends[b + 1], norm_block, block, step});
    norm_block += chunks.back().norm_blocks();
    block += chunks.back().blocks();
    step += block_count(ends[b + 1] - ends[first], kernels::kStepRowsI8);
    first = b + 1;
  }
  return chunks;
}

/// Some rows of a weight matrix W [N, K], or their transpose, as the products read them.
struct Panels {
  int32_t first_row = 0;
  PackedMatrix matrix = {};
  std::unique_ptr<FlatBuffer> memory = nullptr;
  // Beside 8 bits; steps: on AVX2.
  std::vector<float> scales = {};
  std::vector<int32_t> sums = {};
  std::unique_ptr<FlatBuffer> steps = nullptr;
};

/// A linear layer: where its parameters stand, and its weights as the products read them.
struct Linear : LinearParameters {
  std::vector<Panels> forward;   // W: one
  std::vector<Panels> backward;  // Wᵀ
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
    const kernels::Storage storage = precision == Precision::kF32    ? kernels::Storage::kF32
                                     : precision == Precision::kBF16 ? kernels::Storage::kBF16
                                                                     : kernels::Storage::kI8;
    const auto panels = [&](int32_t first_row, int32_t outputs, int32_t inputs) {
      if (storage == kernels::Storage::kI8 && inputs > kernels::kMaxInputsI8) {
        throw Error(
            XSR_STATUS_UNSUPPORTED,
            fmt::format("precision is int8, and a product has {} inputs, of which 8 bits can "
                        "sum {}; train in bf16 or f32",
                        inputs, kernels::kMaxInputsI8));
      }
      Panels out{first_row, {nullptr, storage, outputs, inputs}};
      const int64_t bytes =
          kernels::packed_elements(outputs, inputs, storage) * kernels::storage_size(storage);
      out.memory = std::make_unique<FlatBuffer>((bytes + 3) / 4);
      out.matrix.data = out.memory->data();
      if (storage != kernels::Storage::kI8) return out;
      out.scales.resize(outputs);
      out.sums.resize(outputs);
      out.matrix.scales = out.scales.data();
      out.matrix.sums = out.sums.data();
      return out;
    };
    // Rows of dout are rounded to 8 bits in `parts`, each with a scale of its own.
    const auto linear = [&](const LinearParameters& at, int32_t parts = 1) {
      Linear out{at, {}, {}};
      out.forward.push_back(panels(0, at.outputs, at.inputs));
      if (storage != kernels::Storage::kI8) parts = 1;
      const int32_t rows = at.outputs / parts;
      for (int32_t part = 0; part < parts; ++part)
        out.backward.push_back(panels(part * rows, at.inputs, rows));
      return out;
    };
    token = places.token;
    position = places.position;
    embedding_norm = places.embedding_norm;
    for (const EncoderParameters::Layer& at : places.layers) {
      layers.push_back({linear(at.qkv, 3), linear(at.attention_output), linear(at.up),
                        linear(at.down), at.attention_norm, at.output_norm});
    }
  }

  std::vector<Linear*> linears() {
    std::vector<Linear*> all;
    for (Layer& layer : layers) {
      for (Linear* linear : {&layer.qkv, &layer.attention_output, &layer.up, &layer.down})
        all.push_back(linear);
    }
    return all;
  }
};

/// Everything of one batch, in one allocation, the parts of its chunks and the scratch of the
/// threads behind it.
///
/// A tensor that a product reads is kept in the type the product reads; its f32, where that is
/// another one, goes through scratch. The backward pass writes the gradients that the weights'
/// gradients read over what it has no more use for.
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
    Rows dqkv;                       // [N, 3C]  over qkv in bf16, else shared by all layers
    Rows dattention;                 // [N, C]   over attention_sum, in 8 bits shared by all layers
    Rows dup;                        // [N, F]   over up, likewise
    Rows doutput;                    // [N, C]   over output_sum, likewise
  };
  float* embedding_sum = nullptr;  // [N, C]  input of the embedding's LayerNorm
  std::vector<Layer> layers;
  float* output = nullptr;  // [N, C]
  float* dx = nullptr;      // [N, C]  gradient of the stream of residuals

  // A layer's sums over the rows of every chunk: of the biases' gradients [chunks, outputs]
  float *qkv_bias = nullptr, *attention_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  struct NormParts {
    float *dgamma = nullptr, *dbeta = nullptr;  // [blocks, C]
  };
  NormParts attention_norm, output_norm;

  int32_t* positions = nullptr;         // [N]
  int32_t* token_buckets = nullptr;     // bucket_rows_memory(N, V)
  int32_t* position_buckets = nullptr;  // bucket_rows_memory(N, P)

  /// Rows of a chunk in the scratch of one thread, where they are not kept.
  struct Scratch {
    float* stream;     // [rows, C]  of x and y; of the gradient of context
    float* branch;     // [rows, C]  of context, dattention and doutput
    float* wide;       // [rows, 3C] or [rows, F]  of hidden, dup and dqkv
    float* attention;  // of the kernels
    float* weights;    // likewise
    float* quantized;  // what a product reads in 8 bits: rows of u8, and their QuantizedRow
    float* quantized_rows;
  };
  Scratch scratch(int32_t thread) const {
    Scratch at = scratch_;
    for (float** piece : {&at.stream, &at.branch, &at.wide, &at.attention, &at.weights,
                          &at.quantized, &at.quantized_rows})
      *piece += thread * scratch_floats_;
    return at;
  }

  const int64_t C_stride, qkv_stride, F_stride;
  const int64_t quantized_stride;  // bytes

  Buffers(const ModelConfig& config, Precision precision, int32_t num_threads)
      : C_stride(stride(config.hidden_size, precision)),
        qkv_stride(stride(3 * config.hidden_size, precision)),
        F_stride(stride(config.intermediate_size, precision)),
        quantized_stride(
            4 * row_stride((std::max(config.hidden_size, config.intermediate_size) + 3) / 4)),
        config_(config),
        precision_(precision),
        num_threads_(num_threads) {}

  /// Makes room for a batch of N tokens, whose longest sentence has `longest`. Where there is too
  /// little it makes half as much again as is asked for: pages that nothing touches cost nothing,
  /// and those of a new allocation much.
  void reserve(int32_t N, int32_t longest) {
    if (N <= max_tokens_ && longest <= max_longest_ && memory_ != nullptr) return;
    if (N > max_tokens_) max_tokens_ = N + N / 2;
    if (longest > max_longest_) max_longest_ = longest + longest / 2;
    memory_.reset();
    floats_ = 0;
    lay_out(nullptr);
    memory_ = std::make_unique<FlatBuffer>(floats_);
    floats_ = 0;
    lay_out(memory_->data());
  }

 private:
  static int64_t stride(int32_t columns, Precision precision) {
    return reads_bf16(precision) ? bf16_row_stride(columns) : row_stride(columns);
  }

  /// Gives every piece its place behind `base`; a base of null counts only.
  void lay_out(float* base) {
    const int64_t N = max_tokens_, C = config_.hidden_size, F = config_.intermediate_size;
    const auto place = [&](int64_t words) {  // of 32 bits
      float* at = base == nullptr ? nullptr : base + floats_;
      floats_ += (words + 15) / 16 * 16;
      return at;
    };
    const auto place_integers = [&](int64_t count) {
      return reinterpret_cast<int32_t*>(place(count));
    };
    const int64_t chunks = N / (kChunkRows / 2) + 1;  // at most
    const auto place_columns = [&](int64_t stride) {
      const int64_t steps = N / kernels::kStepRowsI8 + chunks,
                    blocks = N / kernels::kMaxRowsI8 + chunks;
      return Columns{reinterpret_cast<uint32_t*>(place_integers(steps * stride)), stride,
                     place(blocks * stride), place_integers(blocks * stride)};
    };
    const auto place_rows = [&](int64_t stride) {
      Rows rows{nullptr, stride};
      if (precision_ == Precision::kInt8) {
        rows.columns = place_columns(stride);
      } else if (precision_ == Precision::kBF16) {
        rows.narrow = reinterpret_cast<uint16_t*>(place(N * stride / 2));
        rows.narrow_stride = stride;
      } else {
        rows.wide = place(N * stride);
      }
      return rows;
    };
    const auto over = [&](float* f32, int64_t stride, const Rows& shared) {
      if (precision_ == Precision::kInt8) return shared;
      if (precision_ == Precision::kF32) return Rows{f32, stride};
      return Rows{nullptr, stride, reinterpret_cast<uint16_t*>(f32), 2 * stride};
    };
    const bool share = precision_ == Precision::kInt8;
    const Rows dqkv = precision_ == Precision::kBF16 ? Rows{} : place_rows(qkv_stride);
    const Rows dattention = share ? place_rows(C_stride) : Rows{};
    const Rows dup = share ? place_rows(F_stride) : Rows{};
    const Rows doutput = share ? place_rows(C_stride) : Rows{};
    embedding_sum = place(N * C_stride);
    layers.resize(config_.num_layers);
    for (Layer& layer : layers) {
      layer.x = place_rows(C_stride);
      layer.qkv = place(N * qkv_stride);
      layer.lse = place(N * config_.num_heads);
      layer.context = place_rows(C_stride);
      layer.attention_sum = place(N * C_stride);
      layer.y = place_rows(C_stride);
      layer.up = place(N * F_stride);
      layer.hidden = place_rows(F_stride);
      layer.output_sum = place(N * C_stride);
      layer.dqkv = precision_ == Precision::kBF16 ? over(layer.qkv, qkv_stride, dqkv) : dqkv;
      layer.dattention = over(layer.attention_sum, C_stride, dattention);
      layer.dup = over(layer.up, F_stride, dup);
      layer.doutput = over(layer.output_sum, C_stride, doutput);
    }
    output = place(N * C_stride);
    dx = place(N * C_stride);
    qkv_bias = place(chunks * 3 * C);
    attention_bias = place(chunks * C);
    up_bias = place(chunks * F);
    down_bias = place(chunks * C);
    const int64_t blocks = kernels::layernorm_block_count(max_tokens_) + chunks;
    attention_norm = {place(blocks * C), place(blocks * C)};
    output_norm = {place(blocks * C), place(blocks * C)};
    positions = place_integers(N);
    token_buckets = place_integers(kernels::bucket_rows_memory(max_tokens_, config_.vocab_size));
    position_buckets =
        place_integers(kernels::bucket_rows_memory(max_tokens_, config_.num_positions));

    // Of what the model takes at most the attention's would be beyond all memory: 8 bytes a token
    // and token.
    const int32_t longest = max_longest_, D = config_.hidden_size / config_.num_heads;
    const int64_t rows = kChunkRows - 1 + longest, before = floats_;
    scratch_.stream = place(rows * C_stride);
    scratch_.branch = place(rows * C_stride);
    scratch_.wide = place(rows * std::max(qkv_stride, F_stride));
    scratch_.attention = place(std::max(kernels::attention_scratch_floats(longest, D),
                                        kernels::attention_backward_scratch_floats(longest, D)));
    scratch_.weights = place(kernels::kGemmBackwardScratchFloats);
    const int64_t quantized = precision_ == Precision::kInt8 ? rows : 0;
    scratch_.quantized = place(quantized * quantized_stride / 4);
    scratch_.quantized_rows = place(quantized * sizeof(kernels::QuantizedRow) / 4);
    scratch_floats_ = floats_ - before;
    place((num_threads_ - 1) * scratch_floats_);
  }

  const ModelConfig& config_;
  const Precision precision_;
  const int32_t num_threads_;
  int32_t max_tokens_ = 0, max_longest_ = 0;
  int64_t floats_ = 0, scratch_floats_ = 0;
  Scratch scratch_ = {};
  std::unique_ptr<FlatBuffer> memory_;
};

/// The steps of both passes over one batch.
class Encoder::Steps {
 public:
  Steps(Encoder& encoder, const PairBatch& batch, const FlatBuffer& values, const uint16_t* narrow,
        const Dropout& dropout)
      : config_(encoder.config_),
        kernels_(encoder.kernels_),
        threads_(encoder.threads_),
        w_(*encoder.weights_),
        b_(*encoder.buffers_),
        batch_(batch),
        values_(values.data()),
        narrow_values_(encoder.precision_ == Precision::kBF16 ? narrow : nullptr),
        dropout_(dropout),
        chunks_(cut(batch)),
        N_(batch.num_tokens()),
        C_(encoder.config_.hidden_size),
        F_(encoder.config_.intermediate_size),
        H_(encoder.config_.num_heads),
        eps_(static_cast<float>(encoder.config_.layer_norm_eps)) {}

  /// Panels of every weight, of W or of Wᵀ.
  void pack(bool transposed) {
    struct Task {
      const Linear* linear;
      Panels* panels;
      int32_t first, last;
    };
    std::vector<Task> tasks;
    std::vector<Panels*> in_steps;
    for (Linear* linear : w_.linears()) {
      for (Panels& panels : transposed ? linear->backward : linear->forward) {
        const int32_t count = kernels::panel_count(panels.matrix.N);
        if (panels.matrix.storage == kernels::Storage::kI8 &&
            kernels_.gemm_forward_i8_isa == kernels::Isa::kAvx2)
          in_steps.push_back(&panels);
        for (int32_t first = 0; first < count; first += kPanelsPerTask)
          tasks.push_back({linear, &panels, first, std::min(first + kPanelsPerTask, count)});
      }
    }
    threads_.for_each(static_cast<int32_t>(tasks.size()), [&](int32_t task, int32_t) {
      const Task& at = tasks[task];
      const PackedMatrix& matrix = at.panels->matrix;
      const int32_t N = transposed ? matrix.K : matrix.N, K = at.linear->inputs;
      const int64_t from = at.linear->weight + int64_t{at.panels->first_row} * K;
      void* panels = at.panels->memory->data();
      const auto pack = [&](const auto* weights, auto... storage) {
        if (transposed) {
          kernels::gemm_pack_transposed_panels(weights, K, N, K, storage..., at.first, at.last,
                                               panels);
        } else {
          kernels::gemm_pack_panels(weights, K, N, K, storage..., at.first, at.last, panels);
        }
      };
      if (matrix.storage == kernels::Storage::kI8) {
        const auto codes = static_cast<int8_t*>(panels);
        float* scales = at.panels->scales.data();
        int32_t* sums = at.panels->sums.data();
        if (transposed) {
          // A panel of Wᵀ has four rows of a column of W in a lane.
          for (int32_t panel = at.first; panel < at.last; ++panel) {
            const int32_t k = panel * kernels::kPanelColumns;
            kernels_.quantize_columns_i8(values_ + from + k, K, N,
                                         std::min(K - k, kernels::kPanelColumns), 0,
                                         reinterpret_cast<uint32_t*>(codes) +
                                             int64_t{k} * block_count(N, kernels::kStepRowsI8),
                                         kernels::kPanelColumns, scales + k, sums + k);
          }
        } else {
          kernels::gemm_quantize_panels(values_ + from, K, N, K, at.first, at.last, codes, scales,
                                        sums);
        }
      } else if (narrow_values_ != nullptr) {
        pack(narrow_values_ + from);
      } else {
        pack(values_ + from, matrix.storage);
      }
    });
    threads_.for_each(static_cast<int32_t>(in_steps.size()), [&](int32_t task, int32_t) {
      Panels& panels = *in_steps[task];
      const int64_t floats = block_count(kernels::gemm_pack_steps_i8_avx2(panels.matrix, nullptr),
                                         int64_t{sizeof(float)});
      if (panels.steps == nullptr || panels.steps->size() < floats)
        panels.steps = std::make_unique<FlatBuffer>(floats);
      kernels::gemm_pack_steps_i8_avx2(panels.matrix, panels.steps->data());
      panels.matrix.steps = panels.steps->data();
    });
  }

  template <typename Body>
  void for_each_chunk(Body&& body) {
    threads_.for_each(num_chunks(),
                      [&](int32_t chunk, int32_t thread) { body(chunks_[chunk], thread); });
  }

  /// From ids to the sentences' embeddings.
  void forward(const Chunk& chunk, int32_t thread, float* u, int64_t u_stride) {
    const Buffers::Scratch scratch = b_.scratch(thread);
    const int32_t L = config_.num_layers;
    const Rows last{b_.output, b_.C_stride, nullptr, 0};
    const auto input = [&](int32_t layer) {
      return layer < L ? with_f32(b_.layers[layer].x, scratch.stream, chunk) : last;
    };
    embedding(chunk, input(0));
    for (int32_t i = 0; i < L; ++i) {
      const Weights::Layer& w = w_.layers[i];
      const Buffers::Layer& at = b_.layers[i];
      const Rows x = input(i), context = with_f32(at.context, scratch.branch, chunk),
                 y = with_f32(at.y, scratch.stream, chunk),
                 hidden = with_f32(at.hidden, scratch.wide, chunk);
      gemm(chunk, scratch, x, w.qkv, at.qkv, b_.qkv_stride);  // [N,C]·[C,3C]
      attention(chunk, in_stream(dropout_, probabilities_stream(i, H_)), at, context,
                scratch.attention);
      gemm(chunk, scratch, context, w.attention_output, at.attention_sum,
           b_.C_stride);  // [N,C]·[C,C]
      add_and_norm(chunk, in_stream(dropout_, attention_output_stream(i, H_)), x, w.attention_norm,
                   at.attention_sum, y);
      gemm(chunk, scratch, y, w.up, at.up, b_.F_stride);  // [N,C]·[C,F]
      activation(chunk, at.up, hidden);
      gemm(chunk, scratch, hidden, w.down, at.output_sum, b_.C_stride);  // [N,F]·[F,C]
      add_and_norm(chunk, in_stream(dropout_, output_stream(i, H_)), y, w.output_norm,
                   at.output_sum, input(i + 1));
    }
    kernels_.pooling_forward_f32(b_.output, b_.C_stride, cu_seqlens(), chunk.first_sentence,
                                 chunk.last_sentence, C_, config_.pooling, u, u_stride);
  }

  /// The pooling of forward(): dx ← the gradient of the encoder's output
  void unpool(const Chunk& chunk, const float* du, int64_t du_stride) {
    kernels_.pooling_backward_f32(b_.output, b_.C_stride, du, du_stride, cu_seqlens(),
                                  chunk.first_sentence, chunk.last_sentence, C_, config_.pooling,
                                  b_.dx, b_.C_stride);
  }

  /// Layer i of forward(): dx, of its output, becomes that of its input. Leaves what
  /// layer_gradients reads.
  void backward(int32_t i, const Chunk& chunk, int32_t thread) {
    const Buffers::Scratch scratch = b_.scratch(thread);
    const Weights::Layer& w = w_.layers[i];
    const Buffers::Layer& at = b_.layers[i];
    const Rows dx{b_.dx, b_.C_stride, nullptr, 0},
        dhidden{of_chunk(scratch.wide, b_.F_stride, chunk), b_.F_stride, nullptr, 0},
        dcontext{of_chunk(scratch.stream, b_.C_stride, chunk), b_.C_stride, nullptr, 0};
    const Rows doutput = with_f32(at.doutput, scratch.branch, chunk),
               dup = with_f32(at.dup, scratch.wide, chunk),
               dattention = with_f32(at.dattention, scratch.branch, chunk),
               dqkv = with_f32(at.dqkv, scratch.wide, chunk);
    // add_and_norm(…, w.output_norm, …)
    unadd_and_unnorm(chunk, in_stream(dropout_, output_stream(i, H_)), w.output_norm, at.output_sum,
                     doutput, b_.output_norm);
    // gemm(chunk, hidden, w.down, …)
    bias_part(chunk, doutput, w.down, b_.down_bias);
    input_gradient(chunk, scratch, doutput, w.down, dhidden, false);
    unactivation(chunk, at.up, dhidden, dup);  // activation
    // gemm(chunk, y, w.up, …)
    bias_part(chunk, dup, w.up, b_.up_bias);
    input_gradient(chunk, scratch, dup, w.up, dx, true);
    // add_and_norm(…, w.attention_norm, …)
    unadd_and_unnorm(chunk, in_stream(dropout_, attention_output_stream(i, H_)), w.attention_norm,
                     at.attention_sum, dattention, b_.attention_norm);
    // gemm(chunk, context, w.attention_output, …)
    bias_part(chunk, dattention, w.attention_output, b_.attention_bias);
    input_gradient(chunk, scratch, dattention, w.attention_output, dcontext, false);
    unattention(chunk, in_stream(dropout_, probabilities_stream(i, H_)), at, dcontext, dqkv,
                scratch.attention);  // attention
    // gemm(chunk, x, w.qkv, …)
    bias_part(chunk, dqkv, w.qkv, b_.qkv_bias);
    input_gradient(chunk, scratch, dqkv, w.qkv, dx, true);
  }

  /// The gradients of layer i's parameters, after backward() of every chunk.
  void layer_gradients(int32_t i, FlatBuffer& gradients) {
    const Weights::Layer& w = w_.layers[i];
    const Buffers::Layer& at = b_.layers[i];
    struct Task {
      const Linear* linear;
      const Rows *dout, *a;
      const float* bias_parts;
      int32_t first, last;  // rows of the weight
    };
    std::vector<Task> tasks;
    const auto add = [&](const Linear& linear, const Rows& dout, const Rows& a,
                         const float* bias_parts) {
      // Large blocks read a less often, small ones occupy all threads.
      const int32_t N = linear.outputs;
      const int32_t share = (N / (2 * threads_.num_threads()) + 31) / 32 * 32;
      const int32_t outputs = std::clamp(share, kFewestOutputsPerTask, kOutputsPerTask);
      for (int32_t first = 0; first < N; first += outputs)
        tasks.push_back({&linear, &dout, &a, bias_parts, first, std::min(first + outputs, N)});
    };
    add(w.qkv, at.dqkv, at.x, b_.qkv_bias);
    add(w.down, at.doutput, at.hidden, b_.down_bias);
    add(w.up, at.dup, at.y, b_.up_bias);
    add(w.attention_output, at.dattention, at.context, b_.attention_bias);
    threads_.for_each(static_cast<int32_t>(tasks.size()), [&](int32_t task, int32_t thread) {
      const auto& [linear, dout, a, bias_parts, first, last] = tasks[task];
      const int32_t K = linear->inputs;
      float* dw = gradients.data() + linear->weight;
      float* scratch = b_.scratch(thread).weights;
      if (dout->columns.lanes != nullptr) {
        for (const Chunk& chunk : chunks_) {
          for (int32_t i = 0; i < chunk.blocks(); ++i) {
            const Columns dy = in_block(*dout, linear->outputs, chunk, i),
                          x = in_block(*a, K, chunk, i);
            kernels_.gemm_backward_weight_i8(dy.lanes, dy.stride, dy.scales, x.lanes, x.stride,
                                             x.scales, x.sums, chunk.block_rows(i), first, last, K,
                                             true, dw, K, scratch);
          }
        }
      } else if (dout->narrow != nullptr) {
        kernels_.gemm_backward_weight_bf16(dout->narrow, dout->narrow_stride, a->narrow,
                                           a->narrow_stride, N_, first, last, K, true, dw, K,
                                           scratch);
      } else {
        kernels_.gemm_backward_weight_f32(dout->wide, dout->stride, a->wide, a->stride, N_, first,
                                          last, K, true, dw, K, scratch);
      }
      kernels_.column_sum_f32(bias_parts, linear->outputs, num_chunks(), first, last, true,
                              gradients.data() + linear->bias);
    });
    norm_gradient(w.attention_norm, b_.attention_norm, gradients);
    norm_gradient(w.output_norm, b_.output_norm, gradients);
  }

  /// embedding: dx, of its result, becomes that of the sum
  void unembedding(const Chunk& chunk) {
    kernels_.dropout_forward_f32(b_.dx, b_.C_stride, chunk.first, chunk.last, C_,
                                 in_stream(dropout_, embedding_stream()), nullptr, 0, b_.dx,
                                 b_.C_stride);
    unnorm(chunk, w_.embedding_norm, b_.embedding_sum, b_.output_norm);
  }

  /// The gradients of the embedding's parameters, after unembedding() of every chunk.
  void embedding_gradients(FlatBuffer& gradients) {
    norm_gradient(w_.embedding_norm, b_.output_norm, gradients);
    const kernels::RowBuckets tokens = kernels::bucket_rows(
        batch_.token_ids.data(), N_, config_.vocab_size, config_.pad_id, b_.token_buckets);
    const kernels::RowBuckets positions =
        kernels::bucket_rows(b_.positions, N_, config_.num_positions, -1, b_.position_buckets);
    scatter(tokens, gradients.data() + w_.token);
    scatter(positions, gradients.data() + w_.position);
  }

 private:
  // ---- forward ----

  /// sum ← token + position;  out ← dropout(LayerNorm(sum))
  void embedding(const Chunk& chunk, const Rows& out) {
    for (int32_t b = chunk.first_sentence; b < chunk.last_sentence; ++b) {
      const int32_t begin = cu_seqlens()[b];
      for (int32_t i = begin; i < cu_seqlens()[b + 1]; ++i)
        b_.positions[i] = config_.position_offset + i - begin;
    }
    float* sum = b_.embedding_sum;
    kernels_.embedding_forward_f32(batch_.token_ids.data(), b_.positions, chunk.first, chunk.last,
                                   values_ + w_.token, values_ + w_.position,
                                   kernels::Storage::kF32, nullptr, nullptr, nullptr, eps_, C_, sum,
                                   b_.C_stride, nullptr);
    norm(chunk, w_.embedding_norm, sum, out);
    kernels_.dropout_forward_f32(out.wide, out.stride, chunk.first, chunk.last, C_,
                                 in_stream(dropout_, embedding_stream()), nullptr, 0, out.wide,
                                 out.stride);
    keep(chunk, out, C_);
  }

  /// out ← a · Wᵀ + bias
  void gemm(const Chunk& chunk, const Buffers::Scratch& scratch, const Rows& a,
            const Linear& linear, float* out, int64_t out_stride) {
    product(chunk, scratch, a, linear.forward.front().matrix,
            {values_ + linear.bias, Activation::kNone, nullptr, 0}, out, out_stride);
  }

  void attention(const Chunk& chunk, const Dropout& dropout, const Buffers::Layer& layer,
                 const Rows& context, float* scratch) {
    kernels_.attention_dropout_forward_f32(
        layer.qkv, b_.qkv_stride, cu_seqlens(), chunk.first_sentence, chunk.last_sentence, 0, H_,
        H_, C_ / H_, dropout, context.wide, context.stride, layer.lse, scratch);
    keep(chunk, context, C_);
  }

  /// sum ← residual + dropout(sum);  out ← LayerNorm(sum)
  void add_and_norm(const Chunk& chunk, const Dropout& dropout, const Rows& residual,
                    const Norm& parameters, float* sum, const Rows& out) {
    kernels_.dropout_forward_f32(sum, b_.C_stride, chunk.first, chunk.last, C_, dropout,
                                 residual.wide, residual.stride, sum, b_.C_stride);
    norm(chunk, parameters, sum, out);
    keep(chunk, out, C_);
  }

  /// out ← f(in)
  void activation(const Chunk& chunk, const float* in, const Rows& out) {
    for (int32_t i = chunk.first; i < chunk.last; ++i) {
      kernels_.activation_forward_f32(in + i * b_.F_stride, F_, config_.activation,
                                      out.wide + i * out.stride);
    }
    keep(chunk, out, F_);
  }

  // ---- backward; each names the step it undoes ----

  /// add_and_norm: dx, of its result, becomes that of the sum, which is the residual's too;
  /// dbranch ← that of the sum before dropout
  void unadd_and_unnorm(const Chunk& chunk, const Dropout& dropout, const Norm& parameters,
                        const float* sum, const Rows& dbranch, const Buffers::NormParts& parts) {
    unnorm(chunk, parameters, sum, parts);
    kernels_.dropout_forward_f32(b_.dx, b_.C_stride, chunk.first, chunk.last, C_, dropout, nullptr,
                                 0, dbranch.wide, dbranch.stride);
    keep(chunk, dbranch, C_, true);
  }

  /// gemm: the chunk's part of the bias' gradient
  void bias_part(const Chunk& chunk, const Rows& dout, const Linear& linear, float* parts) {
    kernels_.column_sum_f32(dout.wide + chunk.first * dout.stride, dout.stride,
                            chunk.last - chunk.first, 0, linear.outputs, false,
                            parts + int64_t{chunk.index} * linear.outputs);
  }

  /// gemm: da ← dout · W (+ da)
  void input_gradient(const Chunk& chunk, const Buffers::Scratch& scratch, const Rows& dout,
                      const Linear& linear, const Rows& da, bool accumulate) {
    for (const Panels& part : linear.backward) {
      const GemmEpilogue onto{nullptr, Activation::kNone, da.wide, da.stride};
      product(chunk, scratch, from_column(dout, part.first_row), part.matrix,
              accumulate || part.first_row > 0 ? onto : GemmEpilogue{}, da.wide, da.stride);
    }
  }

  /// activation: din ← the gradient of its input
  void unactivation(const Chunk& chunk, const float* in, const Rows& dout, const Rows& din) {
    for (int32_t i = chunk.first; i < chunk.last; ++i) {
      kernels_.activation_backward_f32(in + i * b_.F_stride, dout.wide + i * dout.stride, F_,
                                       config_.activation, din.wide + i * din.stride);
    }
    keep(chunk, din, F_, true);
  }

  void unattention(const Chunk& chunk, const Dropout& dropout, const Buffers::Layer& layer,
                   const Rows& dcontext, const Rows& dqkv, float* scratch) {
    for (int32_t b = chunk.first_sentence; b < chunk.last_sentence; ++b) {
      const int32_t begin = cu_seqlens()[b];
      read_ahead(layer.qkv + begin * b_.qkv_stride, 4 * b_.qkv_stride, 4 * 3 * int64_t{C_},
                 cu_seqlens()[b + 1] - begin);
      kernels_.attention_backward_f32(layer.qkv, b_.qkv_stride, cu_seqlens(), b, b + 1, 0, H_, H_,
                                      C_ / H_, layer.lse, dropout, dcontext.wide, dcontext.stride,
                                      dqkv.wide, dqkv.stride, scratch);
    }
    keep(chunk, dqkv, 3 * C_, true);
  }

  // ---- both ----

  const int32_t* cu_seqlens() const { return batch_.cu_seqlens.data(); }
  int32_t num_chunks() const { return static_cast<int32_t>(chunks_.size()); }

  /// Rows of the chunk in scratch, addressed by their numbers in the batch: what is kept of the
  /// batch stands before all scratch, so that the address is within the allocation.
  static float* of_chunk(float* scratch, int64_t stride, const Chunk& chunk) {
    return scratch - chunk.first * stride;
  }
  /// `rows` with their f32 in scratch, unless it is kept.
  static Rows with_f32(Rows rows, float* scratch, const Chunk& chunk) {
    if (rows.wide == nullptr) rows.wide = of_chunk(scratch, rows.stride, chunk);
    return rows;
  }

  void product(const Chunk& chunk, const Buffers::Scratch& scratch, const Rows& a,
               const PackedMatrix& w, GemmEpilogue epilogue, float* out, int64_t out_stride) {
    const int32_t first = chunk.first, M = chunk.last - first, panels = kernels::panel_count(w.N);
    if (epilogue.residual != nullptr) epilogue.residual += first * epilogue.residual_stride;
    out += first * out_stride;
    if (w.storage == kernels::Storage::kI8) {
      const auto quantized = reinterpret_cast<uint8_t*>(scratch.quantized);
      const auto rows = reinterpret_cast<kernels::QuantizedRow*>(scratch.quantized_rows);
      kernels_.quantize_forward_u8(a.wide + first * a.stride, a.stride, 0, M, w.K, nullptr,
                                   quantized, b_.quantized_stride, rows);
      kernels_.gemm_forward_i8(quantized, b_.quantized_stride, M, rows, w, 0, panels, epilogue, out,
                               out_stride, nullptr, 0);
    } else if (w.storage == kernels::Storage::kBF16) {
      kernels_.gemm_forward_bf16(a.narrow + first * a.narrow_stride, a.narrow_stride, M, w, 0,
                                 panels, epilogue, out, out_stride, nullptr, 0);
    } else {
      kernels_.gemm_forward_f32(a.wide + first * a.stride, a.stride, M, w, 0, panels, epilogue, out,
                                out_stride);
    }
  }

  void norm(const Chunk& chunk, const Norm& parameters, const float* x, const Rows& out) {
    kernels_.layernorm_forward_f32(x, b_.C_stride, chunk.first, chunk.last, C_,
                                   values_ + parameters.gamma, values_ + parameters.beta, eps_,
                                   out.wide, out.stride);
  }

  /// norm: dx, of its result, becomes that of x
  void unnorm(const Chunk& chunk, const Norm& parameters, const float* x,
              const Buffers::NormParts& parts) {
    const int64_t from = chunk.first * b_.C_stride, part = int64_t{chunk.first_norm_block} * C_;
    kernels_.layernorm_backward_f32(x + from, b_.C_stride, b_.dx + from, b_.C_stride,
                                    chunk.last - chunk.first, 0, chunk.norm_blocks(), C_,
                                    values_ + parameters.gamma, eps_, b_.dx + from, b_.C_stride,
                                    parts.dgamma + part, parts.dbeta + part);
  }

  void norm_gradient(const Norm& parameters, const Buffers::NormParts& parts,
                     FlatBuffer& gradients) {
    const int32_t blocks =
        chunks_.empty() ? 0 : chunks_.back().first_norm_block + chunks_.back().norm_blocks();
    kernels_.column_sum_f32(parts.dgamma, C_, blocks, 0, C_, true,
                            gradients.data() + parameters.gamma);
    kernels_.column_sum_f32(parts.dbeta, C_, blocks, 0, C_, true,
                            gradients.data() + parameters.beta);
  }

  void scatter(const kernels::RowBuckets& buckets, float* dtable) {
    threads_.for_each(block_count(buckets.count, kBucketsPerTask), [&](int32_t task, int32_t) {
      const int32_t first = task * kBucketsPerTask;
      kernels_.embedding_backward_f32(b_.dx, b_.C_stride, buckets, first,
                                      std::min(first + kBucketsPerTask, buckets.count), C_, dtable);
    });
  }

  /// What is kept of rows whose f32 has been written: a copy in bf16, or the columns in 8 bits, of
  /// gradients as what stands left in a product.
  void keep(const Chunk& chunk, const Rows& rows, int32_t columns, bool gradient = false) {
    if (rows.narrow != nullptr) {
      kernels_.narrow_forward_bf16(rows.wide, rows.stride, chunk.first, chunk.last, columns,
                                   rows.narrow, rows.narrow_stride);
    }
    if (rows.columns.lanes == nullptr) return;
    for (int32_t i = 0; i < chunk.blocks(); ++i) {
      const Columns to = in_block(rows, columns, chunk, i);
      const int64_t first = chunk.first + i * kernels::kMaxRowsI8;
      kernels_.quantize_columns_i8(rows.wide + first * rows.stride, rows.stride,
                                   chunk.block_rows(i), columns, gradient ? 128 : 0, to.lanes,
                                   to.stride, to.scales, gradient ? nullptr : to.sums);
    }
  }

  /// The columns of block i of a chunk.
  static Columns in_block(const Rows& rows, int32_t columns, const Chunk& chunk, int32_t i) {
    Columns at = rows.columns;
    at.lanes += (chunk.first_step + i * (kernels::kMaxRowsI8 / kernels::kStepRowsI8)) * at.stride;
    at.scales += (chunk.first_block + i) * int64_t{columns};
    at.sums += (chunk.first_block + i) * int64_t{columns};
    return at;
  }

  const ModelConfig& config_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  Weights& w_;
  Buffers& b_;
  const PairBatch& batch_;
  const float* values_;
  const uint16_t* narrow_values_;  // null: not there, or not what the products read
  const Dropout& dropout_;
  const std::vector<Chunk> chunks_;
  const int32_t N_, C_, F_, H_;
  const float eps_;
};

Encoder::Encoder(const ModelConfig& config, const ParameterTable& table, Precision precision,
                 const kernels::KernelTable& kernels, ThreadPool& threads)
    : config_(config),
      precision_(precision),
      kernels_(kernels),
      threads_(threads),
      weights_(std::make_unique<Weights>(config, table, precision)),
      buffers_(std::make_unique<Buffers>(config_, precision, threads.num_threads())) {}

Encoder::~Encoder() = default;

void Encoder::forward(const PairBatch& batch, const FlatBuffer& values, const uint16_t* narrow,
                      const Dropout& dropout, float* u, int64_t u_stride) {
  int32_t longest = 0;
  for (size_t s = 1; s < batch.cu_seqlens.size(); ++s)
    longest = std::max(longest, batch.cu_seqlens[s] - batch.cu_seqlens[s - 1]);
  buffers_->reserve(batch.num_tokens(), longest);
  Steps steps(*this, batch, values, narrow, dropout);
  steps.pack(false);
  steps.for_each_chunk(
      [&](const Chunk& chunk, int32_t thread) { steps.forward(chunk, thread, u, u_stride); });
}

void Encoder::backward(const PairBatch& batch, const FlatBuffer& values, const uint16_t* narrow,
                       const Dropout& dropout, const float* du, int64_t du_stride,
                       FlatBuffer& gradients) {
  Steps steps(*this, batch, values, narrow, dropout);
  steps.pack(true);
  steps.for_each_chunk([&](const Chunk& chunk, int32_t) { steps.unpool(chunk, du, du_stride); });
  for (int32_t i = config_.num_layers - 1; i >= 0; --i) {
    steps.for_each_chunk(
        [&](const Chunk& chunk, int32_t thread) { steps.backward(i, chunk, thread); });
    steps.layer_gradients(i, gradients);
  }
  steps.for_each_chunk([&](const Chunk& chunk, int32_t) { steps.unembedding(chunk); });
  steps.embedding_gradients(gradients);
}

}  // namespace xsr::training
