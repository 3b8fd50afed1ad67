#include "runtime/evaluation/retrieval.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/dispatch.h"

namespace xsr {
namespace {

// A task's rows, and one panel of the other side's, stay in L2 while they are multiplied.
constexpr int64_t kTaskRows = 64, kOthersAtOnce = kernels::kPanelRows;

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

/// [panels][size][kOthersAtOnce]: rows as columns side by side, zeros behind the last.
std::vector<double> panels_of(const std::vector<double>& u, int64_t rows, int32_t size) {
  const int64_t panels = (rows + kOthersAtOnce - 1) / kOthersAtOnce;
  std::vector<double> out(static_cast<size_t>(panels * kOthersAtOnce) * size);
  for (int64_t i = 0; i < rows; ++i) {
    double* panel = out.data() + i / kOthersAtOnce * size * kOthersAtOnce + i % kOthersAtOnce;
    for (int32_t k = 0; k < size; ++k) panel[k * kOthersAtOnce] = u[i * size + k];
  }
  return out;
}

/// How many rows i of a have row i of the other side, in panels, as their nearest.
int64_t count_hits(const std::vector<double>& a, const std::vector<double>& panels, int64_t rows,
                   int32_t size, ThreadPool& threads) {
  auto* const inner_products =
      kernels::resolve_kernels(kernels::best_isa()).inner_products_forward_f64;
  std::atomic<int64_t> hits{0};
  const auto search = [&](int32_t task, int32_t) {
    const int64_t first = task * kTaskRows, count = std::min(kTaskRows, rows - first);
    double cosines[kTaskRows * kOthersAtOnce], best[kTaskRows];
    int64_t nearest[kTaskRows];
    std::fill_n(best, kTaskRows, -HUGE_VAL);
    std::fill_n(nearest, kTaskRows, -1);
    for (int64_t other = 0; other < rows; other += kOthersAtOnce) {
      inner_products(a.data() + first * size, panels.data() + other * size, count, size, cosines);
      const int64_t columns = std::min(kOthersAtOnce, rows - other);
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t j = 0; j < columns; ++j) {
          if (cosines[r * kOthersAtOnce + j] > best[r]) {
            best[r] = cosines[r * kOthersAtOnce + j];
            nearest[r] = other + j;
          }
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) hits += nearest[r] == first + r;
  };
  threads.for_each(static_cast<int32_t>((rows + kTaskRows - 1) / kTaskRows), search);
  return hits;
}

}  // namespace

RetrievalScore score_retrieval(const float* u1, const float* u2, int64_t pairs, int32_t size,
                               ThreadPool& threads) {
  const std::vector<double> a = normalized(u1, pairs, size), b = normalized(u2, pairs, size);
  RetrievalScore score;
  score.pairs = pairs;
  score.forward = count_hits(a, panels_of(b, pairs, size), pairs, size, threads);
  score.backward = count_hits(b, panels_of(a, pairs, size), pairs, size, threads);
  return score;
}

}  // namespace xsr
