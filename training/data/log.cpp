#include "training/data/log.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>

#include "runtime/text/progress.h"

namespace xsr::training {

DataLog stderr_data_log(const std::atomic<bool>* stop) {
  using Clock = std::chrono::steady_clock;
  struct State {
    std::optional<Progress> progress;
    Clock::time_point start;
    uint64_t last_bytes = 0;
  };
  const auto state = std::make_shared<State>();
  DataLog log;
  log.stop = stop;
  log.say = [state](const std::string& message) {
    if (state->progress) state->progress->clear();
    state->progress.reset();
    std::fprintf(stderr, "%s\n", message.c_str());
  };
  log.progress = [state](uint64_t done_bytes, uint64_t total_bytes, uint64_t lines) {
    if (!state->progress || done_bytes < state->last_bytes) {  // another piece of work
      state->progress.emplace(stderr, ::isatty(STDERR_FILENO) == 1, total_bytes);
      state->start = Clock::now();
    }
    state->last_bytes = done_bytes;
    state->progress->update(done_bytes, lines,
                            std::chrono::duration<double>(Clock::now() - state->start).count());
    if (done_bytes == total_bytes) {
      state->progress->clear();
      state->progress.reset();
    }
  };
  return log;
}

}  // namespace xsr::training
