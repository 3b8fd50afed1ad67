#include "training/objectives/generative_head.h"

namespace xsr::training {
namespace {

using kernels::Activation;
using kernels::kGemmBackwardScratchFloats;
using kernels::kLayernormBlockRows;
using kernels::panel_count;
using kernels::Storage;

constexpr int32_t kOutputsATask = 32;  // rows of dW

}  // namespace

GenerativeHead::GenerativeHead(const ModelConfig& config, const ParameterTable& table,
                               Precision precision, const kernels::KernelTable& kernels,
                               ThreadPool& threads, int64_t stored_bytes)
    : C(config.hidden_size),
      layer_norm_eps_(static_cast<float>(config.layer_norm_eps)),
      token_(table.at("embedding.token")),
      weight_(table.at("head.transform.weight")),
      bias_(table.at("head.transform.bias")),
      gamma_(table.at("head.norm.gamma")),
      beta_(table.at("head.norm.beta")),
      output_bias_(table.at("head.output.bias")),
      kernels_(kernels),
      threads_(threads),
      vocabulary_(config.vocab_size, C, precision, kernels, threads, stored_bytes) {}

void GenerativeHead::transform(int32_t S, const float* u, int64_t u_stride,
                               const FlatBuffer& values) {
  const int64_t stride = row_stride(C);
  float *pre = pre_.floats(S * stride), *activated = activated_.floats(S * stride),
        *t = t_.floats(S * stride);
  float* panels = panels_.floats(kernels::packed_elements(C, C, Storage::kF32));
  kernels::GemmEpilogue bias;
  bias.bias = values.at(bias_);
  threads_.for_each(panel_count(C), [&](int32_t panel, int32_t) {
    kernels::gemm_pack_panels(values.at(weight_), C, C, C, Storage::kF32, panel, panel + 1, panels);
    kernels_.gemm_forward_f32(u, u_stride, S, {panels, Storage::kF32, C, C}, panel, panel + 1, bias,
                              pre, stride);
  });
  threads_.for_each(block_count(S, kLayernormBlockRows), [&](int32_t block, int32_t) {
    const int32_t first = block * kLayernormBlockRows,
                  last = std::min(S, first + kLayernormBlockRows);
    for (int32_t b = first; b < last; ++b)
      kernels_.activation_forward_f32(pre + b * stride, C, Activation::kSwish,
                                      activated + b * stride);
    kernels_.layernorm_forward_f32(activated, stride, first, last, C, values.at(gamma_),
                                   values.at(beta_), layer_norm_eps_, t, stride);
  });
}

/// From the gradient of t, in gradient_.
void GenerativeHead::transform_backward(int32_t S, const float* u, int64_t u_stride,
                                        const FlatBuffer& values, float* du, int64_t du_stride,
                                        FlatBuffer& gradients) {
  const int64_t stride = row_stride(C);
  float *pre = pre_.floats(S * stride), *activated = activated_.floats(S * stride),
        *gradient = gradient_.floats(S * stride);
  const int32_t blocks = block_count(S, kLayernormBlockRows);
  float *dgamma = norm_parts_.floats(2 * int64_t{blocks} * C),
        *dbeta = dgamma + int64_t{blocks} * C;
  // t = LayerNorm(activated), activated = swish(pre)
  threads_.for_each(blocks, [&](int32_t block, int32_t) {
    kernels_.layernorm_backward_f32(activated, stride, gradient, stride, S, block, block + 1, C,
                                    values.at(gamma_), layer_norm_eps_, gradient, stride, dgamma,
                                    dbeta);
    const int32_t last = std::min(S, (block + 1) * kLayernormBlockRows);
    for (int32_t b = block * kLayernormBlockRows; b < last; ++b)
      kernels_.activation_backward_f32(pre + b * stride, gradient + b * stride, C,
                                       Activation::kSwish, gradient + b * stride);
  });
  kernels_.column_sum_f32(dgamma, C, blocks, 0, C, true, gradients.at(gamma_));
  kernels_.column_sum_f32(dbeta, C, blocks, 0, C, true, gradients.at(beta_));
  // pre = u Wᵀ + b
  float* scratch = scratch_.floats(kGemmBackwardScratchFloats * threads_.num_threads());
  threads_.for_each(block_count(C, kOutputsATask), [&](int32_t block, int32_t thread) {
    const int32_t first = block * kOutputsATask, last = std::min(C, first + kOutputsATask);
    kernels_.gemm_backward_weight_f32(gradient, stride, u, u_stride, S, first, last, C, true,
                                      gradients.at(weight_), C,
                                      scratch + thread * kGemmBackwardScratchFloats);
    kernels_.column_sum_f32(gradient, stride, S, first, last, true, gradients.at(bias_));
  });
  float* panels = panels_.floats(kernels::packed_elements(C, C, Storage::kF32));
  kernels::GemmEpilogue accumulate;
  accumulate.residual = du;
  accumulate.residual_stride = du_stride;
  threads_.for_each(panel_count(C), [&](int32_t panel, int32_t) {
    kernels::gemm_pack_transposed_panels(values.at(weight_), C, C, C, Storage::kF32, panel,
                                         panel + 1, panels);
    kernels_.gemm_forward_f32(gradient, stride, S, {panels, Storage::kF32, C, C}, panel, panel + 1,
                              accumulate, du, du_stride);
  });
}

std::vector<double> GenerativeHead::forward_backward(std::span<const WeightedTarget> targets,
                                                     int32_t num_pairs, const float* u,
                                                     int64_t u_stride, const FlatBuffer& values,
                                                     const uint16_t* narrow, float* du,
                                                     int64_t du_stride, FlatBuffer* gradients) {
  const int32_t S = 2 * num_pairs;
  const int64_t stride = row_stride(C);
  transform(S, u, u_stride, values);
  std::vector<double> losses =
      vocabulary_.forward(targets, num_pairs, t_.floats(S * stride), stride, values.at(token_),
                          narrow == nullptr ? nullptr : narrow + token_.offset,
                          values.at(output_bias_), gradients != nullptr);
  if (gradients == nullptr) return losses;
  vocabulary_.backward(gradient_.floats(S * stride), stride, gradients->at(token_),
                       gradients->at(output_bias_));
  transform_backward(S, u, u_stride, values, du, du_stride, *gradients);
  return losses;
}

}  // namespace xsr::training
