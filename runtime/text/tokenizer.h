#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/format/model_config.h"

namespace xsr {

/// Text to token ids, for one model. Immutable; encode() may be called from any number of threads
/// at once.
class Tokenizer {
 public:
  /// What one thread remembers between calls to make the next ones quicker. Ids do not depend on
  /// it.
  struct State {
    virtual ~State() = default;
  };
  static constexpr size_t kDefaultMemoBytes = size_t{8} << 20;

  struct Result {
    bool truncated = false;
    uint32_t replaced_bytes = 0;
  };

  virtual ~Tokenizer() = default;
  /// Appends the ids of text to ids, at most max_tokens of them (the model's special tokens
  /// included): malformed UTF-8 becomes U+FFFD, then lower-casing when the model asks for it, then
  /// the model's own normaliser and segmentation. An empty text (or one the normaliser empties)
  /// gives no ids at all. Throws Error(BAD_FILE) when a control piece of the
  /// model is a word of the text, which SentencePiece cannot encode.
  ///
  /// Time and memory stay bounded for a text of any length: segmentation stops behind the last id
  /// that is kept, and the ids are still those of the whole text. (Two corners of SentencePiece
  /// allow an exception: a text that for 256 KiB on end has no place where no piece could span two
  /// characters, and the rounding of a unigram model's scores behind the first 64 KiB.)
  ///
  /// state: null, or what make_state() of this tokenizer gave; for one call at a time.
  virtual Result encode(std::string_view text, size_t max_tokens, std::vector<int32_t>& ids,
                        State* state) const = 0;
  Result encode(std::string_view text, size_t max_tokens, std::vector<int32_t>& ids) const {
    return encode(text, max_tokens, ids, nullptr);
  }
  /// A state whose memory stays below memo_bytes, and starts small; null when it would be of no
  /// use.
  virtual std::unique_ptr<State> make_state(size_t memo_bytes = kDefaultMemoBytes) const = 0;
  /// Ids the tokenizer can give are in [0, vocab_size).
  virtual int32_t vocab_size() const = 0;
};

/// blob: the bytes of a SentencePiece model. tables: what make_tokenizer_tables() made of it,
/// 64-byte aligned; empty or of another revision: they are made here, which takes some
/// milliseconds. Both must outlive the tokenizer. Throws Error(BAD_FILE) when either is wrong or
/// the vocabulary is larger than config.vocab_size.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string_view blob,
                                                        std::span<const unsigned char> tables,
                                                        const ModelConfig& config);

/// The tokenizer of a model, null when config.tokenizer is kNone. UNSUPPORTED for kinds this build
/// does not know.
std::unique_ptr<Tokenizer> make_tokenizer(std::string_view blob,
                                          std::span<const unsigned char> tables,
                                          const ModelConfig& config);
inline std::unique_ptr<Tokenizer> make_tokenizer(std::string_view blob, const ModelConfig& config) {
  return make_tokenizer(blob, {}, config);
}

}  // namespace xsr
