#pragma once
// What a launcher's contract needs of CUDA, without its headers.
#include <stdint.h>

struct CUstream_st;  // what cudaStream_t points to

namespace xsr::cuda {

using Stream = CUstream_st*;
/// 0, or a cudaError_t; runtime/device/cuda turns it into an Error.
using Status = int32_t;

}  // namespace xsr::cuda
