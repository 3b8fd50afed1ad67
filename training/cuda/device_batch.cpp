#include "training/cuda/device_batch.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/embedding/embedding.h"
#include "runtime/error.h"

namespace xsr::training {
namespace {

using cuda::Memory;
using cuda::Place;
using cuda::Plan;

}  // namespace

int32_t DeviceBatch::chunk_bucket(int32_t chunks) {
  constexpr uint32_t kLeast = 32;  // and powers of two
  return chunks == 0
             ? 0
             : static_cast<int32_t>(std::max(kLeast, std::bit_ceil(static_cast<uint32_t>(chunks))));
}

DeviceBatch::DeviceBatch(const ModelConfig& config, const ObjectiveConfig& objectives)
    : config_(config), objectives_(objectives) {
  for (const double weight : {objectives.xtr_weight, objectives.ugt_weight, objectives.smlm_weight})
    words_.num_targets += weight != 0;
}

DeviceBatch::~DeviceBatch() {
  try {
    wait_for_copies();  // which read the memory below
  } catch (const Error&) {
  }
}

void DeviceBatch::release() {
  max_tokens_ = max_sentences_ = max_total_pairs_ = 0;
  wait_for_copies();
  prepared_ = is_staged_ = false;
  for (Memory* memory :
       {&current_.memory, &next_.memory, &device_memory_, &staged_memory_, &logits_memory_})
    *memory = Memory();
}

void DeviceBatch::reserve(int32_t tokens, int32_t sentences) {
  release();
  // A sentence's bags hold the words of the other side and one that was masked.
  max_words_ = int64_t{tokens} + sentences;
  const size_t N = static_cast<size_t>(tokens), S = static_cast<size_t>(sentences),
               W = static_cast<size_t>(max_words_);
  const auto allocate = [&](Arrays& a, Place place) {
    Plan plan;
    const auto buckets = [&](Buckets& b, int32_t ids) {
      const size_t most = static_cast<size_t>(std::min(tokens, ids));
      plan.add(&b.count, 1);
      plan.add(&b.ids, most);
      plan.add(&b.starts, most + 1);
      plan.add(&b.rows, N);
    };
    plan.add(&a.token_ids, N);
    plan.add(&a.positions, N);
    plan.add(&a.cu_seqlens, S + 1);
    // Sentences in chunks have more than kChunkRows tokens, so their chunks half of that at least
    // in the mean; as many as any device's share may have of so many tokens.
    plan.add(&a.attention_chunks,
             static_cast<size_t>(chunk_bucket(tokens / (cuda::kChunkRows / 2))));
    buckets(a.tokens, config_.vocab_size);
    buckets(a.rows_of_positions, config_.num_positions);
    plan.add(&a.word_offsets, S + 1);
    plan.add(&a.word_ids, W);
    plan.add(&a.coefficients, W);
    plan.add(&a.masses, static_cast<size_t>(words_.num_targets) * W);
    plan.add(&a.coefficient_sums, S);
    plan.add(&a.dropout, 1);  // and behind it what upload() takes from the host always
    plan.add(&a.adam, 1);
    return plan.allocate(place);
  };
  for (Made* made : {&current_, &next_}) made->memory = allocate(made->arrays, Place::kPinned);
  device_memory_ = allocate(device_, Place::kDevice);
  staged_memory_ = Memory(Place::kDevice, device_memory_.size());
  if (!copies_) copies_.emplace();
  if (!staged_read_) staged_read_.emplace();
  Plan logits;
  logits.add(&logits_, W);
  logits_memory_ = logits.allocate(Place::kDevice);
  words_.offsets = device_.word_offsets;
  words_.token_ids = device_.word_ids;
  words_.coefficients = device_.coefficients;
  words_.masses = device_.masses;
  words_.mass_stride = max_words_;
  words_.coefficient_sums = device_.coefficient_sums;
  words_.logits = logits_;
  max_tokens_ = tokens;
  max_sentences_ = sentences;
}

void DeviceBatch::take_buckets(const int32_t* ids, int32_t N, int32_t num_ids, int32_t skipped,
                               const Buckets& out) {
  bucket_memory_.resize(static_cast<size_t>(kernels::bucket_rows_memory(N, num_ids)));
  const kernels::RowBuckets buckets =
      kernels::bucket_rows(ids, N, num_ids, skipped, bucket_memory_.data());
  *out.count = buckets.count;
  std::copy_n(buckets.ids, buckets.count, out.ids);
  std::copy_n(buckets.starts, buckets.count + 1, out.starts);
  std::copy_n(buckets.rows, buckets.starts[buckets.count], out.rows);
}

void DeviceBatch::take_words(const PairBatch& batch, Made& to) {
  const ObjectiveConfig& o = objectives_;
  const Arrays& host = to.arrays;
  std::vector<SparseTarget> targets;
  std::vector<double> weights;
  const auto add = [&](double weight, auto&& make) {
    if (weight == 0) return;
    targets.push_back(make());
    weights.push_back(weight);
  };
  add(o.xtr_weight, [&] { return xtr_target(batch, o.targets); });
  add(o.ugt_weight, [&] { return ugt_target(batch, o.targets); });
  add(o.smlm_weight, [&] { return smlm_target(batch); });

  struct Word {
    int32_t id, target;
    float mass;
  };
  std::vector<Word> words;  // of one sentence
  int32_t count = 0;
  host.word_offsets[0] = 0;
  for (int32_t b = 0; b < 2 * to.pairs; ++b) {
    words.clear();
    double sum = 0;
    for (int32_t k = 0; k < static_cast<int32_t>(targets.size()); ++k) {
      for (int32_t i = targets[k].offsets[b]; i < targets[k].offsets[b + 1]; ++i) {
        words.push_back({targets[k].token_ids[i], k, targets[k].masses[i]});
        sum += weights[k] * targets[k].masses[i] / to.total_pairs;
      }
    }
    if (targets.size() > 1)  // a target's own words are sorted
      std::stable_sort(words.begin(), words.end(), [](Word x, Word y) { return x.id < y.id; });
    for (size_t i = 0; i < words.size(); ++count) {
      const int32_t id = words[i].id;
      double coefficient = 0;
      host.word_ids[count] = id;
      for (int32_t k = 0; k < words_.num_targets; ++k) host.masses[k * max_words_ + count] = 0;
      for (; i < words.size() && words[i].id == id; ++i) {
        coefficient += weights[words[i].target] * words[i].mass / to.total_pairs;
        host.masses[words[i].target * max_words_ + count] = words[i].mass;
      }
      host.coefficients[count] = static_cast<float>(coefficient);
    }
    host.word_offsets[b + 1] = count;
    host.coefficient_sums[b] = sum;
  }
}

bool DeviceBatch::build(const PairBatch& batch, const Filled& filled, int32_t total_pairs) {
  const int32_t tokens = filled.tokens;
  const bool moved = !fits(batch, tokens);
  const bool grown = moved || total_pairs > max_total_pairs_;
  const int32_t most_pairs = std::max(total_pairs, max_total_pairs_);
  if (moved)
    reserve(std::max(tokens, max_tokens_), std::max(batch.num_sentences(), max_sentences_));
  max_total_pairs_ = most_pairs;
  make(batch, filled, total_pairs, current_);
  is_staged_ = false;
  return grown;
}

void DeviceBatch::prepare(const PairBatch& batch, const Filled& filled, int32_t total_pairs) {
  prepared_ = false;
  if (!fits(batch, filled.tokens) || total_pairs > max_total_pairs_) return;
  wait_for_copies();  // of what was prepared before
  make(batch, filled, total_pairs, next_);
  staged_read_->wait();
  cuda::copy_to_device(staged_memory_.data(), next_.memory.data(), next_.memory.size(),
                       copies_->get());
  prepared_ = true;
}

bool DeviceBatch::take_prepared() {
  if (!prepared_) return false;
  std::swap(current_, next_);
  prepared_ = false;
  is_staged_ = true;
  return true;
}

void DeviceBatch::make(const PairBatch& batch, const Filled& filled, int32_t total_pairs,
                       Made& to) {
  const int32_t tokens = filled.tokens;
  const Arrays& host = to.arrays;
  to.pairs = batch.num_pairs;
  to.total_pairs = total_pairs;
  to.tokens = tokens;
  const int32_t N = batch.num_tokens();
  std::copy_n(batch.token_ids.data(), N, host.token_ids);
  std::fill(host.token_ids + N, host.token_ids + tokens, 0);
  std::copy(batch.cu_seqlens.begin(), batch.cu_seqlens.end(), host.cu_seqlens);
  const int32_t chunks = cuda::attention_chunks(batch.cu_seqlens.data(), batch.num_sentences(),
                                                cuda::kChunkRows, host.attention_chunks);
  to.attention_chunks = filled.attention_chunks;
  std::fill(host.attention_chunks + chunks, host.attention_chunks + to.attention_chunks,
            cuda::AttentionTile{0, 0, 0});
  for (int32_t b = 0; b < batch.num_sentences(); ++b) {
    const int32_t begin = batch.cu_seqlens[b];
    for (int32_t i = begin; i < batch.cu_seqlens[b + 1]; ++i)
      host.positions[i] = config_.position_offset + i - begin;
  }
  std::fill(host.positions + N, host.positions + tokens, 0);
  take_buckets(host.token_ids, N, config_.vocab_size, config_.pad_id, host.tokens);
  take_buckets(host.positions, N, config_.num_positions, -1, host.rows_of_positions);
  take_words(batch, to);
}

void DeviceBatch::set_coefficients(const kernels::Dropout& dropout, const kernels::AdamStep& adam) {
  *current_.arrays.dropout = dropout;
  *current_.arrays.adam = adam;
}

void DeviceBatch::upload(cuda::Stream stream) {
  const auto* const from = static_cast<const char*>(current_.memory.data());
  size_t first = 0;  // byte that comes from the host
  if (is_staged_) {
    // What set_coefficients() writes is last.
    first = static_cast<size_t>(reinterpret_cast<const char*>(current_.arrays.dropout) - from);
    wait_for_copies();
    cuda::copy_on_device(device_memory_.data(), staged_memory_.data(), first, stream);
    staged_read_->record(stream);
  }
  cuda::copy_to_device(static_cast<char*>(device_memory_.data()) + first, from + first,
                       current_.memory.size() - first, stream);
}

}  // namespace xsr::training
