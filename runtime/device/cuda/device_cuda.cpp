#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdlib>

#include "runtime/device/cuda/device.h"
#include "runtime/error.h"

namespace xsr::cuda {

void check(Status status, const char* doing) {
  const auto error = static_cast<cudaError_t>(status);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a failed call must not be found again by the next one
  throw Error(error == cudaErrorMemoryAllocation ? XSR_STATUS_OUT_OF_MEMORY : XSR_STATUS_CUDA,
              std::string("CUDA: ") + doing + ": " + cudaGetErrorString(error));
}

namespace {

std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string why_no_device(cudaError_t error) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  cudaGetLastError();
  if (driver == 0) return "no NVIDIA driver is installed";
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver is one for CUDA " + cuda_version(driver) + " and too old for CUDA " +
           cuda_version(runtime) + ", which this was built with; install a newer driver";
  }
  const std::string why =
      error == cudaSuccess ? "no CUDA device is visible" : cudaGetErrorString(error);
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return visible == nullptr ? why : why + " (CUDA_VISIBLE_DEVICES is \"" + visible + "\")";
}

}  // namespace

std::vector<DeviceInfo> devices(std::string* why_none) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    *why_none = why_no_device(error);
    return {};
  }
  std::vector<DeviceInfo> found;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "reading a device's properties");
    found.push_back({properties.name, properties.major * 10 + properties.minor});
  }
  return found;
}

void select_device(int32_t device) { check(cudaSetDevice(device), "selecting a device"); }

namespace {

/// The driver's contexts, which the runtime's devices are a view of: cudaSetDevice() takes the
/// place of a context that the caller made itself, and makes one on the device that is to come
/// back.
struct Contexts {
  using Get = int (*)(void** context);
  using Set = int (*)(void* context);
  Get get = nullptr;
  Set set = nullptr;
  static const Contexts& driver() {
    static const Contexts found = [] {
      Contexts contexts;
      if (void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
        contexts.get = reinterpret_cast<Get>(::dlsym(library, "cuCtxGetCurrent"));
        contexts.set = reinterpret_cast<Set>(::dlsym(library, "cuCtxSetCurrent"));
      }
      return contexts;
    }();
    return found;
  }
};

}  // namespace

SelectedDevice::SelectedDevice(int32_t device) {
  // Where the driver has not been started there is no context: before_ stays null.
  if (const auto get = Contexts::driver().get) get(&before_);
  select_device(device);
}
SelectedDevice::~SelectedDevice() {
  if (const auto set = Contexts::driver().set) set(before_);
}

StreamOwner::StreamOwner(bool first) {
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "creating a stream");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, first ? greatest : least),
        "creating a stream");
}
StreamOwner::~StreamOwner() { cudaStreamDestroy(stream_); }
void StreamOwner::synchronize() const {
  check(cudaStreamSynchronize(stream_), "waiting for a stream");
}

Memory::Memory(Place place, size_t bytes) : place_(place), bytes_(bytes) {
  if (bytes == 0) return;
  const cudaError_t error =
      place == Place::kDevice ? cudaMalloc(&data_, bytes) : cudaMallocHost(&data_, bytes);
  if (error != cudaSuccess) {
    check(error, ("allocating " + std::to_string(bytes) + " bytes " +
                  (place == Place::kDevice ? "on the device" : "of pinned memory"))
                     .c_str());
  }
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  if (place_ == Place::kDevice) {
    cudaFree(data_);
  } else {
    cudaFreeHost(data_);
  }
}

void copy_to_device(void* device, const void* host, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream),
        "copying to the device");
}

void copy_to_host(void* host, const void* device, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream),
        "copying from the device");
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
        "copying on the device");
}

void fill_zero(void* device, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(device, 0, bytes, stream), "clearing device memory");
}

struct Event::Impl {
  cudaEvent_t event = nullptr;
};

Event::Event() : impl_(new Impl) {
  const cudaError_t error = cudaEventCreate(&impl_->event);
  if (error == cudaSuccess) return;
  delete impl_;
  check(error, "creating an event");
}
Event::~Event() {
  cudaEventDestroy(impl_->event);
  delete impl_;
}
void Event::record(Stream stream) {
  check(cudaEventRecord(impl_->event, stream), "recording an event");
}
void Event::wait() const { check(cudaEventSynchronize(impl_->event), "waiting for an event"); }
void Event::hold(Stream stream) const {
  check(cudaStreamWaitEvent(stream, impl_->event, 0), "making a stream wait");
}
double Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start.impl_->event, impl_->event), "timing");
  return milliseconds;
}

struct Graph::Impl {
  cudaGraphExec_t executable = nullptr;
};

void Graph::begin(Stream stream) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a graph");
}

void Graph::abandon(Stream stream) {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

Graph Graph::end(Stream stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "capturing a graph");
  Graph result;
  result.impl_ = new Impl;
  // Kernels keep the priority of the stream that they were given to.
  const cudaError_t error = cudaGraphInstantiate(&result.impl_->executable, graph,
                                                 cudaGraphInstantiateFlagUseNodePriority);
  cudaGraphDestroy(graph);
  check(error, "instantiating a graph");
  return result;
}

Graph::~Graph() {
  if (impl_ == nullptr) return;
  if (impl_->executable != nullptr) cudaGraphExecDestroy(impl_->executable);
  delete impl_;
}

void Graph::launch(Stream stream) const {
  check(cudaGraphLaunch(impl_->executable, stream), "launching a graph");
}

}  // namespace xsr::cuda
