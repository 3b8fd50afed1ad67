#include "kernels/attention/attention_ref.h"

#include "kernels/attention/attention.h"

namespace xsr::kernels {

void attention_forward_f32_ref(const float* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                               int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                               int32_t H, int32_t D, float* out, int64_t out_stride, float* lse,
                               float* scratch) {
  attention_forward_ref(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H, D, out,
                        out_stride, lse, scratch);
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
