#pragma once
#include <cstdint>

#include "kernels/dispatch.h"
#include "runtime/device/cpu_threads.h"

namespace xsr::training {

// The matrix products of the losses on similarities, each shared out over outputs.

inline constexpr int32_t kSimilarityRowsATask = 32;

/// s [B, B] = x [B, C] · yᵀ [C, B]
void similarity_forward(const float* x, int64_t x_stride, const float* y, int64_t y_stride,
                        int32_t B, int32_t C, const kernels::KernelTable& kernels,
                        ThreadPool& threads, float* s, int64_t s_stride);

/// dx [B, C] += ds [B, B] · y [B, C]
void similarity_backward_rows(const float* ds, int64_t ds_stride, const float* y, int64_t y_stride,
                              int32_t B, int32_t C, const kernels::KernelTable& kernels,
                              ThreadPool& threads, float* dx, int64_t dx_stride);

/// dy [B, C] += dsᵀ [B, B] · x [B, C]
void similarity_backward_columns(const float* ds, int64_t ds_stride, const float* x,
                                 int64_t x_stride, int32_t B, int32_t C,
                                 const kernels::KernelTable& kernels, ThreadPool& threads,
                                 float* dy, int64_t dy_stride);

}  // namespace xsr::training
