#include "runtime/encoder/split_weights.h"

#include <sys/mman.h>

#include <new>

namespace xsr {

void SplitWeights::Unmap::operator()(void* memory) const { munmap(memory, bytes); }

SplitWeights::SplitWeights(const EncoderWeights& weights, ThreadPool& pool) : weights_(weights) {
  std::vector<LinearWeights*> matrices;
  int64_t elements = 0;
  for (LayerWeights& layer : weights_.layers) {
    for (LinearWeights* linear : {&layer.qkv, &layer.attention_output, &layer.up, &layer.down}) {
      matrices.push_back(linear);
      // A panel's lines are whole, so that the next matrix is aligned too.
      elements += kernels::split_elements(linear->weight.N, linear->weight.K);
    }
  }
  bytes_ = sizeof(uint16_t) * static_cast<size_t>(elements);
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = std::unique_ptr<void, Unmap>(memory, Unmap{bytes_});
  madvise(memory, bytes_, MADV_HUGEPAGE);  // read from end to end in every chunk
  uint16_t* at = static_cast<uint16_t*>(memory);
  for (LinearWeights* linear : matrices) {
    linear->split = {at, linear->weight.N, linear->weight.K};
    at += kernels::split_elements(linear->weight.N, linear->weight.K);
  }
  pool.for_each(static_cast<int32_t>(matrices.size()), [&](int32_t task, int32_t) {
    const LinearWeights& linear = *matrices[task];
    kernels::gemm_split_panels(linear.weight, const_cast<uint16_t*>(linear.split.data));
  });
}

}  // namespace xsr
