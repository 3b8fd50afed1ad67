#pragma once
#include <memory>
#include <string>
#include <vector>

#include "training/step.h"

namespace xsr::training {

/// "cpu": none; "cuda": device 0; "cuda:0,2": these, each with its share of every batch. Throws
/// Error(INVALID_ARGUMENT).
std::vector<int32_t> cuda_devices_of(const std::string& device);

/// A trainer on CUDA devices, out of libxsr_train_cuda.so, which is looked for beside the program
/// and in ../lib of it, then where the system looks; so that xsr-train itself needs no driver.
/// XSR_TRAIN_CUDA_LIBRARY names another file. Throws Error(UNSUPPORTED) saying what is missing:
/// library, driver, device.
std::unique_ptr<Trainer> make_cuda_trainer(const ModelConfig& config, const StepConfig& step,
                                           const std::vector<int32_t>& devices);

/// What the library gives under the name kCudaTrainerEntry. `build` is the caller's
/// cuda_library_build(): the two share C++ types, so they must come from one build of the sources.
using cuda_trainer_entry_t = Trainer*(const char* build, const ModelConfig& config,
                                      const StepConfig& step, const std::vector<int32_t>& devices);
inline constexpr char kCudaTrainerEntry[] = "xsr_train_cuda_trainer_create";
std::string cuda_library_build();

}  // namespace xsr::training
