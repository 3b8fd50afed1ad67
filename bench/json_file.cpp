#include "bench/json_file.h"

#include <cerrno>
#include <cstring>
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

}  // namespace xsr::bench
