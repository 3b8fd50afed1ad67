#pragma once
#include <cstdint>
#include <memory>

#include "kernels/dispatch.h"
#include "kernels/dropout/dropout.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/format/model_config.h"
#include "training/batch.h"
#include "training/parameters.h"
#include "training/precision.h"

namespace xsr::training {

/// The encoder of runtime/encoder with what training adds: it keeps what the backward pass needs,
/// drops out (docs/methods.md, Dropout and random numbers), and walks back. Bits depend on the
/// batch, the parameters and the ISA, never on the number of threads: work is cut by outputs or by
/// sizes of the shapes.
///
/// Precision::kBF16 rounds the operands of the matrix products of linear layers to bf16, forward
/// and backward; they are summed in f32, and everything else is f32. kInt8 rounds them to 8 bits,
/// and sums are exact: rows of activations and of gradients with a scale each, weights with one an
/// output, or an input where they are transposed; for a weight's gradient columns of blocks of
/// rows.
class Encoder {
 public:
  /// table: that of config. Keeps references to kernels and threads.
  Encoder(const ModelConfig& config, const ParameterTable& table, Precision precision,
          const kernels::KernelTable& kernels, ThreadPool& threads);
  ~Encoder();
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  /// u ← the sentence embeddings of the batch; a sentence without tokens gives zeros.
  ///
  /// values  the parameters; weights are packed anew in every call
  /// narrow  values rounded to bf16, which then need not be rounded here; null = not there
  /// dropout threshold, scale, key and step; the streams are the encoder's own
  /// u       [2B, C]  row stride u_stride ≥ C
  void forward(const PairBatch& batch, const FlatBuffer& values, const uint16_t* narrow,
               const kernels::Dropout& dropout, float* u, int64_t u_stride);

  /// Adds the gradients of the last forward(), whose arguments are to be as they were. Once a
  /// forward(): it uses up what that left.
  ///
  /// du         [2B, C]  row stride du_stride ≥ C
  /// gradients  +=; head.* is not touched
  void backward(const PairBatch& batch, const FlatBuffer& values, const uint16_t* narrow,
                const kernels::Dropout& dropout, const float* du, int64_t du_stride,
                FlatBuffer& gradients);

 private:
  class Steps;
  struct Weights;
  struct Buffers;
  const ModelConfig config_;
  const Precision precision_;
  const kernels::KernelTable& kernels_;
  ThreadPool& threads_;
  std::unique_ptr<Weights> weights_;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace xsr::training
