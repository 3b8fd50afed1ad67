#include "runtime/device/cuda/device.h"

#include "runtime/error.h"

namespace xsr::cuda {
namespace {
constexpr size_t kAlignment = 256;        // what cudaMalloc gives
constexpr int32_t kLeastCapability = 80;  // bf16 on tensor cores, cp.async
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

std::vector<DeviceInfo> require_devices(const std::vector<int32_t>& wanted) {
  std::string why_none;
  const std::vector<DeviceInfo> all = devices(&why_none);
  if (all.empty()) {
    throw Error(XSR_STATUS_CUDA, "no CUDA device can be used: " + why_none +
                                     "; use the device cpu, or see that nvidia-smi lists a device");
  }
  std::vector<DeviceInfo> found;
  for (const int32_t device : wanted) {
    if (device < 0 || device >= static_cast<int32_t>(all.size())) {
      throw Error(XSR_STATUS_CUDA, "there is no CUDA device " + std::to_string(device) + ": " +
                                       std::to_string(all.size()) + " can be used, counted from 0");
    }
    found.push_back(all[static_cast<size_t>(device)]);
    const int32_t capability = found.back().compute_capability;
    if (capability != 0 && capability < kLeastCapability) {
      throw Error(XSR_STATUS_UNSUPPORTED, found.back().name + " has compute capability " +
                                              std::to_string(capability / 10) + "." +
                                              std::to_string(capability % 10) +
                                              ", xsr needs 8.0; use the device cpu");
    }
  }
  return found;
}

Memory Plan::allocate(Place place) const {
  size_t bytes = 0;
  for (const Piece& piece : pieces_) bytes += aligned(piece.bytes);
  Memory memory(place, bytes);
  char* at = static_cast<char*>(memory.data());
  for (const Piece& piece : pieces_) {
    *piece.pointer = piece.bytes == 0 ? nullptr : at;
    at += aligned(piece.bytes);
  }
  return memory;
}

}  // namespace xsr::cuda
