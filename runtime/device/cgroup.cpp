#include "runtime/device/cgroup.h"

#include <cstdint>
#include <fstream>

namespace xsr {
namespace {

double processors(int64_t quota, int64_t period) {
  return quota > 0 && period > 0 ? static_cast<double>(quota) / static_cast<double>(period) : 0;
}

/// cpu.max holds "quota period", or "max period" without a limit; microseconds.
double quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  int64_t quota = 0, period = 0;
  file >> quota >> period;
  return file ? processors(quota, period) : 0;
}

/// A quota of -1 is no limit.
double quota_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  int64_t quota = 0, period = 0;
  return quota_file >> quota && period_file >> period ? processors(quota, period) : 0;
}

}  // namespace

double cgroup_cpus() {
  std::ifstream membership("/proc/self/cgroup");
  return cgroup_cpus("/sys/fs/cgroup", membership);
}

double cgroup_cpus(const std::string& root, std::istream& membership) {
  double least = 0;
  for (std::string line; std::getline(membership, line);) {
    // hierarchy:controllers:path; version 2 names no controllers.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(",cpu,") == std::string::npos) continue;
    // A container may see its own cgroup at the root and a path that is not there: all are tried.
    for (std::string path = line.substr(second + 1);;) {
      path.erase(path.find_last_not_of('/') + 1);
      const double cpus = v2 ? quota_v2(root + path) : quota_v1(root + "/cpu" + path);
      if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
      if (path.empty()) break;
      const size_t parent = path.rfind('/');
      path.erase(parent == std::string::npos ? 0 : parent);
    }
  }
  return least;
}

}  // namespace xsr
