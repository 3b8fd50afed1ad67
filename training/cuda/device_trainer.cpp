#include "training/cuda/device_trainer.h"

#include <algorithm>
#include <string>

#include "kernels/activation/activation_cuda.h"
#include "kernels/activation/activation_training_cuda.h"
#include "kernels/attention/attention_training_cuda.h"
#include "kernels/embedding/embedding.h"
#include "kernels/embedding/embedding_backward_cuda.h"
#include "kernels/layernorm/layernorm_training_cuda.h"
#include "kernels/loss/loss_cuda.h"
#include "kernels/optimizer/optimizer_cuda.h"
#include "kernels/pooling/pooling_cuda.h"
#include "kernels/pooling/pooling_training_cuda.h"
#include "runtime/device/cuda/token_bucket.h"

namespace xsr::training {
namespace {

using cuda::check;
using cuda::Matrix;
using cuda::Memory;
using cuda::NormRows;
using cuda::Place;
using cuda::Plan;
using cuda::StepOutcome;
using kernels::Dropout;

constexpr uint32_t kLeastBucket = 128;  // a weight's gradient may then be summed in parts
constexpr int32_t kSumsOfLayer = 8;     // that its backward pass leaves to add_sums()
constexpr int32_t kLayersOfSums = cuda::PartSums::kMost / kSumsOfLayer;
// Shapes of batches whose step is kept as a graph. Batches by tokens have nearly as many shapes as
// there are batches, and a graph takes memory.
constexpr size_t kMostGraphs = 256;

/// Where rank r's share of `total` pairs begins.
int32_t share_of(int32_t total, int32_t r, int32_t ranks) {
  return static_cast<int32_t>(int64_t{total} * r / ranks);
}

}  // namespace

PairBatch slice_pairs(const PairBatch& batch, int32_t first, int32_t last) {
  PairBatch slice;
  slice.num_pairs = last - first;
  slice.cu_seqlens = {0};
  int32_t shift[2] = {};  // of a side's rows
  for (int32_t side = 0; side < 2; ++side) {
    const int32_t begin = side * batch.num_pairs + first, end = side * batch.num_pairs + last;
    shift[side] = slice.num_tokens() - batch.cu_seqlens[begin];
    slice.token_ids.insert(slice.token_ids.end(), batch.token_ids.begin() + batch.cu_seqlens[begin],
                           batch.token_ids.begin() + batch.cu_seqlens[end]);
    for (int32_t b = begin; b < end; ++b)
      slice.cu_seqlens.push_back(batch.cu_seqlens[b + 1] + shift[side]);
  }
  for (int32_t b = first; b < last; ++b) {
    const int32_t row = batch.masked_row[b];
    slice.masked_id.push_back(batch.masked_id[b]);
    slice.masked_row.push_back(row < 0 ? row : row + shift[batch.masked_side[b]]);
    slice.masked_side.push_back(batch.masked_side[b]);
    slice.pair_numbers.push_back(batch.pair_numbers[b]);
  }
  return slice;
}

DeviceTrainer::DeviceTrainer(const ModelConfig& config, const StepConfig& step,
                             const ParameterTable& table, const CudaTrainerOptions& options,
                             int32_t device, std::unique_ptr<Communicator> communicator)
    : config_(config),
      step_(step),
      table_(table),
      options_(options),
      device_(device),
      communicator_(std::move(communicator)),
      C(config.hidden_size),
      F(config.intermediate_size),
      H(config.num_heads),
      V(config.vocab_size),
      bf16_(step.precision == Precision::kBF16),
      bf16_attention_(bf16_ && cuda::attention_bf16_takes(C / H)),
      pooled_norm_(bf16_ && config.num_layers > 0 && C <= cuda::kMostRegisterColumns &&
                   config.pooling != kernels::Pooling::kMax),
      eps_(static_cast<float>(config.layer_norm_eps)),
      values_(table.size()),
      gradients_(table.size()),
      first_moment_(table.size()),
      second_moment_(table.size()),
      encoder_(table, config.num_layers),
      batch_(config, step.objectives) {
  select_device();
  stream_.emplace(true);
  beside_.emplace();
  for (std::optional<cuda::Gemm>* gemm : {&gemm_, &gemm_beside_}) gemm->emplace(options.tf32);
  for (std::optional<cuda::Event>* event : {&forked_, &joined_, &tile_read_, &dbranch_.read[0],
                                            &dbranch_.read[1], &dwide_.read[0], &dwide_.read[1]})
    event->emplace();
  if (step.optimizer.amsgrad) max_second_moment_.emplace(table.size());
  const size_t size = static_cast<size_t>(table.size());
  Plan plan;
  for (Mirror* mirror : mirrors()) plan.add(&mirror->device, size);
  plan.add(&gradients_.device, size);
  plan.add(&narrow_, bf16_ ? size : 0);
  plan.add(&norm_parts_, static_cast<size_t>(cuda::norm_parts_cuda(table.size())));
  plan.add(&outcome_, 1);
  state_memory_ = plan.allocate(Place::kDevice);
  cuda::fill_zero(gradients_.device, sizeof(float) * size, stream());
  gradients_.newer = Mirror::kBoth;
  Plan pinned;
  pinned.add(&host_outcome_, 1);
  pinned_memory_ = pinned.allocate(Place::kPinned);
  find_parameters();
}

DeviceTrainer::~DeviceTrainer() {
  // Graphs and copies under way read the memory below.
  for (const std::optional<cuda::StreamOwner>* stream : {&stream_, &beside_}) {
    try {
      if (*stream) (*stream)->synchronize();
    } catch (const Error&) {  // said when it happened
    }
  }
}

// ---- state ----

DeviceTrainer::Mirror* DeviceTrainer::mirror(State state) {
  switch (state) {
    case State::kValue:
      return &values_;
    case State::kFirstMoment:
      return &first_moment_;
    case State::kSecondMoment:
      return &second_moment_;
    case State::kMaxSecondMoment:
      return max_second_moment_ ? &*max_second_moment_ : nullptr;
  }
  return nullptr;
}

void DeviceTrainer::download(Mirror& mirror) {
  if (mirror.newer != Mirror::kDevice) return;
  select_device();
  cuda::copy_to_host(mirror.host.data(), mirror.device, bytes(), stream());
  stream_->synchronize();
  mirror.newer = Mirror::kBoth;
}

void DeviceTrainer::upload(State state, const FlatBuffer& host) {
  select_device();
  Mirror& to = *mirror(state);
  cuda::copy_to_device(to.device, host.data(), bytes(), stream());
  if (state == State::kValue && bf16_) {
    check(cuda::narrow_forward_bf16_cuda(values_.device, table_.size(), narrow_, stream()),
          "rounding the parameters");
  }
  stream_->synchronize();  // the caller may write the host's copy again
  to.newer = &to.host == &host ? Mirror::kBoth : Mirror::kDevice;
}

// ---- one batch ----

bool DeviceTrainer::take(const PairBatch& batch, bool is_prepared, Dropout dropout,
                         const kernels::AdamStep& adam) {
  select_device();
  if (is_under_way_) {  // an error came first: what was given by then reads the batch before
    stream_->synchronize();
    beside_->synchronize();
    is_forked_ = is_under_way_ = false;
  }
  first_ = share_of(batch.num_pairs, rank(), ranks());
  // No two devices share a mask; a model has far fewer streams.
  dropout.stream += static_cast<uint32_t>(rank()) << 20;
  const bool taken = is_prepared && batch_.take_prepared();
  if (!taken) {
    PairBatch slice;
    const PairBatch& share = own_share(batch, slice);
    if (batch_.build(share, filled(batch), batch.num_pairs)) {
      try {
        reserve();
      } catch (...) {
        batch_.release();  // or a smaller batch would take what is not there for large enough
        throw;
      }
    }
  }
  batch_.set_coefficients(dropout, adam);
  return taken;
}

void DeviceTrainer::prepare(const PairBatch& batch) {
  batch_.forget_prepared();  // also where there is no memory for the share
  PairBatch slice;
  const PairBatch& share = own_share(batch, slice);
  batch_.prepare(share, filled(batch), batch.num_pairs);
}

void DeviceTrainer::step(const std::function<void()>& meanwhile) {
  select_device();
  is_under_way_ = true;
  // Not in the graph: what was prepared lies elsewhere on the host.
  batch_.upload(stream());
  const auto enqueue = [&] {
    sums_.count = 0;
    parts_taken_ = 0;
    for (Turns* rows : {&dbranch_, &dwide_}) rows->is_read[0] = rows->is_read[1] = false;
    forward();
    losses(true);
    backward();
    update();
  };
  // The first step of a shape runs as it stands: kernels are loaded and algorithms chosen outside
  // a capture, and a shape that comes up once costs no graph. NCCL wants a call captured by all
  // devices or by none.
  const Shape shape{batch_.total_pairs(), batch_.tokens(),
                    bf16_attention_ ? batch_.attention_chunks() : 0};
  const auto at = graphs_.find(shape);
  if (at == graphs_.end()) {
    enqueue();
    if (graphs_.size() < kMostGraphs) graphs_.emplace(shape, cuda::Graph());
  } else {
    if (!at->second) at->second = cuda::Graph::capture(stream(), enqueue);
    at->second.launch(stream());
  }
  meanwhile();
  stream_->synchronize();
  is_under_way_ = false;
  gradients_.newer = Mirror::kDevice;
  embeddings_current_ = false;
  if (host_outcome_->finite != 0) {
    for (Mirror* mirror : mirrors()) mirror->newer = Mirror::kDevice;
  }
}

void DeviceTrainer::evaluate(bool with_losses) {
  select_device();
  is_under_way_ = true;
  batch_.upload(stream());
  forward();
  if (with_losses) losses(false);
  cuda::copy_to_host(host_outcome_, outcome_, sizeof(StepOutcome), stream());
  stream_->synchronize();
  is_under_way_ = false;
  embeddings_current_ = false;
}

const std::vector<float>& DeviceTrainer::embeddings() {
  if (!embeddings_current_) {
    select_device();
    embeddings_.resize(2 * static_cast<size_t>(batch_.total_pairs()) * C);
    cuda::copy_to_host(embeddings_.data(), u_all_, sizeof(float) * embeddings_.size(), stream());
    stream_->synchronize();
    embeddings_current_ = true;
  }
  return embeddings_;
}

LossParts DeviceTrainer::parts(const StepOutcome& outcome) const {
  LossParts result;
  for (const auto& [name, weight] : names_) {
    result.parts.push_back({name, weight, outcome.losses[result.parts.size()]});
    result.total += weight * result.parts.back().value;
  }
  return result;
}

DeviceBatch::Filled DeviceTrainer::filled(const PairBatch& batch) const {
  const int32_t B = batch.num_pairs;
  DeviceBatch::Filled most;
  for (int32_t r = 0; r < ranks(); ++r) {
    DeviceBatch::Filled own;
    for (const int32_t side : {0, B}) {
      const int32_t first = side + share_of(B, r, ranks()),
                    last = side + share_of(B, r + 1, ranks());
      own.tokens += batch.cu_seqlens[last] - batch.cu_seqlens[first];
      own.attention_chunks += cuda::attention_chunks(batch.cu_seqlens.data() + first, last - first,
                                                     cuda::kChunkRows, nullptr);
    }
    most.tokens = std::max(most.tokens, own.tokens);
    most.attention_chunks = std::max(most.attention_chunks, own.attention_chunks);
  }
  return {cuda::token_bucket(most.tokens, kLeastBucket),
          DeviceBatch::chunk_bucket(most.attention_chunks)};
}

const PairBatch& DeviceTrainer::own_share(const PairBatch& batch, PairBatch& slice) const {
  if (ranks() == 1) return batch;
  const int32_t B = batch.num_pairs;
  slice = slice_pairs(batch, share_of(B, rank(), ranks()), share_of(B, rank() + 1, ranks()));
  return slice;
}

std::vector<DeviceTrainer::Mirror*> DeviceTrainer::mirrors() {
  std::vector<Mirror*> all = {&values_, &first_moment_, &second_moment_};
  if (max_second_moment_) all.push_back(&*max_second_moment_);
  return all;
}

void DeviceTrainer::find_parameters() {
  transform_ = find_linear(table_, "head.transform");
  head_norm_ = {table_.at("head.norm.gamma").offset, table_.at("head.norm.beta").offset};
  output_bias_ = table_.at("head.output.bias").offset;
  const ObjectiveConfig& o = step_.objectives;
  for (const auto& [name, weight] :
       {std::pair("xtr", o.xtr_weight), std::pair("ugt", o.ugt_weight),
        std::pair("smlm", o.smlm_weight), std::pair("align", o.align_weight),
        std::pair("sim", o.sim_weight), std::pair("info_nce", o.info_nce_weight)}) {
    if (weight != 0) names_.emplace_back(name, weight);
  }
  static_assert(StepOutcome::kMaxLosses == 6);
}

void DeviceTrainer::reserve() {
  const size_t N = static_cast<size_t>(batch_.max_tokens()),
               S = static_cast<size_t>(batch_.max_sentences()),
               B = static_cast<size_t>(batch_.max_total_pairs());
  const size_t c = static_cast<size_t>(C), f = static_cast<size_t>(F);
  Plan plan;
  const auto rows = [&](Rows* rows, size_t columns) {
    plan.add(&rows->wide, N * columns);
    plan.add(&rows->narrow, bf16_ ? N * columns : 0);
  };
  const auto either = [&](Rows* rows, size_t columns, bool narrow) {
    plan.add(&rows->wide, narrow ? 0 : N * columns);
    plan.add(&rows->narrow, narrow ? N * columns : 0);
  };
  plan.add(&embedding_sum_, N * c);
  plan.add(&embedding_statistics_, 2 * N);
  rows_.assign(encoder_.layers.size(), {});
  for (LayerRows& layer : rows_) {
    if (&layer == &rows_.front()) {
      rows(&layer.x, c);
    } else {
      either(&layer.x, c, bf16_);
    }
    either(&layer.qkv, 3 * c, bf16_attention_);
    plan.add(&layer.lse, N * static_cast<size_t>(H));
    either(&layer.context, c, bf16_);
    plan.add(&layer.attention_sum, N * c);
    plan.add(&layer.attention_statistics, 2 * N);
    either(&layer.y, c, bf16_);
    either(&layer.up, f, bf16_);
    either(&layer.hidden, f, bf16_);
    plan.add(&layer.output_sum, N * c);
    plan.add(&layer.output_statistics, 2 * N);
  }
  plan.add(&output_, pooled_norm_ ? 0 : N * c);
  plan.add(&sentence_of_, pooled_norm_ ? N : 0);
  plan.add(&branch_, bf16_ ? N * c : 0);
  plan.add(&dx_, N * c);
  either(&dcontext_, c, bf16_attention_);
  plan.add(&delta_, 3 * N * static_cast<size_t>(H));
  for (Rows& one : dbranch_.both) either(&one, c, bf16_);
  for (Rows& one : dwide_.both) either(&one, std::max(3 * c, f), bf16_);
  const int32_t most = static_cast<int32_t>(std::max(N, S));
  const int32_t most_sentences = batch_.max_sentences();
  const int64_t logits = most_logits(options_.vocabulary_tile, most_sentences, V);
  // Of vocabulary_bias_floats_cuda() for any number of sentences: blocks of 16 rows at least, the
  // last of which may be short, and 32 at most.
  const int64_t of_vocabulary = std::min(logits / 16 + tile(1), int64_t{32} * tile(1));
  const int64_t of_norm = cuda::layernorm_backward_floats_cuda(most, C);
  const int64_t of_head = of_vocabulary + of_norm + cuda::column_sum_floats_cuda(most, C);
  parts_size_ =
      of_head + of_norm + std::min(config_.num_layers, kLayersOfSums) * parts_of_layer(most);
  plan.add(&parts_, static_cast<size_t>(parts_size_));
  // sentences
  for (float** own : {&pre_, &activated_, &dt_}) plan.add(own, S * c);
  for (float** own : {&u_, &du_}) plan.add(own, communicator_ != nullptr ? S * c : 0);
  for (float** of_all : {&u_all_, &du_all_, &unit_, &dunit_}) plan.add(of_all, 2 * B * c);
  plan.add(&t_.wide, S * c);
  plan.add(&t_.narrow, bf16_ ? S * c : 0);
  plan.add(&head_statistics_, 2 * S);
  plan.add(&z_, static_cast<size_t>(logits));
  plan.add(&z_narrow_, bf16_ ? static_cast<size_t>(logits) : 0);
  plan.add(&tile_max_, S * static_cast<size_t>(tiles(most_sentences)));
  plan.add(&tile_sum_, S * static_cast<size_t>(tiles(most_sentences)));
  plan.add(&lse_, S);
  plan.add(&loss_parts_, std::max(3 * S, B));
  for (float** similarities : {&s_[0], &s_[1]}) plan.add(similarities, B * B);
  plan.add(&similarity_statistics_, 4 * B);
  graphs_.clear();  // they read and write what is freed here
  lost_graphs_ = true;
  memory_ = Memory();
  memory_ = plan.allocate(Place::kDevice);
  if (communicator_ == nullptr) {
    u_ = u_all_;
    du_ = du_all_;
  }
}

// ---- what runs beside the stream ----

void DeviceTrainer::fork() {
  forked_->record(stream());
  is_forked_ = true;
  forked_->hold(beside());
}

void DeviceTrainer::join() {
  if (!is_forked_) return;
  joined_->record(beside());
  joined_->hold(stream());
  is_forked_ = false;
}

void DeviceTrainer::turn(Turns& rows) {
  rows.now = 1 - rows.now;
  if (std::exchange(rows.is_read[rows.now], false)) rows.read[rows.now]->hold(stream());
  static_cast<Rows&>(rows) = rows.both[rows.now];
}

void DeviceTrainer::reads(Turns& rows) {
  rows.read[rows.now]->record(beside());
  rows.is_read[rows.now] = true;
}

void DeviceTrainer::product_beside(int32_t M, int32_t N, int32_t K, const Matrix& a,
                                   const Matrix& b, float* out) {
  fork();
  run({M, N, K, a, b, out, N}, true);
}

// ---- forward ----

Matrix DeviceTrainer::operand(const Rows& rows, int32_t columns, bool transposed) const {
  return bf16_ ? Matrix{rows.narrow, columns, cuda::Dtype::kBf16, transposed}
               : Matrix{rows.wide, columns, cuda::Dtype::kF32, transposed};
}

Matrix DeviceTrainer::weight(int64_t offset, int32_t columns, bool transposed) const {
  return bf16_ ? Matrix{narrow_ + offset, columns, cuda::Dtype::kBf16, transposed}
               : f32(value(offset), columns, transposed);
}

void DeviceTrainer::run(cuda::Product p, bool is_beside) {
  p.split_k = true;
  if (is_beside) {
    gemm_beside_->run(p, beside());
  } else {
    gemm_->run(p, stream());
  }
}

void DeviceTrainer::product(int32_t M, int32_t N, int32_t K, const Matrix& a, const Matrix& b,
                            float* out, const float* bias, bool accumulate) {
  cuda::Product p{M, N, K, a, b, out, N};
  p.bias = bias;
  if (accumulate) {
    p.c = out;
    p.c_stride = N;
  }
  run(p);
}

void DeviceTrainer::narrow_product(int32_t N, int32_t K, const Matrix& a, const Matrix& b,
                                   uint16_t* out) {
  cuda::Product p{batch_.tokens(), N, K, a, b, out, N};
  p.out_dtype = cuda::Dtype::kBf16;
  run(p);
}

void DeviceTrainer::linear(const Rows& x, const LinearParameters& l, float* out) {
  product(batch_.tokens(), l.outputs, l.inputs, operand(x, l.inputs), weight(l.weight, l.inputs),
          out, value(l.bias));
}

void DeviceTrainer::branch(const Rows& x, const LinearParameters& l, const NormRows& residual,
                           const NormParameters& norm, uint32_t place, float* sum, const Rows& out,
                           float* statistics) {
  const int32_t N = batch_.tokens();
  if (bf16_) {
    narrow_product(C, l.inputs, operand(x, l.inputs), weight(l.weight, l.inputs), branch_);
    check(cuda::dropout_add_layernorm_forward_bf16_cuda(
              branch_, value(l.bias), residual, N, C, value(norm.gamma), value(norm.beta), eps_,
              dropout(), place, sum, out.wide, out.narrow, statistics, stream()),
          "layer norm");
    return;
  }
  linear(x, l, sum);
  check(cuda::dropout_add_layernorm_forward_cuda(sum, residual.x, N, C, value(norm.gamma),
                                                 value(norm.beta), eps_, dropout(), place, out.wide,
                                                 out.narrow, statistics, stream()),
        "layer norm");
}

NormRows DeviceTrainer::normed(const Rows& out, const float* sum, const float* statistics,
                               const NormParameters& norm) const {
  if (out.wide != nullptr) return {out.wide};
  return {sum, statistics, value(norm.gamma), value(norm.beta)};
}

void DeviceTrainer::forward() {
  const DeviceBatch::Arrays& d = batch_.device();
  const int32_t N = batch_.tokens(), S = batch_.sentences(), L = config_.num_layers;
  const Rows last = {output_, nullptr};  // or nothing
  const auto input = [&](int32_t layer) { return layer < L ? rows_[layer].x : last; };
  const Rows x = input(0);
  check(cuda::embedding_layernorm_dropout_forward_cuda(
            d.token_ids, d.positions, N, C, value(encoder_.token), value(encoder_.position),
            value(encoder_.embedding_norm.gamma), value(encoder_.embedding_norm.beta), eps_,
            d.dropout, embedding_stream(), embedding_sum_, x.wide, x.narrow, embedding_statistics_,
            stream()),
        "embedding");
  NormRows residual = {x.wide};
  for (int32_t i = 0; i < L; ++i) {
    const EncoderParameters::Layer& w = encoder_.layers[i];
    const LayerRows& at = rows_[i];
    if (bf16_attention_) {
      narrow_product(3 * C, C, operand(at.x, C), weight(w.qkv.weight, C), at.qkv.narrow);
      check(cuda::attention_training_forward_bf16_cuda(
                at.qkv.narrow, value(w.qkv.bias), d.cu_seqlens, S, N, H, C / H, d.dropout,
                probabilities_stream(i, H), at.context.narrow, at.lse, stream()),
            "attention");
    } else {
      linear(at.x, w.qkv, at.qkv.wide);
      check(cuda::attention_training_forward_f32_cuda(
                at.qkv.wide, d.cu_seqlens, S, N, H, C / H, d.dropout, probabilities_stream(i, H),
                at.context.wide, at.context.narrow, at.lse, stream()),
            "attention");
    }
    branch(at.context, w.attention_output, residual, w.attention_norm,
           attention_output_stream(i, H), at.attention_sum, at.y, at.attention_statistics);
    residual = normed(at.y, at.attention_sum, at.attention_statistics, w.attention_norm);
    if (bf16_) {
      narrow_product(F, C, operand(at.y, C), weight(w.up.weight, C), at.up.narrow);
      check(cuda::activation_forward_bf16_cuda(at.up.narrow, F, value(w.up.bias), N, F,
                                               config_.activation, at.hidden.narrow, F, stream()),
            "activation");
    } else {
      linear(at.y, w.up, at.up.wide);
      check(cuda::activation_forward_f32_cuda(at.up.wide, int64_t{N} * F, config_.activation,
                                              at.hidden.wide, stream()),
            "activation");
    }
    branch(at.hidden, w.down, residual, w.output_norm, output_stream(i, H), at.output_sum,
           input(i + 1), at.output_statistics);
    residual = normed(input(i + 1), at.output_sum, at.output_statistics, w.output_norm);
  }
  check(pooled_norm_ ? cuda::norm_pooling_forward_cuda(
                           residual.x, residual.statistics, residual.gamma, residual.beta,
                           d.cu_seqlens, S, N, C, config_.pooling, u_, sentence_of_, stream())
                     : cuda::pooling_forward_cuda(output_, C, d.cu_seqlens, S, C, config_.pooling,
                                                  u_, C, stream()),
        "pooling");
  if (communicator_ != nullptr) gather();
}

void DeviceTrainer::gather() {
  for_sides([&](int64_t own, int64_t all, int64_t count) {
    cuda::copy_on_device(u_all_ + all, u_ + own, sizeof(float) * static_cast<size_t>(count),
                         stream());
  });
  for (int32_t side = 0; side < 2; ++side) {
    std::vector<int64_t> starts;
    for (int32_t r = 0; r <= ranks(); ++r)
      starts.push_back(int64_t{share_of(batch_.total_pairs(), r, ranks())} * C);
    communicator_->gather(u_all_ + int64_t{side} * batch_.total_pairs() * C, starts, stream());
  }
}

// ---- losses ----

void DeviceTrainer::losses(bool learn) {
  const ObjectiveConfig& o = step_.objectives;
  const int32_t num_targets = batch_.words().num_targets;
  cuda::fill_zero(outcome_, sizeof(StepOutcome), stream());
  if (learn) {
    cuda::fill_zero(du_all_, sizeof(float) * 2 * static_cast<size_t>(batch_.total_pairs()) * C,
                    stream());
  }
  int32_t loss = num_targets;
  if (o.align_weight != 0) contrastive(o.align, o.align_weight, loss++, learn);
  if (o.sim_weight != 0) sim(loss++, learn);
  if (o.info_nce_weight != 0) contrastive(o.info_nce, o.info_nce_weight, loss++, learn);
  if (learn && communicator_ != nullptr) {
    for_sides([&](int64_t own, int64_t all, int64_t count) {
      cuda::copy_on_device(du_ + own, du_all_ + all, sizeof(float) * static_cast<size_t>(count),
                           stream());
    });
  }
  const bool has_words = num_targets > 0 && batch_.pairs() > 0;
  if (learn) {
    clear("embedding.position");
    for (const char* name : {"embedding.token", "head.transform.weight", "head.transform.bias",
                             "head.norm.gamma", "head.norm.beta", "head.output.bias"}) {
      if (!has_words) clear(name);
    }
  }
  if (has_words) head(learn);
  if (communicator_ != nullptr) communicator_->sum(outcome_->losses, num_targets, stream());
}

void DeviceTrainer::clear(const char* name) {
  const Parameter& p = table_.at(name);
  cuda::fill_zero(gradient(p.offset), sizeof(float) * static_cast<size_t>(p.size), stream());
}

void DeviceTrainer::logits(int32_t first, int32_t R) {
  const Matrix token = weight(encoder_.token + int64_t{first} * C, C);
  run({batch_.sentences(), R, C, operand(t_, C), token, z_, tile()});
}

void DeviceTrainer::head(bool learn) {
  const int32_t S = batch_.sentences();
  const cuda::VocabularyWords& words = batch_.words();
  product(S, C, C, f32(u_, C), f32(value(transform_.weight), C), pre_, value(transform_.bias));
  check(cuda::activation_forward_f32_cuda(pre_, int64_t{S} * C, kernels::Activation::kSwish,
                                          activated_, stream()),
        "the head's activation");
  check(cuda::dropout_add_layernorm_forward_cuda(activated_, nullptr, S, C, value(head_norm_.gamma),
                                                 value(head_norm_.beta), eps_, nullptr, 0, t_.wide,
                                                 t_.narrow, head_statistics_, stream()),
        "the head's layer norm");
  for (int32_t k = 0; k < tiles(); ++k) {
    const int32_t first = k * tile(), R = std::min(tile(), V - first);
    logits(first, R);
    check(cuda::vocabulary_tile_forward_f32_cuda(z_, tile(), S, first, R, value(output_bias_),
                                                 words, tile_max_ + int64_t{k} * S,
                                                 tile_sum_ + int64_t{k} * S, stream()),
          "the vocabulary's softmax");
  }
  check(cuda::vocabulary_finish_cuda(tile_max_, tile_sum_, tiles(), S, batch_.total_pairs(), words,
                                     lse_, loss_parts_, stream()),
        "the vocabulary's loss");
  sum_losses(S, words.num_targets, 1, 0);
  if (learn) unhead();
}

void DeviceTrainer::unhead() {
  const int32_t S = batch_.sentences();
  const cuda::VocabularyWords& words = batch_.words();
  float* const parts = take_parts(cuda::vocabulary_bias_floats_cuda(S, tile()));
  for (int32_t k = 0; k < tiles(); ++k) {
    const int32_t first = k * tile(), R = std::min(tile(), V - first);
    const auto wait = [&] {  // for the gradient of the words before, which reads their dz
      if (k > 0) tile_read_->hold(stream());
    };
    if (!bf16_) wait();
    if (tiles() > 1) logits(first, R);  // else they are there still
    if (bf16_) wait();                  // dz is not where the logits are
    check(cuda::vocabulary_tile_backward_f32_cuda(z_, tile(), S, first, R, value(output_bias_),
                                                  words, tile_max_ + int64_t{k} * S, lse_,
                                                  z_narrow_, tile(), gradient(output_bias_), parts,
                                                  tiles() == 1 ? &sums_ : nullptr, stream()),
          "the vocabulary's gradient");
    const Rows dz = {z_, z_narrow_};  // one of them
    // dE = dzᵀ t      dt (+)= dz E
    product_beside(R, C, S, operand(dz, tile(), true), operand(t_, C, true),
                   gradient(encoder_.token + int64_t{first} * C));
    tile_read_->record(beside());
    product(S, C, R, operand(dz, tile()), weight(encoder_.token + int64_t{first} * C, C, true), dt_,
            nullptr, k > 0);
  }
  check(cuda::layernorm_backward_cuda(
            activated_, head_statistics_, {dt_}, S, C, value(head_norm_.gamma), nullptr, 0, false,
            nullptr, nullptr, gradient(head_norm_.gamma), gradient(head_norm_.beta), nullptr,
            take_parts(cuda::layernorm_backward_floats_cuda(S, C)), &sums_, stream()),
        "the head's layer norm, backward");
  check(cuda::activation_backward_f32_cuda(pre_, int64_t{S} * C, kernels::Activation::kSwish, dt_,
                                           stream()),
        "the head's activation, backward");
  product_beside(C, C, S, f32(dt_, C, true), f32(u_, C, true), gradient(transform_.weight));
  check(cuda::column_sum_cuda(dt_, C, S, C, gradient(transform_.bias),
                              take_parts(cuda::column_sum_floats_cuda(S, C)), &sums_, stream()),
        "the head's bias gradient");
  product(S, C, C, f32(dt_, C), f32(value(transform_.weight), C, true), du_, nullptr, true);
}

void DeviceTrainer::sum_losses(int32_t count, int32_t num_losses, double factor, int32_t loss) {
  check(cuda::sum_losses_cuda(loss_parts_, count, num_losses, factor, outcome_->losses + loss,
                              stream()),
        "adding up losses");
}

void DeviceTrainer::contrastive(const ContrastiveSettings& settings, double weight, int32_t loss,
                                bool learn) {
  const int32_t B = batch_.total_pairs();
  const int64_t side = int64_t{B} * C;
  if (settings.cosine) {
    check(cuda::l2_unit_forward_f32_cuda(u_all_, 2 * B, C, unit_, stream()), "unit vectors");
  }
  const float* x = settings.cosine ? unit_ : u_all_;
  const double share = (settings.mean_of_directions ? 0.5 : 1.0) / B;
  product(B, B, C, f32(x, C), f32(x + side, C), s_[0]);
  check(cuda::contrastive_forward_backward_f32_cuda(
            s_[0], B, static_cast<float>(1 / settings.temperature),
            static_cast<float>(settings.margin), share,
            static_cast<float>(weight * share / settings.temperature), similarity_statistics_,
            loss_parts_, stream()),
        "the contrastive loss");
  sum_losses(B, 1, 1, loss);
  if (!learn) return;
  float* dx = du_all_;
  if (settings.cosine) {
    dx = dunit_;
    cuda::fill_zero(dunit_, sizeof(float) * 2 * static_cast<size_t>(side), stream());
  }
  unsimilarity(s_[0], x, x + side, dx, dx + side);
  if (settings.cosine) {
    check(cuda::l2_unit_backward_f32_cuda(u_all_, dunit_, 2 * B, C, du_all_, stream()),
          "unit vectors, backward");
  }
}

void DeviceTrainer::unsimilarity(const float* ds, const float* x, const float* y, float* dx,
                                 float* dy) {
  const int32_t B = batch_.total_pairs();
  product(B, C, B, f32(ds, B), f32(y, C, true), dx, nullptr, true);
  product(B, C, B, f32(ds, B, true), f32(x, C, true), dy, nullptr, true);
}

void DeviceTrainer::sim(int32_t loss, bool learn) {
  const SimSettings& settings = step_.objectives.sim;
  const int32_t B = batch_.total_pairs();
  const int64_t side = int64_t{B} * C;
  const double negatives = std::max(B - 1, 1);
  const double normaliser = settings.divide_by_negatives ? negatives * negatives : 1;
  for (int k = 0; k < 2; ++k)
    product(B, B, C, f32(u_all_ + k * side, C), f32(u_all_ + k * side, C), s_[k]);
  check(cuda::sim_forward_backward_f32_cuda(s_[0], s_[1], B, settings.argument, settings.min_cosine,
                                            step_.objectives.sim_weight / normaliser, loss_parts_,
                                            stream()),
        "SIM");
  sum_losses(B, 1, 1 / normaliser, loss);
  for (int k = 0; learn && k < 2; ++k)
    unsimilarity(s_[k], u_all_ + k * side, u_all_ + k * side, du_all_ + k * side,
                 du_all_ + k * side);
}

// ---- backward; each names the line it undoes ----

void DeviceTrainer::weight_gradient(Turns& dout, const Rows& x, const LinearParameters& l) {
  const int32_t N = batch_.tokens();
  product_beside(l.outputs, l.inputs, N, operand(dout, l.outputs, true), operand(x, l.inputs, true),
                 gradient(l.weight));
  reads(dout);
}

void DeviceTrainer::bias_gradient(Turns& dout, const LinearParameters& l) {
  fork();
  const int32_t N = batch_.tokens();
  float* const dbias = gradient(l.bias);
  float* const parts = take_parts(cuda::column_sum_floats_cuda(N, l.outputs));
  check(bf16_ ? cuda::column_sum_bf16_cuda(dout.narrow, l.outputs, N, l.outputs, dbias, parts,
                                           &sums_, beside())
              : cuda::column_sum_cuda(dout.wide, l.outputs, N, l.outputs, dbias, parts, &sums_,
                                      beside()),
        "a bias gradient");
  reads(dout);
}

void DeviceTrainer::input_gradient(const Rows& dout, const LinearParameters& l, float* dx,
                                   bool accumulate) {
  product(batch_.tokens(), l.inputs, l.outputs, operand(dout, l.outputs),
          weight(l.weight, l.inputs, true), dx, nullptr, accumulate);
}

void DeviceTrainer::add_input_gradient(const Rows& dout, const LinearParameters& l) {
  if (bf16_) {  // half the bytes, once instead of read and written; the next LayerNorm adds it
    narrow_product(l.inputs, l.outputs, operand(dout, l.outputs), weight(l.weight, l.inputs, true),
                   branch_);
  } else {
    input_gradient(dout, l, dx_, true);
  }
}

void DeviceTrainer::unbranch(const cuda::NormGradient& of_out, const float* sum,
                             const float* statistics, const NormParameters& norm, uint32_t place,
                             const LinearParameters& l) {
  turn(dbranch_);
  check(cuda::layernorm_backward_cuda(
            sum, statistics, of_out, batch_.tokens(), C, value(norm.gamma), dropout(), place, false,
            dbranch_.wide, dbranch_.narrow, gradient(norm.gamma), gradient(norm.beta),
            gradient(l.bias), take_parts(cuda::layernorm_backward_floats_cuda(batch_.tokens(), C)),
            &sums_, stream()),
        "layer norm, backward");
}

void DeviceTrainer::backward() {
  const DeviceBatch::Arrays& d = batch_.device();
  const int32_t N = batch_.tokens(), S = batch_.sentences();
  cuda::NormGradient of_out = {dx_};
  if (pooled_norm_) {
    of_out.dy = du_;
    of_out.sentence_of = sentence_of_;
    of_out.cu_seqlens = d.cu_seqlens;
    of_out.mean = config_.pooling == kernels::Pooling::kMean;
  } else {
    check(cuda::pooling_backward_f32_cuda(output_, du_, d.cu_seqlens, S, N, C, config_.pooling, dx_,
                                          stream()),
          "pooling, backward");
  }
  for (int32_t i = config_.num_layers - 1; i >= 0; --i) {
    const EncoderParameters::Layer& w = encoder_.layers[i];
    const LayerRows& at = rows_[i];
    make_room_for_sums(kSumsOfLayer, parts_of_layer(N));
    // branch(at.hidden, w.down, …)
    unbranch(of_out, at.output_sum, at.output_statistics, w.output_norm, output_stream(i, H),
             w.down);
    of_out = of_rows();
    weight_gradient(dbranch_, at.hidden, w.down);
    turn(dwide_);
    if (bf16_) {
      narrow_product(F, C, operand(dbranch_, C), weight(w.down.weight, F, true), dwide_.narrow);
    } else {
      input_gradient(dbranch_, w.down, dwide_.wide, false);
    }
    // activation_forward
    check(bf16_ ? cuda::activation_backward_bf16_cuda(
                      at.up.narrow, value(w.up.bias), N, F, config_.activation, dwide_.narrow,
                      gradient(w.up.bias), take_parts(cuda::activation_backward_floats_cuda(N, F)),
                      &sums_, stream())
                : cuda::activation_backward_f32_cuda(at.up.wide, int64_t{N} * F, config_.activation,
                                                     dwide_.wide, stream()),
          "activation, backward");
    // linear(at.y, w.up, …)
    weight_gradient(dwide_, at.y, w.up);
    if (!bf16_) bias_gradient(dwide_, w.up);  // or it was above
    add_input_gradient(dwide_, w.up);
    // branch(at.context, w.attention_output, …)
    unbranch(of_out, at.attention_sum, at.attention_statistics, w.attention_norm,
             attention_output_stream(i, H), w.attention_output);
    weight_gradient(dbranch_, at.context, w.attention_output);
    // attention_forward
    turn(dwide_);
    if (bf16_attention_) {
      narrow_product(C, C, operand(dbranch_, C), weight(w.attention_output.weight, C, true),
                     dcontext_.narrow);
      check(cuda::attention_backward_bf16_cuda(
                at.qkv.narrow, value(w.qkv.bias), d.cu_seqlens, S, N, H, C / H, d.attention_chunks,
                batch_.attention_chunks(), at.lse, d.dropout, probabilities_stream(i, H),
                dcontext_.narrow, dwide_.narrow, delta_, stream()),
            "attention, backward");
    } else {
      input_gradient(dbranch_, w.attention_output, dcontext_.wide, false);
      check(cuda::attention_backward_f32_cuda(at.qkv.wide, d.cu_seqlens, S, N, H, C / H, at.lse,
                                              d.dropout, probabilities_stream(i, H), dcontext_.wide,
                                              dwide_.wide, dwide_.narrow, delta_, stream()),
            "attention, backward");
    }
    // linear(at.x, w.qkv, …)
    weight_gradient(dwide_, at.x, w.qkv);
    bias_gradient(dwide_, w.qkv);
    add_input_gradient(dwide_, w.qkv);
  }
  // embedding_layernorm_dropout_forward
  make_room_for_sums(2, cuda::layernorm_backward_floats_cuda(N, C));
  check(
      cuda::layernorm_backward_cuda(
          embedding_sum_, embedding_statistics_, of_out, N, C, value(encoder_.embedding_norm.gamma),
          d.dropout, embedding_stream(), true, nullptr, nullptr,
          gradient(encoder_.embedding_norm.gamma), gradient(encoder_.embedding_norm.beta), nullptr,
          take_parts(cuda::layernorm_backward_floats_cuda(N, C)), &sums_, stream()),
      "the embedding's layer norm, backward");
  add_sums();
  scatter(d.tokens, V, gradient(encoder_.token));
  scatter(d.rows_of_positions, config_.num_positions, gradient(encoder_.position));
}

int64_t DeviceTrainer::parts_of_layer(int32_t rows) const {
  return 2 * cuda::layernorm_backward_floats_cuda(rows, C) +
         cuda::column_sum_floats_cuda(rows, 3 * C) +
         std::max(cuda::column_sum_floats_cuda(rows, F),
                  cuda::activation_backward_floats_cuda(rows, F));
}

void DeviceTrainer::make_room_for_sums(int32_t count, int64_t parts) {
  if (sums_.count + count > cuda::PartSums::kMost || parts_taken_ + parts > parts_size_) add_sums();
}

float* DeviceTrainer::take_parts(int64_t floats) {
  float* const parts = parts_ + parts_taken_;
  parts_taken_ += floats;
  if (parts_taken_ > parts_size_)
    throw Error(XSR_STATUS_INTERNAL, "the sums of blocks have more parts than there is room for");
  return parts;
}

void DeviceTrainer::add_sums() {
  join();  // some of them are made beside
  check(cuda::add_parts_cuda(&sums_, stream()), "adding up sums of blocks");
  parts_taken_ = 0;
}

void DeviceTrainer::scatter(const DeviceBatch::Buckets& buckets, int32_t ids, float* dtable) {
  check(cuda::embedding_backward_f32_cuda(dx_, buckets.count, buckets.ids, buckets.starts,
                                          buckets.rows, std::min(batch_.tokens(), ids), C, dtable,
                                          stream()),
        "embedding, backward");
}

void DeviceTrainer::update() {
  if (communicator_ != nullptr) communicator_->sum(gradients_.device, table_.size(), stream());
  check(cuda::gradient_norm_cuda(gradients_.device, table_.size(), step_.optimizer.clip_norm,
                                 static_cast<int32_t>(names_.size()), norm_parts_, outcome_,
                                 stream()),
        "the gradient's norm");
  cuda::copy_to_host(host_outcome_, outcome_, sizeof(StepOutcome), stream());
  // The last, so that whatever one device refuses leaves its parameters as they were.
  check(cuda::adam_update_f32_cuda(
            values_.device, gradients_.device, first_moment_.device, second_moment_.device,
            max_second_moment_ ? max_second_moment_->device : nullptr, narrow_, table_.size(),
            batch_.device().adam, outcome_, stream()),
        "the update");
}

}  // namespace xsr::training
