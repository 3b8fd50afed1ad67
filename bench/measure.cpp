#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "bench/statistics.h"

namespace xsr::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr size_t kEnoughCalls = 100, kFewestCalls = 5;

/// Whether a measurement that has run this long may stop.
bool enough(size_t calls, double elapsed, double seconds) {
  if (calls >= kEnoughCalls) return elapsed >= seconds;
  return calls >= kFewestCalls && elapsed >= 4 * seconds;
}

/// One sentence of random ids a call.
class SentenceCalls {
 public:
  SentenceCalls(const Model& model, Session& session, int32_t tokens)
      : session_(session),
        tokens_(tokens),
        ids_(model.info().vocab_size, 11),
        embedding_(model.info().embedding_size) {}

  /// Seconds of the call.
  double run() {
    const std::vector<int32_t> ids = ids_.take(tokens_);
    const size_t offsets[2] = {0, ids.size()};
    const auto start = Clock::now();
    session_.embed_ids(ids, offsets, embedding_.data());
    return seconds_since(start);
  }

 private:
  Session& session_;
  int32_t tokens_;
  RandomIds ids_;
  std::vector<float> embedding_;
};

/// Slices are long enough to fill every thread's or device's chunks and short enough to stop in
/// time.
size_t slice_sentences(const Session& session) {
  if (!session.on_cpu()) return 65536;
  return session.isa() == XSR_ISA_REF ? 32 : 1024;
}

void count_tokens(Corpus& corpus, size_t tokens) {
  corpus.tokens += tokens;
  corpus.token_pairs += static_cast<double>(tokens) * static_cast<double>(tokens);
}

/// run(first, last) embeds the sentences [first, last).
template <typename Run>
void measure_passes(Corpus& corpus, size_t count, const Session& session, double limit,
                    const Run& run) {
  const size_t slice = slice_sentences(session);
  run(0, std::min(count, slice / 8));
  const auto start = Clock::now();
  std::vector<double> seconds;
  for (int pass = 0; pass < 3 && (pass == 0 || seconds_since(start) < limit); ++pass) {
    double total = 0;
    size_t done = 0;
    while (done < count && (pass > 0 || done == 0 || seconds_since(start) < limit)) {
      const size_t last = std::min(count, done + slice);
      const auto slice_start = Clock::now();
      run(done, last);
      total += seconds_since(slice_start);
      done = last;
    }
    seconds.push_back(total);
    count = done;
  }
  corpus.sentences = count;
  corpus.seconds = median(seconds);
  corpus.passes = static_cast<int32_t>(seconds.size());
}

}  // namespace

Check check_against_ref(const Model& model, Session& timed) {
  const xsr_model_info& info = model.info();
  RandomIds ids(info.vocab_size, 3);
  IdBatch batch;
  for (const int32_t length : {1, 2, 5, 20, 37})
    batch.append(ids.take(std::min(length, info.max_seq_len)));
  const size_t size = batch.count() * static_cast<size_t>(info.embedding_size);
  std::vector<float> got(size), expected(size);
  // The ref kernels compute in f32: bf16 is held against what it stands for.
  Session ref(model, XSR_ISA_REF, XSR_COMPUTE_F32, 1);
  ref.embed_ids(batch.token_ids, batch.offsets, expected.data());
  timed.embed_ids(batch.token_ids, batch.offsets, got.data());
  Check check;
  double largest = 0;
  bool finite = true;
  for (size_t i = 0; i < size; ++i) {
    const double difference = std::fabs(double{got[i]} - double{expected[i]});
    finite = finite && std::isfinite(difference);
    largest = std::max(largest, std::fabs(double{expected[i]}));
    check.largest_difference = std::max(check.largest_difference, difference);
  }
  // Rounding of f32, of bf16 (2^-9 a value), of two (2^-17) or of tf32 (2^-11); int8: a value is
  // up to 2^-9 of its row's range away, four products a layer. A wrong result differs by about
  // `largest`.
  const double unit = timed.compute() == XSR_COMPUTE_BF16     ? 2e-2
                      : timed.compute() == XSR_COMPUTE_BF16X3 ? 1e-4
                      : timed.compute() == XSR_COMPUTE_INT8   ? 5e-2
                      : timed.compute() == XSR_COMPUTE_TF32   ? 5e-3
                                                              : 1e-5;
  check.allowed = unit * largest * std::max(1.0, info.num_layers / 2.0);
  check.passed = finite && check.largest_difference <= check.allowed;
  return check;
}

