#pragma once
// Kernels of the emulated device's own test that lack a barrier, or have it; in a file of their
// own, whose accesses the device follows.
#include "kernels/cuda/device.h"

namespace xsr::test {

enum class Barrier : int32_t { kNone, kShuffle, kSyncwarp, kSyncthreads };

/// Thread t hands its number to thread t ^ other, by way of shared memory.
/// out [64]; one block of 64 threads.
cuda::Status launch_exchange(Barrier barrier, int32_t other, int32_t* out, cuda::Stream stream);
/// The same by statically shared memory.
cuda::Status launch_exchange_static(Barrier barrier, int32_t other, int32_t* out,
                                    cuda::Stream stream);
/// A warp reads what the threads hand over, then each writes its own word again; the barrier is
/// between. out [64]
cuda::Status launch_write_after_read(Barrier barrier, int32_t other, int32_t* out,
                                     cuda::Stream stream);
/// Rows are written, one a lane, then read with ldmatrix. out [32]
cuda::Status launch_matrix(Barrier barrier, uint32_t* out, cuda::Stream stream);
/// A copy to shared memory is waited for, and read by other threads. in, out [64]
cuda::Status launch_copy(Barrier barrier, const float* in, float* out, cuda::Stream stream);
/// Shared memory is read, then copied to. in, out [64]
cuda::Status launch_copy_after_read(Barrier barrier, const float* in, float* out,
                                    cuda::Stream stream);

}  // namespace xsr::test
