#pragma once
#include "training/objectives/objectives.h"
#include "training/optimizer.h"

namespace xsr::training {

/// Named sets of switches (docs/methods.md, Total and presets).
///
///     release  as the authors' code: distinct ids, <MASK> in targets, overwritten masses, no
///              clipping
///     paper    our reading of the paper: count-weighted targets from clean ids, masses added
///     stable   the release, with the cosine of SIM held above 1e-3 and the gradient's global norm
///              below 1: without them training may break down for good (docs/training.md)
enum class Preset { kPaper, kRelease, kStable };
inline constexpr Preset kDefaultPreset = Preset::kStable;

ObjectiveConfig objective_preset(Preset preset);
OptimizerConfig optimizer_preset(Preset preset);

}  // namespace xsr::training
