#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace xsr {

/// How sentences are shared out. A row's bits do not depend on it.
struct ChunkLimits {
  int64_t tokens;        // of a chunk; a longer sentence is one by itself
  int64_t least_tokens;  // a chunk is not cut shorter than this so that every worker has one
  int64_t workers;
  size_t sentences;  // of a chunk at most
};

/// Sentence i has size(i) tokens. Chunk c is the sentences [borders[c], borders[c + 1]); the first
/// border is 0, the last `count`, and no chunk is empty.
template <typename Size>
std::vector<size_t> cut_chunks(size_t count, const Size& size, const ChunkLimits& limits) {
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) total += static_cast<int64_t>(size(i));
  // Too few tokens to give every worker a whole chunk are cut into smaller ones, as long as they
  // are worth it.
  const int64_t share = (total + limits.workers - 1) / limits.workers;
  const int64_t limit = std::min(limits.tokens, std::max(share, limits.least_tokens));
  std::vector<size_t> borders = {0};
  int64_t tokens = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t in_chunk = i - borders.back();
    const int64_t more = static_cast<int64_t>(size(i));
    if (in_chunk > 0 && (tokens + more > limit || in_chunk == limits.sentences)) {
      borders.push_back(i);
      tokens = 0;
    }
    tokens += more;
  }
  if (count > 0) borders.push_back(count);
  return borders;
}

}  // namespace xsr
