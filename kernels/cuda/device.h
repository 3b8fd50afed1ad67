#pragma once
// What kernels are written with. One source, compiled two ways: by nvcc for the device, and by the
// host compiler for the emulated device (emulated.h), where every thread of a block is a fiber, so
// that indices, masks, barriers and races are tested on machines without a GPU. Whatever is not
// plain CUDA C++ that both understand (launches, shared memory, mma, ldmatrix, cp.async) goes
// through one function here.
#include <stdint.h>

#include "kernels/cuda/stream.h"
#include "kernels/types.h"
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define XSR_UNROLL _Pragma("unroll")
#else
#include <math.h>
#include <string.h>

#include "kernels/cuda/emulated.h"
#define XSR_UNROLL  // a host compiler unrolls what it likes
#endif

namespace xsr::cuda {

constexpr int32_t kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

template <typename T>
struct Same {
  using Type = T;
};

/// A number as a type, for a generic lambda to choose a kernel by: decltype(x)::value.
template <int32_t kValue>
struct Constant {
  static constexpr int32_t value = kValue;
};

/// Launches kernel<<<grid, block, shared_bytes, stream>>>(arguments...), unless the grid is empty.
template <typename... P>
static inline Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                            Stream stream, typename Same<P>::Type... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
#if defined(__CUDACC__)
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
    if (error != cudaSuccess) return (Status)error;
  }
  void* pointers[] = {(void*)&arguments...};
  return (Status)cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                                  shared_bytes, stream);
#else
  return emulated::submit(
      stream, [=] { emulated::run(grid, block, shared_bytes, [&] { kernel(arguments...); }); });
#endif
}

/// The block's dynamic shared memory, 16-byte aligned.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char xsr_shared_memory[];
  return reinterpret_cast<T*>(xsr_shared_memory);
#else
  return static_cast<T*>(emulated::shared_memory());
#endif
}

__device__ __forceinline__ int32_t lane_id() { return (int32_t)(threadIdx.x % kWarp); }
/// Warps of one-dimensional blocks, counted over the grid.
__device__ __forceinline__ int32_t global_warp_id() {
  return (int32_t)((blockIdx.x * blockDim.x + threadIdx.x) / kWarp);
}

