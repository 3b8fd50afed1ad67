#pragma once
#include <stdexcept>
#include <string>

#include "xsr/xsr.h"

namespace xsr {

/// What the C++ side of the library and the tools throw; c_api.cpp turns it into its status and
/// message.
class Error : public std::runtime_error {
 public:
  Error(xsr_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  xsr_status status() const noexcept { return status_; }

 private:
  xsr_status status_;
};

[[noreturn]] inline void throw_invalid(const std::string& message) {
  throw Error(XSR_STATUS_INVALID_ARGUMENT, message);
}
[[noreturn]] inline void throw_bad_file(const std::string& message) {
  throw Error(XSR_STATUS_BAD_FILE, message);
}

}  // namespace xsr
