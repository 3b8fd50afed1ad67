#include "bench/workload.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "input/text_file.h"
#include "runtime/error.h"

namespace xsr::bench {

void IdBatch::append(const std::vector<int32_t>& ids) {
  token_ids.insert(token_ids.end(), ids.begin(), ids.end());
  offsets.push_back(token_ids.size());
}

RandomIds::RandomIds(int32_t vocab_size, uint32_t seed)
    // The first ids are padding, unknown and mask in the models of family xsr.
    : random_(seed), ids_(std::min(3, vocab_size - 1), vocab_size - 1) {}

std::vector<int32_t> RandomIds::take(int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = ids_(random_);
  return ids;
}

IdBatch log_normal_sentences(int32_t sentences, int32_t vocab_size, int32_t max_seq_len,
                             uint32_t seed) {
  constexpr double kMean = 24.9, kSigma = 0.7, kLongest = 195;
  std::mt19937 random(seed);
  std::lognormal_distribution<double> lengths(std::log(kMean) - kSigma * kSigma / 2, kSigma);
  RandomIds ids(vocab_size, seed + 1);
  IdBatch batch;
  for (int32_t i = 0; i < sentences; ++i) {
    const double longest = std::min<double>(kLongest, max_seq_len);
    const double length = std::clamp(std::round(lengths(random)), 1.0, longest);
    batch.append(ids.take(static_cast<int32_t>(length)));
  }
  return batch;
}

IdBatch read_ids(const std::string& path, int32_t vocab_size) {
  IdBatch batch;
  size_t number = 0;
  for (const std::string& line : read_lines(path)) {
    ++number;
    std::vector<int32_t> ids;
    const char* at = line.data();
    const char* const end = at + line.size();
    while (true) {
      while (at < end && (*at == ' ' || *at == '\t' || *at == '\r')) ++at;
      if (at == end) break;
      int32_t id = 0;
      const auto [rest, error] = std::from_chars(at, end, id);
      const bool ends_well =
          error == std::errc() && (rest == end || *rest == ' ' || *rest == '\t' || *rest == '\r');
      if (!ends_well || id < 0 || id >= vocab_size) {
        const char* word_end = std::find(at, end, ' ');
        throw Error(XSR_STATUS_INVALID_ARGUMENT,
                    path + ": line " + std::to_string(number) + ": \"" + std::string(at, word_end) +
                        "\" is not a token id in [0, " + std::to_string(vocab_size) +
                        "). Text goes to --corpus.");
      }
      ids.push_back(id);
      at = rest;
    }
    batch.append(ids);
  }
  return batch;
}

std::vector<std::string> read_lines(const std::string& path) {
  std::vector<std::string> lines = read_all_lines(path);
  if (lines.empty()) throw Error(XSR_STATUS_INVALID_ARGUMENT, path + ": no lines in it");
  return lines;
}

}  // namespace xsr::bench
