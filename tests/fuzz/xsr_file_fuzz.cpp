// XsrFile::open_memory() on any bytes: it opens or throws Error, and what it opened can be read to
// the end.
//
// The first bit of the input says whether the header's file size and checksum are made right first:
// without that nearly every input ends there. Seeds: tests/fuzz/seeds/xsr_file_fuzz; format_test
// keeps them current.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "runtime/error.h"
#include "runtime/format/xsr_file.h"
#include "runtime/format/xsr_layout.h"

namespace {

struct AlignedDelete {
  void operator()(unsigned char* bytes) const {
    ::operator delete[](bytes, std::align_val_t{xsr::kAlignment});
  }
};

void seal(unsigned char* file, size_t size) {
  xsr::FileHeader header;
  if (size < sizeof header) return;
  std::memcpy(&header, file, sizeof header);
  header.file_size = size;
  const uint64_t end = header.sections[xsr::kDataSection].offset;
  if (end < sizeof header || end > size) return;
  std::memcpy(file, &header, sizeof header);
  header.header_checksum = xsr::header_checksum(file, end);
  std::memcpy(file, &header, sizeof header);
}

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t input_size) {
  if (input_size == 0) return 0;
  const size_t size = input_size - 1;
  // Exactly as long as the file, so that ASan sees a read beyond it.
  const std::unique_ptr<unsigned char[], AlignedDelete> file(static_cast<unsigned char*>(
      ::operator new[](size > 0 ? size : 1, std::align_val_t{xsr::kAlignment})));
  if (size > 0) std::memcpy(file.get(), input + 1, size);
  if (input[0] & 1) seal(file.get(), size);
  std::unique_ptr<xsr::XsrFile> opened;
  try {
    opened = xsr::XsrFile::open_memory(file.get(), size, "fuzz");
  } catch (const xsr::Error& error) {
    require(error.status() == XSR_STATUS_BAD_FILE || error.status() == XSR_STATUS_UNSUPPORTED);
    return 0;
  }
  unsigned sum = 0;
  for (const xsr::TensorView& tensor : opened->tensors()) {
    require(!tensor.name.empty() && opened->find(tensor.name) == &tensor);
    require(tensor.size == xsr::tensor_bytes(tensor.dtype, tensor.layout, tensor.dims));
    const unsigned char* data = static_cast<const unsigned char*>(tensor.data);
    require(data == file.get() + tensor.offset && tensor.offset % xsr::kAlignment == 0);
    sum += data[0] + data[tensor.size - 1];
    require((tensor.scales != nullptr) == (tensor.dtype == xsr::DType::kI8));
    if (tensor.scales) sum += tensor.scales[0] > 0 && tensor.scales[tensor.dims[0] - 1] > 0;
  }
  require(std::strlen(opened->provenance().data()) == opened->provenance().size());
  require((opened->config().tokenizer == xsr::TokenizerKind::kNone) == opened->tokenizer().empty());
  for (const char c : opened->tokenizer()) sum += static_cast<unsigned char>(c);
  asm volatile("" : : "r"(sum));  // so that the reads above happen
  xsr::validate(opened->config());
  try {
    opened->verify();
  } catch (const xsr::Error& error) {
    require(error.status() == XSR_STATUS_BAD_FILE);
  }
  return 0;
}
