#pragma once
#include <stdint.h>

namespace xsr::kernels {

constexpr int32_t kPanelRows = 8;  // of b, side by side in a panel

/// Inner products in double of rows of a with 8 rows of b:
///
///     out[r, j] = Σₖ a[r, k] · panel[k, j]
///
/// a      [rows, size]        next to each other
/// panel  [size, kPanelRows]  the rows of b as columns
/// out    [rows, kPanelRows]  =; must overlap neither
///
/// Summed by ascending k, each product rounded before it is added: every ISA gives the same bits.
/// rows, size ≥ 0. Pure: no allocation, no threads, no globals.
using inner_products_forward_f64_t = void(const double* a, const double* panel, int64_t rows,
                                          int32_t size, double* out);

inner_products_forward_f64_t inner_products_forward_f64_ref, inner_products_forward_f64_avx2;

}  // namespace xsr::kernels
