#pragma once
#include <cstdint>
#include <string>

namespace xsr {

/// Processors' worth of time that its cgroups leave this process: the least quota of its own and of
/// those above it, of version 2 and 1, as far as they can be seen from here; 0 when there is none.
double cgroup_cpus();
/// The same for a process whose /proc/self/cgroup reads as membership, with cgroups mounted below
/// root.
double cgroup_cpus(const std::string& root, const std::string& membership);
/// As many of `cpus` processors as keep a quota busy (rounded up; 0: no quota). At least 1.
int32_t cpus_within(int32_t cpus, double quota);

}  // namespace xsr
