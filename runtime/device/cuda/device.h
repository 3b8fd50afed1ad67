#pragma once
// Devices, memory, copies, streams and graphs: all that the runtime asks of CUDA but for its
// products (gemm.h). Two bodies: device_cuda.cpp on the CUDA runtime, device_emulated.cpp on plain
// memory, for the emulated device of kernels/cuda/emulated.h.
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/stream.h"

namespace xsr::cuda {

/// Throws Error: OUT_OF_MEMORY where the device has no memory left, CUDA otherwise, saying what was
/// being done.
void check(Status status, const char* doing);

struct DeviceInfo {
  std::string name;                // "NVIDIA H100 80GB HBM3"; "emulated device"
  int32_t compute_capability = 0;  // 90 for 9.0; 0 for the emulated device
};

/// The devices that can be used. None: *why_none says why.
std::vector<DeviceInfo> devices(std::string* why_none);

/// Makes `device` the one that this thread works with; memory, streams and products belong to the
/// device of the thread that made them.
void select_device(int32_t device);

/// What is known of the devices `wanted`, in their order. Throws Error(CUDA): no device can be
/// used, and why, or not one of these; Error(UNSUPPORTED): one that the kernels are not made for.
std::vector<DeviceInfo> require_devices(const std::vector<int32_t>& wanted);

/// select_device for a scope; at its end the thread has the context that it had before, be it none
/// or one of its own making.
class SelectedDevice {
 public:
  explicit SelectedDevice(int32_t device);
  ~SelectedDevice();
  SelectedDevice(const SelectedDevice&) = delete;
  SelectedDevice& operator=(const SelectedDevice&) = delete;

 private:
  [[maybe_unused]] void* before_ = nullptr;  // the emulated device has no contexts
};

class StreamOwner {
 public:
  /// first: where multiprocessors are free, its kernels get them before those of other streams.
  explicit StreamOwner(bool first = false);
  ~StreamOwner();
  StreamOwner(const StreamOwner&) = delete;
  StreamOwner& operator=(const StreamOwner&) = delete;
  Stream get() const { return stream_; }
  /// Waits for all that the stream was given; throws what went wrong meanwhile.
  void synchronize() const;

 private:
  Stream stream_ = nullptr;
};

/// Where memory is: on the device, or on the host where the device copies from and to it directly.
enum class Place { kDevice, kPinned };

/// One allocation. At first it holds NaN on the emulated device, pinned memory also the largest
/// integers, and anything on a real one.
class Memory {
 public:
  Memory() = default;
  Memory(Place place, size_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  void* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  void swap(Memory& other) {
    std::swap(place_, other.place_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  Place place_ = Place::kDevice;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Many buffers in one allocation: add them all, then allocate.
class Plan {
 public:
  /// *pointer is set by allocate(), 256-byte aligned; null for a count of 0.
  template <typename T>
  void add(T** pointer, size_t count) {
    pieces_.push_back({reinterpret_cast<void**>(pointer), sizeof(T) * count});
  }
  /// Throws as Memory.
  Memory allocate(Place place) const;

 private:
  struct Piece {
    void** pointer;
    size_t bytes;
  };
  std::vector<Piece> pieces_;
};

/// Copies on the stream, in its order. Host memory that is pinned is copied beside other work, and
/// must stay as it is until the stream has come there.
void copy_to_device(void* device, const void* host, size_t bytes, Stream stream);
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
void fill_zero(void* device, size_t bytes, Stream stream);

/// A point in a stream's work.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  /// Waits until the stream has come to the last record(); at once without one.
  void wait() const;
  /// What the stream is given from now on waits until the last record() is passed; for nothing
  /// without one. Where that record() is captured, so is what the stream is given from now on,
  /// until the stream that the capture began with has waited for it; other captures' events are an
  /// error.
  void hold(Stream stream) const;
  /// Between two recorded and passed points; wall time on the emulated device.
  double milliseconds_since(const Event& start) const;

 private:
  struct Impl;
  Impl* impl_;
};

/// Work recorded once and launched as a whole: same kernels, pointers and sizes every time.
class Graph {
 public:
  /// Records what body() gives to the stream, and to others behind an event of it, which the stream
  /// must wait for in the end. Nothing runs; throws what body throws.
  template <typename Body>
  static Graph capture(Stream stream, Body&& body) {
    begin(stream);
    try {
      body();
    } catch (...) {
      abandon(stream);
      throw;
    }
    return end(stream);
  }
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept : impl_(std::exchange(other.impl_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(impl_, other.impl_);
    return *this;
  }
  explicit operator bool() const { return impl_ != nullptr; }
  void launch(Stream stream) const;

 private:
  struct Impl;
  static void begin(Stream stream);
  static void abandon(Stream stream);
  static Graph end(Stream stream);
  Impl* impl_ = nullptr;
};

}  // namespace xsr::cuda
