#include "kernels/cuda/device.h"
#include "kernels/cuda/row.h"
#include "kernels/embedding/embedding_cuda.h"

namespace xsr::cuda {
namespace {

using kernels::Storage;

template <Storage kStorage, typename OfRow>
__device__ __forceinline__ void fill_row(OfRow& row, int32_t C, const void* token, int64_t token_id,
                                         const void* position, int64_t position_id,
                                         const float* token_type) {
  row.fill(C, [&](int32_t c) {
    if constexpr (OfRow::kWhole) {
      Quad sum = load_storage_quad<kStorage>(token, token_id * C + c);
      const Quad other = load_storage_quad<kStorage>(position, position_id * C + c);
      const Quad third = token_type == nullptr ? Quad{} : load_quad(token_type + c);
      XSR_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        sum.value[e] += other.value[e];
        if (token_type != nullptr) sum.value[e] += third.value[e];
      }
      return sum;
    } else {
      const float sum = load_storage<kStorage>(token, token_id * C + c) +
                        load_storage<kStorage>(position, position_id * C + c);
      return token_type == nullptr ? sum : sum + token_type[c];
    }
  });
}

// Without the 4, blocks of a multiprocessor, ptxas aims at more and spills.
template <typename OfRow>
__global__ void __launch_bounds__(kRowThreads, 4)
    embedding_forward_kernel(const int32_t* token_ids, const int32_t* positions, int32_t N,
                             const void* token, const void* position, Storage storage,
                             const float* token_type, const float* gamma, const float* beta,
                             float eps, int32_t C, float* out, int64_t out_stride, uint16_t* narrow,
                             int64_t narrow_stride, float* rstd) {
  const int32_t i = global_warp_id();
  if (i >= N) return;
  OfRow row;
  const int64_t id = token_ids[i], place = positions[i];
  if (storage == Storage::kF32) {
    fill_row<Storage::kF32>(row, C, token, id, position, place, token_type);
  } else if (storage == Storage::kBF16) {
    fill_row<Storage::kBF16>(row, C, token, id, position, place, token_type);
  } else {
    fill_row<Storage::kF16>(row, C, token, id, position, place, token_type);
  }
  float mean = 0, scale = 1;
  if (gamma != nullptr) {
    scale = row.statistics(C, eps, &mean);
    if (rstd != nullptr && lane_id() == 0) rstd[i] = scale;
  }
  row.put(C, mean, scale, gamma, beta, out == nullptr ? nullptr : out + i * out_stride,
          narrow == nullptr ? nullptr : narrow + i * narrow_stride);
}

constexpr int32_t kTableThreads = 128;

/// A thread four columns, which are moved at once where whole: 4 divides N and out_stride.
template <bool kWhole>
__global__ void __launch_bounds__(kTableThreads)
    qkv_table_forward_kernel(const int32_t* token_ids, const int32_t* positions,
                             const float* token_table, const float* position_table,
                             const float* rstd, const float* bias, int32_t N, float* out,
                             uint16_t* narrow, int64_t out_stride) {
  const int64_t i = blockIdx.x;
  const int32_t n = 4 * (int32_t)(blockIdx.y * kTableThreads + threadIdx.x);
  if (n >= N) return;
  const float* token = token_table + (int64_t)token_ids[i] * N + n;
  const float* position = position_table + (int64_t)positions[i] * N + n;
  const float scale = rstd[i];
  const auto value = [&](float x, float y, float shift) { return (x + y) * scale + shift; };
  if constexpr (kWhole) {
    const Quad x = load_quad(token), y = load_quad(position), shift = load_quad(bias + n);
    Quad four;
    XSR_UNROLL
    for (int32_t e = 0; e < 4; ++e) four.value[e] = value(x.value[e], y.value[e], shift.value[e]);
    if (out != nullptr) store_quad(out + i * out_stride + n, four);
    if (narrow != nullptr) store_quad(narrow + i * out_stride + n, four);
  } else {
    for (int32_t e = 0; e < 4 && n + e < N; ++e) {
      const float one = value(token[e], position[e], bias[n + e]);
      if (out != nullptr) out[i * out_stride + n + e] = one;
      if (narrow != nullptr) narrow[i * out_stride + n + e] = f32_to_bf16(one);
    }
  }
}

}  // namespace

Status embedding_forward_cuda(const int32_t* token_ids, const int32_t* positions, int32_t N,
                              const void* token, const void* position, Storage storage,
                              const float* token_type, const float* gamma, const float* beta,
                              float eps, int32_t C, float* out, int64_t out_stride,
                              uint16_t* narrow, int64_t narrow_stride, float* rstd, Stream stream) {
  const bool whole = C % 4 == 0 && starts_whole((const float*)token, 0) &&
                     starts_whole((const float*)position, 0) && starts_whole(token_type, 0) &&
                     starts_whole(gamma, 0) && starts_whole(beta, 0) &&
                     starts_whole(out, out_stride) && starts_whole(narrow, narrow_stride);
  return with_row(C, whole, [&](auto row) {
    return launch(embedding_forward_kernel<decltype(row)>, row_blocks(N), dim3(kRowThreads), 0,
                  stream, token_ids, positions, N, token, position, storage, token_type, gamma,
                  beta, eps, C, out, out_stride, narrow, narrow_stride, rstd);
  });
}

Status qkv_table_forward_cuda(const int32_t* token_ids, const int32_t* positions, int32_t rows,
                              const float* token_table, const float* position_table,
                              const float* rstd, const float* bias, int32_t N, float* out,
                              uint16_t* narrow, int64_t out_stride, Stream stream) {
  const auto kernel = N % 4 == 0 && out_stride % 4 == 0 ? qkv_table_forward_kernel<true>
                                                        : qkv_table_forward_kernel<false>;
  constexpr int32_t kColumns = 4 * kTableThreads;
  return launch(kernel, dim3((unsigned)rows, (unsigned)((N + kColumns - 1) / kColumns)),
                dim3(kTableThreads), 0, stream, token_ids, positions, token_table, position_table,
                rstd, bias, N, out, narrow, out_stride);
}

}  // namespace xsr::cuda
