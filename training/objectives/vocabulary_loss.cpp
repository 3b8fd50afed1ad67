#include "training/objectives/vocabulary_loss.h"

#include <cmath>
#include <limits>

#include "kernels/storage.h"

namespace xsr::training {
namespace {

using kernels::kGemmBackwardScratchFloats;
using kernels::panel_count;
using kernels::Storage;

constexpr int32_t kMaxGroups = 16;  // partial sums of dt; never the number of threads
constexpr int32_t kSentencesATask = 64;

}  // namespace

VocabularyLoss::VocabularyLoss(int32_t vocab_size, int32_t hidden_size, Precision precision,
                               const kernels::KernelTable& kernels, ThreadPool& threads,
                               int64_t stored_bytes)
    : V(vocab_size),
      C(hidden_size),
      precision_(precision),
      kernels_(kernels),
      threads_(threads),
      stored_bytes_(stored_bytes),
      tiles_(block_count(vocab_size, kTile)) {}

int32_t VocabularyLoss::tile_rows(int32_t tile) const { return std::min(kTile, V - tile * kTile); }

VocabularyLoss::Scratch VocabularyLoss::scratch(int32_t thread) {
  const int64_t sizes[] = {kTile * z_stride_,          kTile * z_stride_, kTile * row_stride(C),
                           kGemmBackwardScratchFloats, z_stride_,         z_stride_};
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  float* at = scratch_.floats(total * threads_.num_threads()) + thread * total;
  const auto next = [&](int i) {
    float* start = at;
    at += sizes[i];
    return start;
  };
  Scratch s;
  s.z = next(0);
  s.e = next(1);
  s.token = reinterpret_cast<uint16_t*>(next(2));
  s.gemm = next(3);
  s.factor = next(4);
  s.unused = next(5);
  return s;
}

/// A counting sort by tile that keeps the order of targets and sentences.
void VocabularyLoss::sort_words(std::span<const WeightedTarget> targets) {
  tile_words_.assign(tiles_ + 1, 0);
  for (const WeightedTarget& t : targets) {
    for (int32_t id : t.target->token_ids) ++tile_words_[id / kTile + 1];
  }
  for (int32_t tile = 0; tile < tiles_; ++tile) tile_words_[tile + 1] += tile_words_[tile];
  words_.resize(tile_words_[tiles_]);
  std::vector<int32_t> next(tile_words_.begin(), tile_words_.end() - 1);
  mass_.assign(S, 0);
  for (size_t k = 0; k < targets.size(); ++k) {
    const SparseTarget& target = *targets[k].target;
    for (int32_t b = 0; b < S; ++b) {
      for (int32_t i = target.offsets[b]; i < target.offsets[b + 1]; ++i) {
        const double coefficient = targets[k].weight * target.masses[i] / B;
        const int32_t id = target.token_ids[i];
        words_[next[id / kTile]++] = {
            id, b, static_cast<int32_t>(k), target.masses[i], static_cast<float>(coefficient), 0};
        mass_[b] += coefficient;
      }
    }
  }
}

/// Rows of the tile in bf16, and their stride.
std::pair<const uint16_t*, int64_t> VocabularyLoss::narrow_rows(int32_t tile,
                                                                const Scratch& s) const {
  const int64_t first = int64_t{tile} * kTile;
  if (token_narrow_ != nullptr && C % 2 == 0) return {token_narrow_ + first * C, C};
  const int64_t stride = C + C % 2;  // gemm_forward_bf16 reads pairs
  kernels_.narrow_forward_bf16(token_ + first * C, C, 0, tile_rows(tile), C, s.token, stride);
  return {s.token, stride};
}

/// zᵀ of a tile, without the bias, into s.z.
void VocabularyLoss::compute_logits(int32_t tile, const Scratch& s) const {
  if (bf16()) {
    const auto [rows, stride] = narrow_rows(tile, s);
    kernels_.gemm_forward_bf16(rows, stride, tile_rows(tile), t_panels_, 0, panel_count(S), {}, s.z,
                               z_stride_, nullptr, 0);
  } else {
    kernels_.gemm_forward_f32(token_ + int64_t{tile} * kTile * C, C, tile_rows(tile), t_panels_, 0,
                              panel_count(S), {}, s.z, z_stride_);
  }
}

void* VocabularyLoss::exponentials(int32_t tile, const Scratch& s) {
  if (!stored_) return s.e;
  float* all = exponentials_.floats(V * e_stride_ / (bf16() ? 2 : 1));
  return reinterpret_cast<char*>(all) + int64_t{tile} * kTile * e_stride_ * (bf16() ? 2 : 4);
}

void VocabularyLoss::exponentiate(int32_t tile, const Scratch& s, void* e, float* max,
                                  float* sum) const {
  kernels_.vocabulary_softmax_forward_f32(s.z, z_stride_, tile_rows(tile),
                                          bias_ + int64_t{tile} * kTile, 0, S, max, sum,
                                          bf16() ? nullptr : static_cast<float*>(e), e_stride_,
                                          bf16() ? static_cast<uint16_t*>(e) : nullptr, e_stride_);
}

void VocabularyLoss::forward_tile(int32_t tile, const Scratch& s) {
  compute_logits(tile, s);
  for (int32_t i = tile_words_[tile]; i < tile_words_[tile + 1]; ++i) {
    Word& w = words_[i];
    w.logit = s.z[(w.token_id - tile * kTile) * z_stride_ + w.sentence] + bias_[w.token_id];
  }
  exponentiate(tile, s, exponentials(tile, s), max_ + int64_t{tile} * S, sum_ + int64_t{tile} * S);
}

std::vector<double> VocabularyLoss::forward(std::span<const WeightedTarget> targets,
                                            int32_t num_pairs, const float* t, int64_t t_stride,
                                            const float* token, const uint16_t* token_narrow,
                                            const float* bias, bool keep) {
  B = num_pairs;
  S = 2 * num_pairs;
  t_ = t;
  t_stride_ = t_stride;
  token_ = token;
  token_narrow_ = token_narrow;
  bias_ = bias;
  z_stride_ = row_stride(S);
  e_stride_ = bf16() ? bf16_row_stride(S) : z_stride_;
  stored_ = keep && int64_t{V} * S * (bf16() ? 2 : 4) <= stored_bytes_;
  sort_words(targets);
  max_ = statistics_.floats(2 * int64_t{tiles_} * S);
  sum_ = max_ + int64_t{tiles_} * S;
  scratch(0);  // grows here, not in the threads
  if (stored_) exponentials_.floats(V * e_stride_ / (bf16() ? 2 : 1));

  const Storage storage = bf16() ? Storage::kBF16 : Storage::kF32;
  float* panels = panels_.floats(kernels::packed_elements(S, C, storage));
  threads_.for_each(panel_count(S), [&](int32_t panel, int32_t) {
    kernels::gemm_pack_panels(t, t_stride, S, C, storage, panel, panel + 1, panels);
  });
  t_panels_ = {panels, storage, S, C};
  threads_.for_each(tiles_,
                    [&](int32_t tile, int32_t thread) { forward_tile(tile, scratch(thread)); });

  lse_.resize(S);
  threads_.for_each(block_count(S, kSentencesATask), [&](int32_t block, int32_t) {
    const int32_t last = std::min(S, (block + 1) * kSentencesATask);
    for (int32_t b = block * kSentencesATask; b < last; ++b) {
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int32_t tile = 0; tile < tiles_; ++tile)
        max = std::max<double>(max, max_[int64_t{tile} * S + b]);
      for (int32_t tile = 0; tile < tiles_; ++tile) {
        const int64_t at = int64_t{tile} * S + b;
        sum += sum_[at] * std::exp(max_[at] - max);
      }
      lse_[b] = max + std::log(sum);
    }
  });

