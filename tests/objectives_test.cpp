// The losses of training/objectives: known values, golden gradients, a plain implementation in
// double, and the promises about threads, memory and values that are not finite.
#include <gmock/gmock.h>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "converter/checkpoint.h"
#include "runtime/error.h"
#include "tests/support/gradient_check.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/paths.h"
#include "training/objectives/objectives.h"
#include "training/presets.h"

namespace xsr::training {
namespace {

using kernels::Isa;
using nlohmann::json;
using test::ErrorBudget;
using test::Random;

constexpr double kGradient = 3;  // house rule: thrice the plain f32 loop

kernels::KernelTable fastest() { return kernels::resolve_kernels(Isa::kAvx512Bf16); }

ModelConfig small_config(int32_t vocab_size, int32_t hidden_size) {
  ModelConfig config;
  config.num_layers = 1;
  config.hidden_size = hidden_size;
  config.num_heads = 1;
  config.intermediate_size = 4;
  config.vocab_size = vocab_size;
  config.num_positions = 201;
  config.position_offset = 1;
  config.max_seq_len = 200;
  config.embedding_size = hidden_size;
  return config;
}

struct Sentence {
  std::vector<int32_t> ids;
  int32_t masked_at = -1;  // its place in the sentence
};

/// ids are those before masking; where masked_at is given, id 2 (<MASK>) is put there.
PairBatch batch_of(const std::vector<std::pair<Sentence, Sentence>>& pairs) {
  PairBatch batch;
  batch.num_pairs = static_cast<int32_t>(pairs.size());
  batch.masked_id.assign(pairs.size(), -1);
  batch.masked_row.assign(pairs.size(), -1);
  batch.masked_side.assign(pairs.size(), 0);
  batch.cu_seqlens = {0};
  for (uint8_t side = 0; side < 2; ++side) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      const Sentence& s = side == 0 ? pairs[i].first : pairs[i].second;
      const int32_t begin = batch.cu_seqlens.back();
      batch.token_ids.insert(batch.token_ids.end(), s.ids.begin(), s.ids.end());
      if (s.masked_at >= 0) {
        batch.masked_id[i] = s.ids[s.masked_at];
        batch.masked_row[i] = begin + s.masked_at;
        batch.masked_side[i] = side;
        batch.token_ids[begin + s.masked_at] = 2;
      }
      batch.cu_seqlens.push_back(begin + static_cast<int32_t>(s.ids.size()));
    }
  }
  return batch;
}

PairBatch random_batch(Random& random, int32_t num_pairs, int32_t vocab_size) {
  std::vector<std::pair<Sentence, Sentence>> pairs(num_pairs);
  for (auto& [side1, side2] : pairs) {
    for (Sentence* s : {&side1, &side2}) {
      s->ids.resize(random.range(1, 7));
      for (int32_t& id : s->ids) id = random.range(3, vocab_size - 1);
    }
    Sentence& masked = random.range(0, 1) ? side1 : side2;
    masked.masked_at = random.range(0, static_cast<int32_t>(masked.ids.size()) - 1);
  }
  return batch_of(pairs);
}

// ---- targets ----

std::vector<std::pair<int32_t, float>> bag(const SparseTarget& target, int32_t sentence) {
  std::vector<std::pair<int32_t, float>> words;
  for (int32_t i = target.offsets[sentence]; i < target.offsets[sentence + 1]; ++i)
    words.push_back({target.token_ids[i], target.masses[i]});
  return words;
}

using Bag = std::vector<std::pair<int32_t, float>>;

TEST(Targets, FollowEverySwitch) {
  // docs/methods.md, Golden values: 3 4 5 with 4 masked, and 6 7 7; then a pair whose masked word
  // is on both sides.
  const PairBatch batch = batch_of({{{{3, 4, 5}, 1}, {{6, 7, 7}}}, {{{8, 9}}, {{9, 5, 9, 3}, 0}}});
  const float third = 1.0f / 3, sixth = 1.0f / 6;
  const TargetSettings release, counted{true, false, false}, clean{false, true, false},
      added{false, false, true};

  EXPECT_EQ((Bag{{6, third}, {7, third}}), bag(xtr_target(batch, release), 0));
  EXPECT_EQ((Bag{{6, third}, {7, 2 * third}}), bag(xtr_target(batch, counted), 0));
  EXPECT_EQ((Bag{{2, third}, {3, third}, {5, third}}), bag(xtr_target(batch, release), 2));
  EXPECT_EQ((Bag{{3, third}, {4, third}, {5, third}}), bag(xtr_target(batch, clean), 2));
  EXPECT_EQ((Bag{{2, .25f}, {3, .25f}, {5, .25f}, {9, .25f}}), bag(xtr_target(batch, release), 1));
  EXPECT_EQ((Bag{{3, .25f}, {5, .25f}, {9, .25f}}), bag(xtr_target(batch, clean), 1));
  EXPECT_EQ((Bag{{3, .25f}, {5, .25f}, {9, .5f}}), bag(xtr_target(batch, {true, true, false}), 1));
  const PairBatch last = batch_of({{{{3, 4, 5}, 2}, {{6}}}, {{{7}}, {{8, 9}, 1}}});
  EXPECT_EQ((Bag{{3, third}, {4, third}, {5, third}}), bag(xtr_target(last, clean), 2));
  EXPECT_EQ((Bag{{8, .5f}, {9, .5f}}), bag(xtr_target(last, clean), 1));

  EXPECT_EQ((Bag{{4, .5f}, {6, sixth}, {7, sixth}}), bag(ugt_target(batch, release), 0));
  EXPECT_EQ((Bag{{2, third}, {3, third}, {5, third}}), bag(ugt_target(batch, release), 2));
  EXPECT_EQ((Bag{{8, .25f}, {9, .25f}}), bag(ugt_target(batch, release), 3));  // overwritten
  EXPECT_EQ((Bag{{8, .25f}, {9, .75f}}), bag(ugt_target(batch, added), 3));

  EXPECT_EQ((Bag{{4, 1}}), bag(smlm_target(batch), 0));
  EXPECT_EQ(Bag{}, bag(smlm_target(batch), 2));
  EXPECT_EQ((Bag{{9, 1}}), bag(smlm_target(batch), 3));
}

TEST(Targets, APairWithoutMaskGivesXtr) {
  const PairBatch batch = batch_of({{{{3, 4}}, {{6, 7, 7}}}});
  for (int32_t b : {0, 1}) EXPECT_EQ(bag(xtr_target(batch, {}), b), bag(ugt_target(batch, {}), b));
  EXPECT_TRUE(smlm_target(batch).token_ids.empty());
}

// ---- the vocabulary and the head ----

