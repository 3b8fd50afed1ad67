#pragma once
// Buffers on the device, emulated or real, with guard words, and the fixture of tests that need
// one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "runtime/device/cuda/device.h"
#ifdef XSR_EMULATED
#include "kernels/cuda/emulated.h"
#endif

namespace xsr::test {

class AnyDeviceBuffer {
 public:
  virtual ~AnyDeviceBuffer() = default;
  virtual void upload(cuda::Stream stream) = 0;
  virtual void download(cuda::Stream stream) = 0;
  virtual void expect_guards() const = 0;
};

/// The same elements on the host and on the device, all bits set (NaN) at first; behind them guard
/// words that download() looks at.
template <typename T>
class DeviceBuffer : public AnyDeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t size)
      : size_(size), host_(size + kGuard, ones()), memory_(cuda::Place::kDevice, bytes()) {}
  explicit DeviceBuffer(const std::vector<T>& values)
      : DeviceBuffer(static_cast<int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), host_.begin());
  }
  T& operator[](int64_t i) { return host_[i]; }
  T* host() { return host_.data(); }
  T* device() { return static_cast<T*>(memory_.data()); }
  T* begin() { return host_.data(); }
  T* end() { return host_.data() + size_; }
  int64_t size() const { return size_; }
  bool untouched(int64_t i) const {
    const T value = ones();
    return std::memcmp(&host_[i], &value, sizeof(T)) == 0;
  }
  void fill() { std::fill(host_.begin(), host_.end(), ones()); }
  void upload(cuda::Stream stream) override {
    cuda::copy_to_device(device(), host_.data(), bytes(), stream);
  }
  void download(cuda::Stream stream) override {
    cuda::copy_to_host(host_.data(), device(), bytes(), stream);
  }
  void expect_guards() const override {
    for (int64_t i = size_; i < size_ + kGuard; ++i)
      ASSERT_TRUE(untouched(i)) << "wrote behind its buffer";
  }

 private:
  static constexpr int64_t kGuard = 64;
  static T ones() {
    T value;
    std::memset(static_cast<void*>(&value), 0xff, sizeof value);
    return value;
  }
  size_t bytes() const { return host_.size() * sizeof(T); }
  int64_t size_;
  std::vector<T> host_;
  cuda::Memory memory_;
};

/// Skips where there is no device.
class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (cuda::devices(&why).empty()) GTEST_SKIP() << "no CUDA device: " << why;
    cuda::select_device(0);
    stream_.emplace();
  }
  cuda::Stream stream() const { return stream_->get(); }
  static std::string filter() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    return std::string(info->test_suite_name()) + "." + info->name();
  }
  void upload(std::initializer_list<AnyDeviceBuffer*> buffers) {
    for (AnyDeviceBuffer* buffer : buffers) buffer->upload(stream());
    stream_->synchronize();
  }
  void download(std::initializer_list<AnyDeviceBuffer*> buffers) {
    for (AnyDeviceBuffer* buffer : buffers) buffer->download(stream());
    stream_->synchronize();
    for (AnyDeviceBuffer* buffer : buffers) buffer->expect_guards();
  }
  /// launch() gives a Status. On the emulated device threads run in order the first time, then in
  /// random orders, in turn.
  template <typename Launch>
  void run(Launch&& launch) {
#ifdef XSR_EMULATED
    const uint64_t before = cuda::emulated::launches();
    cuda::emulated::set_order(order_++ % 3);
#endif
    cuda::check(launch(), "launching");
    stream_->synchronize();
#ifdef XSR_EMULATED
    EXPECT_GT(cuda::emulated::launches(), before) << "nothing ran on the emulated device";
#endif
  }

 private:
  std::optional<cuda::StreamOwner> stream_;
  [[maybe_unused]] uint64_t order_ = 0;
};

}  // namespace xsr::test
