#pragma once
#include <sched.h>

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/device/machine.h"

namespace xsr::bench {

/// The commit the build was configured at, "unknown" outside a git checkout.
std::string commit();
/// Bytes of one core's L2; 1 MiB when the system does not say.
int64_t l2_bytes();

/// As many processors as kMostCpus, where a cpu_set_t has room for 1,024: on a larger machine the
/// system refuses to fill one in.
struct CpuSet {
  static constexpr int kMostCpus = 1 << 14;
  cpu_set_t bits[kMostCpus / CPU_SETSIZE];

  /// Those the calling thread may run on. Throws Error(INTERNAL) where the system does not tell.
  static CpuSet of_this_thread();
};
/// The same as numbers.
std::vector<int> allowed_cpus();

/// Keeps the calling thread, and the threads it makes meanwhile, on one processor; the destructor
/// gives the old set back.
class PinToCpu {
 public:
  explicit PinToCpu(int cpu);
  ~PinToCpu();
  PinToCpu(const PinToCpu&) = delete;
  PinToCpu& operator=(const PinToCpu&) = delete;
  bool pinned() const { return pinned_; }

 private:
  CpuSet before_;
  bool pinned_;
};

}  // namespace xsr::bench