/// The generative head, plainly: everything dense, in one type.
template <typename T>
struct PlainHead {
  int32_t S, C, V;
  std::vector<T> weight, bias, gamma, beta, token, output_bias, u;         // in
  std::vector<T> dweight, dbias, dgamma, dbeta, dtoken, doutput_bias, du;  // out

  /// Gives each target's loss; the gradients are those of the weighted sum.
  std::vector<T> run(const std::vector<std::vector<T>>& targets, const std::vector<T>& weights) {
    const int32_t B = S / 2;
    std::vector<T> losses(targets.size(), 0);
    const auto zeros = [](std::vector<T>& x, int64_t n) { x.assign(n, 0); };
    zeros(dweight, C * C), zeros(dbias, C), zeros(dgamma, C), zeros(dbeta, C);
    zeros(dtoken, int64_t{V} * C), zeros(doutput_bias, V), zeros(du, S * C);
    for (int32_t b = 0; b < S; ++b) {
      std::vector<T> pre(C), act(C), normal(C), t(C), z(V), dz(V), dt(C), dact(C);
      T mean = 0, squares = 0;
      for (int32_t c = 0; c < C; ++c) {
        for (int32_t k = 0; k < C; ++k) pre[c] += u[b * C + k] * weight[c * C + k];
        pre[c] += bias[c];
        act[c] = pre[c] / (1 + std::exp(-pre[c]));
        mean += act[c] / C;
      }
      for (T a : act) squares += (a - mean) * (a - mean) / C;
      const T rstd = 1 / std::sqrt(squares + T(1e-12));
      for (int32_t c = 0; c < C; ++c) {
        normal[c] = (act[c] - mean) * rstd;
        t[c] = normal[c] * gamma[c] + beta[c];
      }
      T max = -INFINITY, sum = 0;
      for (int32_t v = 0; v < V; ++v) {
        for (int32_t c = 0; c < C; ++c) z[v] += t[c] * token[int64_t{v} * C + c];
        z[v] += output_bias[v];
        max = std::max(max, z[v]);
      }
      for (T logit : z) sum += std::exp(logit - max);
      const T lse = max + std::log(sum);
      for (size_t k = 0; k < targets.size(); ++k) {
        T mass = 0;
        for (int32_t v = 0; v < V; ++v) {
          const T p = targets[k][int64_t{b} * V + v];
          if (p == 0) continue;
          losses[k] += p * (std::log(p) - (z[v] - lse)) / B;
          mass += p;
          dz[v] -= weights[k] * p / B;
        }
        for (int32_t v = 0; v < V; ++v) dz[v] += weights[k] * mass / B * std::exp(z[v] - lse);
      }
      for (int32_t v = 0; v < V; ++v) {
        doutput_bias[v] += dz[v];
        for (int32_t c = 0; c < C; ++c) {
          dtoken[int64_t{v} * C + c] += dz[v] * t[c];
          dt[c] += dz[v] * token[int64_t{v} * C + c];
        }
      }
      T g_mean = 0, gx_mean = 0;
      for (int32_t c = 0; c < C; ++c) {
        dgamma[c] += dt[c] * normal[c];
        dbeta[c] += dt[c];
        g_mean += dt[c] * gamma[c] / C;
        gx_mean += dt[c] * gamma[c] * normal[c] / C;
      }
      for (int32_t c = 0; c < C; ++c) {
        dact[c] = rstd * (dt[c] * gamma[c] - g_mean - normal[c] * gx_mean);
        const T sigmoid = 1 / (1 + std::exp(-pre[c]));
        const T dpre = dact[c] * (sigmoid + pre[c] * sigmoid * (1 - sigmoid));
        dbias[c] += dpre;
        for (int32_t k = 0; k < C; ++k) {
          dweight[c * C + k] += dpre * u[b * C + k];
          du[b * C + k] += dpre * weight[c * C + k];
        }
      }
    }
    return losses;
  }
};

template <typename T>
std::vector<T> dense(const SparseTarget& target, int32_t S, int32_t V) {
  std::vector<T> table(int64_t{S} * V, 0);
  for (int32_t b = 0; b < S; ++b) {
    for (const auto& [id, mass] : bag(target, b)) table[int64_t{b} * V + id] = mass;
  }
  return table;
}

/// A head with random parameters, and what it gives, and what the plain one gives.
struct HeadCase {
  HeadCase(Random& random, int32_t num_pairs, int32_t hidden_size, int32_t vocab_size,
           float token_scale, const TargetSettings& settings = {})
      : B(num_pairs),
        C(hidden_size),
        V(vocab_size),
        config(small_config(V, C)),
        table(config),
        values(table.size()),
        gradients(table.size()),
        u(2 * B * C),
        du(2 * B * C, 0.25f) {
    for (const Parameter& p : table.parameters()) {
      for (int64_t i = 0; i < p.size; ++i) {
        values.at(p)[i] = p.name == "embedding.token" ? random.normal(token_scale)
                          : p.name == "head.norm.gamma"
                              ? 1 + random.normal(0.2f)
                              : random.normal(p.name == "head.transform.weight"
                                                  ? 1 / std::sqrt(static_cast<float>(C))
                                                  : 0.2f);
      }
    }
    for (float& x : u) x = random.normal();
    const PairBatch batch = random_batch(random, B, V);
    targets = {xtr_target(batch, settings), ugt_target(batch, settings), smlm_target(batch)};
  }

  template <typename T>
  PlainHead<T> plain() const {
    const auto get = [&](const char* name) {
      const Parameter& p = table.at(name);
      return std::vector<T>(values.at(p), values.at(p) + p.size);
    };
    PlainHead<T> head{2 * B,
                      C,
                      V,
                      get("head.transform.weight"),
                      get("head.transform.bias"),
                      get("head.norm.gamma"),
                      get("head.norm.beta"),
                      get("embedding.token"),
                      get("head.output.bias"),
                      {u.begin(), u.end()},
                      {},
                      {},
                      {},
                      {},
                      {},
                      {},
                      {}};
    return head;
  }
  template <typename T>
  std::vector<std::vector<T>> dense_targets() const {
    std::vector<std::vector<T>> result;
    for (const SparseTarget& t : targets) result.push_back(dense<T>(t, 2 * B, V));
    return result;
  }

  std::vector<double> run(Precision precision, int32_t num_threads, int64_t stored_bytes,
                          const uint16_t* narrow = nullptr,
                          const kernels::KernelTable& kernels = fastest()) {
    ThreadPool threads(num_threads);
    GenerativeHead head(config, table, precision, kernels, threads, stored_bytes);
    return run(head, narrow);
  }
  std::vector<double> run(GenerativeHead& head, const uint16_t* narrow = nullptr) {
    std::vector<WeightedTarget> weighted;
    for (size_t k = 0; k < targets.size(); ++k) weighted.push_back({&targets[k], weights[k]});
    std::fill_n(gradients.data(), gradients.size(), 0.5f);
    std::fill(du.begin(), du.end(), 0.25f);
    return head.forward_backward(weighted, B, u.data(), C, values, narrow, du.data(), C,
                                 &gradients);
  }

