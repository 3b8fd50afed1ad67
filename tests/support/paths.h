#pragma once
#include <cstdlib>
#include <filesystem>
#include <string>

namespace xsr::test {

/// The reference material beside the checkout (golden tensors, data, a trained model): the folder
/// XSR_SHARED names, else
/// ../shared. The product does not need it; tests that do skip when it is missing.
inline std::filesystem::path shared_folder() {
  const char* named = std::getenv("XSR_SHARED");
  return named != nullptr ? std::filesystem::path(named)
                          : std::filesystem::path(XSR_SOURCE_DIR).parent_path() / "shared";
}

/// The golden tensors: the folder XSR_GOLDEN names, else golden/ of the shared folder.
inline std::filesystem::path golden_folder() {
  const char* named = std::getenv("XSR_GOLDEN");
  return named != nullptr ? std::filesystem::path(named) : shared_folder() / "golden";
}

}  // namespace xsr::test
