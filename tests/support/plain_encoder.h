#pragma once
// The forward pass of a .xsr file as plain loops on the kernels' references, in any precision:
// double says what is right, float what plain arithmetic loses.
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/activation/activation_ref.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/embedding/embedding_ref.h"
#include "kernels/gemm/gemm.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/pooling/pooling_ref.h"
#include "runtime/encoder/weights.h"

namespace xsr::test {

template <typename T>
class PlainEncoder {
 public:
  explicit PlainEncoder(const XsrFile& file)
      : config_(file.config()), weights_(bind_weights(file)) {}

  /// [embedding_size]; zeros for no tokens.
  std::vector<T> embed(std::span<const int32_t> token_ids) const {
    const int32_t N = static_cast<int32_t>(token_ids.size()), C = config_.hidden_size,
                  F = config_.intermediate_size, H = config_.num_heads, E = config_.embedding_size;
    if (N == 0) return std::vector<T>(E);
    const T eps = T(static_cast<float>(config_.layer_norm_eps));
    const int32_t cu_seqlens[2] = {0, N};
    std::vector<int32_t> positions(N);
    for (int32_t i = 0; i < N; ++i) positions[i] = config_.position_offset + i;
    std::vector<T> x(N * C), qkv(N * 3 * C), context(N * C), hidden(N * F), scratch(N);
    const NormWeights& norm = weights_.embedding_norm;
    if (weights_.table_storage == kernels::Storage::kI8) {
      kernels::embedding_quantized_ref<T>(
          token_ids.data(), positions.data(), 0, N, static_cast<const int8_t*>(weights_.token),
          weights_.token_scales, static_cast<const int8_t*>(weights_.position),
          weights_.position_scales, weights_.token_type, norm.gamma, norm.beta, eps, C, x.data(), C,
          static_cast<T*>(nullptr));
    } else {
      kernels::embedding_forward_ref<T>(token_ids.data(), positions.data(), 0, N, weights_.token,
                                        weights_.position, weights_.table_storage,
                                        weights_.token_type, norm.gamma, norm.beta, eps, C,
                                        x.data(), C, static_cast<T*>(nullptr));
    }
    const auto normalise = [&](const NormWeights& of) {
      kernels::layernorm_forward_ref<T, float>(x.data(), C, 0, N, C, of.gamma, of.beta, eps,
                                               x.data(), C);
    };
    for (const LayerWeights& layer : weights_.layers) {
      product(layer.qkv, x, N, qkv, false);
      kernels::attention_forward_ref<T>(qkv.data(), 3 * C, cu_seqlens, 0, 1, 0, H, H, C / H,
                                        context.data(), C, nullptr, scratch.data());
      product(layer.attention_output, context, N, x, true);
      normalise(layer.attention_norm);
      product(layer.up, x, N, hidden, false);
      kernels::activation_forward_ref(hidden.data(), N * F, config_.activation, hidden.data());
      product(layer.down, hidden, N, x, true);
      normalise(layer.output_norm);
    }
    std::vector<T> pooled(C), out(E);
    kernels::pooling_forward_ref<T>(x.data(), C, cu_seqlens, 0, 1, C, config_.pooling,
                                    pooled.data(), C);
    if (config_.has_pooler) {
      product(weights_.pooler, pooled, 1, out, false);
      kernels::activation_forward_ref(out.data(), E, config_.pooler_activation, out.data());
    } else {
      out = pooled;
    }
    if (config_.normalize) kernels::l2_normalize_forward_ref<T>(out.data(), E, 0, 1, E);
    return out;
  }

 private:
  static void product(const LinearWeights& linear, const std::vector<T>& a, int32_t M,
                      std::vector<T>& out, bool add) {
    const kernels::PackedMatrix& w = linear.weight;
    for (int32_t n = 0; n < w.N; ++n) {
      for (int32_t m = 0; m < M; ++m) {
        T sum = 0;
        for (int32_t k = 0; k < w.K; ++k)
          sum += a[m * w.K + k] * T(kernels::gemm_packed_element(w, n, k));
        sum += T(linear.bias[n]);
        T& to = out[m * w.N + n];
        to = add ? to + sum : sum;
      }
    }
  }

  const ModelConfig& config_;
  const EncoderWeights weights_;
};

}  // namespace xsr::test