  const int32_t B, C, V;
  const ModelConfig config;
  const ParameterTable table;
  FlatBuffer values, gradients;
  std::vector<float> u, du;
  std::vector<SparseTarget> targets;
  std::vector<double> weights = {0.5, 1, 0.25};
};

/// Every gradient of a case (which starts at 0.5, du at 0.25) beside the plain ones.
template <typename Visit>
void visit_gradients(HeadCase& c, const PlainHead<float>& plain, const PlainHead<double>& exact,
                     Visit&& visit) {
  const auto parameter = [&](const char* name, const std::vector<float>& f,
                             const std::vector<double>& d) {
    const Parameter& p = c.table.at(name);
    std::vector<float> got(c.gradients.at(p), c.gradients.at(p) + p.size);
    visit(std::string(name), got, 0.5, f, d);
  };
  parameter("head.transform.weight", plain.dweight, exact.dweight);
  parameter("head.transform.bias", plain.dbias, exact.dbias);
  parameter("head.norm.gamma", plain.dgamma, exact.dgamma);
  parameter("head.norm.beta", plain.dbeta, exact.dbeta);
  parameter("embedding.token", plain.dtoken, exact.dtoken);
  parameter("head.output.bias", plain.doutput_bias, exact.doutput_bias);
  visit("u", c.du, 0.25, plain.du, exact.du);
}

TEST(GenerativeHead, ThePlainHeadHasTheGradientsOfCentralDifferences) {
  Random random(31);
  HeadCase c(random, 2, 5, 11, 0.7f);
  PlainHead<double> head = c.plain<double>();
  const auto targets = c.dense_targets<double>();
  const auto loss = [&] {
    const std::vector<double> losses = head.run(targets, c.weights);
    double sum = 0;
    for (size_t k = 0; k < losses.size(); ++k) sum += c.weights[k] * losses[k];
    return sum;
  };
  loss();
  const PlainHead<double> at = head;
  EXPECT_TRUE(test::gradient_agrees("weight", head.weight, at.dweight, loss));
  EXPECT_TRUE(test::gradient_agrees("bias", head.bias, at.dbias, loss));
  EXPECT_TRUE(test::gradient_agrees("gamma", head.gamma, at.dgamma, loss));
  EXPECT_TRUE(test::gradient_agrees("beta", head.beta, at.dbeta, loss));
  EXPECT_TRUE(test::gradient_agrees("token", head.token, at.dtoken, loss));
  EXPECT_TRUE(test::gradient_agrees("output bias", head.output_bias, at.doutput_bias, loss));
  EXPECT_TRUE(test::gradient_agrees("u", head.u, at.du, loss));
}

TEST(GenerativeHead, MatchesThePlainHead) {
  struct Shape {
    int32_t B, C, V;
    float token_scale;
  };
  // Vocabularies around the tile of 256; logits as large as those of the first step.
  const Shape shapes[] = {{1, 4, 5, 1},    {3, 24, 53, 1},   {5, 7, 255, 1},     {4, 16, 256, 1},
                          {2, 33, 257, 1}, {17, 64, 700, 1}, {40, 32, 900, .2f}, {6, 512, 600, 1}};
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!kernels::isa_supported(isa)) continue;
    Random random(32);
    for (const Shape& s : shapes) {
      HeadCase c(random, s.B, s.C, s.V, s.token_scale, {s.B % 2 == 0, false, s.B % 3 == 0});
      PlainHead<float> plain = c.plain<float>();
      PlainHead<double> exact = c.plain<double>();
      const std::vector<float> plain_losses =
          plain.run(c.dense_targets<float>(), {c.weights.begin(), c.weights.end()});
      const std::vector<double> exact_losses = exact.run(c.dense_targets<double>(), c.weights);
      const std::vector<double> losses = c.run(Precision::kF32, 1, VocabularyLoss::kStoredBytes,
                                               nullptr, kernels::resolve_kernels(isa));
      const std::string what = std::string(kernels::isa_name(isa)) + " B=" + std::to_string(s.B) +
                               " C=" + std::to_string(s.C) + " V=" + std::to_string(s.V);
      ErrorBudget loss_budget;
      for (size_t k = 0; k < losses.size(); ++k)
        loss_budget.add(static_cast<float>(losses[k]), plain_losses[k], exact_losses[k], 0, k);
      EXPECT_TRUE(loss_budget.check(what + " losses", "GenerativeHead.MatchesThePlainHead"));
      visit_gradients(
          c, plain, exact,
          [&](const std::string& name, const std::vector<float>& got, double start,
              const std::vector<float>& f, const std::vector<double>& d) {
            ErrorBudget budget(kGradient);
            for (size_t i = 0; i < got.size(); ++i) {
              budget.add(got[i], static_cast<float>(start) + f[i], start + d[i], 0, i);
            }
            EXPECT_TRUE(budget.check(what + " d" + name, "GenerativeHead.MatchesThePlainHead"));
          });
    }
  }
}

std::vector<float> all_gradients(const HeadCase& c) {
  std::vector<float> all(c.gradients.data(), c.gradients.data() + c.gradients.size());
  all.insert(all.end(), c.du.begin(), c.du.end());
  return all;
}

TEST(GenerativeHead, BitsDependNeitherOnThreadsNorOnWhatIsStored) {
  for (Precision precision : {Precision::kF32, Precision::kBF16}) {
    for (int32_t C : {32, 7}) {
      Random random(33);
      HeadCase c(random, 37, C, 5003, 1);
      const std::vector<double> losses = c.run(precision, 1, VocabularyLoss::kStoredBytes);
      const std::vector<float> gradients = all_gradients(c);
      for (int32_t threads : {1, 2, 3}) {
        for (int64_t stored_bytes : {VocabularyLoss::kStoredBytes, int64_t{0}}) {
          EXPECT_EQ(losses, c.run(precision, threads, stored_bytes)) << threads;
          const std::vector<float> again = all_gradients(c);
          EXPECT_EQ(0, std::memcmp(gradients.data(), again.data(), 4 * again.size()))
              << threads << " threads, " << stored_bytes << " bytes";
        }
      }
      // The optimiser's copy of the table is what the head would round itself.
      std::vector<uint16_t> narrow(c.table.size());
      for (int64_t i = 0; i < c.table.size(); ++i)
        narrow[i] = kernels::bf16_from_f32(c.values.data()[i]);
      EXPECT_EQ(losses, c.run(precision, 2, 0, narrow.data()));
      const std::vector<float> again = all_gradients(c);
      EXPECT_EQ(0, std::memcmp(gradients.data(), again.data(), 4 * again.size()));
    }
  }
}

