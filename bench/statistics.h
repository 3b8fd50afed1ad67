#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

namespace xsr::bench {

/// The share-th quantile (nearest rank) of a sample that is not empty; share in [0, 1].
inline double percentile(std::vector<double> sample, double share) {
  const size_t rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sample.size())));
  const size_t index = std::min(rank == 0 ? 0 : rank - 1, sample.size() - 1);
  std::nth_element(sample.begin(), sample.begin() + static_cast<std::ptrdiff_t>(index),
                   sample.end());
  return sample[index];
}

/// Of an even count the mean of the middle two.
inline double median(std::vector<double> sample) {
  std::sort(sample.begin(), sample.end());
  return (sample[(sample.size() - 1) / 2] + sample[sample.size() / 2]) / 2;
}

}  // namespace xsr::bench
