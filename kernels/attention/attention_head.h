#pragma once
// What the attention files of every ISA do around their arithmetic: which rows a (sentence, head)
// pair has and where they go. `static` only: nothing here may be shared with an object of another
// ISA.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/dropout/dropout.h"

namespace xsr::kernels {

// In no ISA an instruction; only the training path asks for it, once a row.
extern "C" float logf(float);

/// One (sentence, head) pair, its rows in f32 or bf16. In f32 its keys stand transposed in scratch,
/// [D][columns]; columns is T rounded up to 16.
template <typename Element>
struct HeadOf {
  const Element* q;
  const Element* k;
  const Element* v;
  int64_t stride;
  int32_t begin;  // packed row of its first token
  int32_t h;
  int32_t T, D, columns;
  float scale;
  Dropout dropout;  // of the head's own stream; threshold 0 = none
  float* transposed;
  float* scores;
  float* out;
  int64_t out_stride;
  float* lse;  // row stride lse_stride; null = not wanted
  int64_t lse_stride;
};
using Head = HeadOf<float>;

/// Calls body<MR>(row) for tiles of up to kMost ≤ 8 rows, shared out evenly.
template <int kMost, typename Body>
static inline void for_each_tile(int32_t rows, const Body& body) {
  const int32_t tiles = (rows + kMost - 1) / kMost;
  int32_t row = 0;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    const int32_t count = (rows - row) / (tiles - tile);
    switch (count) {
      case 1:
        body.template operator()<1>(row);
        break;
      case 2:
        body.template operator()<2>(row);
        break;
      case 3:
        body.template operator()<3>(row);
        break;
      case 4:
        body.template operator()<4>(row);
        break;
      case 5:
        if constexpr (kMost >= 5) body.template operator()<5>(row);
        break;
      case 6:
        if constexpr (kMost >= 6) body.template operator()<6>(row);
        break;
      case 7:
        if constexpr (kMost >= 7) body.template operator()<7>(row);
        break;
      case 8:
        if constexpr (kMost >= 8) body.template operator()<8>(row);
        break;
    }
    row += count;
  }
}

// Both passes over one (sentence, head) pair. `Core` is the arithmetic of an ISA:
//
//     struct Core {
//       static constexpr int32_t kQueryRows = ...;  // that share what is read of keys and values
//       static void transpose_keys(keys, stride, T, D, transposed, columns);
//       template <int MR> static void score_rows(q, stride, transposed, D, columns, scores);
//       static float softmax_row(scores, T, scale, float* largest);
//       static void drop_row(dropout, row, T, p);
//       template <int MR> static void weigh_rows(p, row_step, column_step, v, v_stride, T, D, sum,
//                                                out, out_stride);
//       static void score_gradient(head, gradient, row);
//     };

template <typename Core, int MR>
static void attend_rows(const Head& head, int32_t row) {
  Core::template score_rows<MR>(head.q + row * head.stride, head.stride, head.transposed, head.D,
                                head.columns, head.scores);
  float sum[MR];
  for (int m = 0; m < MR; ++m) {
    float* p = head.scores + m * head.columns;
    float largest;
    sum[m] = Core::softmax_row(p, head.T, head.scale, &largest);
    if (head.lse != nullptr) head.lse[(row + m) * head.lse_stride] = largest + logf(sum[m]);
    if (head.dropout.threshold != 0) Core::drop_row(head.dropout, head.begin + row + m, head.T, p);
  }
  Core::template weigh_rows<MR>(head.scores, head.columns, 1, head.v, head.stride, head.T, head.D,
                                sum, head.out + row * head.out_stride, head.out_stride);
}

template <typename Core>
static void attend(const Head& head) {
  Core::transpose_keys(head.k, head.stride, head.T, head.D, head.transposed, head.columns);
  for_each_tile<Core::kQueryRows>(head.T,
                                  [&]<int MR>(int32_t row) { attend_rows<Core, MR>(head, row); });
}

