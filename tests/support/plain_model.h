#pragma once
// The whole model in training as plain loops on the kernels' references, in any precision: double
// says what is right, float what plain arithmetic loses.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/activation/activation_ref.h"
#include "kernels/attention/attention_ref.h"
#include "kernels/dropout/dropout_ref.h"
#include "kernels/embedding/embedding.h"
#include "kernels/layernorm/layernorm_ref.h"
#include "kernels/optimizer/optimizer_ref.h"
#include "kernels/pooling/pooling_ref.h"
#include "runtime/format/model_config.h"
#include "tests/support/kernel_harness.h"
#include "training/batch.h"
#include "training/objectives/objectives.h"
#include "training/objectives/sparse_target.h"
#include "training/parameters.h"

namespace xsr::test {

using training::PairBatch;
using training::Parameter;
using training::ParameterTable;

struct PlainLosses {
  double ugt = 0, align = 0, sim = 0, total = 0;
};

template <typename T>
class PlainModel {
 public:
  explicit PlainModel(const ModelConfig& config)
      : config_(config), table(config), values(table.size()), gradients(table.size()) {}

  /// UGT + align_weight · ALIGN + sim_weight · SIM as Mao et al. 2021 released them, u, and what
  /// the losses add to the gradients.
  PlainLosses losses(const PairBatch& batch, double align_weight, double sim_weight,
                     const kernels::Dropout& dropout = {}) {
    std::fill(gradients.begin(), gradients.end(), T(0));
    forward(batch, dropout);
    du_.assign(u.size(), T(0));
    PlainLosses losses;
    losses.ugt = generative(batch, du_);
    if (align_weight != 0) losses.align = align(batch.num_pairs, T(align_weight), du_);
    if (sim_weight != 0) losses.sim = sim(batch.num_pairs, T(sim_weight), du_);
    losses.total = losses.ugt + align_weight * losses.align + sim_weight * losses.sim;
    return losses;
  }
  /// The same and all gradients.
  PlainLosses forward_backward(const PairBatch& batch, double align_weight, double sim_weight,
                               const kernels::Dropout& dropout = {}) {
    const PlainLosses parts = losses(batch, align_weight, sim_weight, dropout);
    backward(batch, dropout, du_);
    return parts;
  }

  /// Gives u and keeps what backward needs.
  void forward(const PairBatch& batch, kernels::Dropout dropout) {
    const int32_t C = config_.hidden_size, H = config_.num_heads, S = batch.num_sentences();
    embedding_sum_.assign(batch.num_tokens() * C, T(0));
    for (int32_t b = 0; b < S; ++b) {
      for (int32_t i = batch.cu_seqlens[b]; i < batch.cu_seqlens[b + 1]; ++i) {
        const int32_t position = config_.position_offset + i - batch.cu_seqlens[b];
        for (int32_t c = 0; c < C; ++c) {
          embedding_sum_[i * C + c] =
              value("embedding.token")[int64_t{batch.token_ids[i]} * C + c] +
              value("embedding.position")[int64_t{position} * C + c];
        }
      }
    }
    std::vector<T> x = layernorm(embedding_sum_, "embedding.norm.weight", "embedding.norm.bias");
    drop(x, dropout, 0);
    layers_.assign(config_.num_layers, {});
    for (int32_t l = 0; l < config_.num_layers; ++l) {
      const std::string at = "layer." + std::to_string(l) + ".";
      const uint32_t stream = 1 + l * (H + 2);
      Layer& k = layers_[l];
      k.x = x;
      k.qkv = linear(x, at + "qkv");
      k.context.resize(x.size());
      k.lse.resize(batch.num_tokens() * H);
      std::vector<T> scratch(3 * batch.num_tokens() + 1);
      dropout.stream = stream;
      kernels::attention_forward_ref<T>(k.qkv.data(), 3 * C, batch.cu_seqlens.data(), 0, S, 0, H, H,
                                        C / H, k.context.data(), C, k.lse.data(), scratch.data(),
                                        dropout);
      k.attention_sum = linear(k.context, at + "attention_output");
      drop(k.attention_sum, dropout, stream + H);
      add(k.attention_sum, x);
      k.y = layernorm(k.attention_sum, at + "attention_norm.weight", at + "attention_norm.bias");
      k.up = linear(k.y, at + "up");
      k.hidden.resize(k.up.size());
      kernels::activation_forward_ref<T>(k.up.data(), static_cast<int64_t>(k.up.size()),
                                         config_.activation, k.hidden.data());
      k.output_sum = linear(k.hidden, at + "down");
      drop(k.output_sum, dropout, stream + H + 1);
      add(k.output_sum, k.y);
      x = layernorm(k.output_sum, at + "output_norm.weight", at + "output_norm.bias");
    }
    output_ = x;
    u.assign(int64_t{S} * C, T(0));
    kernels::pooling_forward_ref<T>(x.data(), C, batch.cu_seqlens.data(), 0, S, C, config_.pooling,
                                    u.data(), C);
  }

