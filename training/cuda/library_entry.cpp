// What libxsr_train_cuda.so shows: the trainers of training/cuda_library.h.
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda_library.h"
#include "training/cuda/cuda_trainer.h"
#include "training/cuda_library.h"
#include "xsr/xsr.h"

extern "C" XSR_API xsr::training::Trainer* xsr_train_cuda_trainer_create(
    const char* build, const xsr::ModelConfig& config, const xsr::training::StepConfig& step,
    const xsr::training::CudaTrainerOptions& options);
extern "C" XSR_API void xsr_train_cuda_require_devices(const char* build,
                                                       const std::vector<int32_t>& devices);

xsr::training::Trainer* xsr_train_cuda_trainer_create(
    const char* build, const xsr::ModelConfig& config, const xsr::training::StepConfig& step,
    const xsr::training::CudaTrainerOptions& options) {
  xsr::require_same_build(build, xsr::training::cuda_trainer_build());
  return new xsr::training::CudaTrainer(config, step, options);
}

void xsr_train_cuda_require_devices(const char* build, const std::vector<int32_t>& devices) {
  xsr::require_same_build(build, xsr::training::cuda_trainer_build());
  xsr::cuda::require_devices(devices);
}
