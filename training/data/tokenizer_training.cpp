#include "training/data/tokenizer_training.h"

#include <fmt/format.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/error.h"
#include "runtime/text/line_reader.h"
#include "runtime/text/lowercase.h"
#include "runtime/text/progress.h"
#include "training/random.h"

namespace xsr::training {
namespace {

constexpr size_t kBatchLines = 4096, kBatchBytes = 4 << 20;

/// The pairs of some files, one behind the other.
class PairWalk {
 public:
  PairWalk(std::span<const TextFile> files, const TokenizerOptions& options, const DataLog& log)
      : files_(files), options_(options), log_(log) {}

  /// False at the end.
  bool next(std::string_view sides[2]) {
    for (;;) {
      if (at_ == batch_.size() && !read()) return false;
      const bool cut = batch_.cut[at_] != 0;
      const std::string_view line = batch_.line(at_++);
      const DropReason reason = split_pair(line, cut, files_[file_], sides);
      ++report_.lines;
      if (reason == DropReason::kKept) return true;
      report_.add(reason, files_[file_], batch_.first_line + at_ - 1, line);
    }
  }

  /// Of what was passed over.
  const DropReport& report() const { return report_; }

 private:
  bool read() {
    at_ = 0;
    for (;;) {
      if (log_.stopped()) throw Stopped();
      if (!reader_) {
        batch_.ends.clear();
        if (next_file_ == files_.size()) return false;
        file_ = next_file_++;
        reader_ = std::make_unique<LineReader>(
            open_text(files_[file_].path, files_[file_].hash, log_.stop), options_.max_line_bytes,
            log_.stop);
      }
      if (reader_->read(kBatchLines, kBatchBytes, batch_)) return true;
      reader_.reset();
    }
  }

  std::span<const TextFile> files_;
  const TokenizerOptions& options_;
  const DataLog& log_;
  std::unique_ptr<LineReader> reader_;
  size_t file_ = 0, next_file_ = 0;
  LineBatch batch_;
  size_t at_ = 0;
  DropReport report_;
};

/// Draws exactly `wanted` of `total` things, each as likely as any other, in one walk over them.
/// Source: Knuth, The Art of Computer Programming, vol. 2, §3.4.2, algorithm S.
class Selection {
 public:
  Selection(uint64_t wanted, uint64_t total, uint64_t seed, uint32_t stream)
      : wanted_(wanted), total_(total), seed_(seed), stream_(stream) {}

  bool next() {
    const uint64_t random = random_words(seed_, seen_, stream_, 0).both();
    const uint64_t left = total_ - seen_++;
    const uint64_t place =
        static_cast<uint64_t>(static_cast<unsigned __int128>(random) * left >> 64);
    if (place >= wanted_) return false;
    --wanted_;
    return true;
  }

 private:
  uint64_t wanted_, total_, seed_, seen_ = 0;
  uint32_t stream_;
};

/// The sample, as the library wants to have it. Exceptions stay on this side: error holds them.
class Sample : public sentencepiece::SentenceIterator {
 public:
  Sample(std::span<const LanguagePair> languages, std::span<const uint64_t> pairs,
         std::span<const uint64_t> quotas, const TokenizerOptions& options, const DataLog& log)
      : languages_(languages), pairs_(pairs), quotas_(quotas), options_(options), log_(log) {
    Next();
  }

  bool done() const override { return done_; }
  const std::string& value() const override { return text_; }
  sentencepiece::util::Status status() const override {
    return error ? sentencepiece::util::Status(sentencepiece::util::StatusCode::kInternal,
                                               "the sample cannot be read")
                 : sentencepiece::util::Status();
  }
  void Next() override {
    try {
      done_ = !advance();
    } catch (...) {
      error = std::current_exception();
      done_ = true;
    }
  }

  std::exception_ptr error;

