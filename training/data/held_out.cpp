#include "training/data/held_out.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <unordered_set>

namespace xsr::training {
namespace {

/// The sentences of each side, by their hashes.
struct Sentences {
  std::unordered_set<uint64_t> side[2];

  void add(const TokenizedCorpus& corpus, uint64_t pair) {
    for (int s : {0, 1}) side[s].insert(corpus.sentence_hash(pair, s));
  }
};

std::vector<uint64_t> pairs_with(const TokenizedCorpus& corpus, const Sentences& sentences,
                                 ThreadPool& pool) {
  constexpr uint64_t kBlock = 1 << 16;  // pairs
  const uint64_t n = corpus.num_pairs();
  std::vector<std::vector<uint64_t>> found((n + kBlock - 1) / kBlock);
  pool.for_each(static_cast<int32_t>(found.size()), [&](int32_t block, int32_t) {
    const uint64_t first = static_cast<uint64_t>(block) * kBlock;
    for (uint64_t pair = first; pair < std::min(n, first + kBlock); ++pair) {
      if (sentences.side[0].contains(corpus.sentence_hash(pair, 0)) ||
          sentences.side[1].contains(corpus.sentence_hash(pair, 1))) {
        found[static_cast<size_t>(block)].push_back(pair);
      }
    }
  });
  std::vector<uint64_t> pairs;
  for (const std::vector<uint64_t>& some : found)
    pairs.insert(pairs.end(), some.begin(), some.end());
  return pairs;
}

}  // namespace

HeldOut hold_out(const TokenizedCorpus& corpus, uint64_t pairs_per_part, uint64_t seed,
                 ThreadPool& pool) {
  HeldOut held;
  const auto parts = corpus.parts();
  std::vector<std::vector<uint64_t>> chosen(parts.size());
  pool.for_each(static_cast<int32_t>(parts.size()), [&](int32_t i, int32_t) {
    const TokenizedCorpus::Part& part = parts[static_cast<size_t>(i)];
    const uint64_t wanted = std::min(pairs_per_part, part.num_pairs / 2);
    // The distinct sentences of side 1 with the smallest hashes, and the first pair of each; more
    // than wanted, for some of them share their side 2.
    const size_t most = static_cast<size_t>(2 * wanted);
    std::map<uint64_t, uint64_t> smallest;
    for (uint64_t pair = part.first_pair; pair < part.first_pair + part.num_pairs; ++pair) {
      const uint64_t sentence = corpus.sentence_hash(pair, 0);
      const uint64_t hash = XXH3_64bits_withSeed(&sentence, sizeof sentence, seed);
      if (smallest.size() == most && (most == 0 || hash > smallest.rbegin()->first)) continue;
      smallest.emplace(hash, pair);
      if (smallest.size() > most) smallest.erase(std::prev(smallest.end()));
    }
    std::unordered_set<uint64_t> others;
    std::vector<uint64_t>& dev = chosen[static_cast<size_t>(i)];
    for (const auto& [hash, pair] : smallest) {
      if (dev.size() < wanted && others.insert(corpus.sentence_hash(pair, 1)).second)
        dev.push_back(pair);
    }
    std::sort(dev.begin(), dev.end());
  });
  Sentences sentences;
  for (const std::vector<uint64_t>& dev : chosen) {
    for (uint64_t pair : dev) sentences.add(corpus, pair);
    held.dev.insert(held.dev.end(), dev.begin(), dev.end());
  }
  if (!held.dev.empty()) held.excluded = pairs_with(corpus, sentences, pool);
  return held;
}

std::vector<uint64_t> pairs_shared_with(const TokenizedCorpus& corpus, const TokenizedCorpus& dev,
                                        ThreadPool& pool) {
  Sentences sentences;
  for (uint64_t pair = 0; pair < dev.num_pairs(); ++pair) sentences.add(dev, pair);
  return pairs_with(corpus, sentences, pool);
}

}  // namespace xsr::training
