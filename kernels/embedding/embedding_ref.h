#pragma once
#include <stdint.h>

#include "kernels/embedding/embedding.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/storage.h"

namespace xsr::kernels {

template <typename T>
void embedding_forward_ref(const int32_t* token_ids, const int32_t* positions, int32_t first,
                           int32_t last, const void* token, const void* position, Storage storage,
                           const float* token_type, const float* gamma, const float* beta, T eps,
                           int32_t C, T* out, int64_t out_stride, T* rstd) {
  for (int32_t i = first; i < last; ++i) {
    T* row = out + i * out_stride;
    for (int32_t c = 0; c < C; ++c) {
      row[c] = T(load_storage(token, storage, (int64_t)token_ids[i] * C + c)) +
               T(load_storage(position, storage, (int64_t)positions[i] * C + c));
      if (token_type != nullptr) row[c] += T(token_type[c]);
    }
    if (gamma == nullptr) continue;
    const T inverse = layernorm_row_ref(row, C, gamma, beta, eps, row);
    if (rstd != nullptr) rstd[i] = inverse;
  }
}

template <typename T>
void embedding_quantized_ref(const int32_t* token_ids, const int32_t* positions, int32_t first,
                             int32_t last, const int8_t* token, const float* token_scales,
                             const int8_t* position, const float* position_scales,
                             const float* token_type, const float* gamma, const float* beta, T eps,
                             int32_t C, T* out, int64_t out_stride, T* rstd) {
  for (int32_t i = first; i < last; ++i) {
    const int32_t t = token_ids[i], p = positions[i];
    T* row = out + i * out_stride;
    for (int32_t c = 0; c < C; ++c) {
      row[c] = T(token[(int64_t)t * C + c]) * T(token_scales[t]) +
               T(position[(int64_t)p * C + c]) * T(position_scales[p]);
      if (token_type != nullptr) row[c] += T(token_type[c]);
    }
    const T inverse = layernorm_row_ref(row, C, gamma, beta, eps, row);
    if (rstd != nullptr) rstd[i] = inverse;
  }
}

/// write(i, n, value) takes the results.
template <typename T, typename Write>
void qkv_table_forward_ref(const int32_t* token_ids, const int32_t* positions, int32_t first,
                           int32_t last, const T* token_table, const T* position_table,
                           const T* rstd, const T* bias, int32_t N, Write write) {
  for (int32_t i = first; i < last; ++i) {
    const T* token = token_table + (int64_t)token_ids[i] * N;
    const T* position = position_table + (int64_t)positions[i] * N;
    for (int32_t n = 0; n < N; ++n) write(i, n, (token[n] + position[n]) * rstd[i] + bias[n]);
  }
}

template <typename T>
void embedding_backward_ref(const T* de, int64_t de_stride, const RowBuckets& buckets,
                            int32_t first, int32_t last, int32_t C, T* dtable) {
  for (int32_t u = first; u < last; ++u) {
    T* row = dtable + (int64_t)buckets.ids[u] * C;
    for (int32_t c = 0; c < C; ++c) {
      T sum = 0;
      for (int32_t r = buckets.starts[u]; r < buckets.starts[u + 1]; ++r)
        sum += de[buckets.rows[r] * de_stride + c];
      row[c] += sum;
    }
  }
}

}  // namespace xsr::kernels