  // Logits that are not finite must show even where no target looks at them.
  double unseen = 0;
  for (double lse : lse_) unseen += lse - lse;
  std::vector<double> losses(targets.size(), unseen);
  for (const Word& w : words_)
    losses[w.target] += w.mass * (std::log(w.mass) + lse_[w.sentence] - w.logit) / B;
  return losses;
}

void VocabularyLoss::backward_tile(int32_t tile, const Scratch& s, bool first_of_group,
                                   float* dt_part, float* dtoken, float* dbias) {
  const int32_t R = tile_rows(tile);
  const int64_t first = int64_t{tile} * kTile;
  void* e = exponentials(tile, s);
  if (!stored_) {
    compute_logits(tile, s);
    exponentiate(tile, s, e, s.factor, s.unused);  // known from the forward pass
  }
  for (int32_t b = 0; b < S; ++b)
    s.factor[b] = static_cast<float>(mass_[b] * std::exp(max_[int64_t{tile} * S + b] - lse_[b]));
  const auto take_words = [&](auto&& take) {
    for (int32_t i = tile_words_[tile]; i < tile_words_[tile + 1]; ++i) {
      const Word& w = words_[i];
      take((w.token_id - first) * e_stride_ + w.sentence, w.coefficient);
      dbias[w.token_id] -= w.coefficient;
    }
  };
  const kernels::PackedMatrix transposed = {
      transposed_.floats(kernels::packed_elements(C, S, t_panels_.storage)), t_panels_.storage, C,
      S};
  float* rows_of_dtoken = dtoken + first * C;
  kernels::GemmEpilogue accumulate;
  accumulate.residual = rows_of_dtoken;
  accumulate.residual_stride = C;
  if (bf16()) {
    uint16_t* dz = static_cast<uint16_t*>(e);
    kernels_.vocabulary_softmax_backward_bf16(dz, e_stride_, R, S, s.factor, dz, e_stride_,
                                              dbias + first);
    take_words([&](int64_t at, float coefficient) {
      dz[at] = kernels::bf16_from_f32(kernels::f32_from_bf16(dz[at]) - coefficient);
    });
    kernels_.gemm_forward_bf16(dz, e_stride_, R, transposed, 0, panel_count(C), accumulate,
                               rows_of_dtoken, C, nullptr, 0);
    const auto [rows, stride] = narrow_rows(tile, s);
    kernels_.gemm_backward_weight_bf16(dz, e_stride_, rows, stride, R, 0, S, C, !first_of_group,
                                       dt_part, row_stride(C), s.gemm);
  } else {
    float* dz = static_cast<float*>(e);
    kernels_.vocabulary_softmax_backward_f32(dz, e_stride_, R, S, s.factor, dz, e_stride_,
                                             dbias + first);
    take_words([&](int64_t at, float coefficient) { dz[at] -= coefficient; });
    kernels_.gemm_forward_f32(dz, e_stride_, R, transposed, 0, panel_count(C), accumulate,
                              rows_of_dtoken, C);
    kernels_.gemm_backward_weight_f32(dz, e_stride_, token_ + first * C, C, R, 0, S, C,
                                      !first_of_group, dt_part, row_stride(C), s.gemm);
  }
}

