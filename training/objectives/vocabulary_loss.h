#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"
#include "training/objectives/sparse_target.h"
#include "training/precision.h"
#include "training/workspace.h"

namespace xsr::training {

/// A target and what its loss counts for in the sum.
struct WeightedTarget {
  const SparseTarget* target = nullptr;
  double weight = 1;
};

/// Softmax cross-entropy over a vocabulary against sparse targets:
///
///     z = t Eᵀ + c      q = softmax(z)
///     loss = (1/B) Σ_b Σ_v p[b, v] (log p[b, v] − log q[b, v])     for each target p, unweighted
///     dz = (1/B) Σ_targets weight · (mass q − p)                    mass = Σ_v p[b, v]
///
/// The vocabulary is walked in tiles of kTile words with the logits transposed
/// (kernels/loss/loss.h): no label matrix, no logits kept. The exponentials are kept for the
/// backward pass while they take at most `stored_bytes`, that is, for a vocabulary of 50,000, up to
/// a batch of 1,342 pairs in f32 and 2,684 in bf16; beyond, they are computed again. Both ways give
/// the same bits, and so does any number of threads.
class VocabularyLoss {
 public:
  static constexpr int32_t kTile = 256;
  static constexpr int64_t kStoredBytes = int64_t{512} << 20;

  /// Keeps references to kernels and threads.
  VocabularyLoss(int32_t vocab_size, int32_t hidden_size, Precision precision,
                 const kernels::KernelTable& kernels, ThreadPool& threads, int64_t stored_bytes);

  /// Gives the loss of each target. A logit that is not finite gives losses that are not.
  ///
  /// t             [2B, C]  row stride t_stride ≥ C
  /// token         [V, C]   E in f32
  /// token_narrow  [V, C]   E in bf16, for Precision::kBF16; null = rounded tile by tile
  /// bias          [V]      c
  /// keep                   whether backward() follows; all of the above must stay until then
  std::vector<double> forward(std::span<const WeightedTarget> targets, int32_t num_pairs,
                              const float* t, int64_t t_stride, const float* token,
                              const uint16_t* token_narrow, const float* bias, bool keep);

  /// The gradients of the weighted sum of the losses of the last forward().
  ///
  /// dt      [2B, C]  =, row stride dt_stride ≥ C
  /// dtoken  [V, C]   +=
  /// dbias   [V]      +=
  void backward(float* dt, int64_t dt_stride, float* dtoken, float* dbias);

 private:
  /// An entry of a target, with what dz takes from it.
  struct Word {
    int32_t token_id, sentence, target;
    float mass, coefficient;  // coefficient: weight · mass / B
    float logit;
  };
  /// One thread's memory for one tile.
  struct Scratch {
    float* z;         // [kTile, z_stride_]
    void* e;          // [kTile, e_stride_], where the exponentials are not stored
    uint16_t* token;  // [kTile, C, even], where the table is not at hand in bf16
    float* gemm;      // kGemmBackwardScratchFloats
    float* factor;    // [S]
    float* unused;    // [S]
  };

  bool bf16() const { return reads_bf16(precision_); }
  int32_t tile_rows(int32_t tile) const;
  Scratch scratch(int32_t thread);
  void sort_words(std::span<const WeightedTarget> targets);
  void* exponentials(int32_t tile, const Scratch& s);
  std::pair<const uint16_t*, int64_t> narrow_rows(int32_t tile, const Scratch& s) const;
  void compute_logits(int32_t tile, const Scratch& s) const;
  void exponentiate(int32_t tile, const Scratch& s, void* e, float* max, float* sum) const;
  void forward_tile(int32_t tile, const Scratch& s);
  void backward_tile(int32_t tile, const Scratch& s, bool first_of_group, float* dt_part,
                     float* dtoken, float* dbias);

  const int32_t V, C;
  const Precision precision_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  const int64_t stored_bytes_;
  const int32_t tiles_;

  // Of the last forward()
  int32_t B = 0, S = 0;  // pairs, sentences
  bool stored_ = false;
  int64_t z_stride_ = 0, e_stride_ = 0;  // elements of f32; of f32 or bf16
  const float *t_ = nullptr, *token_ = nullptr, *bias_ = nullptr;
  int64_t t_stride_ = 0;
  const uint16_t* token_narrow_ = nullptr;
  kernels::PackedMatrix t_panels_;
  float *max_ = nullptr, *sum_ = nullptr;  // [tiles, S]
  std::vector<double> lse_, mass_;         // [S]; mass_: Σ weight · mass / B
  std::vector<Word> words_;                // by tile
  std::vector<int32_t> tile_words_;        // [tiles + 1] into words_

  Workspace panels_, transposed_, exponentials_, statistics_, parts_, scratch_;
};

}  // namespace xsr::training
