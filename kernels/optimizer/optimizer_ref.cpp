#include "kernels/optimizer/optimizer_ref.h"

namespace xsr::kernels {

void adam_update_f32_ref(float* value, const float* gradient, float* first_moment,
                         float* second_moment, float* max_second_moment, uint16_t* narrow,
                         int64_t first, int64_t last, const AdamStep& step) {
  adam_update_ref(value, gradient, first_moment, second_moment, max_second_moment, narrow, first,
                  last, step);
}

double sum_of_squares_f32_ref(const float* x, int64_t n) {
  double sums[8] = {0};
  for (int64_t i = 0; i < n; ++i) sums[i % 8] += (double)x[i] * (double)x[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace xsr::kernels
