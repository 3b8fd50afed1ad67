#include "kernels/dispatch.h"

namespace xsr::kernels {

KernelTable resolve_kernels(Isa cap) {
  KernelTable table;
#define XSR_KERNEL(op, isa_suffix, level)                            \
  if (table.op == nullptr && level <= cap && isa_supported(level)) { \
    table.op = op##_##isa_suffix;                                    \
    table.op##_isa = level;                                          \
    if (level > table.isa) table.isa = level;                        \
  }
#include "kernels/kernels.inc"
  return table;
}

}  // namespace xsr::kernels
