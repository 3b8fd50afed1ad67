#pragma once
#include <string>

#include "runtime/error.h"

namespace xsr {

/// An enumerator of the file format and its name for people.
template <typename E>
struct NamedValue {
  E value;
  const char* name;
};

template <typename E, size_t size>
const char* name_of(const NamedValue<E> (&table)[size], E value) {
  for (const NamedValue<E>& known : table) {
    if (known.value == value) return known.name;
  }
  return "unknown";
}

/// Throws Error(UNSUPPORTED) that lists the known values when value is none of them.
template <typename E, size_t size>
void check_known(const char* field, const NamedValue<E> (&table)[size], E value) {
  std::string list;
  for (const NamedValue<E>& known : table) {
    if (known.value == value) return;
    if (!list.empty()) list += ", ";
    list += std::to_string(static_cast<uint32_t>(known.value)) + " (" + known.name + ")";
  }
  throw Error(XSR_STATUS_UNSUPPORTED, std::string(field) + " is " +
                                          std::to_string(static_cast<uint32_t>(value)) +
                                          ", this build knows " + list);
}

}  // namespace xsr