/// Calls attend(head) for every sentence with tokens and every head of the ranges; the arguments
/// are those of attention_forward_f32_t.
template <typename Element, typename Attend>
static inline __attribute__((always_inline)) void for_each_head(
    const Element* qkv, int64_t qkv_stride, const int32_t* cu_seqlens, int32_t first, int32_t last,
    int32_t first_head, int32_t last_head, int32_t H, int32_t D, const Dropout& dropout, float* out,
    int64_t out_stride, float* lse, float* scratch, Attend&& attend) {
  const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss((float)D)));
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], T = cu_seqlens[b + 1] - begin;
    if (T == 0) continue;
    for (int32_t h = first_head; h < last_head; ++h) {
      HeadOf<Element> head;
      head.q = qkv + begin * qkv_stride + h * D;
      head.k = head.q + (int64_t)H * D;
      head.v = head.k + (int64_t)H * D;
      head.stride = qkv_stride;
      head.begin = begin;
      head.h = h;
      head.T = T;
      head.D = D;
      head.columns = (T + 15) / 16 * 16;
      head.scale = scale;
      head.dropout = dropout;
      head.dropout.stream += (uint32_t)h;
      head.transposed = scratch;
      head.scores = scratch + (int64_t)D * head.columns;
      head.out = out == nullptr ? nullptr : out + begin * out_stride + h * D;
      head.out_stride = out_stride;
      head.lse = lse == nullptr ? nullptr : lse + (int64_t)begin * H + h;
      head.lse_stride = H;
      attend(head);
    }
  }
}

/// What the backward pass of one (sentence, head) pair needs besides its Head, which has neither
/// out nor lse. The probabilities after dropout and dS stand in scratch, [T][columns] each.
struct HeadGradient {
  const float* lse;
  int64_t lse_stride;
  const float* dout;
  int64_t dout_stride;
  float* dq;
  float* dk;
  float* dv;
  int64_t stride;
  float* transposed_values;  // [D][columns]
  float* dropped;
  float* dscores;
  float* row;  // [columns], a row of probabilities before dropout
};

template <typename Core>
static void attend_backward(const Head& head, const HeadGradient& gradient) {
  const int32_t T = head.T, D = head.D;
  const int64_t columns = head.columns;
  Core::transpose_keys(head.k, head.stride, T, D, head.transposed, head.columns);
  Core::transpose_keys(head.v, head.stride, T, D, gradient.transposed_values, head.columns);
  for_each_tile<Core::kQueryRows>(T, [&]<int MR>(int32_t row) {
    Core::template score_rows<MR>(head.q + row * head.stride, head.stride, head.transposed, D,
                                  head.columns, gradient.dropped + row * columns);
    Core::template score_rows<MR>(gradient.dout + row * gradient.dout_stride, gradient.dout_stride,
                                  gradient.transposed_values, D, head.columns,
                                  gradient.dscores + row * columns);
    for (int m = 0; m < MR; ++m) Core::score_gradient(head, gradient, row + m);
    Core::template weigh_rows<MR>(gradient.dscores + row * columns, columns, 1, head.k, head.stride,
                                  T, D, nullptr, gradient.dq + row * gradient.stride,
                                  gradient.stride);
  });
  for_each_tile<Core::kQueryRows>(T, [&]<int MR>(int32_t row) {
    Core::template weigh_rows<MR>(gradient.dscores + row, 1, columns, head.q, head.stride, T, D,
                                  nullptr, gradient.dk + row * gradient.stride, gradient.stride);
    Core::template weigh_rows<MR>(gradient.dropped + row, 1, columns, gradient.dout,
                                  gradient.dout_stride, T, D, nullptr,
                                  gradient.dv + row * gradient.stride, gradient.stride);
  });
}

/// Calls backward(head, gradient) as for_each_head calls attend; the arguments are those of
/// attention_backward_f32_t.
template <typename Backward>
static inline __attribute__((always_inline)) void for_each_head_gradient(
    const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens, int32_t first, int32_t last,
    int32_t first_head, int32_t last_head, int32_t H, int32_t D, const float* lse,
    const Dropout& dropout, const float* dout, int64_t dout_stride, float* dqkv,
    int64_t dqkv_stride, float* scratch, Backward&& backward) {
  for_each_head(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, dropout,
                nullptr, 0, nullptr, scratch, [&](const Head& head) {
                  HeadGradient gradient;
                  gradient.lse = lse + (int64_t)head.begin * H + head.h;
                  gradient.lse_stride = H;
                  gradient.dout = dout + head.begin * dout_stride + head.h * D;
                  gradient.dout_stride = dout_stride;
                  gradient.dq = dqkv + head.begin * dqkv_stride + head.h * D;
                  gradient.dk = gradient.dq + (int64_t)H * D;
                  gradient.dv = gradient.dk + (int64_t)H * D;
                  gradient.stride = dqkv_stride;
                  gradient.transposed_values = scratch + (int64_t)D * head.columns;
                  gradient.dropped = gradient.transposed_values + (int64_t)D * head.columns;
                  gradient.dscores = gradient.dropped + (int64_t)head.T * head.columns;
                  gradient.row = gradient.dscores + (int64_t)head.T * head.columns;
                  backward(head, gradient);
                });
}

}  // namespace xsr::kernels
