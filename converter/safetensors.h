#pragma once
#include <span>
#include <string>

#include "converter/checkpoint.h"

namespace xsr {

/// A safetensors file: 8 bytes header length, a JSON header, the data without holes. The tensors
/// point into file. Throws Error(BAD_FILE, UNSUPPORTED); name is for messages.
CheckpointContents read_safetensors(std::span<const unsigned char> file, const std::string& name);

}  // namespace xsr
