#pragma once
#include <stdint.h>

#include "kernels/cuda/stream.h"

namespace xsr::cuda {

/// dtable[ids[u]] += Σ de[rows[r]], r in [starts[u], starts[u + 1]), for the buckets u < count[0]:
/// embedding_backward_f32, whose RowBuckets these are, all on the device.
///
/// count   [1]         most_buckets ≥ count[0] is what the launch makes room for
/// de      [N, C]      row stride C, a multiple of 4; 16-byte aligned, as dtable
/// dtable  [V, C]      +=; a bucket is the only one to write its row: no atomics
///
/// A bucket's rows are added in an order that their number and most_buckets alone fix.
Status embedding_backward_f32_cuda(const float* de, const int32_t* count, const int32_t* ids,
                                   const int32_t* starts, const int32_t* rows, int32_t most_buckets,
                                   int32_t C, float* dtable, Stream stream);

}  // namespace xsr::cuda
