#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "xsr/xsr.h"

namespace xsr {

/// "cpu": none; "cuda": device 0; "cuda:0,2": these, which share the work. Throws
/// Error(INVALID_ARGUMENT).
std::vector<int32_t> cuda_devices_of(const std::string& device);
/// The same as the options of a session ask for it: device, cuda_devices. Throws
/// Error(INVALID_ARGUMENT) for devices beyond 63, too.
void choose_device(const std::string& device, xsr_session_options* options);

/// A shared object that is loaded when CUDA is asked for, so that nothing else needs a driver.
struct CudaLibrary {
  const char* file;      // "libxsr_cuda.so"
  const char* variable;  // the environment variable that names another file
  const char* purpose;   // "a CUDA session", for messages
};

/// What the library shows under the name `entry`. It is looked for beside this code (libxsr, or the
/// program that holds it) and in the folders of libraries next to that one, then where the loader
/// looks. It is never closed: CUDA does not like to be unloaded. Throws Error(CUDA) saying what is
/// missing and what mends it. Any number of threads.
void* cuda_library_entry(const CudaLibrary& library, const char* entry);

/// What two pieces of one build agree on; they share C++ types, so no others may work together.
/// types: the sizes of those types.
std::string cuda_library_build(const std::vector<size_t>& types);
/// Throws Error(CUDA) where `build`, the caller's, is not `own`.
void require_same_build(const std::string& build, const std::string& own);

}  // namespace xsr
