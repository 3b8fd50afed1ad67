#pragma once
// What the attention files of every ISA do around their arithmetic: which rows a (sentence, head)
// pair has and where they go. `static` only: nothing here may be shared with an object of another
// ISA.
#include <stdint.h>

namespace xsr::kernels {

// In no ISA an instruction; only the training path asks for it, once a row.
extern "C" float logf(float);

/// One (sentence, head) pair. Its keys stand transposed in scratch, [D][columns]; columns is T
/// rounded up to 32.
struct Head {
  const float* q;
  const float* k;
  const float* v;
  int64_t stride;
  int32_t T, D, columns;
  float scale;
  float* transposed;
  float* scores;
  float* out;
  int64_t out_stride;
  float* lse;  // row stride lse_stride; null = not wanted
  int64_t lse_stride;
};

/// Calls attend(head) for every sentence with tokens and every head of the ranges; the arguments
/// are those of attention_forward_f32_t.
template <typename Attend>
static inline __attribute__((always_inline)) void for_each_head(
    const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens, int32_t first, int32_t last,
    int32_t first_head, int32_t last_head, int32_t H, int32_t D, float scale, float* out,
    int64_t out_stride, float* lse, float* scratch, Attend&& attend) {
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], T = cu_seqlens[b + 1] - begin;
    if (T == 0) continue;
    for (int32_t h = first_head; h < last_head; ++h) {
      Head head;
      head.q = qkv + begin * qkv_stride + h * D;
      head.k = head.q + (int64_t)H * D;
      head.v = head.k + (int64_t)H * D;
      head.stride = qkv_stride;
      head.T = T;
      head.D = D;
      head.columns = (T + 31) / 32 * 32;
      head.scale = scale;
      head.transposed = scratch;
      head.scores = scratch + (int64_t)D * head.columns;
      head.out = out + begin * out_stride + h * D;
      head.out_stride = out_stride;
      head.lse = lse == nullptr ? nullptr : lse + (int64_t)begin * H + h;
      head.lse_stride = H;
      attend(head);
    }
  }
}

}  // namespace xsr::kernels
