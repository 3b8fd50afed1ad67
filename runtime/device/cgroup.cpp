#include "runtime/device/cgroup.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

namespace xsr {
namespace {

// stdio: the first stream of a process costs a session more than all these files.
struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;
File open_file(const std::string& path) { return File(std::fopen(path.c_str(), "re")); }

/// The number at the file's position; 0 where there is none.
double number(const File& file) {
  double value = 0;
  return file != nullptr && std::fscanf(file.get(), "%lf", &value) == 1 ? value : 0;
}

double processors(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : 0;
}

/// cpu.max holds "quota period", or "max period" without a limit; microseconds.
double quota_v2(const std::string& folder) {
  const File file = open_file(folder + "/cpu.max");
  const double quota = number(file);
  return processors(quota, number(file));
}

/// A quota of -1 is no limit.
double quota_v1(const std::string& folder) {
  return processors(number(open_file(folder + "/cpu.cfs_quota_us")),
                    number(open_file(folder + "/cpu.cfs_period_us")));
}

}  // namespace

double cgroup_cpus() {
  std::string membership;
  if (const File file = open_file("/proc/self/cgroup")) {
    char piece[1024];
    for (size_t count; (count = std::fread(piece, 1, sizeof piece, file.get())) > 0;)
      membership.append(piece, count);
  }
  return cgroup_cpus("/sys/fs/cgroup", membership);
}

double cgroup_cpus(const std::string& root, const std::string& membership) {
  double least = 0;
  for (size_t begin = 0; begin < membership.size();) {
    const size_t end = std::min(membership.find('\n', begin), membership.size());
    const std::string line = membership.substr(begin, end - begin);
    begin = end + 1;
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

int32_t cpus_within(int32_t cpus, double quota) {
  const double whole = std::ceil(quota);
  if (quota > 0 && whole < cpus) return static_cast<int32_t>(whole);
  return std::max(cpus, 1);
}

}  // namespace xsr
