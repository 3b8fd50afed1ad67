#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// How a weight stands in memory. The numbers are those of the .xsr file.
enum class Storage : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3 };

/// kp of the panel layout (kernels/gemm/gemm.h): how many neighbouring inputs of one output stand
/// side by side.
static constexpr int32_t panel_group(Storage storage) {
  return storage == Storage::kF32 ? 1 : storage == Storage::kI8 ? 4 : 2;
}
static constexpr int32_t storage_size(Storage storage) {
  return storage == Storage::kF32 ? 4 : storage == Storage::kI8 ? 1 : 2;
}

}  // namespace xsr::kernels
