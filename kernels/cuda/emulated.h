#pragma once
// The emulated device: CUDA's built-in names for the host compiler, and a scheduler that runs the
// threads of a block as fibers, one block after the other. A kernel that could hang or be undefined
// on a device ends the program with a message here: a barrier that some threads do not reach, a
// shuffle whose lanes do not all arrive or arrive in different operations, a write outside the
// dynamic shared memory, shared memory that two threads use, one of them to write, without a
// __syncthreads or, within a warp, a __syncwarp of all lanes between (lanes that meet at a shuffle,
// mma or ldmatrix have not waited for what the others wrote). What would be chance there is as bad
// as it can be here: cp.async copies late, at the wait, and leaves NaN until then; ldmatrix reads a
// lane's row when that lane comes; dynamic shared memory holds NaN before a block starts, and lies
// in NaN; a stream does nothing before it is waited for, by the host or by another stream; with a
// seed, blocks and threads run in a random order, and streams that wait for each other, or that one
// thread gives work to, as early as they may, or at random, so that a missing barrier or wait
// changes results.
// tests/cuda_emulator_test.cpp shows all of it. Kernels are compiled so that products and sums are
// fused, as nvcc does, where the CPU can.
//
// Not noticed: what is wrong within one allocation (runtime/device/cuda/device.h puts many buffers
// into one) or far outside, races in global memory but for results that change with the order,
// memory of another device; under a sanitizer, shared memory without a barrier but for the same.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <deque>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels/cuda/stream.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
// Kernels move arrays of smaller elements by these.
struct alignas(16) [[gnu::may_alias]] float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) [[gnu::may_alias]] uint2 {
  unsigned x, y;
};
struct alignas(16) [[gnu::may_alias]] uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Of the fiber that runs; one launch runs at a time.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

/// A stream does what it is given when it is waited for, or keeps it for a graph.
struct CUstream_st {
  /// A kernel or a copy; where `other` is given, waiting until that stream has done so many pieces.
  struct Work {
    std::function<void()> run;
    std::shared_ptr<CUstream_st> other;
    uint64_t position = 0;
  };
  /// What a graph is made of: the stream that is captured, and those that have waited for it.
  struct Capture {
    std::vector<std::shared_ptr<CUstream_st>> streams;
  };
  std::shared_ptr<CUstream_st> self;  // until it is destroyed
  std::shared_ptr<Capture> capture;   // while one is under way
  std::vector<Work> captured;
  std::deque<Work> pending;
  uint64_t done = 0;                                // pieces of work so far
  std::vector<std::weak_ptr<CUstream_st>> related;  // that it waits for, or that wait for it

  uint64_t given() const { return done + pending.size(); }
};

namespace xsr::cuda::emulated {

/// 0: threads and blocks in their order, and a stream's work when it is waited for. Else random
/// orders that follow from the seed; what a stream is given runs before the work of others that its
/// events let it overtake where the seed is odd, and where it is even some of it.
void set_order(uint64_t seed);
/// Launches so far: lets tests see that kernels ran here.
uint64_t launches();
/// For kernels that run by another way: counts a launch, gives set_order()'s seed.
uint64_t count_launch();

/// What CUDA would say to the next launch, copy, event or graph: 0, or once that there are too few
/// resources, of the n-th since XSR_EMULATED_FAILURE was set to n. Unset, something is to be given
/// before it is set to the same n again.
Status refusal();
/// Gives the stream a piece of work, which the device does not refuse.
void give(Stream stream, std::function<void()> body);
/// give(), unless the device refuses it.
Status submit(Stream stream, std::function<void()> body);
/// What `stream` is given from now on waits until `other` has done so many pieces of work.
void hold(const std::shared_ptr<CUstream_st>& stream, const std::shared_ptr<CUstream_st>& other,
          uint64_t position);
/// Does what the stream was given, until `count` pieces are done. Throws what a piece throws; those
/// behind it are dropped.
void wait_for(Stream stream, uint64_t count);
/// Drops what a stream has not done yet.
void drop(Stream stream);

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

void* shared_memory();
void sync_threads();

constexpr size_t kSlotBytes = 32;
constexpr const char* kSyncwarp = "syncwarp";
/// Waits for all lanes of the mask; gives their data, lane l's at l · kSlotBytes, until this fiber
/// waits again. size ≤ kSlotBytes.
const unsigned char* meet_bytes(uint32_t mask, const char* operation, const void* data,
                                size_t size);

/// What the lanes of a meeting brought, by lane.
template <typename T>
class Lanes {
 public:
  explicit Lanes(const unsigned char* slots) : slots_(slots) {}
  T operator[](int lane) const {
    T value;
    memcpy(&value, slots_ + static_cast<size_t>(lane) * kSlotBytes, sizeof value);
    return value;
  }

 private:
  const unsigned char* slots_;
};

template <typename T>
Lanes<T> meet(uint32_t mask, const char* operation, const T& value) {
  static_assert(sizeof(T) <= kSlotBytes && std::is_trivially_copyable_v<T>);
  return Lanes<T>(meet_bytes(mask, operation, &value, sizeof value));
}

/// For a load or store of so many bytes at once.
void expect_aligned(const void* address, size_t bytes);
void load_matrix_x4(uint32_t (&r)[4], const uint16_t* row, bool transposed);
void copy_16_async(void* shared, const void* global, bool wanted);
void copy_commit();
void copy_wait(size_t pending);

}  // namespace xsr::cuda::emulated

inline void __syncthreads() { xsr::cuda::emulated::sync_threads(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  xsr::cuda::emulated::meet(mask, xsr::cuda::emulated::kSyncwarp, 0);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return xsr::cuda::emulated::meet(mask, "shfl",
                                   value)[lane / width * width + (source & (width - 1))];
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return xsr::cuda::emulated::meet(mask, "shfl_xor",
                                   value)[static_cast<int>(threadIdx.x % 32) ^ bits];
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % 32, from = lane + delta < 32 ? lane + delta : lane;
  return xsr::cuda::emulated::meet(mask, "shfl_down", value)[static_cast<int>(from)];
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % 32, from = lane >= delta ? lane - delta : lane;
  return xsr::cuda::emulated::meet(mask, "shfl_up", value)[static_cast<int>(from)];
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote) {
  const auto votes = xsr::cuda::emulated::meet(mask, "ballot", static_cast<uint32_t>(vote));
  uint32_t bits = 0;
  for (uint32_t lane = 0; lane < 32; ++lane)
    bits |= (mask >> lane & votes[static_cast<int>(lane)]) << lane;
  return bits;
}
inline bool __any_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) == mask; }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }

inline float __fmul_rn(float a, float b) {
  const volatile float product = a * b;  // or a compiler may fuse it, too
  return product;
}
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
