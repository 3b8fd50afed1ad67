#include "bench/json_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "runtime/error.h"

namespace xsr::bench {

void write_json(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw Error(XSR_STATUS_IO, path + ": cannot write: " + std::strerror(errno));
}

void require_writable(const std::string& path) {
  if (path.empty() || path == "-") return;
  const bool there = std::filesystem::exists(path);
  if (!std::ofstream(path, std::ios::binary | std::ios::app))
    throw Error(XSR_STATUS_IO, path + ": cannot write: " + std::strerror(errno));
  if (!there) std::filesystem::remove(path);
}

}  // namespace xsr::bench
