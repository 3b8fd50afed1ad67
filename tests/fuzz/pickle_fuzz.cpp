// Any bytes as a PyTorch checkpoint of either container, and any pickle inside a sound zip (whose
// CRC mutations would hardly ever meet): refused with an Error, or every tensor can be read whole.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "converter/checkpoint.h"
#include "tests/support/checkpoint_builder.h"

namespace {

void read(std::span<const unsigned char> file) {
  try {
    const auto checkpoint = xsr::Checkpoint::open_memory(file, "fuzz");
    uint64_t budget = 1 << 24;  // bytes of tensors; many tensors may share a storage
    for (const auto tensors : {checkpoint->tensors(), checkpoint->outside()}) {
      for (const auto& t : tensors) {
        const uint64_t bytes = t.numel * xsr::scalar_size(t.dtype);
        if (bytes > budget) return;
        budget -= bytes;
        if (t.to_bytes().size() != bytes || t.to_f64().size() != t.numel) std::abort();
      }
    }
  } catch (const xsr::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  read({data, size});
  if (size > 0 && data[0] == 0x80) {
    const std::string pickle(reinterpret_cast<const char*>(data), size);
    const std::string zip = xsr::test::torch_zip(
        pickle, {{"0", std::string(24, '\x3f')}, {"1", std::string(64, '\x40')}});
    read(xsr::test::as_span(zip));
  }
  return 0;
}
