#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace xsr {

/// What the converter needs to know of a SentencePiece model; ids are -1 where it has none.
struct SentencePieceInfo {
  int32_t vocab_size = 0;
  int32_t pad_id = -1, unk_id = -1, mask_id = -1;  // mask: the piece "<MASK>"
};

/// Throws Error(BAD_FILE) when blob is no SentencePiece model that a session would open; name is
/// for the message.
SentencePieceInfo sentencepiece_info(std::string_view blob, const std::string& name);

}  // namespace xsr
