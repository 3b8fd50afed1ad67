#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "runtime/encoder/qkv_table.h"
#include "runtime/encoder/split_weights.h"
#include "runtime/encoder/weights.h"
#include "runtime/format/xsr_file.h"
#include "runtime/text/tokenizer.h"

namespace xsr {

/// An opened model: its file, where its tensors are, and its tokenizer. Immutable to its users;
/// shared by any number of sessions.
class Model {
 public:
  /// Throws Error as XsrFile, bind_weights and make_tokenizer do.
  explicit Model(std::unique_ptr<XsrFile> file)
      : file_(std::move(file)),
        weights_(bind_weights(*file_)),
        tokenizer_(make_tokenizer(file_->tokenizer(), file_->config())) {}

  const ModelConfig& config() const { return file_->config(); }
  const EncoderWeights& weights() const { return weights_; }
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }  // null: token ids only
  const XsrFile& file() const { return *file_; }

  /// The table for the ISA of `kernels`, built with `pool` unless a session that lives has it
  /// already.
  std::shared_ptr<const QkvTable> qkv_table(const kernels::KernelTable& kernels,
                                            ThreadPool& pool) const {
    const std::lock_guard<std::mutex> lock(qkv_mutex_);
    std::weak_ptr<const QkvTable>& kept = qkv_tables_[kernels.gemm_forward_f32_isa];
    std::shared_ptr<const QkvTable> table = kept.lock();
    if (table == nullptr) {
      table = std::make_shared<const QkvTable>(config(), weights_, kernels, pool);
      kept = table;
    }
    return table;
  }

  /// The split weights, made with `pool` unless a session that lives has them already.
  std::shared_ptr<const SplitWeights> split_weights(ThreadPool& pool) const {
    const std::lock_guard<std::mutex> lock(split_mutex_);
    std::shared_ptr<const SplitWeights> weights = split_weights_.lock();
    if (weights == nullptr) {
      weights = std::make_shared<const SplitWeights>(weights_, pool);
      split_weights_ = weights;
    }
    return weights;
  }

 private:
  std::unique_ptr<XsrFile> file_;
  EncoderWeights weights_;
  std::unique_ptr<Tokenizer> tokenizer_;
  mutable std::mutex qkv_mutex_;
  mutable std::map<kernels::Isa, std::weak_ptr<const QkvTable>> qkv_tables_;
  mutable std::mutex split_mutex_;
  mutable std::weak_ptr<const SplitWeights> split_weights_;
};

}  // namespace xsr
