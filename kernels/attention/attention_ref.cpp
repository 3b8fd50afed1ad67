#include "kernels/attention/attention_ref.h"

#include "kernels/attention/attention.h"
#include "kernels/gemm/gemm.h"
#include "kernels/storage.h"

namespace xsr::kernels {

void attention_forward_f32_ref(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                               int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                               int32_t H, int32_t D, float* out, int64_t out_stride, float* lse,
                               float* scratch) {
  attention_forward_ref(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, out,
                        out_stride, lse, scratch);
}

static float rounded(float x) { return f32_from_bf16(bf16_from_f32(x)); }

void attention_forward_bf16_ref(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                int32_t H, int32_t D, float* out, int64_t out_stride,
                                uint16_t* narrow, int64_t narrow_stride, float* scratch) {
  const float scale = 1 / sqrtf((float)D);
  for (int32_t b = first; b < last; ++b) {
    const int32_t begin = cu_seqlens[b], T = cu_seqlens[b + 1] - begin;
    for (int32_t h = first_head; h < last_head; ++h) {
      for (int32_t i = 0; i < T; ++i) {
        const float* q = qkv + (begin + i) * qkv_stride + h * D;
        const float *k = qkv + begin * qkv_stride + (H + h) * D, *v = k + H * D;
        float largest = -INFINITY, sum = 0;
        for (int32_t j = 0; j < T; ++j) {
          float dot = 0;
          for (int32_t d = 0; d < D; ++d) dot += rounded(q[d]) * rounded(k[j * qkv_stride + d]);
          scratch[j] = dot * scale;
          largest = scratch[j] > largest ? scratch[j] : largest;
        }
        for (int32_t j = 0; j < T; ++j) {
          scratch[j] = rounded(expf(scratch[j] - largest));
          sum += scratch[j];
        }
        for (int32_t d = 0; d < D; ++d) {
          float value = 0;
          for (int32_t j = 0; j < T; ++j) value += scratch[j] * rounded(v[j * qkv_stride + d]);
          value /= sum;
          if (out != nullptr) out[(begin + i) * out_stride + h * D + d] = value;
          if (narrow != nullptr)
            narrow[(begin + i) * narrow_stride + h * D + d] = bf16_from_f32(value);
        }
        if (narrow != nullptr && H * D % 2 == 1 && h == H - 1)
          narrow[(begin + i) * narrow_stride + H * D] = 0;
      }
    }
  }
}

void attention_dropout_forward_f32_ref(const float* qkv, int64_t qkv_stride,
                                       const int32_t* cu_seqlens, int32_t first, int32_t last,
                                       int32_t first_head, int32_t last_head, int32_t H, int32_t D,
                                       const Dropout& dropout, float* out, int64_t out_stride,
                                       float* lse, float* scratch) {
  attention_forward_ref(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, out,
                        out_stride, lse, scratch, dropout);
}

void attention_backward_f32_ref(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                int32_t H, int32_t D, const float* lse, const Dropout& dropout,
                                const float* dout, int64_t dout_stride, float* dqkv,
                                int64_t dqkv_stride, float* scratch) {
  attention_backward_ref(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, lse,
                         dropout, dout, dout_stride, dqkv, dqkv_stride, scratch);
}

}  // namespace xsr::kernels