Latency measure_latency(const Model& model, Session& session, int32_t tokens, double seconds) {
  SentenceCalls calls(model, session, tokens);
  auto start = Clock::now();
  do calls.run();
  while (seconds_since(start) < seconds / 10);
  std::vector<double> times;
  start = Clock::now();
  do times.push_back(calls.run());
  while (!enough(times.size(), seconds_since(start), seconds));
  return {
      tokens, times.size(), percentile(times, 0.5), percentile(times, 0.9), percentile(times, 0.99),
      0};
}

Corpus measure_ids(const Model& model, Session& session, const IdBatch& batch, double limit) {
  std::vector<float> embeddings(slice_sentences(session) *
                                static_cast<size_t>(model.info().embedding_size));
  std::vector<size_t> offsets;
  Corpus corpus;
  corpus.input = "ids";
  measure_passes(corpus, batch.count(), session, limit, [&](size_t first, size_t last) {
    const std::span<const size_t> slice(batch.offsets.data() + first, last - first + 1);
    offsets.assign(slice.begin(), slice.end());
    for (size_t& offset : offsets) offset -= slice[0];
    session.embed_ids(std::span(batch.token_ids).subspan(slice[0], offsets.back()), offsets,
                      embeddings.data());
  });
  const auto max_seq_len = static_cast<size_t>(model.info().max_seq_len);
  for (size_t i = 0; i < corpus.sentences; ++i)
    count_tokens(corpus, std::min(max_seq_len, batch.offsets[i + 1] - batch.offsets[i]));
  return corpus;
}

Corpus measure_texts(const Model& model, Session& session, const std::vector<std::string>& lines,
                     double limit) {
  std::vector<xsr_text> texts;
  for (const std::string& line : lines) texts.push_back({line.data(), line.size()});
  std::vector<float> embeddings(slice_sentences(session) *
                                static_cast<size_t>(model.info().embedding_size));
  std::vector<xsr_text_result> results(texts.size());
  Corpus corpus;
  corpus.input = "text";
  measure_passes(corpus, texts.size(), session, limit, [&](size_t first, size_t last) {
    session.embed_texts(std::span(texts).subspan(first, last - first), embeddings.data(),
                        results.data() + first);
  });
  std::vector<int32_t> ids;
  const auto start = Clock::now();
  for (size_t i = 0; i < corpus.sentences; ++i) session.tokenize(texts[i], ids);
  corpus.tokenizer_seconds = seconds_since(start);
  for (size_t i = 0; i < corpus.sentences; ++i)
    count_tokens(corpus, static_cast<size_t>(results[i].num_tokens));
  return corpus;
}

ChainLatency measure_chain(const Model& model, Session& session, OnednnChain& chain, int32_t tokens,
                           double seconds) {
  constexpr int kBlock = 16;
  chain.prepare(tokens);
  SentenceCalls calls(model, session, tokens);
  std::vector<double> xsr_times, chain_times;
  const auto start = Clock::now();
  do {
    calls.run();
    for (int i = 0; i < kBlock; ++i) xsr_times.push_back(calls.run());
    chain.run(tokens);
    for (int i = 0; i < kBlock; ++i) {
      const auto call_start = Clock::now();
      chain.run(tokens);
      chain_times.push_back(seconds_since(call_start));
    }
  } while (!enough(xsr_times.size(), seconds_since(start), 2 * seconds));
  return {tokens, median(chain_times), median(xsr_times)};
}

}  // namespace xsr::bench
