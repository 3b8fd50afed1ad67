#pragma once
// The two loops that a roofline is made of, one copy per ISA; see roofline.h. The ISA files include
// no library header, as kernels/ does.
#include <stdint.h>

namespace xsr::bench {

/// Multiply-adds on registers alone: 24 (AVX-512) or 12 (AVX2) independent accumulators, so that
/// the units' latency never shows. seed [448] are the operands and what the accumulators begin
/// with: all different (equal chains are one chain to a compiler), finite, not zero. sink [16]
/// receives the sums. Returns the floating-point operations done, 2 a multiply-add.
using fma_loop_t = double(int64_t iterations, const float* seed, float* sink);
fma_loop_t fma_loop_avx2, fma_loop_avx512;
/// The same with pairs of bf16, accumulated in f32 (4 operations a lane).
fma_loop_t dot_loop_avx512_bf16;
/// The same in integers: u8 by s8, four products a lane, and 16-bit halves with the addition they
/// need, two products a lane.
fma_loop_t dot_loop_avx512_vnni, dot_loop_avx2_vnni, madd_loop_avx2;

/// Loads every byte of data [bytes], 64-byte aligned, bytes a multiple of 512. Returns a value that
/// depends on all of them.
using read_loop_t = uint64_t(const void* data, int64_t bytes);
read_loop_t read_loop_avx2, read_loop_avx512;

}  // namespace xsr::bench
