#include "training/objectives/sim.h"

#include <algorithm>
#include <vector>

#include "training/objectives/similarity.h"
#include "training/workspace.h"

namespace xsr::training {

double sim_forward_backward(const SimSettings& settings, double weight, int32_t num_pairs,
                            int32_t hidden_size, const float* u, int64_t u_stride, float* du,
                            int64_t du_stride, const kernels::KernelTable& kernels,
                            ThreadPool& threads) {
  const int32_t B = num_pairs, C = hidden_size;
  const int64_t ss = row_stride(B);
  const float* side[2] = {u, u + B * u_stride};
  FlatBuffer p1(B * ss), p2(B * ss), statistics(2 * int64_t{B});
  float* p[2] = {p1.data(), p2.data()};
  for (int k = 0; k < 2; ++k)
    similarity_forward(side[k], u_stride, side[k], u_stride, B, C, kernels, threads, p[k], ss);

  const double negatives = std::max(B - 1, 1);  // a batch of one pair has the loss 0
  const double normaliser = settings.divide_by_negatives ? negatives * negatives : 1;
  std::vector<double> losses(B);
  threads.for_each(block_count(B, kSimilarityRowsATask), [&](int32_t block, int32_t) {
    const int32_t first = block * kSimilarityRowsATask,
                  last = std::min(B, first + kSimilarityRowsATask);
    for (float* similarities : p)
      kernels.softmax_forward_f32(similarities, ss, first, last, B, 1, similarities, ss,
                                  statistics.data(), statistics.data() + B);
    kernels.sim_forward_backward_f32(p[0], p[1], ss, first, last, B, settings.argument,
                                     settings.min_cosine, weight / normaliser, losses.data());
  });
  double loss = 0;
  for (double row : losses) loss += row;
  if (du != nullptr) {
    for (int k = 0; k < 2; ++k) {  // S = U Uᵀ: both factors are U
      float* gradient = du + k * B * du_stride;
      similarity_backward_rows(p[k], ss, side[k], u_stride, B, C, kernels, threads, gradient,
                               du_stride);
      similarity_backward_columns(p[k], ss, side[k], u_stride, B, C, kernels, threads, gradient,
                                  du_stride);
    }
  }
  return loss / normaliser;
}

}  // namespace xsr::training
