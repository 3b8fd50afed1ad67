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

namespace {

/// The numbers of products in bf16.
struct NarrowFactor {
  float operator()(uint16_t x) const { return f32_from_bf16(x); }
  float operator()(float x) const { return f32_from_bf16(bf16_from_f32(x)); }
};

}  // namespace

void attention_forward_bf16_ref(const uint16_t* qkv, int64_t qkv_stride, const int32_t* cu_seqlens,
                                int32_t first, int32_t last, int32_t first_head, int32_t last_head,
                                int32_t H, int32_t D, float* out, int64_t out_stride,
                                uint16_t* narrow, int64_t narrow_stride, float* scratch) {
  const auto write = [&](int64_t row, int32_t column, float value) {
    if (out != nullptr) out[row * out_stride + column] = value;
    if (narrow == nullptr) return;
    narrow[row * narrow_stride + column] = bf16_from_f32(value);
    if (column == H * D - 1 && column % 2 == 0) narrow[row * narrow_stride + column + 1] = 0;
  };
  float* const lse = nullptr;
  attention_forward_factors_ref(qkv, qkv_stride, cu_seqlens, first, last, first_head, last_head, H,
                                D, NarrowFactor(), write, lse, scratch, {});
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
