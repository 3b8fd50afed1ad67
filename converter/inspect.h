#pragma once
#include <string>

namespace xsr {

/// A description of a checkpoint or .xsr file for people, ending in a newline: format,
/// configuration, metadata, and every tensor with type, shape, bytes and XXH3-64 checksum. Throws
/// what opening the file throws.
std::string inspect_file(const std::string& path);

/// Opens a .xsr file, checks the checksum of every tensor and looks for NaN and infinity in all of
/// them. Returns a line for people. Throws Error(BAD_FILE) naming the tensor.
std::string check_xsr_file(const std::string& path);

}  // namespace xsr
