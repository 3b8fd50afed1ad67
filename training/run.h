#pragma once
#include <atomic>
#include <string>
#include <vector>

#include "training/config.h"

namespace xsr::training {

struct RunOptions {
  bool resume = false;
  bool quiet = false;  // neither progress nor summary
  std::string commit;  // of the sources, for the manifest; "unknown" outside a checkout
  const std::atomic<bool>* stop = nullptr;  // set: a checkpoint is written and the run ends, also
                                            // in the middle of an evaluation
};

enum class RunEnd { kDone, kStopped };

/// Trains as config says, in the folder config.run:
///
///     config.toml             the config in full
///     tokenizer.model         SentencePiece
///     *.tokens                the tokenised text (unless data.cache names another folder)
///     metrics.jsonl           one record a line: training, and evaluations on dev
///     events.out.tfevents.xsr the same for TensorBoard
///     checkpoint.safetensors  the last one: all that it takes to go on, to the bit
///     best.safetensors        the weights that were best on dev
///     weights-STEP.safetensors  those still to be averaged
///     model.xsr, manifest.json  at the end
///
/// Throws Error: what is wrong with config, data or checkpoint; a loss or gradient that is not
/// finite, with the step, the tensor and the batch's lines.
RunEnd train(const TrainConfig& config, const RunOptions& options);

/// The config a run was started with. Throws Error(IO).
std::string run_config_path(const std::string& run);

/// Its last checkpoint; there is none before the first.
std::string run_checkpoint_path(const std::string& run);

}  // namespace xsr::training