TEST(GenerativeHead, KeepsNothingOfTheBatchBefore) {
  const kernels::KernelTable kernels = fastest();
  ThreadPool threads(2);
  for (Precision precision : {Precision::kF32, Precision::kBF16}) {
    for (int64_t stored_bytes : {VocabularyLoss::kStoredBytes, int64_t{0}}) {
      Random random(37);
      HeadCase before(random, 9, 24, 5003, 1), c(random, 5, 24, 5003, 1);
      const std::vector<double> losses = c.run(precision, 2, stored_bytes);
      const std::vector<float> gradients = all_gradients(c);
      GenerativeHead head(c.config, c.table, precision, kernels, threads, stored_bytes);
      before.run(head);
      EXPECT_EQ(losses, c.run(head));
      const std::vector<float> again = all_gradients(c);
      EXPECT_EQ(0, std::memcmp(gradients.data(), again.data(), 4 * again.size())) << stored_bytes;
    }
  }
}

TEST(GenerativeHead, Bf16StaysWithinItsRoundings) {
  Random random(34);
  for (int32_t C : {24, 64}) {
    HeadCase c(random, 20, C, 700, 1 / std::sqrt(static_cast<float>(C)));
    PlainHead<double> exact = c.plain<double>();
    const std::vector<double> exact_losses = exact.run(c.dense_targets<double>(), c.weights);
    const std::vector<double> losses = c.run(Precision::kBF16, 1, VocabularyLoss::kStoredBytes);
    // Logits of size 1 from two rounded factors are right to about 2⁻⁸, and the losses with them;
    // gradients see four roundings more (exponentials, dz, and the factors of both products).
    for (size_t k = 0; k < losses.size(); ++k)
      EXPECT_NEAR(exact_losses[k], losses[k], std::ldexp(1, -8) * exact_losses[k]) << k;
    visit_gradients(c, {}, exact,
                    [&](const std::string& name, const std::vector<float>& got, double start,
                        const std::vector<float>&, const std::vector<double>& d) {
                      double error = 0, size = 0;
                      for (size_t i = 0; i < got.size(); ++i) {
                        error += std::pow(got[i] - start - d[i], 2);
                        size += d[i] * d[i];
                      }
                      EXPECT_LE(std::sqrt(error / size), std::ldexp(1, -6)) << name;
                      EXPECT_GT(error, 0) << name << ": was anything rounded?";
                    });
  }
}

TEST(GenerativeHead, WhatIsNotFiniteShows) {
  for (Precision precision : {Precision::kF32, Precision::kBF16}) {
    Random random(35);
    HeadCase c(random, 4, 16, 600, 1);
    c.targets[2] = SparseTarget{std::vector<int32_t>(9, 0), {}, {}};  // looks at no word
    const std::vector<double> sound = c.run(precision, 1, 0);
    EXPECT_TRUE(std::isfinite(sound[0]) && sound[2] == 0);
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      float* row = c.values.at(c.table.at("embedding.token")) + 599 * 16;
      const float before = row[3];
      row[3] = bad;
      for (double loss : c.run(precision, 1, 0)) EXPECT_FALSE(std::isfinite(loss)) << bad;
      row[3] = before;
      c.u[5] = bad;
      for (double loss : c.run(precision, 1, 0)) EXPECT_FALSE(std::isfinite(loss)) << bad;
      c.u[5] = 0;
    }
    // Logits of ±1e4 are far beyond the range of exp, but not of a softmax.
    float* token = c.values.at(c.table.at("embedding.token"));
    for (int64_t i = 0; i < 600 * 16; ++i) token[i] *= 1e3f;
    for (double loss : c.run(precision, 1, 0)) EXPECT_TRUE(std::isfinite(loss));
    for (float g : all_gradients(c)) ASSERT_TRUE(std::isfinite(g));
  }
}

TEST(VocabularyLoss, GivesTheGoldenValues) {
  // docs/methods.md, Golden values: logits1[i] = 0.1 i, logits2[i] = 0.2 (i mod 3)
  const PairBatch masked = batch_of({{{{3, 4, 5}, 1}, {{6, 7, 7}}}}),
                  whole = batch_of({{{{3, 4, 5}}, {{6, 7, 7}}}});
  std::vector<float> token(16), bias(8, 0), t = {1, 0, 0, 1};
  for (int i = 0; i < 8; ++i) token[2 * i] = 0.1f * i, token[2 * i + 1] = 0.2f * (i % 3);
  ThreadPool threads(1);
  const kernels::KernelTable kernels = fastest();
  VocabularyLoss loss(8, 2, Precision::kF32, kernels, threads, 0);
  const auto value = [&](const SparseTarget& target) {
    const WeightedTarget weighted[] = {{&target, 1}};
    return loss.forward(weighted, 1, t.data(), 2, token.data(), nullptr, bias.data(), false)[0];
  };
  const double f32 = 4 * std::ldexp(1, -24) * 2;
  EXPECT_NEAR(1.5872558370930174, value(ugt_target(masked, {})), f32);
  EXPECT_NEAR(1.4394159276944158, value(xtr_target(whole, {})), f32);
  EXPECT_NEAR(2.1204935457967147, value(xtr_target(whole, {true, false, false})), f32);
}

// ---- similarities ----

using Similarity =
    std::function<double(int32_t B, int32_t C, const float* u, int64_t stride, double weight,
                         float* du, int64_t du_stride, const kernels::KernelTable&, ThreadPool&)>;

Similarity contrastive(const ContrastiveSettings& settings) {
  return [settings](int32_t B, int32_t C, const float* u, int64_t stride, double weight, float* du,
                    int64_t du_stride, const kernels::KernelTable& k, ThreadPool& threads) {
    return contrastive_forward_backward(settings, weight, B, C, u, stride, du, du_stride, k,
                                        threads);
  };
}
Similarity sim(const SimSettings& settings) {
  return [settings](int32_t B, int32_t C, const float* u, int64_t stride, double weight, float* du,
                    int64_t du_stride, const kernels::KernelTable& k, ThreadPool& threads) {
    return sim_forward_backward(settings, weight, B, C, u, stride, du, du_stride, k, threads);
  };
}

/// The losses, plainly, in one type.
template <typename T>
struct PlainSimilarity {
  int32_t B, C;
  std::vector<T> u, du;

