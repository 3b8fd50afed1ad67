#pragma once
#include <stdint.h>

namespace xsr::kernels {

/// Of a tile of dw of gemm_backward_weight_i8; everything begins at its first row and column.
struct WeightTileI8 {
  const uint32_t* dy;
  int64_t dy_stride;
  const float* dy_scales;
  const uint32_t* x;
  int64_t x_stride;
  const float* x_scales;
  const int32_t* x_sums;
  int32_t steps;    // lanes of a column, of four rows each
  int64_t columns;  // of dw from here on
  bool store;
  float* dw;
  int64_t dw_stride;
};

}  // namespace xsr::kernels
