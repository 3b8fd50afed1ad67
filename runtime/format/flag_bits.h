#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace xsr {

/// A bit of a file's flags and the field that it stands for.
template <typename T>
struct FlagBit {
  uint32_t bit;
  bool T::*field;
};

template <typename T, size_t size>
uint32_t flags_of(const std::type_identity_t<T>& value, const FlagBit<T> (&bits)[size]) {
  uint32_t flags = 0;
  for (const FlagBit<T>& b : bits) flags |= value.*b.field ? b.bit : 0;
  return flags;
}

template <typename T, size_t size>
void set_from_flags(uint32_t flags, const FlagBit<T> (&bits)[size],
                    std::type_identity_t<T>& value) {
  for (const FlagBit<T>& b : bits) value.*b.field = (flags & b.bit) != 0;
}

}  // namespace xsr
