#pragma once
#include <memory>
#include <string>
#include <vector>

#include "training/step.h"

namespace xsr::training {

struct CudaTrainerOptions {
  std::vector<int32_t> devices = {0};
  bool exchange = false;  // a single device goes the way of several, talking to itself: for tests
  bool tf32 = false;      // f32 products may round their operands to TF32
  int32_t vocabulary_tile = 0;  // words whose logits exist at a time; a multiple of 16. 0: what the
                                // number of sentences allows
};

/// A trainer on CUDA devices, out of libxsr_train_cuda.so (runtime/device/cuda_library.h), for
/// which XSR_TRAIN_CUDA_LIBRARY names another file. Throws Error(CUDA) saying what is missing:
/// library, driver, device.
std::unique_ptr<Trainer> make_cuda_trainer(const ModelConfig& config, const StepConfig& step,
                                           const CudaTrainerOptions& options);

/// Throws what make_cuda_trainer() would for want of a library, a driver or one of the devices.
void require_cuda_training(const std::vector<int32_t>& devices);

/// What the library gives under these names. `build` is the caller's cuda_trainer_build().
using cuda_trainer_entry_t = Trainer*(const char* build, const ModelConfig& config,
                                      const StepConfig& step, const CudaTrainerOptions& options);
using cuda_devices_entry_t = void(const char* build, const std::vector<int32_t>& devices);
inline constexpr char kCudaTrainerEntry[] = "xsr_train_cuda_trainer_create";
inline constexpr char kCudaDevicesEntry[] = "xsr_train_cuda_require_devices";
std::string cuda_trainer_build();

}  // namespace xsr::training
