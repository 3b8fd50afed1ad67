#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/stream.h"

namespace xsr::training {

/// One device's end of what several devices that train together tell each other. Every rank makes
/// the same calls in the same order, from a thread of its own; they run on the stream and may be
/// captured, by all ranks or by none, and graphs of the same capture are launched by all; those
/// graphs must be gone, on every rank, before the first communicator ends. Two bodies:
/// communicator_nccl.cpp, and communicator_emulated.cpp for the emulated device.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int32_t rank() const = 0;
  /// x[starts[r], starts[r + 1]) ← that of rank r, for every r
  virtual void gather(float* x, const std::vector<int64_t>& starts, cuda::Stream stream) = 0;
  /// x ← Σ over the ranks, the same bits on each; two runs give the same.
  virtual void sum(float* x, int64_t count, cuda::Stream stream) = 0;
  virtual void sum(double* x, int64_t count, cuda::Stream stream) = 0;
  /// Ends what this rank waits for, since another will not come. Nothing can be called after it but
  /// itself, from any thread.
  virtual void abort() noexcept = 0;
};

/// One a device, in their order. Throws Error(UNSUPPORTED: no NCCL; CUDA).
std::vector<std::unique_ptr<Communicator>> make_communicators(const std::vector<int32_t>& devices);

}  // namespace xsr::training
