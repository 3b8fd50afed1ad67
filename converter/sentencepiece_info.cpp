#include "converter/sentencepiece_info.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "runtime/error.h"

namespace xsr {

SentencePieceInfo sentencepiece_info(std::string_view blob, const std::string& name) {
  sentencepiece::SentencePieceProcessor processor;
  const auto status = processor.LoadFromSerializedProto({blob.data(), blob.size()});
  if (!status.ok()) {
    throw Error(XSR_STATUS_BAD_FILE,
                fmt::format("{}: is no SentencePiece model: {}", name, status.ToString()));
  }
  SentencePieceInfo info;
  info.vocab_size = processor.GetPieceSize();
  info.pad_id = processor.pad_id();
  info.unk_id = processor.unk_id();
  const int mask = processor.PieceToId("<MASK>");  // unk_id where there is no such piece
  if (processor.IdToPiece(mask) == "<MASK>") info.mask_id = mask;
  return info;
}

}  // namespace xsr
