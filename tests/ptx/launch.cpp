// In the place of CUDA's runtime library: what nvcc's objects call to make their kernels known and
// to launch them. A launch is work of the emulated device's streams (kernels/cuda/emulated.h),
// where the kernel's PTX is carried out.
#include <zstd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cuda/emulated.h"
#include "tests/ptx/machine.h"

namespace xsr::ptx {
namespace {

// The container that nvcc puts PTX and machine code into: a header, then entries of a header and a
// payload each.
constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xba55ed50;
constexpr uint16_t kPtxEntry = 1;
constexpr uint64_t kLz4 = 0x2000, kZstd = 0x8000;
struct Wrapper {
  uint32_t magic, version;
  const unsigned char* container;
  void* unused;
};
struct ContainerHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;  // of the entries
};
struct EntryHeader {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t payload_bytes;  // with padding
  uint32_t compressed_bytes, options_offset;
  uint16_t minor, major;
  uint32_t architecture, name_offset, name_bytes;
  uint64_t flags, unused, text_bytes;
};
static_assert(sizeof(ContainerHeader) == 16 && sizeof(EntryHeader) == 64);

std::string ptx_of(const unsigned char* container) {
  ContainerHeader header;
  std::memcpy(&header, container, sizeof header);
  if (header.magic != kContainerMagic) fail("not a container of nvcc's");
  const unsigned char* at = container + header.header_bytes;
  for (const unsigned char* const end = at + header.bytes; at < end;) {
    EntryHeader entry;
    std::memcpy(&entry, at, sizeof entry);
    const unsigned char* const payload = at + entry.header_bytes;
    if (entry.kind == kPtxEntry) {
      if ((entry.flags & kLz4) != 0) fail("PTX is compressed by LZ4; nvcc 13 uses zstd");
      if ((entry.flags & kZstd) == 0)
        return std::string(reinterpret_cast<const char*>(payload), entry.payload_bytes);
      std::string text(entry.text_bytes, '\0');
      const size_t bytes =
          ZSTD_decompress(text.data(), text.size(), payload, entry.compressed_bytes);
      if (ZSTD_isError(bytes) != 0) fail("PTX does not decompress: %s", ZSTD_getErrorName(bytes));
      return text;
    }
    at = payload + entry.payload_bytes;
  }
  fail("no PTX beside the machine code");
}

struct Module {
  const unsigned char* container = nullptr;
  std::unique_ptr<Program> program;  // from the first launch on
};
struct Function {
  Module* module = nullptr;
  std::string name;
  std::unique_ptr<Kernel> kernel;  // likewise
  size_t most_dynamic_shared = 48 * 1024;
};

struct Loaded {
  std::mutex mutex;
  std::deque<Module> modules;  // which stay where they are
  std::map<const void*, Function> functions;
  std::mutex launch;  // one at a time
};
Loaded& loaded() {
  static Loaded* const all = new Loaded;  // until the program ends: nvcc's objects come back then
  return *all;
}

}  // namespace
}  // namespace xsr::ptx

// Their names and types are those of CUDA's headers.
extern "C" {
using xsr::ptx::Function;
using xsr::ptx::loaded;

constexpr int kInvalidValue = 1, kInvalidFunction = 98;

void** __cudaRegisterFatBinary(void* wrapper) {
  xsr::ptx::Wrapper read;
  std::memcpy(&read, wrapper, sizeof read);
  if (read.magic != xsr::ptx::kWrapperMagic) xsr::ptx::fail("not a wrapper of nvcc's");
  const std::lock_guard<std::mutex> lock(loaded().mutex);
  loaded().modules.push_back({read.container, nullptr});
  return reinterpret_cast<void**>(&loaded().modules.back());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** module, const char* host, char*, const char* name, int, void*,
                            void*, dim3*, dim3*, int*) {
  const std::lock_guard<std::mutex> lock(loaded().mutex);
  Function& function = loaded().functions[host];
  function.module = reinterpret_cast<xsr::ptx::Module*>(module);
  function.name = name;
}
int cudaFuncSetAttribute(const void* host, int attribute, int value) {
  constexpr int kMaxDynamicSharedMemorySize = 8;
  const std::lock_guard<std::mutex> lock(loaded().mutex);
  const auto at = loaded().functions.find(host);
  if (at == loaded().functions.end()) return kInvalidFunction;
  if (attribute != kMaxDynamicSharedMemorySize || value < 0) return kInvalidValue;
  at->second.most_dynamic_shared = static_cast<size_t>(value);
  return 0;
}
int cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                     CUstream_st* stream) {
  const std::lock_guard<std::mutex> lock(loaded().mutex);
  const auto at = loaded().functions.find(host);
  if (at == loaded().functions.end()) return kInvalidFunction;
  Function& function = at->second;
  if (shared_bytes > function.most_dynamic_shared) return kInvalidValue;
  if (function.kernel == nullptr) {
    xsr::ptx::Module& module = *function.module;
    if (module.program == nullptr)
      module.program = std::make_unique<xsr::ptx::Program>(xsr::ptx::ptx_of(module.container));
    function.kernel = std::make_unique<xsr::ptx::Kernel>(module.program->kernel(function.name));
  }
  const xsr::ptx::Kernel* const kernel = function.kernel.get();
  std::vector<unsigned char> parameters(kernel->parameter_bytes);
  for (size_t k = 0; k < kernel->parameters.size(); ++k) {
    const auto& [offset, bytes] = kernel->parameters[k];
    std::memcpy(parameters.data() + offset, arguments[k], bytes);
  }
  return xsr::cuda::emulated::submit(stream, [=] {
    const std::lock_guard<std::mutex> launch(loaded().launch);
    const uint64_t seed = xsr::cuda::emulated::count_launch();
    static const bool counts = [] {
      const char* const wanted = std::getenv("XSR_PTX_COUNTS");
      if (wanted == nullptr) return false;
      xsr::ptx::count(std::strcmp(wanted, "opcodes") == 0);
      std::atexit(xsr::ptx::print_counts);
      return true;
    }();
    (void)counts;
    xsr::ptx::run(*kernel, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
                  parameters, seed);
  });
}
// What kernel<<<…>>> becomes, which our launches do not use.
int __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) {
  xsr::ptx::fail("a launch by <<<>>>");
}
int __cudaGetKernel(void**, const void*) { xsr::ptx::fail("a launch by <<<>>>"); }
int __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, CUstream_st*) {
  xsr::ptx::fail("a launch by <<<>>>");
}
}