  /// Adds to the gradients, du being that of u.
  void backward(const PairBatch& batch, kernels::Dropout dropout, const std::vector<T>& du) {
    const int32_t C = config_.hidden_size, H = config_.num_heads, S = batch.num_sentences();
    std::vector<T> dx(output_.size());
    kernels::pooling_backward_ref<T>(output_.data(), C, du.data(), C, batch.cu_seqlens.data(), 0, S,
                                     C, config_.pooling, dx.data(), C);
    for (int32_t l = config_.num_layers - 1; l >= 0; --l) {
      const std::string at = "layer." + std::to_string(l) + ".";
      const uint32_t stream = 1 + l * (H + 2);
      const Layer& k = layers_[l];
      dx = unlayernorm(k.output_sum, dx, at + "output_norm.weight", at + "output_norm.bias");
      std::vector<T> branch = dx;
      drop(branch, dropout, stream + H + 1);
      std::vector<T> dup = unlinear(branch, k.hidden, at + "down");
      kernels::activation_backward_ref<T>(k.up.data(), dup.data(), static_cast<int64_t>(dup.size()),
                                          config_.activation, dup.data());
      add(dx, unlinear(dup, k.y, at + "up"));
      dx = unlayernorm(k.attention_sum, dx, at + "attention_norm.weight",
                       at + "attention_norm.bias");
      branch = dx;
      drop(branch, dropout, stream + H);
      const std::vector<T> dcontext = unlinear(branch, k.context, at + "attention_output");
      std::vector<T> dqkv(k.qkv.size()), scratch(3 * batch.num_tokens() + 1);
      dropout.stream = stream;
      kernels::attention_backward_ref<T>(k.qkv.data(), 3 * C, batch.cu_seqlens.data(), 0, S, 0, H,
                                         H, C / H, k.lse.data(), dropout, dcontext.data(), C,
                                         dqkv.data(), 3 * C, scratch.data());
      add(dx, unlinear(dqkv, k.x, at + "qkv"));
    }
    drop(dx, dropout, 0);
    dx = unlayernorm(embedding_sum_, dx, "embedding.norm.weight", "embedding.norm.bias");
    for (int32_t b = 0; b < S; ++b) {
      for (int32_t i = batch.cu_seqlens[b]; i < batch.cu_seqlens[b + 1]; ++i) {
        const int32_t position = config_.position_offset + i - batch.cu_seqlens[b];
        for (int32_t c = 0; c < C; ++c) {
          gradient("embedding.token")[int64_t{batch.token_ids[i]} * C + c] += dx[i * C + c];
          gradient("embedding.position")[int64_t{position} * C + c] += dx[i * C + c];
        }
      }
    }
  }

  /// One step of AMSGrad with coupled L2 (docs/methods.md, Optimiser), t = 1, 2, …
  void amsgrad(int t, double learning_rate) {
    m_.resize(values.size());
    v_.resize(values.size());
    w_.resize(values.size());
    kernels::AdamStep step;
    step.l2 = 1e-5f;
    step.step_size = static_cast<float>(learning_rate / (1 - std::pow(0.9, t)));
    step.inverse_correction2 = static_cast<float>(1 / std::sqrt(1 - std::pow(0.999, t)));
    kernels::adam_update_ref<T>(values.data(), gradients.data(), m_.data(), v_.data(), w_.data(),
                                nullptr, 0, table.size(), step);
  }

 private:
  const ModelConfig config_;
  struct Layer {
    std::vector<T> x, qkv, lse, context, attention_sum, y, up, hidden, output_sum;
  };
  std::vector<Layer> layers_;
  std::vector<T> embedding_sum_, output_, du_;
  std::vector<T> m_, v_, w_;

 public:
  const ParameterTable table;
  std::vector<T> values, gradients;
  std::vector<T> u;  // [2B, C] of the last batch

 private:
  T* value(const std::string& name) { return values.data() + table.at(name).offset; }
  T* gradient(const std::string& name) { return gradients.data() + table.at(name).offset; }

