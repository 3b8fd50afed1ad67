#pragma once
#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "training/event_file.h"

namespace xsr::training {

/// The lines of RUN/metrics.jsonl up to a step; a last line that was cut off by a crash is left
/// out. Throws Error(IO; BAD_FILE naming the line).
std::vector<nlohmann::ordered_json> read_metrics(const std::string& path,
                                                 int64_t last_step = INT64_MAX);

/// Seconds since 1970, now.
double unix_time();

/// RUN/metrics.jsonl and RUN/events.out.tfevents.xsr, side by side: one line and one event a
/// record. A record is an object with "kind", "step" and "time" (seconds since 1970); its other
/// numbers become the scalars KIND/NAME/… of the event.
class MetricsLog {
 public:
  /// Goes on behind the records up to last_step, and drops those behind it; -1: begins anew.
  /// evaluation_due: that of last_step comes yet, so that a record of it is dropped too.
  MetricsLog(const std::string& folder, int64_t last_step, bool evaluation_due = false);

  void write(const nlohmann::ordered_json& record);
  /// Flushes the lines to the disk, for a checkpoint that says they are there. Throws Error(IO).
  void flush();

 private:
  std::string path_;
  std::ofstream lines_;
  EventFile events_;
};

}  // namespace xsr::training
