#include "kernels/similarity/similarity.h"

namespace xsr::kernels {

void inner_products_forward_f64_ref(const double* a, const double* panel, int64_t rows,
                                    int32_t size, double* out) {
  for (int64_t r = 0; r < rows; ++r) {
    double sum[kPanelRows] = {};
    for (int32_t k = 0; k < size; ++k) {
      for (int32_t j = 0; j < kPanelRows; ++j)
        sum[j] += a[r * size + k] * panel[int64_t{k} * kPanelRows + j];
    }
    for (int32_t j = 0; j < kPanelRows; ++j) out[r * kPanelRows + j] = sum[j];
  }
}

}  // namespace xsr::kernels
