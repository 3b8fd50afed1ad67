#include "runtime/encoder/derived_weights.h"

#include <new>
#include <string>

#include "runtime/error.h"

namespace xsr {
namespace {

constexpr std::align_val_t kAlign{64};

}  // namespace

void DerivedWeights::Free::operator()(void* memory) const { ::operator delete(memory, kAlign); }

template <typename T>
T* DerivedWeights::allocate(int64_t count) {
  const size_t bytes = sizeof(T) * static_cast<size_t>(count);
  memory_.emplace_back(::operator new(bytes, kAlign));
  bytes_ += bytes;
  return static_cast<T*>(memory_.back().get());
}

DerivedWeights::DerivedWeights(const EncoderWeights& file, Compute compute) : weights_(file) {
  for (LayerWeights& layer : weights_.layers) {
    for (LinearWeights* linear : products(layer)) {
      if (compute == Compute::kBf16x3) {
        split(*linear);
      } else {
        derive(*linear, compute == Compute::kInt8 ? kernels::Storage::kI8 : kernels::Storage::kF32);
      }
    }
  }
  // The pooler multiplies in f32 whatever the layers do.
  if (weights_.pooler.weight.storage == kernels::Storage::kI8)
    derive(weights_.pooler, kernels::Storage::kF32);
}

void DerivedWeights::split(LinearWeights& linear) {
  const kernels::PackedMatrix& w = linear.weight;
  uint16_t* split = allocate<uint16_t>(kernels::split_elements(w.N, w.K));
  kernels::gemm_split_panels(w, split);
  linear.split = {split, w.N, w.K};
}

void DerivedWeights::derive(LinearWeights& linear, kernels::Storage storage) {
  kernels::PackedMatrix& w = linear.weight;
  if (w.storage != storage && storage == kernels::Storage::kI8) {
    int8_t* packed = allocate<int8_t>(kernels::packed_elements(w.N, w.K, storage));
    float* scales = allocate<float>(w.N);
    kernels::gemm_quantize_panels(w, packed, scales);
    w = {packed, storage, w.N, w.K, scales, nullptr};
  } else if (w.storage != storage) {
    std::vector<float> dense(static_cast<size_t>(w.N) * w.K);
    for (int32_t n = 0; n < w.N; ++n) {
      for (int32_t k = 0; k < w.K; ++k)
        dense[static_cast<size_t>(n) * w.K + k] = kernels::gemm_packed_element(w, n, k);
    }
    float* packed = allocate<float>(kernels::packed_elements(w.N, w.K, storage));
    kernels::gemm_pack_panels(dense.data(), w.N, w.K, storage, packed);
    w = {packed, storage, w.N, w.K};
  }
  if (storage == kernels::Storage::kI8) {
    if (w.K > kernels::kMaxInputsI8) {
      throw Error(XSR_STATUS_UNSUPPORTED,
                  "a product of " + std::to_string(w.K) + " inputs is beyond the " +
                      std::to_string(kernels::kMaxInputsI8) + " that int8 can sum; compute in f32");
    }
    int32_t* sums = allocate<int32_t>(w.N);
    kernels::gemm_sum_panels(w, sums);
    w.sums = sums;
  }
}

}  // namespace xsr
