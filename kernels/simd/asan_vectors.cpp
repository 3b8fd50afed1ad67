// AddressSanitizer's checks of accesses of 32 and 64 bytes, which its run time takes for rare and
// looks at byte by byte: four fifths of the time of kernels under it. Here the shadow of all that
// is accessed is looked at as one word; whatever is not plainly right is left to the run time.
#include <stddef.h>
#include <stdint.h>

extern "C" {
void __real___asan_loadN(uintptr_t address, size_t bytes);
void __real___asan_storeN(uintptr_t address, size_t bytes);
}

// Where clang has the shadow on x86-64 Linux: a byte for eight, 0 where all of them may be used.
[[gnu::no_sanitize_address]] static inline bool plainly_right(uintptr_t address, size_t bytes) {
  const uintptr_t first = address >> 3, last = (address + bytes - 1) >> 3;
  if (last - first >= 8) return false;
  uint64_t shadow;
  __builtin_memcpy(&shadow, reinterpret_cast<const void*>(first + 0x7fff8000), sizeof shadow);
  return (shadow << 8 * (7 - (last - first))) == 0;
}

extern "C" {
[[gnu::no_sanitize_address]] void __wrap___asan_loadN(uintptr_t address, size_t bytes) {
  if (!plainly_right(address, bytes)) __real___asan_loadN(address, bytes);
}
[[gnu::no_sanitize_address]] void __wrap___asan_storeN(uintptr_t address, size_t bytes) {
  if (!plainly_right(address, bytes)) __real___asan_storeN(address, bytes);
}
}
