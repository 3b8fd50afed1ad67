#include "training/cuda_library.h"

#include "runtime/device/cuda_library.h"

namespace xsr::training {
namespace {

template <typename Entry>
Entry* entry(const char* name) {
  constexpr CudaLibrary kLibrary = {"libxsr_train_cuda.so", "XSR_TRAIN_CUDA_LIBRARY",
                                    "training on a CUDA device"};
  return reinterpret_cast<Entry*>(cuda_library_entry(kLibrary, name));
}

}  // namespace

std::string cuda_trainer_build() {
  return cuda_library_build(
      {sizeof(ModelConfig), sizeof(StepConfig), sizeof(CudaTrainerOptions), sizeof(Trainer)});
}

std::unique_ptr<Trainer> make_cuda_trainer(const ModelConfig& config, const StepConfig& step,
                                           const CudaTrainerOptions& options) {
  auto* const create = entry<cuda_trainer_entry_t>(kCudaTrainerEntry);
  return std::unique_ptr<Trainer>(create(cuda_trainer_build().c_str(), config, step, options));
}

void require_cuda_training(const std::vector<int32_t>& devices) {
  entry<cuda_devices_entry_t>(kCudaDevicesEntry)(cuda_trainer_build().c_str(), devices);
}

}  // namespace xsr::training