  // out[m, n] = Σ_k a[m, k] w[n, k] + b[n]
  std::vector<T> linear(const std::vector<T>& a, const T* w, const T* b, int64_t N, int64_t K) {
    const int64_t M = static_cast<int64_t>(a.size()) / K;
    std::vector<T> turned(K * N), out(M * N, T(0));
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) turned[k * N + n] = w[n * K + k];
    }
    for (int64_t m = 0; m < M; ++m) {
      T* row = out.data() + m * N;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t n = 0; n < N; ++n) row[n] += a[m * K + k] * turned[k * N + n];
      }
      for (int64_t n = 0; n < N; ++n) row[n] += b[n];
    }
    return out;
  }
  std::vector<T> linear(const std::vector<T>& a, const std::string& name) {
    const Parameter& w = table.at(name + ".weight");
    return linear(a, value(name + ".weight"), value(name + ".bias"), w.shape[0], w.shape[1]);
  }
  // Gives da; adds to the gradients of the weight and its bias.
  std::vector<T> unlinear(const std::vector<T>& dout, const std::vector<T>& a, const T* w, T* dw,
                          T* db, int64_t N, int64_t K) {
    const int64_t M = static_cast<int64_t>(a.size()) / K;
    std::vector<T> da(M * K, T(0)), sums(K);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t k = 0; k < K; ++k) da[m * K + k] += dout[m * N + n] * w[n * K + k];
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      std::fill(sums.begin(), sums.end(), T(0));
      T total = 0;
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t k = 0; k < K; ++k) sums[k] += dout[m * N + n] * a[m * K + k];
        total += dout[m * N + n];
      }
      for (int64_t k = 0; k < K; ++k) dw[n * K + k] += sums[k];
      db[n] += total;
    }
    return da;
  }
  std::vector<T> unlinear(const std::vector<T>& dout, const std::vector<T>& a,
                          const std::string& name) {
    const Parameter& w = table.at(name + ".weight");
    return unlinear(dout, a, value(name + ".weight"), gradient(name + ".weight"),
                    gradient(name + ".bias"), w.shape[0], w.shape[1]);
  }

  std::vector<T> layernorm(const std::vector<T>& x, const std::string& gamma,
                           const std::string& beta) {
    const int32_t C = config_.hidden_size;
    std::vector<T> out(x.size());
    kernels::layernorm_forward_ref<T, T>(x.data(), C, 0, static_cast<int32_t>(x.size()) / C, C,
                                         value(gamma), value(beta), T(config_.layer_norm_eps),
                                         out.data(), C);
    return out;
  }
  std::vector<T> unlayernorm(const std::vector<T>& x, const std::vector<T>& dout,
                             const std::string& gamma, const std::string& beta) {
    const int32_t C = config_.hidden_size, N = static_cast<int32_t>(x.size()) / C;
    const int32_t blocks = kernels::layernorm_block_count(N);
    std::vector<T> dx(x.size()), dgamma(blocks * C), dbeta(blocks * C);
    kernels::layernorm_backward_ref<T>(x.data(), C, dout.data(), C, N, 0, blocks, C, value(gamma),
                                       T(config_.layer_norm_eps), dx.data(), C, dgamma.data(),
                                       dbeta.data());
    for (int32_t i = 0; i < blocks * C; ++i) {
      gradient(gamma)[i % C] += dgamma[i];
      gradient(beta)[i % C] += dbeta[i];
    }
    return dx;
  }

  void drop(std::vector<T>& x, kernels::Dropout dropout, uint32_t stream) {
    const int32_t C = config_.hidden_size;
    dropout.stream = stream;
    if (dropout.threshold == 0) return;
    kernels::dropout_forward_ref<T>(x.data(), C, 0, static_cast<int32_t>(x.size()) / C, C, dropout,
                                    nullptr, 0, x.data(), C);
  }

  static void add(std::vector<T>& x, const std::vector<T>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  double generative(const PairBatch& batch, std::vector<T>& du) {
    const int32_t C = config_.hidden_size, V = config_.vocab_size, S = batch.num_sentences();
    const std::string at = "head.transform";
    const std::vector<T> pre = linear(u, at);
    std::vector<T> act(pre.size());
    kernels::activation_forward_ref<T>(pre.data(), static_cast<int64_t>(pre.size()),
                                       config_.activation, act.data());
    const std::vector<T> t = layernorm(act, "head.norm.gamma", "head.norm.beta");
    std::vector<T> z = linear(t, value("embedding.token"), value("head.output.bias"), V, C);
    const training::SparseTarget target = training::ugt_target(batch, {});
    T loss = 0;
    for (int32_t b = 0; b < S; ++b) {
      T* row = z.data() + int64_t{b} * V;
      T peak = row[0], sum = 0, mass = 0;
      for (int32_t v = 1; v < V; ++v) peak = std::max(peak, row[v]);
      for (int32_t v = 0; v < V; ++v) sum += std::exp(row[v] - peak);
      const T lse = peak + std::log(sum);
      for (int32_t j = target.offsets[b]; j < target.offsets[b + 1]; ++j) {
        const T p = target.masses[j];
        loss += p * (std::log(p) - (row[target.token_ids[j]] - lse));
        mass += p;
      }
      for (int32_t v = 0; v < V; ++v) row[v] = mass * std::exp(row[v] - lse) / batch.num_pairs;
      for (int32_t j = target.offsets[b]; j < target.offsets[b + 1]; ++j)
        row[target.token_ids[j]] -= T(target.masses[j]) / batch.num_pairs;
    }
    const std::vector<T> dt = unlinear(z, t, value("embedding.token"), gradient("embedding.token"),
                                       gradient("head.output.bias"), V, C);
    std::vector<T> dact = unlayernorm(act, dt, "head.norm.gamma", "head.norm.beta");
    kernels::activation_backward_ref<T>(pre.data(), dact.data(), static_cast<int64_t>(dact.size()),
                                        config_.activation, dact.data());
    add(du, unlinear(dact, u, at));
    return static_cast<double>(loss / batch.num_pairs);
  }

  // The rows of side `side`.
  T* side(std::vector<T>& x, int32_t B, int side) {
    return x.data() + int64_t{side} * B * config_.hidden_size;
  }
  T dot(const T* a, const T* b) const {
    T sum = 0;
    for (int32_t c = 0; c < config_.hidden_size; ++c) sum += a[c] * b[c];
    return sum;
  }
  /// da += ds · b, db += ds · a
  void undot(T ds, const T* a, const T* b, T* da, T* db) const {
    for (int32_t c = 0; c < config_.hidden_size; ++c) {
      da[c] += ds * b[c];
      db[c] += ds * a[c];
    }
  }

  double align(int32_t B, T weight, std::vector<T>& du) {
    const int32_t C = config_.hidden_size;
    T *u1 = side(u, B, 0), *u2 = side(u, B, 1), *du1 = side(du, B, 0), *du2 = side(du, B, 1);
    std::vector<T> s(B * B), ds(B * B, T(0));
    for (int32_t i = 0; i < B; ++i) {
      for (int32_t j = 0; j < B; ++j) s[i * B + j] = dot(u1 + i * C, u2 + j * C);
    }
    T loss = 0;
    for (int transposed = 0; transposed < 2; ++transposed) {
      for (int32_t i = 0; i < B; ++i) {
        const auto at = [&](int32_t j) { return transposed != 0 ? j * B + i : i * B + j; };
        T peak = s[at(0)], sum = 0;
        for (int32_t j = 1; j < B; ++j) peak = std::max(peak, s[at(j)]);
        for (int32_t j = 0; j < B; ++j) sum += std::exp(s[at(j)] - peak);
        loss += (peak - s[at(i)]) + std::log(sum);
        for (int32_t j = 0; j < B; ++j)
          ds[at(j)] += weight / B * (std::exp(s[at(j)] - peak) / sum - T(i == j));
      }
    }
    for (int32_t i = 0; i < B; ++i) {
      for (int32_t j = 0; j < B; ++j)
        undot(ds[i * B + j], u1 + i * C, u2 + j * C, du1 + i * C, du2 + j * C);
    }
    return static_cast<double>(loss / B);
  }

  double sim(int32_t B, T weight, std::vector<T>& du) {
    const int32_t C = config_.hidden_size;
    std::vector<T> p[2];
    for (int k = 0; k < 2; ++k) {
      p[k].resize(B * B);
      for (int32_t i = 0; i < B; ++i) {
        T* row = p[k].data() + i * B;
        T peak = -INFINITY, sum = 0;
        for (int32_t j = 0; j < B; ++j) {
          row[j] = dot(side(u, B, k) + i * C, side(u, B, k) + j * C);
          peak = std::max(peak, row[j]);
        }
        for (int32_t j = 0; j < B; ++j) sum += row[j] = std::exp(row[j] - peak);
        for (int32_t j = 0; j < B; ++j) row[j] /= sum;
      }
    }
    const T half_pi = T(1.5707963267948966);
    T loss = 0;
    for (int32_t i = 0; i < B; ++i) {
      std::vector<T> g(B);
      for (int32_t j = 0; j < B; ++j) {
        const T x = half_pi * (p[0][i * B + j] - p[1][i * B + j]);
        loss -= std::log(std::cos(x));
        g[j] = weight * half_pi * std::tan(x);
      }
      for (int k = 0; k < 2; ++k) {
        const T* row = p[k].data() + i * B;
        T mean = 0;
        for (int32_t j = 0; j < B; ++j) mean += row[j] * g[j];
        for (int32_t j = 0; j < B; ++j) {
          const T ds = (k == 0 ? T(1) : T(-1)) * row[j] * (g[j] - mean);
          undot(ds, side(u, B, k) + i * C, side(u, B, k) + j * C, side(du, B, k) + i * C,
                side(du, B, k) + j * C);
        }
      }
    }
    return static_cast<double>(loss);
  }
};

