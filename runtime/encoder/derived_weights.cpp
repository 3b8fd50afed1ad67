#include "runtime/encoder/derived_weights.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "runtime/error.h"

namespace xsr {
namespace {

constexpr std::align_val_t kAlign{64};
constexpr size_t kBlock = 64 << 20;
// With fewer, the caches hold most of them, and part of a page would be memory for nothing.
constexpr int64_t kMany = 8 << 20;

}  // namespace

void DerivedWeights::Free::operator()(void* memory) const { ::operator delete(memory, kAlign); }

template <typename T>
T* DerivedWeights::allocate(int64_t count) {
  constexpr size_t kLine = static_cast<size_t>(kAlign);
  const size_t bytes = (sizeof(T) * static_cast<size_t>(count) + kLine - 1) / kLine * kLine;
  if (!many_) {
    std::unique_ptr<void, Free> owner(::operator new(bytes, kAlign));  // should the list not grow
    memory_.push_back(std::move(owner));
    return static_cast<T*>(memory_.back().get());
  }
  if (bytes > left_) {
    left_ = std::max(bytes, kBlock);
    next_ = static_cast<char*>(blocks_.emplace_back(left_, PageMemory::kHuge).data());
  }
  void* result = next_;
  next_ += bytes;
  left_ -= bytes;
  return static_cast<T*>(result);
}

DerivedWeights::DerivedWeights(const EncoderWeights& file, Compute compute, bool in_steps)
    : weights_(file) {
  int64_t count = 0;
  for (LayerWeights& layer : weights_.layers) {
    for (const LinearWeights* linear : products(layer))
      count += int64_t{linear->weight.N} * linear->weight.K;
  }
  many_ = count >= kMany;
  for (LayerWeights& layer : weights_.layers) {
    for (LinearWeights* linear : products(layer)) {
      if (compute == Compute::kBf16x3) {
        split(*linear);
      } else if (compute == Compute::kInt8) {
        quantize(*linear, in_steps);
      } else {
        widen(*linear);
      }
    }
  }
  widen(weights_.pooler);  // it multiplies in f32 whatever the layers do
  mark_streamed(weights_);
}

void DerivedWeights::split(LinearWeights& linear) {
  const kernels::PackedMatrix& w = linear.weight;
  uint16_t* split = allocate<uint16_t>(kernels::split_elements(w.N, w.K));
  kernels::gemm_split_panels(w, split);
  linear.split = {split, w.N, w.K};
}

void DerivedWeights::widen(LinearWeights& linear) {
  kernels::PackedMatrix& w = linear.weight;
  if (w.storage != kernels::Storage::kI8) return;
  float* packed = allocate<float>(kernels::packed_elements(w.N, w.K, kernels::Storage::kF32));
  kernels::gemm_widen_panels(w, packed);
  w = {packed, kernels::Storage::kF32, w.N, w.K};
}

void DerivedWeights::quantize(LinearWeights& linear, bool in_steps) {
  kernels::PackedMatrix& w = linear.weight;
  std::unique_ptr<void, Free> panels;  // the integers, where only the steps made of them stay
  if (w.K > kernels::kMaxInputsI8) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                "a product of " + std::to_string(w.K) + " inputs is beyond the " +
                    std::to_string(kernels::kMaxInputsI8) + " that int8 can sum; compute in f32");
  }
  if (w.storage != kernels::Storage::kI8) {
    const int64_t elements = kernels::packed_elements(w.N, w.K, kernels::Storage::kI8);
    if (in_steps) panels.reset(::operator new(static_cast<size_t>(elements), kAlign));
    int8_t* packed = in_steps ? static_cast<int8_t*>(panels.get()) : allocate<int8_t>(elements);
    float* scales = allocate<float>(w.N);
    kernels::gemm_quantize_panels(w, packed, scales);
    w = {packed, kernels::Storage::kI8, w.N, w.K, scales, nullptr};
  }
  int32_t* sums = allocate<int32_t>(w.N);
  kernels::gemm_sum_panels(w, sums);
  w.sums = sums;
  if (!in_steps) return;
  void* steps = allocate<char>(kernels::gemm_pack_steps_i8_avx2(w, nullptr));
  kernels::gemm_pack_steps_i8_avx2(w, steps);
  w.steps = steps;
  w.data = nullptr;
}

}  // namespace xsr
