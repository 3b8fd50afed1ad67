#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/attention/attention_training_cuda.h"
#include "kernels/dropout/dropout.h"
#include "kernels/loss/loss_cuda.h"
#include "kernels/optimizer/optimizer.h"
#include "runtime/device/cuda/device.h"
#include "runtime/format/model_config.h"
#include "training/batch.h"
#include "training/objectives/objectives.h"

namespace xsr::training {

/// What one step reads on the device beside the model: the batch, its targets and buckets, and the
/// numbers that change from step to step. Made in pinned memory, which a single copy brings over:
/// the device's addresses stay while no larger batch comes, so that a captured step reads the next
/// batch. There is pinned memory for two, so that one can be made while the device reads the other.
class DeviceBatch {
 public:
  /// Rows that look up the same id (kernels/embedding/embedding.h).
  struct Buckets {
    int32_t *count = nullptr, *ids = nullptr, *starts = nullptr, *rows = nullptr;
  };
  struct Arrays {
    int32_t *token_ids = nullptr, *positions = nullptr;  // [N]
    int32_t* cu_seqlens = nullptr;                       // [2B + 1]
    cuda::AttentionTile* attention_chunks = nullptr;     // [attention_chunks()]
    Buckets tokens, rows_of_positions;
    int32_t *word_offsets = nullptr, *word_ids = nullptr;
    float *coefficients = nullptr, *masses = nullptr;
    double* coefficient_sums = nullptr;
    kernels::Dropout* dropout = nullptr;
    kernels::AdamStep* adam = nullptr;
  };

  /// What a batch is filled up to, so that few shapes come up.
  struct Filled {
    int32_t tokens = 0;            // with some that belong to no sentence
    int32_t attention_chunks = 0;  // with some that have no rows: chunk_bucket() of a number
  };
  static int32_t chunk_bucket(int32_t chunks);

  /// Keeps references.
  DeviceBatch(const ModelConfig& config, const ObjectiveConfig& objectives);
  ~DeviceBatch();

  /// Takes a batch over, filled up to no fewer tokens and chunks than it has. `total_pairs`, which
  /// losses are a mean over, counts other devices' shares too. True when something has moved or
  /// must grow, for one of the sizes is larger than all before; what was prepared is then gone.
  /// Where memory does not suffice it throws, and is as at first.
  bool build(const PairBatch& batch, const Filled& filled, int32_t total_pairs);
  /// Makes another batch ready beside the one taken over, which the device may be reading, in place
  /// of what was prepared before, and brings it to the device while that works. A batch that is
  /// larger than all before is left to build(). Behind the upload() of the one taken over.
  void prepare(const PairBatch& batch, const Filled& filled, int32_t total_pairs);
  void forget_prepared() { prepared_ = false; }
  /// Takes over what was prepared; false when there is nothing.
  bool take_prepared();
  /// Frees all memory: the next batch is taken as the first one.
  void release();
  /// Of the step that comes.
  void set_coefficients(const kernels::Dropout& dropout, const kernels::AdamStep& adam);
  /// To where the kernels read it: from the host, or but for its coefficients from the device.
  void upload(cuda::Stream stream);

  int32_t pairs() const { return current_.pairs; }
  int32_t total_pairs() const { return current_.total_pairs; }
  int32_t sentences() const { return 2 * current_.pairs; }
  int32_t tokens() const { return current_.tokens; }
  /// Of sentences that attention's backward pass does not take whole.
  int32_t attention_chunks() const { return current_.attention_chunks; }
  int32_t max_tokens() const { return max_tokens_; }
  int32_t max_sentences() const { return max_sentences_; }
  int32_t max_total_pairs() const { return max_total_pairs_; }
  const Arrays& device() const { return device_; }
  /// On the device; as many targets as objectives of words have a weight.
  const cuda::VocabularyWords& words() const { return words_; }

 private:
  /// A batch on the host.
  struct Made {
    int32_t pairs = 0, total_pairs = 0, tokens = 0, attention_chunks = 0;
    Arrays arrays;
    cuda::Memory memory;
  };
  bool fits(const PairBatch& batch, int32_t tokens) const {
    return tokens <= max_tokens_ && batch.num_sentences() <= max_sentences_;
  }
  void reserve(int32_t tokens, int32_t sentences);
  void wait_for_copies() const {
    if (copies_) copies_->synchronize();
  }
  void make(const PairBatch& batch, const Filled& filled, int32_t total_pairs, Made& to);
  void take_words(const PairBatch& batch, Made& to);
  void take_buckets(const int32_t* ids, int32_t N, int32_t num_ids, int32_t skipped,
                    const Buckets& out);

  const ModelConfig& config_;
  const ObjectiveConfig& objectives_;
  int32_t max_tokens_ = 0, max_sentences_ = 0, max_total_pairs_ = 0;
  int64_t max_words_ = 0;
  Made current_, next_;
  bool prepared_ = false;   // next_ is whole, and on its way to staged_memory_
  bool is_staged_ = false;  // current_ is there
  Arrays device_;
  float* logits_ = nullptr;
  cuda::Memory device_memory_, staged_memory_, logits_memory_;
  std::optional<cuda::StreamOwner> copies_;  // into staged_memory_
  std::optional<cuda::Event> staged_read_;   // the last upload() from there
  cuda::VocabularyWords words_;
  std::vector<int32_t> bucket_memory_;
};

}  // namespace xsr::training