// ---- Sums and maxima. A butterfly: every lane gets the same bits, in an order fixed by the lanes.

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  XSR_UNROLL
  for (int32_t offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_max(T value) {
  XSR_UNROLL
  for (int32_t offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

/// Sum over a one-dimensional block of whole warps; every thread gets it. scratch [32], shared; may
/// be used again at once.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  const int32_t warp = (int32_t)threadIdx.x / kWarp, warps = (int32_t)blockDim.x / kWarp;
  value = warp_sum(value);
  if (lane_id() == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_sum(lane_id() < warps ? scratch[lane_id()] : T(0));
  __syncthreads();
  return value;
}

/// sums += Σ get(i, values) over i = first, first + step, … < last, in that order, of which get
/// sets the values. It is a load: kAtOnce of them are under way, for a thread that waits for each
/// before it asks for the next is idle most of the time.
template <int32_t kAtOnce, int32_t kValues, typename Get>
__device__ __forceinline__ void add_ahead(int32_t first, int32_t last, int32_t step,
                                          float (&sums)[kValues], Get&& get) {
  for (int32_t i = first; i < last; i += kAtOnce * step) {
    float values[kAtOnce][kValues] = {};
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k) {
      if (i + k * step < last) get(i + k * step, values[k]);
    }
    XSR_UNROLL
    for (int32_t k = 0; k < kAtOnce; ++k) {
      XSR_UNROLL
      for (int32_t e = 0; e < kValues; ++e) sums[e] += values[k][e];
    }
  }
}
/// Σ get(i), likewise.
template <int32_t kAtOnce, typename Get>
__device__ __forceinline__ float sum_ahead(int32_t first, int32_t last, int32_t step, Get&& get) {
  float sums[1] = {};
  add_ahead<kAtOnce>(first, last, step, sums,
                     [&](int32_t i, float(&value)[1]) { value[0] = get(i); });
  return sums[0];
}

// ---- In one instruction each, for results that are rounded to bf16. Below 2^-126 they are 0.

/// 2^x, off by up to 2^-22 of itself.
__device__ __forceinline__ float exp2_approximate(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

/// 1 / x, off by up to a unit in the last place.
__device__ __forceinline__ float reciprocal_approximate(float x) {
#if defined(__CUDACC__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

constexpr float kLog2E = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

// ---- bf16, as its 16 bits

__device__ __forceinline__ float bits_to_f32(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, 4);
  return value;
#endif
}

__device__ __forceinline__ uint32_t f32_to_bits(float value) {
#if defined(__CUDACC__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
#endif
}

__device__ __forceinline__ float bf16_to_f32(uint16_t value) {
  return bits_to_f32((uint32_t)value << 16);
}

/// Two values rounded to nearest even, `low` in the low half. NaN becomes 0x7fff.
__device__ __forceinline__ uint32_t f32_to_bf16_pair(float low, float high) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  const auto rounded = [](float value) -> uint32_t {
    if (isnan(value)) return 0x7fffu;
    const uint32_t bits = f32_to_bits(value);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
#endif
}

__device__ __forceinline__ uint16_t f32_to_bf16(float value) {
  return (uint16_t)f32_to_bf16_pair(value, 0.0f);
}

__device__ __forceinline__ float f16_to_f32(uint16_t value) {
  const uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
  const uint32_t exponent = (value >> 10) & 31u, mantissa = value & 0x3ffu;
  if (exponent == 31) return bits_to_f32(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0)  // zero or subnormal: mantissa · 2^-24, exact in f32
    return bits_to_f32(f32_to_bits((float)mantissa * 5.9604644775390625e-08f) | sign);
  return bits_to_f32(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Elements of f32 and bf16 buffers by one name.
__device__ __forceinline__ float load(const float* p) { return *p; }
__device__ __forceinline__ float load(const uint16_t* p) { return bf16_to_f32(*p); }
__device__ __forceinline__ void store(float* p, float value) { *p = value; }
__device__ __forceinline__ void store(uint16_t* p, float value) { *p = f32_to_bf16(value); }

/// What lies at p, loaded or stored at once: p is a multiple of its size.
template <typename Vector, typename T>
__device__ __forceinline__ Vector& vector_at(T* p) {
#if !defined(__CUDACC__)
  emulated::expect_aligned(p, sizeof(Vector));
#endif
  return *reinterpret_cast<Vector*>(p);
}

/// Four neighbours, moved between memory and registers at once: 16 bytes of f32, or 8 of bf16 that
/// they are rounded to. The address is a multiple of that.
struct Quad {
  float value[4];
};
__device__ __forceinline__ Quad load_quad(const float* p) {
  const float4 four = vector_at<const float4>(p);
  return {{four.x, four.y, four.z, four.w}};
}
__device__ __forceinline__ void store_quad(float* p, const Quad& four) {
  vector_at<float4>(p) = make_float4(four.value[0], four.value[1], four.value[2], four.value[3]);
}
__device__ __forceinline__ void store_quad(uint16_t* p, const Quad& four) {
  vector_at<uint2>(p) = make_uint2(f32_to_bf16_pair(four.value[0], four.value[1]),
                                   f32_to_bf16_pair(four.value[2], four.value[3]));
}

/// x[0 .. kValues) at once, of 1 value or 4 of them.
template <int32_t kValues>
__device__ __forceinline__ void load_values(const float* x, float (&values)[kValues]) {
  static_assert(kValues == 1 || kValues == 4);
  if constexpr (kValues == 1) {
    values[0] = *x;
  } else {
    const Quad four = load_quad(x);
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) values[e] = four.value[e];
  }
}
template <int32_t kValues>
__device__ __forceinline__ void store_values(float* x, const float (&values)[kValues]) {
  static_assert(kValues == 1 || kValues == 4);
  if constexpr (kValues == 1) {
    *x = values[0];
  } else {
    store_quad(x, {{values[0], values[1], values[2], values[3]}});
  }
}

/// Element i of a table in the given storage, as f32 (exact).
template <kernels::Storage kStorage>
__device__ __forceinline__ float load_storage(const void* data, int64_t i) {
  if (kStorage == kernels::Storage::kF32) return ((const float*)data)[i];
  const uint16_t value = ((const uint16_t*)data)[i];
  return kStorage == kernels::Storage::kBF16 ? bf16_to_f32(value) : f16_to_f32(value);
}

/// Elements [i, i + 4), i a multiple of 4 and the table 16-byte aligned.
template <kernels::Storage kStorage>
__device__ __forceinline__ Quad load_storage_quad(const void* data, int64_t i) {
  if constexpr (kStorage == kernels::Storage::kF32) {
    return load_quad((const float*)data + i);
  } else {
    const uint2 pairs = vector_at<const uint2>((const uint16_t*)data + i);
    const uint32_t words[4] = {pairs.x & 0xffffu, pairs.x >> 16, pairs.y & 0xffffu, pairs.y >> 16};
    Quad four;
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      four.value[e] = kStorage == kernels::Storage::kBF16 ? bf16_to_f32((uint16_t)words[e])
                                                          : f16_to_f32((uint16_t)words[e]);
    }
    return four;
  }
}

// ---- Tensor cores

/// c += a · b, a [16, 16] and b [16, 8] in bf16, c [16, 8] in f32, spread over the warp as the PTX
/// manual says of mma.m16n8k16: with g = lane / 4 and t = lane % 4,
///
///     a[0..3]  pairs (k, k + 1) at (row g, k = 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
///     b[0..1]  pairs (k, k + 1) at (k = 2t, column g), (2t + 8, g)
///     c[0..3]  (row g, column 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  struct Fragments {
    uint32_t a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto half = [](uint32_t pair, int32_t k) {
    return bf16_to_f32((uint16_t)(k % 2 == 0 ? pair : pair >> 16));
  };
  const auto of = emulated::meet(kAllLanes, "mma", mine);
  const int32_t g = lane_id() / 4, t = lane_id() % 4;
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int32_t k = 0; k < 16; ++k) {
      const int32_t owner = k % 8 / 2;  // t of the lanes that hold this k
      c[i] += half(of[row % 8 * 4 + owner].a[k / 8 * 2 + row / 8], k) *
              half(of[column * 4 + owner].b[k / 8], k);
    }
  }
#endif
}

