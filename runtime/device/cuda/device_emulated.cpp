#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>

#include "kernels/cuda/emulated.h"
#include "runtime/device/cuda/device.h"
#include "runtime/error.h"

namespace xsr::cuda {
namespace {
// On both sides of an allocation, looked at when it ends: NaN in f32, f64 and bf16, so that reading
// it shows, and no NaN that arithmetic makes.
constexpr size_t kGuardBytes = 4096;  // a row that is one too many
constexpr uint16_t kGuard = 0xffde;
constexpr size_t kAlignment = 256;
constexpr int kNanByte = 0xff;

size_t guarded(size_t bytes) {
  return kGuardBytes + (bytes + kAlignment - 1) / kAlignment * kAlignment + kGuardBytes;
}
uint8_t guard_byte(size_t at) { return static_cast<uint8_t>(at % 2 == 0 ? kGuard : kGuard >> 8); }
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
                                 {"emulated device", 0});
}

void select_device(int32_t) {}
SelectedDevice::SelectedDevice(int32_t) {}
SelectedDevice::~SelectedDevice() = default;

StreamOwner::StreamOwner() : stream_(new CUstream_st) {}
StreamOwner::~StreamOwner() { delete stream_; }
void StreamOwner::synchronize() const {
  emulated::wait_for(stream_, stream_->done + stream_->pending.size());
}

Memory::Memory(Place place, size_t bytes) : place_(place), bytes_(bytes) {
  if (bytes == 0) return;
  const char* most = std::getenv("XSR_EMULATED_BYTES");
  if (place == Place::kDevice && most != nullptr && bytes > std::strtoull(most, nullptr, 10)) {
    throw Error(XSR_STATUS_OUT_OF_MEMORY, "emulated device: allocating " + std::to_string(bytes) +
                                              " bytes on the device: XSR_EMULATED_BYTES is " +
                                              most);
  }
  const size_t size = guarded(bytes);
  uint8_t* memory = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, size));
  if (memory == nullptr) throw std::bad_alloc();
  for (size_t i = 0; i < kGuardBytes; ++i) memory[i] = guard_byte(i);
  for (size_t i = kGuardBytes + bytes; i < size; ++i) memory[i] = guard_byte(i);
  data_ = memory + kGuardBytes;
  std::memset(data_, kNanByte, bytes);
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  uint8_t* memory = static_cast<uint8_t*>(data_) - kGuardBytes;
  const auto check_guards = [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (memory[i] == guard_byte(i)) continue;
      std::fprintf(stderr, "emulated device: something wrote outside its %zu bytes of memory\n",
                   bytes_);
      std::abort();
    }
  };
  check_guards(0, kGuardBytes);
  check_guards(kGuardBytes + bytes_, guarded(bytes_));
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
  using Time = std::chrono::steady_clock::time_point;
  Stream stream = nullptr;
  uint64_t position = 0;                                  // of the record() among the stream's work
  std::shared_ptr<Time> time = std::make_shared<Time>();  // the stream's work may outlive the event
};
Event::Event() : impl_(new Impl) {}
Event::~Event() { delete impl_; }
void Event::record(Stream stream) {
  impl_->stream = stream;
  check(emulated::submit(stream, [to = impl_->time] { *to = std::chrono::steady_clock::now(); }),
        "recording an event");
  impl_->position = stream->done + stream->pending.size();
}
void Event::wait() const {
  if (impl_->stream != nullptr) emulated::wait_for(impl_->stream, impl_->position);
}
double Event::milliseconds_since(const Event& start) const {
  constexpr Status kNotReady = 600;  // as CUDA numbers it
  for (const Impl* impl : {impl_, start.impl_}) {
    if (impl->stream == nullptr || impl->stream->done < impl->position) check(kNotReady, "timing");
  }
  return std::chrono::duration<double, std::milli>(*impl_->time - *start.impl_->time).count();
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
void Graph::launch(Stream stream) const {
  for (const auto& step : impl_->work) check(emulated::submit(stream, step), "launching a graph");
}

}  // namespace xsr::cuda
