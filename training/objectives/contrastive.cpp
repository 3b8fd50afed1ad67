#include "training/objectives/contrastive.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "training/objectives/similarity.h"
#include "training/workspace.h"

namespace xsr::training {

double contrastive_forward_backward(const ContrastiveSettings& settings, double weight,
                                    int32_t num_pairs, int32_t hidden_size, const float* u,
                                    int64_t u_stride, float* du, int64_t du_stride,
                                    const kernels::KernelTable& kernels, ThreadPool& threads) {
  const int32_t B = num_pairs, C = hidden_size;
  const int64_t stride = row_stride(C), ss = row_stride(B);
  const auto for_blocks = [&](int32_t rows, auto&& body) {
    threads.for_each(block_count(rows, kSimilarityRowsATask), [&](int32_t block, int32_t) {
      const int32_t first = block * kSimilarityRowsATask;
      body(first, std::min(rows, first + kSimilarityRowsATask));
    });
  };

  // x: u, or u at unit length
  FlatBuffer unit(settings.cosine ? 2 * B * stride : 0);
  if (settings.cosine) {
    for_blocks(2 * B, [&](int32_t first, int32_t last) {
      for (int32_t b = first; b < last; ++b)
        std::memcpy(unit.data() + b * stride, u + b * u_stride, sizeof(float) * C);
      kernels.l2_normalize_forward_f32(unit.data(), stride, first, last, C);
    });
  }
  const float* x1 = settings.cosine ? unit.data() : u;
  const int64_t x_stride = settings.cosine ? stride : u_stride;
  const float* x2 = x1 + B * x_stride;

  FlatBuffer similarities(B * ss), gradient(B * ss), statistics(5 * int64_t{B});
  float *s = similarities.data(), *ds = gradient.data();
  float *row_max = statistics.data(), *row_sum = row_max + B, *column_max = row_sum + B,
        *column_sum = column_max + B, *column_gain = column_sum + B;
  similarity_forward(x1, x_stride, x2, x_stride, B, C, kernels, threads, s, ss);

  const double share = (settings.mean_of_directions ? 0.5 : 1.0) / B;
  // of the similarities, through S = (s − margin) / temperature
  const double gain = weight * share / settings.temperature;
  std::vector<double> positives(B);
  const float inverse_temperature = static_cast<float>(1 / settings.temperature),
              margin = static_cast<float>(settings.margin);
  for_blocks(B, [&](int32_t first, int32_t last) {
    for (int32_t i = first; i < last; ++i) {
      float* row = s + i * ss;
      row[i] -= margin;
      for (int32_t j = 0; j < B; ++j) row[j] *= inverse_temperature;
      positives[i] = row[i];
    }
    kernels.softmax_forward_f32(s, ss, first, last, B, static_cast<float>(gain), ds, ss, row_max,
                                row_sum);
  });
  for_blocks(B, [&](int32_t first, int32_t last) {
    kernels.vocabulary_softmax_forward_f32(s, ss, B, nullptr, first, last, column_max, column_sum,
                                           s, ss, nullptr, 0);
    for (int32_t j = first; j < last; ++j)
      column_gain[j] = static_cast<float>(gain / column_sum[j]);
  });
  double loss = 0;
  for (int32_t i = 0; i < B; ++i) {
    loss += share * (std::log(static_cast<double>(row_sum[i])) + (row_max[i] - positives[i]) +
                     std::log(static_cast<double>(column_sum[i])) + (column_max[i] - positives[i]));
  }
  if (du == nullptr) return loss;

  const float twice = static_cast<float>(2 * gain);
  for_blocks(B, [&](int32_t first, int32_t last) {
    for (int32_t i = first; i < last; ++i) {
      float* row = ds + i * ss;
      for (int32_t j = 0; j < B; ++j) row[j] += s[i * ss + j] * column_gain[j];
      row[i] -= twice;
    }
  });
  FlatBuffer dunit(settings.cosine ? 2 * B * stride : 0);
  float* dx = settings.cosine ? dunit.data() : du;
  const int64_t dx_stride = settings.cosine ? stride : du_stride;
  similarity_backward_rows(ds, ss, x2, x_stride, B, C, kernels, threads, dx, dx_stride);
  similarity_backward_columns(ds, ss, x1, x_stride, B, C, kernels, threads, dx + B * dx_stride,
                              dx_stride);
  if (settings.cosine) {
    for_blocks(2 * B, [&](int32_t first, int32_t last) {
      kernels.l2_normalize_backward_f32(u, u_stride, dx, dx_stride, first, last, C, dx, dx_stride);
      for (int32_t b = first; b < last; ++b) {
        for (int32_t c = 0; c < C; ++c) du[b * du_stride + c] += dx[b * dx_stride + c];
      }
    });
  }
  return loss;
}

}  // namespace xsr::training
