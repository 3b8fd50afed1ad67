#pragma once
#include <cstdint>
#include <memory>

#include "kernels/isa.h"
#include "xsr/xsr.h"

namespace xsr::bench {

/// What this machine can do at most, over all threads together.
struct Roofline {
  double peak_gflops = 0;  // multiply-adds on registers, GFLOP/s
  /// The same in what attention is counted in: f32 for f32 and bf16x3, else pairs of bf16, where
  /// the CPU has them.
  double attention_gflops = 0;
  double read_gb_per_s =
      0;  // reads from beyond L2 (a CUDA device: a copy's both ways), 10^9 bytes/s
};

/// Measures the roofline of `threads` threads, one a processor, for code of one ISA (ref: that of
/// the best ISA of the CPU, since plain loops have no ceiling of their own worth the name) and one
/// kind of product: f32, bf16 pairs, or bytes. Where the CPU has no VNNI a product of bytes is one
/// of 16-bit halves and an addition, and that pair is the ceiling of int8 then. The ceiling of amx
/// is that of the vectors beside its tiles, which can be faster.
///
/// Peak: register-resident multiply-adds on random data. Read rate: 64-byte loads over
/// max(weight_bytes, 4 L2 a thread) on 2 MiB pages, each thread its own part, again and again.
///
/// Policy: a ceiling is a maximum, so each measure() takes the best of many short windows, and the
/// largest of all measure() calls so far stands. Call it before, between and after the timings:
/// a clock that rose meanwhile then makes the share of roofline smaller, never larger. Timings are
/// medians, so a share is a typical time against the machine at its best.
class RooflineMeter {
 public:
  RooflineMeter(kernels::Isa isa, xsr_compute compute, int32_t threads, int64_t weight_bytes);
  ~RooflineMeter();
  RooflineMeter(const RooflineMeter&) = delete;
  RooflineMeter& operator=(const RooflineMeter&) = delete;

  void measure();
  const Roofline& roofline() const { return roofline_; }

 private:
  struct State;
  std::unique_ptr<State> state_;
  Roofline roofline_;
};

/// max(products / peak + attention / attention's peak, bytes / read rate), in seconds: nothing but
/// AMX tiles can be faster.
inline double floor_seconds(const Roofline& roofline, double flop, double attention_flop,
                            double weight_bytes) {
  const double compute =
      flop / (roofline.peak_gflops * 1e9) + attention_flop / (roofline.attention_gflops * 1e9);
  const double read = weight_bytes / (roofline.read_gb_per_s * 1e9);
  return compute > read ? compute : read;
}

}  // namespace xsr::bench