/// What plain f32 loops lose, in every part of the loss and every gradient: the largest error of
/// some draws, each at parameters moved by a few roundings, since a single run may be lucky.
struct PlainBudget {
  std::array<ErrorBudget, 4> losses;   // relative: total, ugt, align, sim
  std::vector<ErrorBudget> gradients;  // one a parameter, in the order of the table

  PlainBudget(const ModelConfig& config, const std::vector<double>& values, const PairBatch& batch,
              double align_weight, double sim_weight, const kernels::Dropout& dropout = {}) {
    constexpr int kDraws = 16;
    constexpr double kGradientFactor = 3;  // house rule
    Random random(31);
    PlainModel<float> plain(config);
    PlainModel<double> exact(config);
    gradients.assign(plain.table.parameters().size(), ErrorBudget(kGradientFactor));
    for (int draw = 0; draw < kDraws; ++draw) {
      for (size_t i = 0; i < values.size(); ++i) {
        plain.values[i] = static_cast<float>(values[i]) * (1 + random.normal(0x1p-20f));
        exact.values[i] = plain.values[i];
      }
      const PlainLosses a = plain.forward_backward(batch, align_weight, sim_weight, dropout);
      const PlainLosses b = exact.forward_backward(batch, align_weight, sim_weight, dropout);
      const auto add = [&](int part, double found, double wanted) {
        if (wanted != 0) losses[part].add(1, static_cast<float>(found / wanted), 1, part, draw);
      };
      add(0, a.total, b.total);
      add(1, a.ugt, b.ugt);
      add(2, a.align, b.align);
      add(3, a.sim, b.sim);
      size_t k = 0;
      for (const Parameter& p : plain.table.parameters()) {
        for (int64_t i = p.offset; i < p.offset + p.size; ++i) {
          gradients[k].add(static_cast<float>(exact.gradients[i]), plain.gradients[i],
                           exact.gradients[i], 0, 0);
        }
        ++k;
      }
    }
  }

