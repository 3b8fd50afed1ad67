#pragma once
#include <string>

#include "runtime/error.h"

namespace xsr::test {

/// What the Error that body() throws says, or "no error".
template <typename Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace xsr::test
