#include "training/objectives/objectives.h"

#include <cmath>
#include <string>

#include "runtime/error.h"

namespace xsr::training {
namespace {

void require(bool holds, const std::string& message) {
  if (!holds) throw Error(XSR_STATUS_INVALID_ARGUMENT, message);
}

void validate(const ContrastiveSettings& settings, const std::string& name) {
  require(settings.temperature > 0 && std::isfinite(settings.temperature),
          name + ": temperature is " + std::to_string(settings.temperature) +
              ", expected a number above 0");
  require(std::isfinite(settings.margin), name + ": margin is not finite");
}

}  // namespace

void validate(const ObjectiveConfig& config) {
  const std::pair<const char*, double> weights[] = {
      {"xtr", config.xtr_weight},   {"ugt", config.ugt_weight},
      {"smlm", config.smlm_weight}, {"align", config.align_weight},
      {"sim", config.sim_weight},   {"info_nce", config.info_nce_weight}};
  double total = 0;
  for (const auto& [name, weight] : weights) {
    require(weight >= 0 && std::isfinite(weight), std::string("weight of ") + name + " is " +
                                                      std::to_string(weight) +
                                                      ", expected 0 or more");
    total += weight;
  }
  require(total > 0, "every objective has the weight 0: nothing is to be learned");
  validate(config.align, "align");
  validate(config.info_nce, "info_nce");
  require(config.sim.argument > 0 && std::isfinite(config.sim.argument),
          "sim: argument is " + std::to_string(config.sim.argument) + ", expected π/2 or π");
  require(config.sim.min_cosine >= 0 && config.sim.min_cosine < 1,
          "sim: min_cosine is " + std::to_string(config.sim.min_cosine) +
              ", expected 0 or more and below 1");
}

Objectives::Objectives(const ObjectiveConfig& objectives, const ModelConfig& config,
                       const ParameterTable& table, Precision precision,
                       const kernels::KernelTable& kernels, ThreadPool& threads)
    : objectives_(objectives),
      hidden_size_(config.hidden_size),
      kernels_(kernels),
      threads_(threads),
      head_(config, table, precision, kernels, threads) {
  validate(objectives);
}

LossParts Objectives::forward_backward(const PairBatch& batch, const float* u, int64_t u_stride,
                                       const FlatBuffer& values, const uint16_t* narrow, float* du,
                                       int64_t du_stride, FlatBuffer* gradients) {
  const ObjectiveConfig& o = objectives_;
  LossParts result;

  std::vector<SparseTarget> targets;
  std::vector<WeightedTarget> weighted;
  const auto add_target = [&](std::string_view name, double weight, auto&& make) {
    if (weight == 0) return;
    result.parts.push_back({name, weight, 0});
    targets.push_back(make());
  };
  add_target("xtr", o.xtr_weight, [&] { return xtr_target(batch, o.targets); });
  add_target("ugt", o.ugt_weight, [&] { return ugt_target(batch, o.targets); });
  add_target("smlm", o.smlm_weight, [&] { return smlm_target(batch); });
  for (size_t i = 0; i < targets.size(); ++i)
    weighted.push_back({&targets[i], result.parts[i].weight});
  if (!weighted.empty()) {
    const std::vector<double> losses = head_.forward_backward(
        weighted, batch.num_pairs, u, u_stride, values, narrow, du, du_stride, gradients);
    for (size_t i = 0; i < losses.size(); ++i) result.parts[i].value = losses[i];
  }

  float* similarity_gradient = gradients == nullptr ? nullptr : du;
  const auto add_contrastive = [&](std::string_view name, double weight,
                                   const ContrastiveSettings& settings) {
    if (weight == 0) return;
    result.parts.push_back(
        {name, weight,
         contrastive_forward_backward(settings, weight, batch.num_pairs, hidden_size_, u, u_stride,
                                      similarity_gradient, du_stride, kernels_, threads_)});
  };
  add_contrastive("align", o.align_weight, o.align);
  if (o.sim_weight != 0) {
    result.parts.push_back(
        {"sim", o.sim_weight,
         sim_forward_backward(o.sim, o.sim_weight, batch.num_pairs, hidden_size_, u, u_stride,
                              similarity_gradient, du_stride, kernels_, threads_)});
  }
  add_contrastive("info_nce", o.info_nce_weight, o.info_nce);

  for (const LossPart& part : result.parts) result.total += part.weight * part.value;
  return result;
}

}  // namespace xsr::training
