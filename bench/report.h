#pragma once
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "bench/roofline.h"

namespace xsr::bench {

/// One run of the bench: one model, ISA and number of threads.
struct Report {
  std::string model, activation, pooling, isa, dtype, storage;
  std::string device = "cpu";  // or a CUDA device's name; its roofline is without the weights
  bool qkv_table = false;      // the first layer's Q, K and V are looked up
  int32_t threads = 0;
  int32_t pinned_cpu = -1;  // -1: not pinned
  xsr_model_info info{};
  int64_t weight_bytes = 0;  // of the layers, as a session reads them
  int64_t token_table_bytes = 0;
  Check check;
  Roofline roofline;
  std::vector<Latency> latency;
  std::optional<Corpus> corpus;
  std::vector<ChainLatency> chain;

  /// Matrix products of one token: 2 (4 C² + 2 C F) a layer, less 6 C² with the table and less
  /// flop_per_sentence(). Those of attention are counted by themselves.
  double flop_per_token() const;
  /// Those of its first token alone, in the last layer behind attention: 2 (C² + 2 C F) where
  /// pooling is cls, else 0.
  double flop_per_sentence() const;
  /// Attention's products of one token with another: 4 C a layer.
  double flop_per_token_pair() const;
  double flop(double tokens, double sentences) const {
    return tokens * flop_per_token() + sentences * flop_per_sentence();
  }
  /// The roofline's time over `seconds`. token_pairs: T² summed over the sentences, or 0 for the
  /// roofline of the other products alone.
  double share_of_roofline(double tokens, double sentences, double token_pairs,
                           double seconds) const;
};

/// A table for people.
void print_table(const Report& report, std::FILE* to);
/// JSON, of several reports an array: cpu, isa, dtype, threads, latency, corpus, and what else is
/// known. Times in µs where a key says so.
std::string reports_as_json(std::span<const Report> reports);

}  // namespace xsr::bench
