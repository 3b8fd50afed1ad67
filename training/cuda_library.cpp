#include "training/cuda_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>

#include "runtime/error.h"
#include "xsr/xsr.h"

namespace xsr::training {
namespace {

constexpr char kFile[] = "libxsr_train_cuda.so";

/// The library's file; its name alone where it is not near the program.
std::string library_file() {
  if (const char* named = std::getenv("XSR_TRAIN_CUDA_LIBRARY")) return named;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  for (const char* folder : {".", "../lib", "../lib64"}) {
    const std::filesystem::path file = program.parent_path() / folder / kFile;
    if (!error && std::filesystem::exists(file, error)) return file.string();
  }
  return kFile;
}

}  // namespace

std::vector<int32_t> cuda_devices_of(const std::string& device) {
  if (device == "cpu") return {};
  if (device == "cuda") return {0};
  const auto wrong = [&] {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "device is \"" + device + "\", expected cpu, cuda, or cuda:0,1 and so on");
  };
  constexpr char kPrefix[] = "cuda:";
  if (device.rfind(kPrefix, 0) != 0) wrong();
  std::vector<int32_t> devices;
  const char *at = device.data() + sizeof kPrefix - 1, *end = device.data() + device.size();
  while (true) {
    int32_t number = 0;
    const auto [next, error] = std::from_chars(at, end, number);
    if (error != std::errc() || number < 0 ||
        std::find(devices.begin(), devices.end(), number) != devices.end())
      wrong();
    devices.push_back(number);
    if (next == end) return devices;
    if (*next != ',') wrong();
    at = next + 1;
  }
}

std::string cuda_library_build() {
  return std::string(xsr_version_string()) + " " + std::to_string(sizeof(ModelConfig)) + " " +
         std::to_string(sizeof(StepConfig)) + " " + std::to_string(sizeof(Trainer)) + " " +
         __VERSION__;
}

std::unique_ptr<Trainer> make_cuda_trainer(const ModelConfig& config, const StepConfig& step,
                                           const std::vector<int32_t>& devices) {
  const std::string file = library_file();
  // Never closed: its trainers may outlive this call, and CUDA does not like to be unloaded.
  void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw Error(XSR_STATUS_UNSUPPORTED, std::string("training on a CUDA device needs ") + kFile +
                                            ", which cannot be loaded: " + ::dlerror() +
                                            ". A build with XSR_CUDA=ON makes it.");
  }
  void* entry = ::dlsym(library, kCudaTrainerEntry);
  if (entry == nullptr) throw Error(XSR_STATUS_UNSUPPORTED, file + ": has no " + kCudaTrainerEntry);
  return std::unique_ptr<Trainer>(reinterpret_cast<cuda_trainer_entry_t*>(entry)(
      cuda_library_build().c_str(), config, step, devices));
}

}  // namespace xsr::training
