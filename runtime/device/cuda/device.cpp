#include "runtime/device/cuda/device.h"

namespace xsr::cuda {
namespace {
constexpr size_t kAlignment = 256;  // what cudaMalloc gives
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

Memory Plan::allocate(Place place) const {
  size_t bytes = 0;
  for (const Piece& piece : pieces_) bytes += aligned(piece.bytes);
  Memory memory(place, bytes);
  char* at = static_cast<char*>(memory.data());
  for (const Piece& piece : pieces_) {
    *piece.pointer = piece.bytes == 0 ? nullptr : at;
    at += aligned(piece.bytes);
  }
  return memory;
}

}  // namespace xsr::cuda
