#include "bench/machine.h"

#include <unistd.h>

namespace xsr::bench {

std::string commit() { return XSR_COMMIT; }

int64_t l2_bytes() {
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : int64_t{1} << 20;
}

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

PinToCpu::PinToCpu(int cpu) {
  sched_getaffinity(0, sizeof before_, &before_);
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pinned_ = sched_setaffinity(0, sizeof set, &set) == 0;
}

PinToCpu::~PinToCpu() {
  if (pinned_) sched_setaffinity(0, sizeof before_, &before_);
}

}  // namespace xsr::bench
