#pragma once
#include <cstdint>

#include "runtime/device/cpu_threads.h"

namespace xsr {

/// How often a sentence's nearest neighbour on the other side is its translation.
struct RetrievalScore {
  int64_t pairs = 0;
  int64_t forward = 0;   // hits from side 1 to side 2
  int64_t backward = 0;  // hits from side 2 to side 1

  double forward_share() const { return share(forward); }
  double backward_share() const { return share(backward); }
  double mean() const { return (forward_share() + backward_share()) / 2; }

 private:
  double share(int64_t hits) const {
    return pairs > 0 ? static_cast<double>(hits) / static_cast<double>(pairs) : 0;
  }
};

/// Row i of u1 belongs to row i of u2. Nearest by cosine, computed in double from the f32 vectors;
/// of equals the lower index; a vector of zeros has cosine 0 with everything. The result does not
/// depend on the number of threads.
///
/// u1, u2  [pairs, size]  rows next to each other
RetrievalScore score_retrieval(const float* u1, const float* u2, int64_t pairs, int32_t size,
                               ThreadPool& threads);

}  // namespace xsr
