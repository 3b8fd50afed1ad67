#include "training/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "converter/json_text.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"

namespace xsr::training {
namespace {

using nlohmann::ordered_json;

constexpr char kMetrics[] = "/metrics.jsonl";
constexpr char kEvents[] = "/events.out.tfevents.xsr";

void flatten(const std::string& name, const ordered_json& value,
             std::vector<std::pair<std::string, double>>& out) {
  if (value.is_number()) {
    out.emplace_back(name, value.get<double>());
  } else if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) flatten(name + "/" + key, inner, out);
  }
}

void write_event(EventFile& events, const ordered_json& record) {
  std::vector<std::pair<std::string, double>> scalars;
  const std::string kind = record.at("kind");
  for (const auto& [key, value] : record.items()) {
    if (key != "step" && key != "time") flatten(kind + "/" + key, value, scalars);
  }
  events.write(record.at("time"), record.at("step"), scalars);
}

/// The old lines that stay; the file is written anew with them alone.
std::vector<ordered_json> keep_lines(const std::string& path, int64_t last_step,
                                     bool evaluation_due) {
  std::vector<ordered_json> kept;
  if (last_step >= 0 && std::filesystem::exists(path)) kept = read_metrics(path, last_step);
  if (evaluation_due) {
    std::erase_if(
        kept, [&](const ordered_json& r) { return r["kind"] == "dev" && r["step"] == last_step; });
  }
  PartialFile file(path);
  for (const ordered_json& record : kept) {
    const std::string line = json_text(record) + "\n";
    file.write(line.data(), line.size());
  }
  file.commit();
  return kept;
}

}  // namespace

double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::vector<ordered_json> read_metrics(const std::string& path, int64_t last_step) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(XSR_STATUS_IO, path + ": cannot open the metrics");
  std::vector<ordered_json> records;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    ordered_json record = parse_ordered_json(line);
    const bool whole = record.is_object() && record.contains("kind") &&
                       record["kind"].is_string() && record.contains("step") &&
                       record["step"].is_number_integer() && record.contains("time") &&
                       record["time"].is_number();
    if (!whole) {
      if (in.peek() == std::ifstream::traits_type::eof()) break;
      throw Error(XSR_STATUS_BAD_FILE,
                  fmt::format("{}:{}: is no record of metrics; expected a JSON object with kind, "
                              "step and time; remove the line",
                              path, number));
    }
    if (record["step"] <= last_step) records.push_back(std::move(record));
  }
  if (in.bad()) throw Error(XSR_STATUS_IO, path + ": cannot read the metrics");
  return records;
}

MetricsLog::MetricsLog(const std::string& folder, int64_t last_step, bool evaluation_due)
    : path_(folder + kMetrics), events_(folder + kEvents, unix_time()) {
  for (const ordered_json& record : keep_lines(path_, last_step, evaluation_due))
    write_event(events_, record);
  lines_.open(path_, std::ios::binary | std::ios::app);
}

void MetricsLog::write(const ordered_json& record) {
  lines_ << json_text(record) << '\n';
  if (!lines_.flush()) {
    throw Error(XSR_STATUS_IO,
                path_ + ": cannot write the metrics: " + std::generic_category().message(errno));
  }
  write_event(events_, record);
}

void MetricsLog::flush() {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  const bool flushed = fd >= 0 && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!flushed) {
    throw Error(XSR_STATUS_IO, path_ + ": cannot flush the metrics to disk: " +
                                   std::generic_category().message(error));
  }
}

}  // namespace xsr::training