 private:
  bool advance() {
    if (side_ == 1) {
      set(sides_[1]);
      side_ = 0;
      return true;
    }
    for (;;) {
      if (!walk_) {
        if (language_ == languages_.size()) return false;
        walk_.emplace(languages_[language_].files, options_, log_);
        selection_.emplace(quotas_[language_], pairs_[language_], options_.seed,
                           static_cast<uint32_t>(language_));
      }
      while (walk_->next(sides_)) {
        if (!selection_->next()) continue;
        set(sides_[0]);
        side_ = 1;
        return true;
      }
      walk_.reset();
      ++language_;
    }
  }
  void set(std::string_view text) {
    text_.clear();
    if (options_.lowercase) {
      append_lowercase(text, text_);
    } else {
      text_ = text;
    }
  }

  std::span<const LanguagePair> languages_;
  std::span<const uint64_t> pairs_, quotas_;
  const TokenizerOptions& options_;
  const DataLog& log_;
  size_t language_ = 0;
  std::optional<PairWalk> walk_;
  std::optional<Selection> selection_;
  std::string_view sides_[2];
  int side_ = 0;  // of the next sentence
  std::string text_;
  bool done_ = false;
};

}  // namespace

std::string train_tokenizer(std::span<LanguagePair> languages, const TokenizerOptions& options,
                            const DataLog& log) {
  if (options.vocab_size < 8 || options.max_sentences < 2 || !(options.temperature > 0) ||
      !(options.character_coverage >= 0.98 && options.character_coverage <= 1)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                fmt::format("a tokenizer of {} pieces from {} sentences, temperature {}, character "
                            "coverage {} cannot be trained; expected at least 8 pieces and 2 "
                            "sentences, a temperature above 0 and a coverage in [0.98, 1]",
                            options.vocab_size, options.max_sentences, options.temperature,
                            options.character_coverage));
  }
  hash_texts(languages, log.stop);
  std::vector<uint64_t> pairs, quotas;
  double weights = 0;
  const auto weight = [&](uint64_t n) {
    return n == 0 ? 0 : std::pow(static_cast<double>(n), 1 / options.temperature);
  };
  for (const LanguagePair& language : languages) {
    PairWalk walk(language.files, options, log);
    std::string_view sides[2];
    pairs.push_back(0);
    while (walk.next(sides)) ++pairs.back();
    if (pairs.back() == 0) throw_no_pair(language.name, walk.report());
    weights += weight(pairs.back());
  }
  uint64_t sentences = 0, all = 0;
  for (uint64_t n : pairs) {
    const double share = weights > 0 ? weight(n) / weights : 0;
    const double quota = share * static_cast<double>(options.max_sentences / 2);
    quotas.push_back(std::min(n, static_cast<uint64_t>(quota)));
    sentences += 2 * quotas.back();
    all += 2 * n;
  }
  if (log.say) {
    log.say(
        fmt::format("training a tokenizer of {} pieces on {} of {} sentences; this takes "
                    "minutes for millions of them",
                    with_separators(static_cast<uint64_t>(options.vocab_size)),
                    with_separators(sentences), with_separators(all)));
  }

  Sample sample(languages, pairs, quotas, options, log);
  if (sample.error) std::rethrow_exception(sample.error);
  const std::unordered_map<std::string, std::string> arguments = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"character_coverage", fmt::format("{}", options.character_coverage)},
      {"normalization_rule_name", "nmt_nfkc"},
      {"pad_id", "0"},
      {"unk_id", "1"},
      {"bos_id", "-1"},
      {"eos_id", "-1"},
      {"user_defined_symbols", "<MASK>"},  // the first free id: 2
      {"input_sentence_size", "0"},        // the sample is ours
      {"shuffle_input_sentence", "false"},
      {"num_threads", "16"},  // it stands in the model: another number gives other bytes
      {"minloglevel", "3"},   // xsr says what there is to say
  };
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &sample, &model);
  if (sample.error) std::rethrow_exception(sample.error);
  if (!status.ok()) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                fmt::format("a tokenizer of {} pieces cannot be trained on {} sentences: {}. Give "
                            "more text, or ask for fewer pieces (more, where the alphabet does "
                            "not fit in)",
                            options.vocab_size, sentences, status.ToString()));
  }
  return model;
}

}  // namespace xsr::training
