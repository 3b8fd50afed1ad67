#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>

#include "kernels/cuda/emulated.h"
#include "runtime/device/cuda/device.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {
// Guard words on both sides of an allocation, looked at when it ends.
constexpr size_t kGuardBytes = 256;
constexpr int kGuardByte = 0xa5, kNanByte = 0xff;
}  // namespace

void check(Status status, const char* doing) {
  if (status == 0) return;
  throw Error(XSR_STATUS_CUDA,
              std::string("emulated device: ") + doing + ": status " + std::to_string(status));
}

/// XSR_EMULATED_DEVICES of them; one without it.
std::vector<DeviceInfo> devices(std::string* why_none) {
  const char* text = std::getenv("XSR_EMULATED_DEVICES");
  const int count = text == nullptr ? 1 : std::atoi(text);
  if (count <= 0) *why_none = "no CUDA device is visible";
  return std::vector<DeviceInfo>(count <= 0 ? 0 : static_cast<size_t>(count),
                                 {"emulated device", 0, 1, size_t{1} << 30});
}

void select_device(int32_t) {}
SelectedDevice::SelectedDevice(int32_t) : before_(-1) {}
SelectedDevice::~SelectedDevice() = default;

StreamOwner::StreamOwner() : stream_(new CUstream_st) {}
StreamOwner::~StreamOwner() { delete stream_; }
void StreamOwner::synchronize() const {}

Memory::Memory(Place place, size_t bytes) : place_(place), bytes_(bytes) {
  if (bytes == 0) return;
  const size_t rounded = (bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes;
  char* memory = static_cast<char*>(std::aligned_alloc(kGuardBytes, rounded + 2 * kGuardBytes));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, kGuardByte, rounded + 2 * kGuardBytes);
  data_ = memory + kGuardBytes;
  std::memset(data_, kNanByte, bytes);
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  unsigned char* memory = static_cast<unsigned char*>(data_) - kGuardBytes;
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (memory[i] != kGuardByte || memory[kGuardBytes + bytes_ + i] != kGuardByte) {
      std::fprintf(stderr, "emulated device: something wrote outside its %zu bytes of memory\n",
                   bytes_);
      std::abort();
    }
  }
  std::free(memory);
}

namespace {
void copy(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(emulated::submit(stream, [=] { std::memcpy(to, from, bytes); }), "copying");
}
}  // namespace

void copy_to_device(void* device, const void* host, size_t bytes, Stream stream) {
  copy(device, host, bytes, stream);
}
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream) {
  copy(host, device, bytes, stream);
}
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  copy(to, from, bytes, stream);
}
void fill_zero(void* device, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  check(emulated::submit(stream, [=] { std::memset(device, 0, bytes); }), "clearing memory");
}

struct Event::Impl {
  std::chrono::steady_clock::time_point time;
};
Event::Event() : impl_(new Impl) {}
Event::~Event() { delete impl_; }
void Event::record(Stream) { impl_->time = std::chrono::steady_clock::now(); }
void Event::wait() const {}
double Event::milliseconds_since(const Event& start) const {
  return std::chrono::duration<double, std::milli>(impl_->time - start.impl_->time).count();
}

struct Graph::Impl {
  std::vector<std::function<void()>> work;
};
void Graph::begin(Stream stream) {
  stream->capturing = true;
  stream->captured.clear();
}
void Graph::abandon(Stream stream) { stream->capturing = false; }
Graph Graph::end(Stream stream) {
  stream->capturing = false;
  Graph result;
  result.impl_ = new Impl{std::move(stream->captured)};
  return result;
}
Graph::~Graph() { delete impl_; }
void Graph::launch(Stream) const {
  for (const auto& step : impl_->work) step();
}

}  // namespace xsr::cuda
