#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "training/batch.h"
#include "training/data/tokenized_corpus.h"

namespace xsr::training {

/// Which tokens may be masked: [V], 0 for padding, <MASK> and pieces of punctuation and spaces
/// alone (docs/methods.md, Masks). tokenizer_model: the bytes of a SentencePiece model.
std::vector<uint8_t> maskable_tokens(std::string_view tokenizer_model, const ModelConfig& config);

/// Packs pairs of a corpus into batches and masks one token of each.
class BatchBuilder {
 public:
  /// mask_id -1: nothing is masked, and maskable is not looked at. Keeps the corpus.
  BatchBuilder(std::shared_ptr<const TokenizedCorpus> corpus, int32_t mask_id,
               std::vector<uint8_t> maskable, uint64_t seed);

  /// One pair of a batch. Its masked side and token are a function of (seed, visit, pair): a side
  /// with probability 1/2, then one of its maskable tokens; the other side where it has none, no
  /// mask where neither has.
  struct Draw {
    uint64_t pair = 0;
    uint64_t visit = 0;  // how many times the pair has been drawn before, which is mostly the epoch
  };
  void build(std::span<const Draw> draws, PairBatch& batch) const;
  /// How many of the first pairs make a batch of at most batch_pairs pairs and batch_tokens tokens
  /// (0: any); at least 1.
  size_t fitting(std::span<const uint64_t> pairs, int64_t batch_pairs, int64_t batch_tokens) const;
  /// The pairs for evaluation, always masked alike.
  void build(std::span<const uint64_t> pairs, PairBatch& batch) const;

  const TokenizedCorpus& corpus() const { return *corpus_; }

 private:
  std::shared_ptr<const TokenizedCorpus> corpus_;
  int32_t mask_id_;
  std::vector<uint8_t> maskable_;
  uint64_t seed_;
};

struct SamplerOptions {
  uint64_t seed = 1;
  std::vector<double> weights;  // [parts], of the draws; empty: ∝ pairs^(1/temperature)
  double temperature = 1;
  int32_t batch_pairs = 128;  // pairs of a batch; where batch_tokens > 0, its most
  int32_t batch_tokens = 0;   // most tokens of a batch, both sides; 0: batches by pairs alone
  int32_t pool_batches = 1;   // > 1: sorted by length within so many batches' worth of pairs
  bool drop_last = true;      // batches by pairs: no smaller batch at the end of an epoch
};

/// Where a run stands in its data: the next batch. All that a checkpoint has to keep of it.
struct DataPosition {
  uint64_t epoch = 0;
  uint64_t pool = 0;   // in the epoch
  uint64_t batch = 0;  // in the pool

  bool operator==(const DataPosition&) const = default;
};

/// The order in which pairs are trained on, as a pure function of options and position: nothing is
/// stored but one pool of draws, and any position is reached at once.
///
/// An epoch has as many draws as there are pairs to train on. Part l takes a share of them by its
/// weight and walks through its pairs in a shuffled order, a new one each time it has seen them
/// all; with temperature 1 and no weights every pair comes exactly once an epoch. The draws of all
/// parts are shuffled together. Permutations are Feistel networks over Philox with cycle walking.
/// Not for several threads at once.
class PairSampler {
 public:
  /// excluded: pair numbers, rising, never drawn. Throws Error(INVALID_ARGUMENT) for options that
  /// make no sense and for a corpus that has nothing left to draw.
  PairSampler(BatchBuilder builder, std::vector<uint64_t> excluded, const SamplerOptions& options);

  /// Makes the batch at the position and moves the position behind it, into the next epoch after
  /// the last. Throws Error(INVALID_ARGUMENT) for a position that does not exist.
  void next(DataPosition& position, PairBatch& batch);

  uint64_t draws_per_epoch() const { return draws_per_epoch_; }
  /// Of part l in every epoch.
  uint64_t draws_of_part(size_t l) const { return lanes_[l].draws; }
  /// Exact for batches by pairs; by tokens those of the first epoch, from which others differ by
  /// little, beyond a million draws reckoned from as many.
  uint64_t batches_per_epoch() const { return batches_per_epoch_; }
  const BatchBuilder& builder() const { return builder_; }

 private:
  struct Lane {                              // what a part is to the sampler
    uint64_t first_pair = 0, num_pairs = 0;  // to draw from, the excluded ones not counted
    uint64_t first_excluded = 0, num_excluded = 0;
    uint64_t draws = 0;  // an epoch
  };
  BatchBuilder::Draw draw(uint64_t epoch, uint64_t index) const;
  void load_pool(uint64_t epoch, uint64_t pool);
  uint64_t num_pools() const;
  uint64_t count_batches();

  BatchBuilder builder_;
  std::vector<uint64_t> excluded_;
  SamplerOptions options_;
  std::vector<Lane> lanes_;
  uint64_t draws_per_epoch_ = 0;
  uint64_t used_draws_ = 0;  // of them; less where the last batch is dropped
  uint64_t pool_pairs_ = 0;
  uint64_t batches_per_epoch_ = 0;
  // The pool at hand.
  bool loaded_ = false;
  uint64_t epoch_ = 0, pool_ = 0;
  std::vector<BatchBuilder::Draw> draws_;
  std::vector<size_t> batch_ends_;  // of draws_, in the order of batches before they are shuffled
  std::vector<uint32_t> batch_order_;
};

}  // namespace xsr::training
