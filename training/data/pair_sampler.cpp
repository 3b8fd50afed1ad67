#include "training/data/pair_sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include "runtime/error.h"
#include "runtime/text/sentencepiece_model.h"
#include "training/random.h"

namespace xsr::training {
namespace {

/// What random words are for: no two uses share a counter.
enum Purpose : uint32_t { kMask, kEpochOrder, kPartOrder, kBatchOrder };

/// [0, n) shuffled by the key: where i goes. A Feistel network over the next even number of bits;
/// a value beyond n is sent through again, which ends, for the network is a permutation.
/// Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", §3 and §4.
uint64_t shuffled(uint64_t key, uint64_t n, uint64_t i) {
  constexpr uint32_t kRounds = 8;
  const int half = std::max(1, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2);  // bits
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = i >> half, right = i & mask;
    for (uint32_t round = 0; round < kRounds; ++round) {
      const uint64_t mixed = random_words(key, right, round, 0).both() & mask;
      left = std::exchange(right, left ^ mixed);
    }
    i = left << half | right;
  } while (i >= n);
  return i;
}

/// How many of `count` things are the first batch: at most batch_pairs of them, with batch_tokens
/// tokens at most (0: any) but for a single one. tokens(i) of thing i.
template <typename Tokens>
size_t first_batch(size_t count, int64_t batch_pairs, int64_t batch_tokens, const Tokens& tokens) {
  const size_t most = std::min(count, static_cast<size_t>(batch_pairs));
  int64_t sum = 0;
  for (size_t i = 0; i < most; ++i) {
    sum += tokens(i);
    if (i > 0 && batch_tokens > 0 && sum > batch_tokens) return i;
  }
  return most;
}

/// n · random / 2³²: one of [0, n).
uint32_t below(uint32_t n, uint32_t random) {
  return static_cast<uint32_t>(static_cast<uint64_t>(n) * random >> 32);
}

/// Spaces and punctuation of Unicode's blocks of them, and what the languages of the world's large
/// corpora have elsewhere.
bool is_punctuation(char32_t c) {
  static constexpr char32_t kRanges[][2] = {
      {0x21, 0x2F},     {0x3A, 0x40},     {0x5B, 0x60},     {0x7B, 0x7E},      // ASCII
      {0xA0, 0xA9},     {0xAB, 0xB1},     {0xB4, 0xB4},     {0xB6, 0xB8},      // Latin-1
      {0xBB, 0xBB},     {0xBF, 0xBF},     {0xD7, 0xD7},     {0xF7, 0xF7},      //
      {0x37E, 0x37E},   {0x387, 0x387},   {0x55A, 0x55F},   {0x589, 0x58A},    // Greek, Armenian
      {0x5BE, 0x5BE},   {0x5C0, 0x5C0},   {0x5C3, 0x5C3},   {0x5F3, 0x5F4},    // Hebrew
      {0x60C, 0x60D},   {0x61B, 0x61B},   {0x61E, 0x61F},   {0x66A, 0x66D},    // Arabic
      {0x6D4, 0x6D4},   {0x964, 0x965},   {0x970, 0x970},   {0xE2F, 0xE2F},    // danda, Thai
      {0xE5A, 0xE5B},   {0x104A, 0x104F}, {0x10FB, 0x10FB}, {0x1360, 0x1368},  //
      {0x166E, 0x166E}, {0x17D4, 0x17DA}, {0x2000, 0x206F},  // general punctuation
      {0x2581, 0x2581}, {0x2E00, 0x2E7F}, {0x3000, 0x3003}, {0x3008, 0x3020},  // SentencePiece's
      {0x3030, 0x3030}, {0x30A0, 0x30A0}, {0x30FB, 0x30FB}, {0xFE10, 0xFE19},  // space; CJK
      {0xFE30, 0xFE6B}, {0xFF01, 0xFF0F}, {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40},  //
      {0xFF5B, 0xFF65},
  };
  for (const auto& range : kRanges)
    if (c >= range[0] && c <= range[1]) return true;
  return c == ' ';
}

/// The next character of well-formed UTF-8, which is taken off the text.
char32_t take_character(std::string_view& text) {
  const unsigned char lead = static_cast<unsigned char>(text[0]);
  const size_t size = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t c = size == 1 ? lead : lead & (0x7Fu >> size);
  for (size_t i = 1; i < size && i < text.size(); ++i)
    c = c << 6 | (static_cast<unsigned char>(text[i]) & 0x3Fu);
  text.remove_prefix(std::min(size, text.size()));
  return c;
}

}  // namespace

