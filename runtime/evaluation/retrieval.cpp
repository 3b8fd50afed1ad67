#include "runtime/evaluation/retrieval.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

namespace xsr {
namespace {

// A block of columns takes size · 128 · 8 bytes, half a megabyte for 512: it stays in L2 while all
// rows pass over it, kRows at a time.
constexpr int64_t kRows = 4, kColumns = 128;

/// Rows of length 1 (or 0), in double.
std::vector<double> normalized(const float* u, int64_t rows, int32_t size) {
  std::vector<double> out(static_cast<size_t>(rows) * size);
  for (int64_t i = 0; i < rows; ++i) {
    double squares = 0;
    for (int32_t k = 0; k < size; ++k) {
      const double x = u[i * size + k];
      squares += x * x;
    }
    const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
    for (int32_t k = 0; k < size; ++k) out[i * size + k] = u[i * size + k] * scale;
  }
  return out;
}

/// [blocks][size][kColumns]: the columns of a block side by side, zeros behind the last.
std::vector<double> blocked(const std::vector<double>& u, int64_t rows, int32_t size) {
  const int64_t blocks = (rows + kColumns - 1) / kColumns;
  std::vector<double> out(static_cast<size_t>(blocks) * size * kColumns);
  for (int64_t i = 0; i < rows; ++i) {
    double* block = out.data() + i / kColumns * size * kColumns + i % kColumns;
    for (int32_t k = 0; k < size; ++k) block[k * kColumns] = u[i * size + k];
  }
  return out;
}

/// How many rows i of a have row i of the blocked b as their nearest.
int64_t count_hits(const std::vector<double>& a, const std::vector<double>& b, int64_t rows,
                   int32_t size, ThreadPool& threads) {
  std::atomic<int64_t> hits{0};
  const auto search = [&](int32_t task, int32_t) {
    const int64_t first = task * kRows, last = std::min(rows, first + kRows);
    double best[kRows];
    int64_t nearest[kRows];
    std::fill_n(best, kRows, -HUGE_VAL);
    std::fill_n(nearest, kRows, -1);
    for (int64_t column = 0; column < rows; column += kColumns) {
      const double* block = b.data() + column * size;
      double cosines[kRows][kColumns] = {};
      for (int32_t k = 0; k < size; ++k) {
        for (int64_t r = 0; r < last - first; ++r) {
          const double x = a[(first + r) * size + k];
          for (int64_t j = 0; j < kColumns; ++j) cosines[r][j] += x * block[k * kColumns + j];
        }
      }
      const int64_t count = std::min(kColumns, rows - column);
      for (int64_t r = 0; r < last - first; ++r) {
        for (int64_t j = 0; j < count; ++j) {
          if (cosines[r][j] > best[r]) {
            best[r] = cosines[r][j];
            nearest[r] = column + j;
          }
        }
      }
    }
    for (int64_t r = 0; r < last - first; ++r) hits += nearest[r] == first + r;
  };
  threads.for_each(static_cast<int32_t>((rows + kRows - 1) / kRows), search);
  return hits;
}

}  // namespace

RetrievalScore score_retrieval(const float* u1, const float* u2, int64_t pairs, int32_t size,
                               ThreadPool& threads) {
  const std::vector<double> a = normalized(u1, pairs, size), b = normalized(u2, pairs, size);
  RetrievalScore score;
  score.pairs = pairs;
  score.forward = count_hits(a, blocked(b, pairs, size), pairs, size, threads);
  score.backward = count_hits(b, blocked(a, pairs, size), pairs, size, threads);
  return score;
}

}  // namespace xsr