  T dot(int32_t i, int32_t j) const {
    T sum = 0;
    for (int32_t c = 0; c < C; ++c) sum += u[i * C + c] * u[j * C + c];
    return sum;
  }
  /// S[i, j] between sentences row + i and column + j takes the gradient g.
  void back(const std::vector<T>& ds, int32_t row, int32_t column) {
    for (int32_t i = 0; i < B; ++i) {
      for (int32_t j = 0; j < B; ++j) {
        for (int32_t c = 0; c < C; ++c) {
          du[(row + i) * C + c] += ds[i * B + j] * u[(column + j) * C + c];
          du[(column + j) * C + c] += ds[i * B + j] * u[(row + i) * C + c];
        }
      }
    }
  }
  static std::vector<T> softmax(const std::vector<T>& s, int32_t B, std::vector<T>* lse) {
    std::vector<T> p(s.size());
    lse->assign(B, 0);
    for (int32_t i = 0; i < B; ++i) {
      T max = -INFINITY, sum = 0;
      for (int32_t j = 0; j < B; ++j) max = std::max(max, s[i * B + j]);
      for (int32_t j = 0; j < B; ++j) sum += std::exp(s[i * B + j] - max);
      (*lse)[i] = max + std::log(sum);
      for (int32_t j = 0; j < B; ++j) p[i * B + j] = std::exp(s[i * B + j] - max) / sum;
    }
    return p;
  }

  T contrastive(const ContrastiveSettings& settings) {
    PlainSimilarity x = *this;
    std::vector<T> norms(2 * B, 1);
    for (int32_t b = 0; settings.cosine && b < 2 * B; ++b) {
      norms[b] = std::sqrt(dot(b, b));
      for (int32_t c = 0; c < C; ++c) x.u[b * C + c] /= norms[b];
    }
    x.du.assign(u.size(), 0);
    std::vector<T> s(B * B), st(B * B), row_lse, column_lse;
    for (int32_t i = 0; i < B; ++i) {
      for (int32_t j = 0; j < B; ++j) {
        s[i * B + j] =
            (x.dot(i, B + j) - (i == j ? T(settings.margin) : 0)) / T(settings.temperature);
        st[j * B + i] = s[i * B + j];
      }
    }
    const std::vector<T> p = softmax(s, B, &row_lse), q = softmax(st, B, &column_lse);
    const T share = (settings.mean_of_directions ? T(0.5) : T(1)) / B;
    T loss = 0;
    std::vector<T> ds(B * B);
    for (int32_t i = 0; i < B; ++i) {
      loss += share * (row_lse[i] - s[i * B + i] + column_lse[i] - s[i * B + i]);
      for (int32_t j = 0; j < B; ++j) {
        ds[i * B + j] = share / T(settings.temperature) *
                        (p[i * B + j] + q[j * B + i] - (i == j ? T(2) : T(0)));
      }
    }
    x.back(ds, 0, B);
    du = x.du;
    for (int32_t b = 0; settings.cosine && b < 2 * B; ++b) {
      T along = 0;
      for (int32_t c = 0; c < C; ++c) along += x.u[b * C + c] * x.du[b * C + c];
      for (int32_t c = 0; c < C; ++c)
        du[b * C + c] = (x.du[b * C + c] - x.u[b * C + c] * along) / norms[b];
    }
    return loss;
  }

  T sim(const SimSettings& settings) {
    du.assign(u.size(), 0);
    std::vector<T> s[2], p[2], lse;
    for (int k = 0; k < 2; ++k) {
      s[k].resize(B * B);
      for (int32_t i = 0; i < B; ++i) {
        for (int32_t j = 0; j < B; ++j) s[k][i * B + j] = dot(k * B + i, k * B + j);
      }
      p[k] = softmax(s[k], B, &lse);
    }
    const T normaliser = settings.divide_by_negatives ? T(B - 1) * T(B - 1) : T(1);
    T loss = 0;
    std::vector<T> g(B * B);
    for (int32_t i = 0; i < B * B; ++i) {
      const T x = T(settings.argument) * (p[0][i] - p[1][i]);
      const bool bounded = std::cos(x) < T(settings.min_cosine);
      loss -= std::log(bounded ? T(settings.min_cosine) : std::cos(x)) / normaliser;
      g[i] = bounded ? 0 : T(settings.argument) * std::tan(x) / normaliser;
    }
    for (int k = 0; k < 2; ++k) {
      std::vector<T> ds(B * B);
      for (int32_t i = 0; i < B; ++i) {
        T along = 0;
        for (int32_t j = 0; j < B; ++j) along += p[k][i * B + j] * g[i * B + j];
        for (int32_t j = 0; j < B; ++j)
          ds[i * B + j] = (k == 0 ? 1 : -1) * p[k][i * B + j] * (g[i * B + j] - along);
      }
      back(ds, k * B, k * B);
    }
    return loss;
  }
};

struct SimilarityCase {
  const char* name;
  Similarity run;
  std::function<double(PlainSimilarity<double>&)> exact;
  std::function<float(PlainSimilarity<float>&)> plain;
};

std::vector<SimilarityCase> similarity_cases() {
  std::vector<SimilarityCase> cases;
  const auto add_contrastive = [&](const char* name, const ContrastiveSettings& s) {
    cases.push_back({name, contrastive(s), [=](auto& p) { return p.contrastive(s); },
                     [=](auto& p) { return p.contrastive(s); }});
  };
  const auto add_sim = [&](const char* name, const SimSettings& s) {
    cases.push_back(
        {name, sim(s), [=](auto& p) { return p.sim(s); }, [=](auto& p) { return p.sim(s); }});
  };
  add_contrastive("align", {});
  add_contrastive("align, mean, temperature 2", {false, 2, true, 0});
  add_contrastive("info_nce", kInfoNce);
  add_contrastive("margin", {true, 0.05, false, 0.3});
  add_sim("sim", {});
  add_sim("sim, ems", {M_PI / 3, true, 0});  // π itself has no logarithm for most inputs
  add_sim("sim, bounded", {M_PI, true, 0.3});
  return cases;
}

TEST(Similarities, ThePlainOnesHaveTheGradientsOfCentralDifferences) {
  Random random(41);
  for (const SimilarityCase& c : similarity_cases()) {
    if (std::string(c.name) == "sim, bounded") continue;  // its loss is not smooth
    PlainSimilarity<double> p{4, 3, test::normal_doubles(random, 24, 0.7), {}};
    c.exact(p);
    const std::vector<double> gradient = p.du;
    EXPECT_TRUE(test::gradient_agrees(c.name, p.u, gradient, [&] { return c.exact(p); }));
  }
}

