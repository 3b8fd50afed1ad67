// Any bytes as a safetensors file: refused with an Error, or every tensor can be read whole.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "converter/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const xsr::CheckpointContents contents = xsr::read_safetensors({data, size}, "fuzz");
    for (const auto& t : contents.tensors) {
      if (t.to_bytes().size() != t.numel * xsr::scalar_size(t.dtype)) std::abort();
      if (t.to_f32().size() != t.numel) std::abort();
    }
  } catch (const xsr::Error&) {
  }
  return 0;
}
