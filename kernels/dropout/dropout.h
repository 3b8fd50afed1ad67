#pragma once
#include <stdint.h>

#include "kernels/host_device.h"

namespace xsr::kernels {

/// Which elements of a tensor are dropped, as a pure function of (key, step, stream, row, column):
/// forward and backward draw the same mask, and no thread, order or batch split can change it.
///
/// Element (row, column) takes word column % 4 of philox4x32(counter = {column / 4, row, stream,
/// step}, key) and is kept when that word ≥ threshold; a kept element is multiplied by scale.
struct Dropout {
  uint32_t threshold = 0;  // ⌊p · 2³²⌋; 0 keeps everything
  float scale = 1;         // 1 / (1 − p)
  uint32_t key[2] = {0, 0};
  uint32_t step = 0;
  uint32_t stream = 0;  // one a place in the model, so that no two tensors share a mask
};

/// Philox-4x32 with ten rounds. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1,
/// 2, 3", §4.3; its known answers are in tests/dropout_test.cpp.
XSR_HOST_DEVICE static inline void philox4x32(const uint32_t counter[4], const uint32_t key[2],
                                              uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/// out[i, c] = (keep(i, c) ? x[i, c] · scale : 0) (+ residual[i, c]).  Its own backward pass, with
/// the gradient for x and no residual.
///
/// x         [N, C]  row stride x_stride ≥ C floats
/// residual  [N, C]  row stride residual_stride ≥ C floats; null = none
/// out       [N, C]  row stride out_stride ≥ C floats; may be x or residual itself; rows
///                   [first, last) are written
///
/// A dropped element counts as 0 even where x is NaN. Every ISA gives the same bits. Pure: no
/// allocation, no threads, no globals. Source: Srivastava et al. 2014 (inverted form).
using dropout_forward_f32_t = void(const float* x, int64_t x_stride, int32_t first, int32_t last,
                                   int32_t C, const Dropout& dropout, const float* residual,
                                   int64_t residual_stride, float* out, int64_t out_stride);

dropout_forward_f32_t dropout_forward_f32_ref, dropout_forward_f32_avx2, dropout_forward_f32_avx512;

}  // namespace xsr::kernels