/// Four 8×8 matrices of 16-bit elements from shared memory: lane l gives the address (16-byte
/// aligned) of row l % 8 of matrix l / 8, and gets in r[i] the pair (row l / 4, columns 2 (l % 4)
/// and the next) of matrix i.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const uint16_t* row) {
#if defined(__CUDACC__)
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  emulated::load_matrix_x4(r, row, false);
#endif
}

/// The same with each matrix transposed: lane l gets (rows 2 (l % 4) and the next, column l / 4).
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], const uint16_t* row) {
#if defined(__CUDACC__)
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  emulated::load_matrix_x4(r, row, true);
#endif
}

// ---- Copies from global to shared memory that run beside the arithmetic

/// 16 bytes, both ends 16-byte aligned; zeros instead when `wanted` is false. There, and visible to
/// other threads, after copy_wait and a barrier.
__device__ __forceinline__ void copy_16_async(void* shared, const void* global, bool wanted) {
#if defined(__CUDACC__)
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(global), "r"(wanted ? 16 : 0)
               : "memory");
#else
  emulated::copy_16_async(shared, global, wanted);
#endif
}

/// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulated::copy_commit();
#endif
}

/// Waits until at most the kPending latest groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulated::copy_wait(kPending);
#endif
}

}  // namespace xsr::cuda