std::vector<uint8_t> maskable_tokens(std::string_view tokenizer_model, const ModelConfig& config) {
  const SentencePieceModel model = parse_sentencepiece_model(tokenizer_model);
  std::vector<uint8_t> maskable(static_cast<size_t>(config.vocab_size), 0);
  for (size_t id = 0; id < std::min(maskable.size(), model.pieces.size()); ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[id];
    if (piece.type == PieceType::kControl || piece.type == PieceType::kUnused) continue;
    if (static_cast<int32_t>(id) == config.mask_id) continue;
    bool words = piece.type == PieceType::kUnknown;
    for (std::string_view rest = model.text(piece); !rest.empty();)
      words |= !is_punctuation(take_character(rest));
    maskable[id] = words;
  }
  for (int32_t special : {config.pad_id, config.mask_id, config.cls_id, config.sep_id}) {
    if (special >= 0 && special < config.vocab_size) maskable[static_cast<size_t>(special)] = 0;
  }
  return maskable;
}

BatchBuilder::BatchBuilder(std::shared_ptr<const TokenizedCorpus> corpus, int32_t mask_id,
                           std::vector<uint8_t> maskable, uint64_t seed)
    : corpus_(std::move(corpus)), mask_id_(mask_id), maskable_(std::move(maskable)), seed_(seed) {
  const size_t vocab_size = static_cast<size_t>(corpus_->vocab_size());
  if (mask_id >= 0 && maskable_.size() != vocab_size) {
    throw_invalid(fmt::format("{} tokens are said to be maskable or not, expected the corpus' {}",
                              maskable_.size(), vocab_size));
  }
}

void BatchBuilder::build(std::span<const Draw> draws, PairBatch& batch) const {
  batch.num_pairs = static_cast<int32_t>(draws.size());
  batch.token_ids.clear();
  batch.cu_seqlens.assign(1, 0);
  batch.pair_numbers.clear();
  for (const Draw& draw : draws) batch.pair_numbers.push_back(draw.pair);
  for (int side : {0, 1}) {
    for (const Draw& draw : draws) {
      corpus_->append_ids(draw.pair, side, batch.token_ids);
      batch.cu_seqlens.push_back(static_cast<int32_t>(batch.token_ids.size()));
    }
  }
  batch.masked_id.assign(draws.size(), -1);
  batch.masked_row.assign(draws.size(), -1);
  batch.masked_side.assign(draws.size(), 0);
  if (mask_id_ < 0) return;
  for (size_t i = 0; i < draws.size(); ++i) {
    const Draw& draw = draws[i];
    const RandomWords random = random_words(seed_, draw.pair, static_cast<uint32_t>(draw.visit),
                                            kMask | static_cast<uint32_t>(draw.visit >> 32) << 8);
    const uint8_t chosen = random.at[0] >> 31;
    for (const uint8_t side : {chosen, static_cast<uint8_t>(1 - chosen)}) {
      const size_t sentence = i + (side == 0 ? 0 : draws.size());
      const auto first = batch.token_ids.begin() + batch.cu_seqlens[sentence];
      const auto last = batch.token_ids.begin() + batch.cu_seqlens[sentence + 1];
      const auto may = [&](int32_t id) { return maskable_[static_cast<size_t>(id)] != 0; };
      const auto choices = static_cast<uint32_t>(std::count_if(first, last, may));
      if (choices == 0) continue;
      // Among those that may: as drawing again until one does.
      auto at = std::find_if(first, last, may);
      for (uint32_t left = below(choices, random.at[1]); left > 0; --left)
        at = std::find_if(at + 1, last, may);
      batch.masked_id[i] = std::exchange(*at, mask_id_);
      batch.masked_row[i] = static_cast<int32_t>(at - batch.token_ids.begin());
      batch.masked_side[i] = side;
      break;
    }
  }
}

size_t BatchBuilder::fitting(std::span<const uint64_t> pairs, int64_t batch_pairs,
                             int64_t batch_tokens) const {
  return first_batch(pairs.size(), batch_pairs, batch_tokens, [&](size_t i) {
    return int64_t{corpus_->length(pairs[i], 0)} + corpus_->length(pairs[i], 1);
  });
}

void BatchBuilder::build(std::span<const uint64_t> pairs, PairBatch& batch) const {
  std::vector<Draw> draws;
  for (uint64_t pair : pairs) draws.push_back({pair, 0});
  build(draws, batch);
}

