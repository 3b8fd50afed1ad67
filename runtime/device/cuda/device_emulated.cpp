#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <vector>

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
// As CUDA numbers them.
constexpr Status kNotReady = 600, kUnjoined = 904, kIsolation = 905, kCapturedEvent = 907;

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

StreamOwner::StreamOwner(bool) {
  const auto stream = std::make_shared<CUstream_st>();
  stream->self = stream;
  stream_ = stream.get();
}
StreamOwner::~StreamOwner() {
  const std::shared_ptr<CUstream_st> last = std::move(stream_->self);
  emulated::drop(stream_);
}
void StreamOwner::synchronize() const { emulated::wait_for(stream_, stream_->given()); }

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
  // NaN in f32, f64 and bf16; what the host fills, indices above all, is also one far outside.
  std::memset(data_, kNanByte, bytes);
  for (size_t i = 3; place == Place::kPinned && i < bytes; i += 4) memory[kGuardBytes + i] = 0x7f;
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
  std::shared_ptr<CUstream_st> stream;
  std::weak_ptr<CUstream_st::Capture> capture;            // that the record() is of
  bool captured = false;                                  // whether it is
  uint64_t position = 0;                                  // of the record() among the stream's work
  std::shared_ptr<Time> time = std::make_shared<Time>();  // the stream's work may outlive the event
};
Event::Event() : impl_(new Impl) {}
Event::~Event() { delete impl_; }
void Event::record(Stream stream) {
  impl_->stream = stream->self;
  impl_->capture = stream->capture;
  impl_->captured = stream->capture != nullptr;
  check(emulated::submit(stream, [to = impl_->time] { *to = std::chrono::steady_clock::now(); }),
        "recording an event");
  impl_->position = impl_->captured ? stream->captured.size() : stream->given();
}
void Event::wait() const {
  if (impl_->captured) check(kCapturedEvent, "waiting for an event");
  if (impl_->stream != nullptr) emulated::wait_for(impl_->stream.get(), impl_->position);
}
void Event::hold(Stream stream) const {
  if (impl_->stream == nullptr) return;
  const std::shared_ptr<CUstream_st::Capture> capture = impl_->capture.lock();
  if (impl_->captured != (capture != nullptr) ||  // of a capture that has ended
      (stream->capture != nullptr && stream->capture != capture))
    check(kIsolation, "making a stream wait");
  if (capture == nullptr) {
    emulated::hold(stream->self, impl_->stream, impl_->position);
    return;
  }
  if (stream->capture == nullptr) {
    stream->capture = capture;
    capture->streams.push_back(stream->self);
  }
  stream->captured.push_back({{}, impl_->stream, impl_->position});
}
double Event::milliseconds_since(const Event& start) const {
  for (const Impl* impl : {impl_, start.impl_}) {
    if (impl->captured || impl->stream == nullptr || impl->stream->done < impl->position)
      check(kNotReady, "timing");
  }
  return std::chrono::duration<double, std::milli>(*impl_->time - *start.impl_->time).count();
}

struct Graph::Impl {
  struct Work {
    std::function<void()> run;
    std::optional<size_t> other;  // a branch, of which so many pieces are to be done first
    uint64_t position = 0;
  };
  std::vector<std::vector<Work>> branches;  // of the stream that was captured, and of others

  /// Whether all of it is done when the first branch is.
  bool joined() const {
    std::vector<uint64_t> reached(branches.size()), looked_at(branches.size());
    reached[0] = branches[0].size();
    for (bool more = true; more;) {
      more = false;
      for (size_t k = 0; k < branches.size(); ++k) {
        for (; looked_at[k] < reached[k]; ++looked_at[k]) {
          const Work& work = branches[k][looked_at[k]];
          if (work.other) reached[*work.other] = std::max(reached[*work.other], work.position);
          more = true;
        }
      }
    }
    for (size_t k = 0; k < branches.size(); ++k) {
      if (reached[k] != branches[k].size()) return false;
    }
    return true;
  }
};
void Graph::begin(Stream stream) {
  stream->capture = std::make_shared<CUstream_st::Capture>();
  stream->capture->streams.push_back(stream->self);
}
void Graph::abandon(Stream stream) {
  const std::shared_ptr<CUstream_st::Capture> capture = stream->capture;
  for (const std::shared_ptr<CUstream_st>& one : capture->streams) {
    one->capture = nullptr;
    one->captured.clear();
  }
}
Graph Graph::end(Stream stream) {
  const std::vector<std::shared_ptr<CUstream_st>>& streams = stream->capture->streams;
  Graph result;
  result.impl_ = new Impl;
  for (const std::shared_ptr<CUstream_st>& one : streams) {
    std::vector<Impl::Work>& branch = result.impl_->branches.emplace_back();
    for (CUstream_st::Work& work : one->captured) {
      std::optional<size_t> other;
      if (work.other != nullptr)
        other = static_cast<size_t>(std::find(streams.begin(), streams.end(), work.other) -
                                    streams.begin());
      branch.push_back({std::move(work.run), other, work.position});
    }
  }
  abandon(stream);
  if (!result.impl_->joined()) check(kUnjoined, "capturing a graph");
  return result;
}
Graph::~Graph() { delete impl_; }
void Graph::launch(Stream stream) const {
  check(emulated::refusal(), "launching a graph");  // all of it or nothing
  std::vector<std::shared_ptr<CUstream_st>> streams = {stream->self};
  std::vector<uint64_t> given = {stream->given()};
  while (streams.size() < impl_->branches.size()) {
    streams.push_back(std::make_shared<CUstream_st>());
    given.push_back(0);
  }
  for (size_t k = 0; k < streams.size(); ++k) {
    for (const Impl::Work& work : impl_->branches[k]) {
      if (work.other) {
        emulated::hold(streams[k], streams[*work.other], given[*work.other] + work.position);
      } else {
        emulated::give(streams[k].get(), work.run);
      }
    }
  }
}

}  // namespace xsr::cuda
