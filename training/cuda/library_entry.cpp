// What libxsr_train_cuda.so shows: the trainers of training/cuda_library.h.
#include <string>

#include "runtime/error.h"
#include "training/cuda/cuda_trainer.h"
#include "training/cuda_library.h"

#define XSR_SHOWN extern "C" __attribute__((visibility("default")))

XSR_SHOWN xsr::training::Trainer* xsr_train_cuda_trainer_create(
    const char* build, const xsr::ModelConfig& config, const xsr::training::StepConfig& step,
    const std::vector<int32_t>& devices);

xsr::training::Trainer* xsr_train_cuda_trainer_create(const char* build,
                                                      const xsr::ModelConfig& config,
                                                      const xsr::training::StepConfig& step,
                                                      const std::vector<int32_t>& devices) {
  const std::string own = xsr::training::cuda_library_build();
  if (own != build) {
    throw xsr::Error(XSR_STATUS_UNSUPPORTED,
                     "the program and its CUDA library are of two builds: " + std::string(build) +
                         " and " + own);
  }
  return xsr::training::make_trainer(config, step, devices).release();
}
