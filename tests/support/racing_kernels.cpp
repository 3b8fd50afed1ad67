#include "tests/support/racing_kernels.h"

namespace xsr::test {
namespace {

using namespace cuda;

constexpr uint32_t kThreads = 64;

__device__ void meet(Barrier barrier) {
  // Lanes meet at a shuffle too, but what they wrote need not be there.
  if (barrier == Barrier::kShuffle) __shfl_xor_sync(kAllLanes, 1, 1);
  if (barrier == Barrier::kSyncwarp) __syncwarp();
  if (barrier == Barrier::kSyncthreads) __syncthreads();
}

__device__ void exchange(Barrier barrier, int32_t other, int32_t* shared, int32_t* out) {
  const int32_t t = (int32_t)threadIdx.x;
  shared[t] = t;
  meet(barrier);
  out[t] = shared[t ^ other];
}

__global__ void exchange_kernel(Barrier barrier, int32_t other, int32_t* out) {
  exchange(barrier, other, shared_memory<int32_t>(), out);
}

__global__ void exchange_static_kernel(Barrier barrier, int32_t other, int32_t* out) {
  __shared__ int32_t shared[kThreads];
  exchange(barrier, other, shared, out);
}

__global__ void write_after_read_kernel(Barrier barrier, int32_t other, int32_t* out) {
  int32_t* shared = shared_memory<int32_t>();
  const int32_t t = (int32_t)threadIdx.x;
  exchange(Barrier::kSyncthreads, other, shared, out);
  meet(barrier);
  shared[t] = -t;
}

__global__ void matrix_kernel(Barrier barrier, uint32_t* out) {
  uint16_t* row = shared_memory<uint16_t>() + 8 * (lane_id() ^ 1);
  for (int32_t e = 0; e < 8; ++e) row[e] = (uint16_t)lane_id();
  meet(barrier);
  uint32_t r[4];
  load_matrix_x4(r, shared_memory<uint16_t>() + 8 * lane_id());
  out[lane_id()] = r[0];
}

__global__ void copy_kernel(Barrier barrier, const float* in, float* out) {
  float* shared = shared_memory<float>();
  const int32_t t = (int32_t)threadIdx.x;
  if (t % 4 == 0) copy_16_async(shared + t, in + t, true);
  copy_commit();
  copy_wait<0>();
  meet(barrier);
  out[t] = shared[t];
}

__global__ void copy_after_read_kernel(Barrier barrier, const float* in, float* out) {
  float* shared = shared_memory<float>();
  const int32_t t = (int32_t)threadIdx.x;
  shared[t] = in[t];
  __syncthreads();
  out[t] = shared[t ^ 3];
  meet(barrier);
  if (t % 4 == 0) copy_16_async(shared + t, in + t, true);
  copy_commit();
  copy_wait<0>();
}

}  // namespace

cuda::Status launch_exchange(Barrier barrier, int32_t other, int32_t* out, cuda::Stream stream) {
  return launch(exchange_kernel, 1, kThreads, 4 * kThreads, stream, barrier, other, out);
}
cuda::Status launch_exchange_static(Barrier barrier, int32_t other, int32_t* out,
                                    cuda::Stream stream) {
  return launch(exchange_static_kernel, 1, kThreads, 0, stream, barrier, other, out);
}
cuda::Status launch_write_after_read(Barrier barrier, int32_t other, int32_t* out,
                                     cuda::Stream stream) {
  return launch(write_after_read_kernel, 1, kThreads, 4 * kThreads, stream, barrier, other, out);
}
cuda::Status launch_matrix(Barrier barrier, uint32_t* out, cuda::Stream stream) {
  return launch(matrix_kernel, 1, kWarp, 16 * kWarp, stream, barrier, out);
}
cuda::Status launch_copy(Barrier barrier, const float* in, float* out, cuda::Stream stream) {
  return launch(copy_kernel, 1, kThreads, 4 * kThreads, stream, barrier, in, out);
}
cuda::Status launch_copy_after_read(Barrier barrier, const float* in, float* out,
                                    cuda::Stream stream) {
  return launch(copy_after_read_kernel, 1, kThreads, 4 * kThreads, stream, barrier, in, out);
}

}  // namespace xsr::test