  /// Holds a step's losses and gradients against the exact ones; gives the largest share of a
  /// gradient's budget.
  double check(const training::LossParts& found, const training::FlatBuffer& found_gradients,
               const PlainLosses& exact, const ParameterTable& table,
               const std::vector<double>& exact_gradients, const std::string& what) const {
    const auto check_loss = [&](int part, double value, double wanted, const char* name) {
      ErrorBudget budget = losses[part];
      budget.add(static_cast<float>(value / wanted), 1, 1, part, 0);
      EXPECT_TRUE(budget.check(what + " loss " + name + ", relative", "*"));
    };
    check_loss(0, found.total, exact.total, "total");
    for (const training::LossPart& part : found.parts) {
      if (part.name == "ugt") check_loss(1, part.value, exact.ugt, "ugt");
      if (part.name == "align") check_loss(2, part.value, exact.align, "align");
      if (part.name == "sim") check_loss(3, part.value, exact.sim, "sim");
    }
    EXPECT_EQ(1u + (exact.align != 0) + (exact.sim != 0), found.parts.size()) << what;
    double worst = 0;
    size_t k = 0;
    for (const Parameter& p : table.parameters()) {
      ErrorBudget budget = gradients[k++];
      for (int64_t i = 0; i < p.size; ++i) {
        const double wanted = exact_gradients[p.offset + i];
        budget.add(found_gradients.at(p)[i], static_cast<float>(wanted), wanted, i / p.shape.back(),
                   i % p.shape.back());
      }
      EXPECT_TRUE(budget.check(what + " gradient of " + p.name, "*"));
      worst = std::max(worst, budget.share());
    }
    return worst;
  }
};

}  // namespace xsr::test
