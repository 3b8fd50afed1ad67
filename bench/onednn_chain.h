#pragma once
#include <cstdint>
#include <memory>

#include "kernels/activation/activation.h"

namespace xsr::bench {

/// The yardstick: an encoder's matrix products on oneDNN and nothing else of it. In every layer
/// qkv, attention output, up with the activation and down, all with bias, each with weights of its
/// own, in order: what is left out (embedding, attention, LayerNorm, residual, pooling) xsr does in
/// the same time. Weights on 2 MiB pages, rows dense, the fastest oneDNN
/// implementation for every shape (kernels/gemm/gemm_onednn.h).
class OnednnChain {
 public:
  /// Null when the build has no oneDNN.
  static std::unique_ptr<OnednnChain> create(int32_t num_layers, int32_t hidden_size,
                                             int32_t intermediate_size,
                                             kernels::Activation activation);
  virtual ~OnednnChain() = default;
  /// Makes the primitives for M rows and compares the products with the ref gemm. Throws when they
  /// differ.
  virtual void prepare(int32_t M) = 0;
  virtual void run(int32_t M) = 0;
};

}  // namespace xsr::bench