PairSampler::PairSampler(BatchBuilder builder, std::vector<uint64_t> excluded,
                         const SamplerOptions& options)
    : builder_(std::move(builder)), excluded_(std::move(excluded)), options_(options) {
  const TokenizedCorpus& corpus = builder_.corpus();
  const auto parts = corpus.parts();
  if (options.batch_pairs < 1 || options.batch_tokens < 0 || options.pool_batches < 1 ||
      !(options.temperature > 0)) {
    throw_invalid(fmt::format(
        "batches of {} pairs and {} tokens, sorted within {}, at a temperature of "
        "{} make no sense; expected at least 1 pair, 0 or more tokens, at least 1 "
        "batch and a temperature above 0",
        options.batch_pairs, options.batch_tokens, options.pool_batches, options.temperature));
  }
  if (!options.weights.empty() && options.weights.size() != parts.size()) {
    throw_invalid(fmt::format("there are {} weights for {} language pairs", options.weights.size(),
                              parts.size()));
  }
  if (options.batch_tokens > 0 &&
      corpus.longest_pair() > static_cast<uint64_t>(options.batch_tokens)) {
    throw_invalid(
        fmt::format("batches of {} tokens cannot hold the longest pair, which has {}; raise "
                    "batch_tokens or drop long sentences with max_tokens",
                    options.batch_tokens, corpus.longest_pair()));
  }
  std::vector<double> weights = options.weights;
  double sum = 0;
  uint64_t pairs = 0;
  for (size_t l = 0; l < parts.size(); ++l) {
    Lane lane;
    lane.first_pair = parts[l].first_pair;
    const auto first = std::lower_bound(excluded_.begin(), excluded_.end(), lane.first_pair);
    const auto last =
        std::lower_bound(first, excluded_.end(), lane.first_pair + parts[l].num_pairs);
    lane.first_excluded = static_cast<uint64_t>(first - excluded_.begin());
    lane.num_excluded = static_cast<uint64_t>(last - first);
    lane.num_pairs = parts[l].num_pairs - lane.num_excluded;
    lanes_.push_back(lane);
    if (options.weights.empty()) {
      weights.push_back(lane.num_pairs == 0 ? 0
                                            : std::pow(static_cast<double>(lane.num_pairs),
                                                       1 / options.temperature));
    }
    if (!(weights[l] >= 0) || !std::isfinite(weights[l])) {
      throw_invalid(
          fmt::format("{}: has a weight of {}, expected 0 or more", parts[l].name, weights[l]));
    }
    if (weights[l] > 0 && lane.num_pairs == 0)
      throw_invalid(parts[l].name + ": has no pair to train on beside those held out");
    sum += weights[l];
    if (weights[l] > 0) pairs += lane.num_pairs;
  }
  if (pairs == 0) throw_invalid("there is no pair to train on that shares no sentence with dev");
  for (size_t l = 0; l < lanes_.size(); ++l) {
    Lane& lane = lanes_[l];
    if (weights[l] == 0) continue;
    lane.draws = options.weights.empty() && options.temperature == 1
                     ? lane.num_pairs
                     : std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(
                                                 static_cast<double>(pairs) * weights[l] / sum)));
    draws_per_epoch_ += lane.draws;
  }
  used_draws_ = draws_per_epoch_;
  const uint64_t batch_pairs = static_cast<uint64_t>(options.batch_pairs);
  if (options.batch_tokens == 0) {
    if (options.drop_last) used_draws_ -= draws_per_epoch_ % batch_pairs;
    if (used_draws_ == 0) {
      throw_invalid(
          fmt::format("one batch of {} pairs is more than the {} there are to train on; lower "
                      "data.batch_pairs, or set data.drop_last = false",
                      batch_pairs, draws_per_epoch_));
    }
    pool_pairs_ = batch_pairs * static_cast<uint64_t>(options.pool_batches);
  } else {
    // At the end of a pool stand smaller batches, so a pool has at least so many.
    constexpr uint64_t kLeastBatches = 16;
    const uint64_t expected = std::min(batch_pairs, static_cast<uint64_t>(options.batch_tokens) *
                                                        corpus.num_pairs() / corpus.num_tokens());
    pool_pairs_ = std::max<uint64_t>(1, expected) *
                  std::max<uint64_t>(kLeastBatches, static_cast<uint64_t>(options.pool_batches));
  }
  batches_per_epoch_ = count_batches();
}

uint64_t PairSampler::num_pools() const { return (used_draws_ + pool_pairs_ - 1) / pool_pairs_; }

uint64_t PairSampler::count_batches() {
  constexpr uint64_t kMostDraws = 1 << 20;  // a second's work or so
  const uint64_t batch_pairs = static_cast<uint64_t>(options_.batch_pairs);
  if (options_.batch_tokens == 0) return (used_draws_ + batch_pairs - 1) / batch_pairs;
  uint64_t draws = 0, batches = 0;
  for (uint64_t pool = 0; pool < num_pools() && draws < kMostDraws; ++pool) {
    load_pool(0, pool);
    draws += draws_.size();
    batches += batch_ends_.size();
  }
  return static_cast<uint64_t>(
      std::llround(static_cast<double>(batches) / static_cast<double>(draws) *
                   static_cast<double>(used_draws_)));
}

