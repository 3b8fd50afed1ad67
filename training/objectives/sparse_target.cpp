#include "training/objectives/sparse_target.h"

#include <algorithm>
#include <span>

namespace xsr::training {
namespace {

class TargetBuilder {
 public:
  /// Puts `mass` of sentence b's own words into the bag under construction.
  void add_words(const PairBatch& batch, int32_t b, double mass, const TargetSettings& settings) {
    const int32_t begin = batch.cu_seqlens[b], end = batch.cu_seqlens[b + 1];
    ids_.assign(batch.token_ids.begin() + begin, batch.token_ids.begin() + end);
    const int32_t row = batch.masked_row[b % batch.num_pairs];
    if (settings.clean_ids && row >= begin && row < end)
      ids_[row - begin] = batch.masked_id[b % batch.num_pairs];
    std::sort(ids_.begin(), ids_.end());
    for (auto first = ids_.begin(); first != ids_.end();) {
      auto next = first + 1;  // most words come once
      while (next != ids_.end() && *next == *first) ++next;
      const double count = settings.count_weighted ? static_cast<double>(next - first) : 1;
      bag_.push_back({*first, mass * count / (end - begin)});
      first = next;
    }
  }

  /// Puts `mass` on one word: beside what it has, or, where it has something, not at all.
  void add_word(int32_t id, double mass, bool beside) {
    const auto at = std::find_if(bag_.begin(), bag_.end(), [&](Word w) { return w.id == id; });
    if (at == bag_.end()) {
      bag_.push_back({id, mass});
    } else if (beside) {
      at->mass += mass;
    }
  }

  void finish_sentence() {
    std::sort(bag_.begin(), bag_.end(), [](Word a, Word b) { return a.id < b.id; });
    for (const Word& word : bag_) {
      target_.token_ids.push_back(word.id);
      target_.masses.push_back(static_cast<float>(word.mass));
    }
    target_.offsets.push_back(static_cast<int32_t>(target_.token_ids.size()));
    bag_.clear();
  }

  SparseTarget take() { return std::move(target_); }

 private:
  struct Word {
    int32_t id;
    double mass;
  };
  std::vector<int32_t> ids_;
  std::vector<Word> bag_;
  SparseTarget target_{{0}, {}, {}};
};

/// The masked pair's side that sentence b is.
bool is_masked(const PairBatch& batch, int32_t b) {
  const int32_t pair = b % batch.num_pairs;
  return batch.masked_id[pair] >= 0 && batch.masked_side[pair] == b / batch.num_pairs;
}

int32_t other_side(const PairBatch& batch, int32_t b) {
  return b < batch.num_pairs ? b + batch.num_pairs : b - batch.num_pairs;
}

}  // namespace

SparseTarget xtr_target(const PairBatch& batch, const TargetSettings& settings) {
  TargetBuilder builder;
  for (int32_t b = 0; b < batch.num_sentences(); ++b) {
    builder.add_words(batch, other_side(batch, b), 1, settings);
    builder.finish_sentence();
  }
  return builder.take();
}

SparseTarget ugt_target(const PairBatch& batch, const TargetSettings& settings) {
  TargetBuilder builder;
  for (int32_t b = 0; b < batch.num_sentences(); ++b) {
    const bool masked = is_masked(batch, b);
    builder.add_words(batch, other_side(batch, b), masked ? 0.5 : 1, settings);
    if (masked) builder.add_word(batch.masked_id[b % batch.num_pairs], 0.5, settings.add_masses);
    builder.finish_sentence();
  }
  return builder.take();
}

SparseTarget smlm_target(const PairBatch& batch) {
  TargetBuilder builder;
  for (int32_t b = 0; b < batch.num_sentences(); ++b) {
    if (is_masked(batch, b)) builder.add_word(batch.masked_id[b % batch.num_pairs], 1, true);
    builder.finish_sentence();
  }
  return builder.take();
}

}  // namespace xsr::training