void VocabularyLoss::backward(float* dt, int64_t dt_stride, float* dtoken, float* dbias) {
  const Storage storage = t_panels_.storage;
  float* transposed = transposed_.floats(kernels::packed_elements(C, S, storage));
  threads_.for_each(panel_count(C), [&](int32_t panel, int32_t) {
    kernels::gemm_pack_transposed_panels(t_, t_stride_, S, C, storage, panel, panel + 1,
                                         transposed);
  });
  const int32_t groups = std::min(tiles_, kMaxGroups);
  const int64_t part = S * row_stride(C);
  float* parts = parts_.floats(groups * part);
  threads_.for_each(groups, [&](int32_t group, int32_t thread) {
    const int32_t begin = static_cast<int32_t>(int64_t{tiles_} * group / groups),
                  end = static_cast<int32_t>(int64_t{tiles_} * (group + 1) / groups);
    for (int32_t tile = begin; tile < end; ++tile)
      backward_tile(tile, scratch(thread), tile == begin, parts + group * part, dtoken, dbias);
  });
  threads_.for_each(block_count(S, kSentencesATask), [&](int32_t block, int32_t) {
    const int32_t last = std::min(S, (block + 1) * kSentencesATask);
    for (int32_t b = block * kSentencesATask; b < last; ++b) {
      for (int32_t c = 0; c < C; ++c) dt[b * dt_stride + c] = parts[b * row_stride(C) + c];
      for (int32_t group = 1; group < groups; ++group) {
        const float* row = parts + group * part + b * row_stride(C);
        for (int32_t c = 0; c < C; ++c) dt[b * dt_stride + c] += row[c];
      }
    }
  });
}

}  // namespace xsr::training
