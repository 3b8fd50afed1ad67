#include "training/presets.h"

#include <string>

#include "runtime/error.h"

namespace xsr::training {

Preset parse_preset(std::string_view name) {
  if (name == "paper") return Preset::kPaper;
  if (name == "release") return Preset::kRelease;
  if (name == "stable") return Preset::kStable;
  throw Error(XSR_STATUS_INVALID_ARGUMENT,
              "unknown preset '" + std::string(name) + "'; there are paper, release and stable");
}

ObjectiveConfig objective_preset(Preset preset) {
  ObjectiveConfig config;  // UGT + 2 ALIGN + 2 SIM, as released
  if (preset == Preset::kPaper) config.targets = {true, true, true};
  if (preset == Preset::kStable) config.sim.min_cosine = 1e-3;
  return config;
}

OptimizerConfig optimizer_preset(Preset preset) {
  OptimizerConfig config;  // AMSGrad with coupled L2, as released
  if (preset == Preset::kStable) config.clip_norm = 1;
  return config;
}

}  // namespace xsr::training
