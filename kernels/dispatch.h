#pragma once
#include "kernels/activation/activation.h"
#include "kernels/attention/attention.h"
#include "kernels/dropout/dropout.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_backward.h"
#include "kernels/isa.h"
#include "kernels/layernorm/layernorm.h"
#include "kernels/loss/loss.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/pooling/pooling.h"
#include "kernels/similarity/similarity.h"

namespace xsr::kernels {

/// One function per contract of kernels.inc, and the ISA it comes from.
struct KernelTable {
  Isa isa = Isa::kRef;  // the fastest ISA among the functions
#define XSR_OP(op)      \
  op##_t* op = nullptr; \
  Isa op##_isa = Isa::kRef;
#include "kernels/kernels.inc"
};

/// The first kernel of every list that is neither faster than `cap` nor unsupported by this CPU.
/// Pure.
KernelTable resolve_kernels(Isa cap);

}  // namespace xsr::kernels
