#include "training/presets.h"

namespace xsr::training {

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
