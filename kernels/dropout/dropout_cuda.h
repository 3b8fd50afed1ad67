#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"
#include "kernels/dropout/dropout.h"

namespace xsr::cuda {

/// x[i, c] ← keep(i, c) ? x[i, c] · scale : 0, as dropout_forward_f32, with its bits.
///
/// x        [N, C]  row stride C, a multiple of 4; 16-byte aligned
/// dropout  on the device; `place` is added to its stream
Status dropout_forward_f32_cuda(float* x, int32_t N, int32_t C, const kernels::Dropout* dropout,
                                uint32_t place, Stream stream);

}  // namespace xsr::cuda
