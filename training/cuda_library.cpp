#include "training/cuda_library.h"

#include "runtime/device/cuda_library.h"

namespace xsr::training {

std::string cuda_trainer_build() {
  return cuda_library_build(
      {sizeof(ModelConfig), sizeof(StepConfig), sizeof(CudaTrainerOptions), sizeof(Trainer)});
}

std::unique_ptr<Trainer> make_cuda_trainer(const ModelConfig& config, const StepConfig& step,
                                           const CudaTrainerOptions& options) {
  constexpr CudaLibrary kLibrary = {"libxsr_train_cuda.so", "XSR_TRAIN_CUDA_LIBRARY",
                                    "training on a CUDA device"};
  auto* const create =
      reinterpret_cast<cuda_trainer_entry_t*>(cuda_library_entry(kLibrary, kCudaTrainerEntry));
  return std::unique_ptr<Trainer>(create(cuda_trainer_build().c_str(), config, step, options));
}

}  // namespace xsr::training
