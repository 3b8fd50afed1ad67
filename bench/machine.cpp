#include "bench/machine.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/error.h"

namespace xsr::bench {

std::string commit() { return XSR_COMMIT; }

int64_t l2_bytes() {
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : int64_t{1} << 20;
}

std::vector<int> allowed_cpus() {
  const CpuSet set = CpuSet::of_this_thread();
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CpuSet::kMostCpus; ++cpu) {
    if (CPU_ISSET_S(cpu, sizeof set, set.bits)) cpus.push_back(cpu);
  }
  return cpus;
}

CpuSet CpuSet::of_this_thread() {
  CpuSet set = {};
  if (sched_getaffinity(0, sizeof set, set.bits) != 0) {
    throw Error(XSR_STATUS_INTERNAL, std::string("cannot tell on which processors this process may "
                                                 "run: ") +
                                         std::strerror(errno));
  }
  return set;
}

PinToCpu::PinToCpu(int cpu) : before_(CpuSet::of_this_thread()) {
  CpuSet set = {};
  CPU_SET_S(cpu, sizeof set, set.bits);
  pinned_ = sched_setaffinity(0, sizeof set, set.bits) == 0;
}

PinToCpu::~PinToCpu() {
  if (pinned_) sched_setaffinity(0, sizeof before_, before_.bits);
}

}  // namespace xsr::bench
