#include "runtime/encoder/qkv_table.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "kernels/storage.h"

namespace xsr {
namespace {

constexpr int32_t kTokensPerTask = 96;

struct Free {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using AlignedFloats = std::unique_ptr<float[], Free>;

AlignedFloats aligned_floats(int64_t count) {
  return AlignedFloats(
      static_cast<float*>(::operator new[](sizeof(float) * count, std::align_val_t{64})));
}

/// Row `row` of a table (plus `extra`, where there is one) less its mean, in double until the end.
/// scales: of a kI8 table's rows.
void centred_row(const void* table, kernels::Storage storage, const float* scales, int64_t row,
                 const float* extra, int32_t C, float* out) {
  const float scale = scales == nullptr ? 1.0f : scales[row];
  double sum = 0;
  for (int32_t c = 0; c < C; ++c) {
    out[c] = kernels::load_storage(table, storage, row * C + c) * scale +
             (extra == nullptr ? 0.0f : extra[c]);
    sum += out[c];
  }
  const double mean = sum / C;
  for (int32_t c = 0; c < C; ++c) out[c] = static_cast<float>(out[c] - mean);
}

}  // namespace

QkvTable::QkvTable(const ModelConfig& config, const EncoderWeights& weights,
                   const kernels::KernelTable& kernels, ThreadPool& pool) {
  const int32_t C = config.hidden_size, N = 3 * C;
  const LinearWeights& qkv = weights.layers.front().qkv;
  // Rows are read at random: huge pages, for fewer page walks.
  memory_ = PageMemory(
      sizeof(float) * N * (static_cast<size_t>(config.vocab_size) + config.num_positions + 1),
      PageMemory::kHuge);
  token_ = memory_.floats();
  position_ = token_ + static_cast<int64_t>(config.vocab_size) * N;
  bias_ = position_ + static_cast<int64_t>(config.num_positions) * N;

  // W ∘ gamma in f32 panels, and W beta + b.
  std::vector<float> scaled(static_cast<size_t>(N) * C);
  for (int32_t n = 0; n < N; ++n) {
    double sum = qkv.bias[n];
    for (int32_t c = 0; c < C; ++c) {
      const double weight = kernels::gemm_packed_element(qkv.weight, n, c);
      scaled[static_cast<size_t>(n) * C + c] =
          static_cast<float>(weight * weights.embedding_norm.gamma[c]);
      sum += weight * weights.embedding_norm.beta[c];
    }
    bias_[n] = static_cast<float>(sum);
  }
  const AlignedFloats panels =
      aligned_floats(kernels::packed_elements(N, C, kernels::Storage::kF32));
  kernels::gemm_pack_panels(scaled.data(), N, C, kernels::Storage::kF32, panels.get());
  const kernels::PackedMatrix matrix{panels.get(), kernels::Storage::kF32, N, C};

  const int64_t stride = C + 16;
  std::vector<AlignedFloats> rows;
  for (int32_t thread = 0; thread < pool.num_threads(); ++thread)
    rows.push_back(aligned_floats(stride * kTokensPerTask));
  const auto fill = [&](const void* table, const float* scales, int32_t count, const float* extra,
                        float* out) {
    pool.for_each((count + kTokensPerTask - 1) / kTokensPerTask, [&](int32_t task, int32_t thread) {
      const int32_t first = task * kTokensPerTask, last = std::min(count, first + kTokensPerTask);
      for (int32_t row = first; row < last; ++row) {
        centred_row(table, weights.table_storage, scales, row, extra, C,
                    rows[thread].get() + (row - first) * stride);
      }
      kernels.gemm_forward_f32(rows[thread].get(), stride, last - first, matrix, 0,
                               kernels::panel_count(N), {}, out + static_cast<int64_t>(first) * N,
                               N);
    });
  };
  fill(weights.token, weights.token_scales, config.vocab_size, nullptr, token_);
  fill(weights.position, weights.position_scales, config.num_positions, weights.token_type,
       position_);
}

}  // namespace xsr
