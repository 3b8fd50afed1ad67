#pragma once
#include <cstdio>
#include <string>

namespace xsr::bench {

/// Writes a text to the file at `path`, whole or not at all, or for - to stdout. Throws Error(IO).
void write_json(const std::string& path, const std::string& text);

/// Throws Error(IO) where write_json() could not write: to be known before hours of measuring.
void require_writable(const std::string& path);

/// Where a table goes beside the JSON at `path`: stderr where that has stdout.
inline std::FILE* table_stream(const std::string& path) { return path == "-" ? stderr : stdout; }

}  // namespace xsr::bench
