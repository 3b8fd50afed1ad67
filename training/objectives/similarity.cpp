#include "training/objectives/similarity.h"

#include <algorithm>

#include "training/workspace.h"

namespace xsr::training {

using kernels::panel_count;
using kernels::Storage;

void similarity_forward(const float* x, int64_t x_stride, const float* y, int64_t y_stride,
                        int32_t B, int32_t C, const kernels::KernelTable& kernels,
                        ThreadPool& threads, float* s, int64_t s_stride) {
  FlatBuffer panels(kernels::packed_elements(B, C, Storage::kF32));
  threads.for_each(panel_count(B), [&](int32_t panel, int32_t) {
    kernels::gemm_pack_panels(y, y_stride, B, C, Storage::kF32, panel, panel + 1, panels.data());
    kernels.gemm_forward_f32(x, x_stride, B, {panels.data(), Storage::kF32, B, C}, panel, panel + 1,
                             {}, s, s_stride);
  });
}

void similarity_backward_rows(const float* ds, int64_t ds_stride, const float* y, int64_t y_stride,
                              int32_t B, int32_t C, const kernels::KernelTable& kernels,
                              ThreadPool& threads, float* dx, int64_t dx_stride) {
  FlatBuffer panels(kernels::packed_elements(C, B, Storage::kF32));
  kernels::GemmEpilogue accumulate;
  accumulate.residual = dx;
  accumulate.residual_stride = dx_stride;
  threads.for_each(panel_count(C), [&](int32_t panel, int32_t) {
    kernels::gemm_pack_transposed_panels(y, y_stride, B, C, Storage::kF32, panel, panel + 1,
                                         panels.data());
    kernels.gemm_forward_f32(ds, ds_stride, B, {panels.data(), Storage::kF32, C, B}, panel,
                             panel + 1, accumulate, dx, dx_stride);
  });
}

void similarity_backward_columns(const float* ds, int64_t ds_stride, const float* x,
                                 int64_t x_stride, int32_t B, int32_t C,
                                 const kernels::KernelTable& kernels, ThreadPool& threads,
                                 float* dy, int64_t dy_stride) {
  FlatBuffer scratch(kernels::kGemmBackwardScratchFloats * threads.num_threads());
  threads.for_each(block_count(B, kSimilarityRowsATask), [&](int32_t block, int32_t thread) {
    const int32_t first = block * kSimilarityRowsATask,
                  last = std::min(B, first + kSimilarityRowsATask);
    kernels.gemm_backward_weight_f32(ds, ds_stride, x, x_stride, B, first, last, C, true, dy,
                                     dy_stride,
                                     scratch.data() + thread * kernels::kGemmBackwardScratchFloats);
  });
}

}  // namespace xsr::training
