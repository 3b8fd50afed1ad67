#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "training/data/log.h"
#include "training/data/parallel_text.h"

namespace xsr::training {

/// How a SentencePiece model is trained on both sides of the data: BPE, as Mao et al. 2021.
struct TokenizerOptions {
  int32_t vocab_size = 16000;
  double character_coverage = 0.9995;  // of the characters of the sample; the others become <unk>
  bool lowercase = true;               // as the model will (ModelConfig::lowercase)
  int64_t max_sentences = 2000000;     // in the sample, both sides counted; bounds the memory
  uint64_t seed = 1;                   // chooses the sample
  double temperature = 1;              // a language pair's share of it is ∝ pairs^(1/temperature)
  size_t max_line_bytes = 256 << 10;   // as CorpusOptions
};

/// Trains a BPE model (pad 0, unk 1, "<MASK>" 2, neither bos nor eos, nmt_nfkc) on a sample of the
/// files and returns the bytes of its .model file. The same files, options and SentencePiece
/// library give the same bytes. Lines that give no pair are passed over. Hashes the files where
/// that is still to be done. Throws Error(INVALID_ARGUMENT) when the text is too small for the
/// vocabulary, Error of open_text, Stopped (before the library's own part, which cannot be
/// stopped).
std::string train_tokenizer(std::span<LanguagePair> languages, const TokenizerOptions& options,
                            const DataLog& log = {});

}  // namespace xsr::training
