#include "bench/json_file.h"

#include "runtime/format/partial_file.h"

namespace xsr::bench {

void write_json(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  write_whole_file(path, text);
}

void require_writable(const std::string& path) {
  if (!path.empty() && path != "-") const PartialFile gone_again(path);
}

}  // namespace xsr::bench
