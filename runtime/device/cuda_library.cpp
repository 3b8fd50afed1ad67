#include "runtime/device/cuda_library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>

#include "runtime/error.h"

namespace xsr {
namespace {

namespace fs = std::filesystem;

/// The folder of the file that this code was loaded from; empty where that is not known.
fs::path own_folder() {
  Dl_info info;
  link_map* map = nullptr;
  void* const here = reinterpret_cast<void*>(&cuda_devices_of);
  if (::dladdr1(here, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) return {};
  // The program itself has no name there, and info.dli_fname is what its caller liked to call it.
  const bool is_program = map == nullptr || map->l_name == nullptr || *map->l_name == '\0';
  std::error_code error;
  const fs::path file = fs::canonical(is_program ? "/proc/self/exe" : map->l_name, error);
  return error ? fs::path() : file.parent_path();
}

/// The library's file; its name alone where it is not near.
std::string file_of(const CudaLibrary& library) {
  if (const char* named = std::getenv(library.variable); named != nullptr && named[0] != '\0')
    return named;
  const fs::path own = own_folder();
  if (own.empty()) return library.file;
  for (const char* folder : {".", "../lib", "../lib64", "../" XSR_LIBDIR}) {
    std::error_code error;
    const fs::path file = own / folder / library.file;
    if (fs::exists(file, error)) return file.string();
  }
  return library.file;
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

void choose_device(const std::string& device, xsr_session_options* options) {
  options->device = XSR_DEVICE_CPU;
  options->cuda_devices = 0;
  for (const int32_t number : cuda_devices_of(device)) {
    if (number > 63) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  "device is \"" + device + "\", expected numbers up to 63");
    }
    options->device = XSR_DEVICE_CUDA;
    options->cuda_devices |= uint64_t{1} << number;
  }
}

void* cuda_library_entry(const CudaLibrary& library, const char* entry) {
  const std::string file = file_of(library);
  void* const loaded = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (loaded == nullptr) {
    const char* why = ::dlerror();
    throw Error(XSR_STATUS_CUDA,
                std::string(library.purpose) + " needs " + library.file +
                    ", which cannot be loaded: " + (why == nullptr ? "" : why) +
                    ". A build with XSR_CUDA=ON makes it; it belongs beside libxsr, or " +
                    library.variable + " names it");
  }
  void* const found = ::dlsym(loaded, entry);
  if (found == nullptr) {
    throw Error(XSR_STATUS_CUDA,
                file + " has no " + entry + "; it is not the " + library.file + " of this build");
  }
  return found;
}

std::string cuda_library_build(const std::vector<size_t>& types) {
  std::string build = xsr_version_string();
  for (const size_t size : types) build += " " + std::to_string(size);
  return build + " " + __VERSION__;
}

void require_same_build(const std::string& build, const std::string& own) {
  if (build == own) return;
  throw Error(XSR_STATUS_CUDA, "xsr and its CUDA library are of two builds: " + build + " and " +
                                   own + "; install both from one");
}

}  // namespace xsr