TEST(Similarities, MatchThePlainOnes) {
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!kernels::isa_supported(isa)) continue;
    const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
    ThreadPool threads(1);
    for (const SimilarityCase& c : similarity_cases()) {
      Random random(42);
      for (const auto& [B, C] : {std::pair{1, 4}, {2, 3}, {5, 24}, {33, 17}, {70, 64}}) {
        if (B == 1 && std::string(c.name).starts_with("sim, ")) continue;  // 0 / 0, see below
        const int64_t stride = C + 3;
        std::vector<float> u(2 * B * stride, NAN), du(2 * B * stride, NAN), dense;
        for (int32_t b = 0; b < 2 * B; ++b) {
          for (int32_t i = 0; i < C; ++i) {
            u[b * stride + i] = random.normal(1.5f / std::sqrt(static_cast<float>(C)));
            du[b * stride + i] = 0.25f;
            dense.push_back(u[b * stride + i]);
          }
        }
        PlainSimilarity<float> plain{B, C, dense, {}};
        PlainSimilarity<double> exact{B, C, {dense.begin(), dense.end()}, {}};
        const float plain_loss = c.plain(plain);
        const double exact_loss = c.exact(exact), weight = 2;
        const double loss =
            c.run(B, C, u.data(), stride, weight, du.data(), stride, kernels, threads);
        const std::string what = std::string(c.name) + " " + kernels::isa_name(isa) +
                                 " B=" + std::to_string(B) + " C=" + std::to_string(C);
        const std::string filter = "Similarities.MatchThePlainOnes";
        ErrorBudget loss_budget, budget(kGradient);
        loss_budget.add(static_cast<float>(loss), plain_loss, exact_loss, 0, 0);
        EXPECT_TRUE(loss_budget.check(what + " loss", filter));
        for (int32_t b = 0; b < 2 * B; ++b) {
          for (int32_t i = 0; i < C; ++i) {
            budget.add(du[b * stride + i], 0.25f + 2 * plain.du[b * C + i],
                       0.25 + weight * exact.du[b * C + i], b, i);
          }
          for (int64_t i = C; i < stride; ++i) EXPECT_TRUE(std::isnan(du[b * stride + i])) << what;
        }
        EXPECT_TRUE(budget.check(what + " du", filter));
        EXPECT_EQ(loss, c.run(B, C, u.data(), stride, weight, nullptr, 0, kernels, threads));
      }
    }
  }
}

TEST(Similarities, BitsDoNotDependOnThreads) {
  const kernels::KernelTable kernels = fastest();
  Random random(43);
  const int32_t B = 131, C = 40;
  std::vector<float> u(2 * B * C);
  for (float& x : u) x = random.normal(0.3f);
  for (const SimilarityCase& c : similarity_cases()) {
    double first_loss = 0;
    std::vector<float> first;
    for (int32_t num_threads : {1, 2, 3}) {
      ThreadPool threads(num_threads);
      std::vector<float> du(u.size(), 0);
      const double loss = c.run(B, C, u.data(), C, 1, du.data(), C, kernels, threads);
      if (num_threads == 1) first_loss = loss, first = du;
      EXPECT_EQ(first_loss, loss) << c.name;
      EXPECT_EQ(0, std::memcmp(first.data(), du.data(), 4 * du.size())) << c.name;
    }
  }
}

TEST(Similarities, WhatIsNotFiniteShows) {
  const kernels::KernelTable kernels = fastest();
  ThreadPool threads(1);
  for (const SimilarityCase& c : similarity_cases()) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      Random random(44);
      std::vector<float> u(2 * 9 * 8), du(u.size(), 0);
      for (float& x : u) x = random.normal();
      u[77] = bad;
      EXPECT_FALSE(std::isfinite(c.run(9, 8, u.data(), 8, 1, du.data(), 8, kernels, threads)))
          << c.name << " " << bad;
    }
  }
}

TEST(Similarities, SimOfOnePairIsNothing) {
  const kernels::KernelTable kernels = fastest();
  ThreadPool threads(1);
  const float u[4] = {1, 2, -3, 4};
  float du[4] = {0};
  EXPECT_EQ(0, sim_forward_backward({M_PI, true, 0}, 1, 1, 2, u, 2, du, 2, kernels, threads));
  for (float g : du) EXPECT_EQ(0, g);
}

/// Side 1 says that sentence 1 is like itself, side 2 that it is like sentence 2: |P1 − P2| is
/// 0.98, where the tangent is 32.
TEST(Similarities, TheBoundOfTheCosineHoldsTheGradient) {
  const kernels::KernelTable kernels = fastest();
  ThreadPool threads(1);
  const std::vector<float> u = {3, 0, 0, 3, 1, 0, 5, 0};
  const auto largest = [&](double min_cosine, double* loss) {
    std::vector<float> du(u.size(), 0);
    *loss = sim_forward_backward({M_PI / 2, false, min_cosine}, 1, 2, 2, u.data(), 2, du.data(), 2,
                                 kernels, threads);
    float found = 0;
    for (float g : du) found = std::max(found, std::fabs(g));
    return found;
  };
  double loss, same_loss, bounded_loss;
  const float free = largest(0, &loss);
  EXPECT_EQ(free, largest(1e-3, &same_loss));  // not reached
  EXPECT_EQ(loss, same_loss);
  EXPECT_LT(largest(0.1, &bounded_loss), 0.1 * free);
  EXPECT_LT(bounded_loss, loss);
}

TEST(Similarities, GiveTheGoldenValues) {
  // docs/methods.md, Golden values
  const float u[] = {1, 0, 0, 1, 1, 1, 0.9f, 0.1f, 0.2f, 1.0f, 0.8f, 1.1f};
  const kernels::KernelTable kernels = fastest();
  ThreadPool threads(1);
  const auto value = [&](const Similarity& loss) {
    return loss(3, 2, u, 2, 1, nullptr, 0, kernels, threads);
  };
  const double f32 = std::ldexp(1, -24);  // of inputs and similarities, each of size 1
  EXPECT_NEAR(1.646202627872217, value(contrastive({})), 8 * f32);
  EXPECT_NEAR(0.02625745426465745, value(sim({})), 8 * f32);
  EXPECT_NEAR(0.026383239546710284, value(sim({M_PI, true, 0})), 8 * f32);
  EXPECT_NEAR(0.15998271198042957, value(contrastive(kInfoNce)), 8 * f32 / 0.1);
  EXPECT_NEAR(2.066373968206363, value(contrastive({true, 1, false, 0.3})), 8 * f32);
  EXPECT_NEAR(1.7017965237389587, value(contrastive({true, 1, false, 0})), 8 * f32);
}

// ---- golden tensors ----