BatchBuilder::Draw PairSampler::draw(uint64_t epoch, uint64_t index) const {
  uint64_t slot =
      shuffled(random_words(options_.seed, epoch, 0, kEpochOrder).both(), draws_per_epoch_, index);
  size_t l = 0;
  while (slot >= lanes_[l].draws) slot -= lanes_[l++].draws;
  const Lane& lane = lanes_[l];
  const uint64_t walked = epoch * lane.draws + slot;
  const uint64_t visit = walked / lane.num_pairs;
  const uint64_t key =
      random_words(options_.seed, visit, static_cast<uint32_t>(l), kPartOrder).both();
  const uint64_t rank = shuffled(key, lane.num_pairs, walked % lane.num_pairs);
  // The pair with `rank` pairs before it that are not excluded: as many excluded ones stand before
  // it as have at most `rank` such pairs before them.
  const uint64_t* excluded = excluded_.data() + lane.first_excluded;
  uint64_t low = 0, high = lane.num_excluded;
  while (low < high) {
    const uint64_t middle = (low + high) / 2;
    if (excluded[middle] - lane.first_pair - middle <= rank) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return {lane.first_pair + rank + low, visit};
}

void PairSampler::load_pool(uint64_t epoch, uint64_t pool) {
  loaded_ = false;
  const TokenizedCorpus& corpus = builder_.corpus();
  const auto tokens = [&](const BatchBuilder::Draw& d) {
    return corpus.length(d.pair, 0) + corpus.length(d.pair, 1);
  };
  draws_.clear();
  const uint64_t first = pool * pool_pairs_;
  for (uint64_t i = first; i < std::min(used_draws_, first + pool_pairs_); ++i)
    draws_.push_back(draw(epoch, i));
  if (options_.pool_batches > 1) {
    std::stable_sort(draws_.begin(), draws_.end(),
                     [&](const auto& a, const auto& b) { return tokens(a) < tokens(b); });
  }
  batch_ends_.clear();
  for (size_t begin = 0; begin < draws_.size();) {
    begin += first_batch(draws_.size() - begin, options_.batch_pairs, options_.batch_tokens,
                         [&](size_t i) { return int64_t{tokens(draws_[begin + i])}; });
    if (begin < draws_.size()) batch_ends_.push_back(begin);
  }
  // By tokens, the last two share their pairs evenly: a contrastive loss needs company.
  if (options_.batch_tokens > 0 && !batch_ends_.empty()) {
    const size_t last = batch_ends_.back();
    const size_t previous = batch_ends_.size() > 1 ? batch_ends_[batch_ends_.size() - 2] : 0;
    const size_t middle = (previous + draws_.size() + 1) / 2;
    const auto sum_of = [&](size_t from) {
      return std::accumulate(draws_.begin() + static_cast<ptrdiff_t>(from), draws_.end(),
                             int64_t{0},
                             [&](int64_t s, const BatchBuilder::Draw& d) { return s + tokens(d); });
    };
    if (middle < last && sum_of(middle) <= options_.batch_tokens) batch_ends_.back() = middle;
  }
  batch_ends_.push_back(draws_.size());
  batch_order_.resize(batch_ends_.size());
  std::iota(batch_order_.begin(), batch_order_.end(), 0u);
  if (options_.pool_batches > 1) {
    const RandomWords key = random_words(options_.seed, epoch, static_cast<uint32_t>(pool),
                                         kBatchOrder | static_cast<uint32_t>(pool >> 32) << 8);
    for (size_t i = 0; i < batch_order_.size(); ++i) {
      batch_order_[i] = static_cast<uint32_t>(shuffled(key.both(), batch_order_.size(), i));
    }
  }
  epoch_ = epoch;
  pool_ = pool;
  loaded_ = true;
}

void PairSampler::next(DataPosition& position, PairBatch& batch) {
  const auto must_exist = [&](bool exists) {
    if (!exists) {
      throw_invalid(
          fmt::format("the data has no batch {} in pool {} of epoch {}; was the position saved "
                      "with other data or other options?",
                      position.batch, position.pool, position.epoch));
    }
  };
  must_exist(position.pool < num_pools());
  if (!loaded_ || epoch_ != position.epoch || pool_ != position.pool)
    load_pool(position.epoch, position.pool);
  must_exist(position.batch < batch_order_.size());
  const size_t chosen = batch_order_[position.batch];
  const size_t begin = chosen == 0 ? 0 : batch_ends_[chosen - 1];
  builder_.build(std::span(draws_).subspan(begin, batch_ends_[chosen] - begin), batch);
  if (++position.batch < batch_order_.size()) return;
  position.batch = 0;
  if (++position.pool < num_pools()) return;
  position.pool = 0;
  ++position.epoch;
}

}  // namespace xsr::training
