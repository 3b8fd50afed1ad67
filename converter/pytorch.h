#pragma once
#include <span>
#include <string>

#include "converter/checkpoint.h"

namespace xsr {

// Checkpoints of torch.save. The tensors may lie in a dictionary of their own ("state_dict",
// "model_state_dict" or "model", as trainers save them); those elsewhere (optimiser state) become
// CheckpointContents::outside. Storages that several tensors share, storage offsets and strides are
// kept. Both throw Error(BAD_FILE, UNSUPPORTED); name is for messages.

/// The zip container of PyTorch 1.6 and later: NAME/data.pkl and a file NAME/data/KEY for each
/// storage.
CheckpointContents read_pytorch_zip(std::span<const unsigned char> file, const std::string& name);

/// The container before: five pickles (magic number, protocol, system, object, storage keys), then
/// the storages.
CheckpointContents read_pytorch_legacy(std::span<const unsigned char> file,
                                       const std::string& name);

}  // namespace xsr