TEST(Golden, SimilarityLossesAndTheirGradients) {
  const auto path = test::golden_folder() / "losses.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const auto file = Checkpoint::open(path.string());
  const json losses = json::parse(file->metadata().at("losses"));
  struct Case {
    const char* name;
    double scale;  // of x and y, before the loss
    Similarity run;
    std::function<double(PlainSimilarity<float>&)> plain;
  };
  const ContrastiveSettings align, margin{true, 1, false, 0.3}, scaled{true, 1.0 / 20, false, 0.3};
  const Case cases[] = {
      {"xsr_align", 0.2, contrastive(align), [=](auto& p) { return p.contrastive(align); }},
      {"xsr_sim", 0.2, sim({}), [](auto& p) { return p.sim({}); }},
      {"ems_contrastive", 1, contrastive(kInfoNce),
       [](auto& p) { return p.contrastive(kInfoNce); }},
      {"additive_margin_softmax", 1, contrastive(margin),
       [=](auto& p) { return p.contrastive(margin); }},
      {"additive_margin_softmax_scaled", 1, contrastive(scaled),
       [=](auto& p) { return p.contrastive(scaled); }}};
  const CheckpointTensor& shape = *file->find("x");
  const int32_t B = static_cast<int32_t>(shape.shape[0]), C = static_cast<int32_t>(shape.shape[1]);
  const kernels::KernelTable kernels = fastest();
  ThreadPool threads(2);
  for (const Case& c : cases) {
    std::vector<double> inputs = file->find("x")->to_f64(), gradient;
    const std::vector<double> y = file->find("y")->to_f64();
    inputs.insert(inputs.end(), y.begin(), y.end());
    for (const char* input : {".x", ".y"}) {
      const auto g = file->find(std::string("gradient.") + c.name + input)->to_f64();
      gradient.insert(gradient.end(), g.begin(), g.end());
    }
    std::vector<float> u;
    for (double x : inputs) u.push_back(static_cast<float>(x * c.scale));
    std::vector<float> du(u.size(), 0);
    PlainSimilarity<float> plain{B, C, u, {}};
    const double plain_loss = c.plain(plain);
    const double loss = c.run(B, C, u.data(), C, 1, du.data(), C, kernels, threads);
    ErrorBudget loss_budget, budget(kGradient);
    loss_budget.add(static_cast<float>(loss), static_cast<float>(plain_loss),
                    losses.at(c.name).at("value"), 0, 0);
    EXPECT_TRUE(loss_budget.check(c.name, "Golden.*"));
    for (size_t i = 0; i < du.size(); ++i)
      budget.add(du[i], plain.du[i], gradient[i] / c.scale, 0, i);
    EXPECT_TRUE(budget.check(std::string(c.name) + " gradient", "Golden.*"));
  }
}

/// All losses of the golden models from their golden embeddings, and the gradients that no encoder
/// adds to: those of the head's own parameters.
TEST(Golden, LossesOfWholeModelsFromTheirEmbeddings) {
  int found = 0;
  for (const char* name : {"xsr-tiny", "xsr-odd", "xsr-256"}) {
    const auto path = test::golden_folder() / (std::string(name) + ".safetensors");
    if (!std::filesystem::exists(path)) continue;
    ++found;
    const auto file = Checkpoint::open(path.string());
    const json expected = json::parse(file->metadata().at("losses"));
    const json shape = json::parse(file->metadata().at("config"));
    const int32_t V = shape.at("vocab_size"), C = shape.at("hidden_size");
    const ModelConfig config = small_config(V, C);
    const ParameterTable table(config);
    FlatBuffer values(table.size()), gradients(table.size());
    const std::pair<const char*, const char*> names[] = {
        {"embedding.token", "model.bert.embedding.word_embedding.embedding.weight"},
        {"head.transform.weight", "model.transform.dense.weight"},
        {"head.transform.bias", "model.transform.dense.bias"},
        {"head.norm.gamma", "model.transform.LayerNorm.weight"},
        {"head.norm.beta", "model.transform.LayerNorm.bias"},
        {"head.output.bias", "model.decoder.bias"}};
    for (const auto& [ours, theirs] : names) {
      const std::vector<float> x = file->find(std::string("parameter.") + theirs)->to_f32();
      const Parameter& p = table.at(ours);
      ASSERT_EQ(p.size, static_cast<int64_t>(x.size()));
      std::copy(x.begin(), x.end(), values.at(p));
    }
    // The batch as the encoder was fed: <MASK> stands in the ids.
    PairBatch batch;
    batch.cu_seqlens = {0};
    std::vector<float> u;
    const std::vector<int64_t> masked = file->find("masked_id")->to_i64(),
                               side = file->find("masked_side")->to_i64();
    batch.num_pairs = static_cast<int32_t>(masked.size());
    for (int k = 1; k <= 2; ++k) {
      const CheckpointTensor& padded = *file->find("ids" + std::to_string(k));
      const std::vector<int64_t> ids = padded.to_i64(),
                                 lengths = file->find("len" + std::to_string(k))->to_i64();
      for (size_t b = 0; b < lengths.size(); ++b) {
        for (int64_t i = 0; i < lengths[b]; ++i)
          batch.token_ids.push_back(static_cast<int32_t>(ids[b * padded.shape[1] + i]));
        batch.cu_seqlens.push_back(batch.num_tokens() + static_cast<int32_t>(lengths[b]));
      }
      const std::vector<float> embeddings = file->find("embedding" + std::to_string(k))->to_f32();
      u.insert(u.end(), embeddings.begin(), embeddings.end());
    }
    for (int32_t i = 0; i < batch.num_pairs; ++i) {
      batch.masked_id.push_back(static_cast<int32_t>(masked[i]));
      batch.masked_side.push_back(static_cast<uint8_t>(side[i] - 1));
      const int32_t b = batch.masked_side[i] * batch.num_pairs + i;
      int32_t row = batch.cu_seqlens[b];
      while (batch.token_ids[row] != 2) ++row;
      batch.masked_row.push_back(row);
    }

    ObjectiveConfig objectives = objective_preset(Preset::kRelease);
    objectives.xtr_weight = 1;  // logged beside the others; not part of the golden total
    ThreadPool threads(2);
    const kernels::KernelTable kernels = fastest();
    std::vector<float> du(u.size(), 0);
    const LossParts all =
        Objectives(objectives, config, table, Precision::kF32, kernels, threads)
            .forward_backward(batch, u.data(), C, values, nullptr, du.data(), C, &gradients);
    // Similarities of |u|² ~ C in f32 go into exponentials: there the plain f32 loop is the
    // measure.
    PlainSimilarity<float> plain{batch.num_pairs, C, u, {}};
    const std::map<std::string_view, float> plain_losses = {{"align", plain.contrastive({})},
                                                            {"sim", plain.sim({})}};
    double total = 0;
    for (const LossPart& part : all.parts) {
      const double value = expected.at(std::string(part.name));
      if (plain_losses.contains(part.name)) {
        ErrorBudget budget;
        budget.add(static_cast<float>(part.value), plain_losses.at(part.name), value, 0, 0);
        EXPECT_TRUE(budget.check(std::string(name) + " " + std::string(part.name), "Golden.*"));
      } else {
        EXPECT_NEAR(value, part.value, 1e-5 * std::fabs(value)) << name << " " << part.name;
      }
      total += part.weight * part.value;
      if (part.name == "xtr") total -= part.value;
    }
    EXPECT_EQ(4u, all.parts.size());
    EXPECT_NEAR(expected.at("total").get<double>(), total, 1e-5 * total) << name;

    objectives.xtr_weight = 0;
    std::fill_n(gradients.data(), gradients.size(), 0.0f);
    Objectives(objectives, config, table, Precision::kF32, kernels, threads)
        .forward_backward(batch, u.data(), C, values, nullptr, du.data(), C, &gradients);
    for (const auto& [ours, theirs] : names) {
      if (std::string(ours) == "embedding.token") continue;
      const std::vector<double> g = file->find(std::string("gradient.total.") + theirs)->to_f64();
      const float* got = gradients.at(table.at(ours));
      double error = 0, size = 0;
      for (size_t i = 0; i < g.size(); ++i) {
        error = std::max(error, std::fabs(got[i] - g[i]));
        size = std::max(size, std::fabs(g[i]));
      }
      EXPECT_LE(error, 1e-5 * size) << name << " " << ours;
    }
  }
  if (found == 0) GTEST_SKIP() << "no golden models in " << test::golden_folder();
}

