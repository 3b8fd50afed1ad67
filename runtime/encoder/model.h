#pragma once
#include <memory>
#include <string>

#include "runtime/encoder/weights.h"
#include "runtime/format/xsr_file.h"
#include "runtime/text/tokenizer.h"

namespace xsr {

/// An opened model: its file, where its tensors are, and its tokenizer. Immutable; shared by any
/// number of sessions.
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

 private:
  std::unique_ptr<XsrFile> file_;
  EncoderWeights weights_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace xsr
