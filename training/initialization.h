#pragma once
#include <cstdint>

#include "runtime/format/model_config.h"
#include "training/parameters.h"

namespace xsr::training {

/// Initial values as PyTorch gives them by default, as released (Mao et al. 2021), a function of
/// config and seed alone:
///
///     token and position table   N(0, 1), row 0 zero (the padding's)
///     weight [N, K], its bias    U(−1/√K, 1/√K): Kaiming-uniform with a = √5
///     LayerNorm                  1 and 0
///     head.output.bias           0
///
/// Q, K and V are layers of their own; all layers are copies of layer 0. Every element has its own
/// place in the Philox stream, so that a change of one tensor leaves the others as they are.
void initialize_parameters(const ModelConfig& config, const ParameterTable& table, uint64_t seed,
                           FlatBuffer& values);

/// The same for the generative head alone (head.*).
void initialize_head(const ModelConfig& config, const ParameterTable& table, uint64_t seed,
                     FlatBuffer& values);

}  // namespace xsr::training