// ---- the sum and its presets ----

TEST(Objectives, SumTheirParts) {
  Random random(51);
  const int32_t V = 90, C = 12;
  HeadCase c(random, 6, C, V, 1);
  const PairBatch batch = random_batch(random, 6, V);
  ObjectiveConfig config;
  config.xtr_weight = 0.5;
  config.ugt_weight = 1;
  config.smlm_weight = 0.25;
  config.align_weight = 2;
  config.sim_weight = 3;
  config.info_nce_weight = 4;
  ThreadPool threads(2);
  const kernels::KernelTable kernels = fastest();
  const auto run = [&](const ObjectiveConfig& o, std::vector<float>& du, bool learn) {
    std::fill_n(c.gradients.data(), c.gradients.size(), 0.0f);
    du.assign(c.u.size(), 0);
    return Objectives(o, c.config, c.table, Precision::kF32, kernels, threads)
        .forward_backward(batch, c.u.data(), C, c.values, nullptr, du.data(), C,
                          learn ? &c.gradients : nullptr);
  };
  std::vector<float> du, part_du, sum(c.u.size(), 0);
  const LossParts parts = run(config, du, true);
  ASSERT_EQ(6u, parts.parts.size());
  double total = 0;
  double* const weights[] = {&config.xtr_weight,   &config.ugt_weight, &config.smlm_weight,
                             &config.align_weight, &config.sim_weight, &config.info_nce_weight};
  const ObjectiveConfig all = config;
  for (size_t k = 0; k < 6; ++k) {
    config = all;
    for (size_t i = 0; i < 6; ++i) {
      if (i != k) *weights[i] = 0;
    }
    const LossParts alone = run(config, part_du, true);
    ASSERT_EQ(1u, alone.parts.size());
    EXPECT_EQ(parts.parts[k].name, alone.parts[0].name);
    EXPECT_EQ(parts.parts[k].value, alone.parts[0].value);
    EXPECT_EQ(parts.parts[k].weight, *weights[k]);
    EXPECT_EQ(alone.parts[0].weight, *weights[k]);
    EXPECT_EQ(alone.total, alone.parts[0].weight * alone.parts[0].value);
    total += alone.total;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part_du[i];
  }
  EXPECT_DOUBLE_EQ(total, parts.total);
  float largest = 0;
  for (float g : sum) largest = std::max(largest, std::fabs(g));
  for (size_t i = 0; i < sum.size(); ++i) EXPECT_NEAR(sum[i], du[i], 1e-5f * largest);

  const LossParts evaluated = run(all, part_du, false);
  EXPECT_EQ(parts.total, evaluated.total);
  for (float g : part_du) EXPECT_EQ(0, g);
}

TEST(Presets, AreWhatTheySay) {
  EXPECT_EQ(Preset::kStable, kDefaultPreset);
  for (Preset preset : {Preset::kPaper, Preset::kRelease, Preset::kStable}) {
    const ObjectiveConfig o = objective_preset(preset);
    EXPECT_NO_THROW(validate(o));
    EXPECT_EQ(1, o.ugt_weight);
    EXPECT_EQ(2, o.align_weight);
    EXPECT_EQ(2, o.sim_weight);
    EXPECT_FALSE(o.align.cosine);
    EXPECT_EQ(preset == Preset::kPaper, o.targets.count_weighted);
    EXPECT_EQ(preset == Preset::kPaper, o.targets.clean_ids);
    EXPECT_EQ(preset == Preset::kPaper, o.targets.add_masses);
    EXPECT_EQ(preset == Preset::kStable ? 1e-3 : 0, o.sim.min_cosine);
    EXPECT_EQ(preset == Preset::kStable ? 1 : 0, optimizer_preset(preset).clip_norm);
  }
}

TEST(ObjectiveConfig, ImpossibleSettingsAreNamed) {
  const auto message = [](auto&& change) -> std::string {
    ObjectiveConfig config;
    change(config);
    try {
      validate(config);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THAT(message([](auto& c) { c.sim_weight = -1; }), testing::HasSubstr("sim"));
  EXPECT_THAT(message([](auto& c) { c.xtr_weight = NAN; }), testing::HasSubstr("xtr"));
  EXPECT_THAT(message([](auto& c) { c.align.temperature = 0; }), testing::HasSubstr("align"));
  EXPECT_THAT(message([](auto& c) { c.info_nce.temperature = -1; }),
              testing::HasSubstr("info_nce"));
  EXPECT_THAT(message([](auto& c) { c.align.margin = NAN; }), testing::HasSubstr("align: margin"));
  EXPECT_THAT(message([](auto& c) { c.sim.min_cosine = 1; }), testing::HasSubstr("min_cosine"));
  EXPECT_THAT(message([](auto& c) { c.ugt_weight = c.align_weight = c.sim_weight = 0; }),
              testing::HasSubstr("nothing"));
}

}  // namespace
}  // namespace xsr::training
