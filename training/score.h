#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "input/pair_file.h"
#include "runtime/evaluation/retrieval.h"

namespace xsr::training {

struct PairFileScore {
  std::string name;
  RetrievalScore score;
};

/// Embeds with a session of the public API, as a user of the model would, and searches each side
/// in the other. Throws Error(IO; BAD_FILE naming file and line; those of the API).
std::vector<PairFileScore> score_model(const std::string& model, const std::vector<PairFile>& files,
                                       int32_t num_threads);

/// A table in percent, with the mean of all files in the last row.
std::string scores_as_markdown(const std::vector<PairFileScore>& scores);
/// [{"name", "pairs", "forward", "backward", "p1_forward", "p1_backward"}], counts and shares.
std::string scores_as_json(const std::vector<PairFileScore>& scores);

}  // namespace xsr::training
