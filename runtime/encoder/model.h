#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "runtime/encoder/derived_weights.h"
#include "runtime/encoder/qkv_table.h"
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
        tokenizer_(make_tokenizer(file_->tokenizer(), file_->tokenizer_tables(), file_->config())) {
  }

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

  /// The matrices for `compute`, and for the ISA of its int8 products where it is int8, made
  /// unless a session that lives has them already.
  std::shared_ptr<const DerivedWeights> derived_weights(
      Compute compute, kernels::Isa int8 = kernels::Isa::kRef) const {
    const std::lock_guard<std::mutex> lock(derived_mutex_);
    const bool in_steps = compute == Compute::kInt8 && int8 == kernels::Isa::kAvx2;
    std::weak_ptr<const DerivedWeights>& kept = derived_[{compute, in_steps}];
    std::shared_ptr<const DerivedWeights> derived = kept.lock();
    if (derived == nullptr) {
      derived = std::make_shared<const DerivedWeights>(weights_, compute, in_steps);
      kept = derived;
    }
    return derived;
  }

 private:
  std::unique_ptr<XsrFile> file_;
  EncoderWeights weights_;
  std::unique_ptr<Tokenizer> tokenizer_;
  mutable std::mutex derived_mutex_;
  mutable std::map<std::pair<Compute, bool>, std::weak_ptr<const DerivedWeights>> derived_;
  mutable std::mutex qkv_mutex_;
  mutable std::map<kernels::Isa, std::weak_ptr<const QkvTable>> qkv_tables_;
};

}  // namespace xsr
