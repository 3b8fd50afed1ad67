#pragma once
#include <cstdio>
#include <string>

namespace xsr::bench {

/// Writes a text to the file at `path`, - for stdout. Throws Error(IO).
void write_json(const std::string& path, const std::string& text);

/// Where a table goes beside the JSON at `path`: stderr where that has stdout.
inline std::FILE* table_stream(const std::string& path) { return path == "-" ? stderr : stdout; }

}  // namespace xsr::bench
