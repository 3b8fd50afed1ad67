#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "bench/onednn_chain.h"
#include "bench/session.h"
#include "bench/workload.h"

namespace xsr::bench {

/// How far the timed session is from the ref kernels.
struct Check {
  double largest_difference = 0;  // over all elements
  double allowed = 0;
  bool passed = false;
};

/// Embeds sentences of 1, 2, 5, 20 and 37 tokens, in one call, with both sessions.
///
/// Allowed in f32: 1e-5 of the largest element, times layers / 2 beyond two layers. Rounding
/// through two layers of the XSR shape comes to 4.5e-7 of it, and each kernel may have twice the
/// ref's error, so 1e-5 leaves room for rounding only. What rounds more may differ by more, up to
/// 5e-2 (int8). NaN fails.
Check check_against_ref(const Model& model, Session& timed);

struct Latency {
  int32_t tokens = 0;
  size_t calls = 0;
  double p50 = 0, p90 = 0, p99 = 0;  // seconds
  double device = 0;                 // of them on a CUDA device, median; 0 on the CPU
};

/// One sentence a call, other random ids every call, ids to vector. Warms up; goes on for
/// `seconds`, at least 100 calls (5 when a call takes longer than the time allows).
Latency measure_latency(const Model& model, Session& session, int32_t tokens, double seconds);

struct Corpus {
  std::string input;  // "text", "ids" or "log-normal"
  size_t sentences = 0, tokens = 0;
  double token_pairs = 0;  // those of one sentence, T² of one of T: what attention looks at
  double seconds = 0;      // of one pass
  int32_t passes = 0;
  double tokenizer_seconds = 0;  // text only: of tokenising alone, on one thread
  double resident_seconds = 0;  // ids on a CUDA device only: of one pass with the ids there already
};

/// The median pass of up to three; stops early when `limit` seconds are over, and then counts only
/// the sentences it got to, at least those of one call.
Corpus measure_ids(const Model& model, Session& session, const IdBatch& batch, double limit);
Corpus measure_texts(const Model& model, Session& session, const std::vector<std::string>& lines,
                     double limit);

struct ChainLatency {
  int32_t tokens = 0;
  double chain_p50 = 0, xsr_p50 = 0;  // seconds
};

/// The yardstick beside the session, in blocks of calls by turns (both sets of weights together are
/// larger than some last-level caches, so call by call would slow both), the first call of a block
/// untimed.
ChainLatency measure_chain(const Model& model, Session& session, OnednnChain& chain, int32_t tokens,
                           double seconds);

}  // namespace xsr::bench
