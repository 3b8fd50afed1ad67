#include "bench/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bench/huge_buffer.h"
#include "bench/machine.h"
#include "bench/roofline_loops.h"

namespace xsr::bench {
namespace {

constexpr int kWindows = 15;
constexpr int64_t kFmaIterations = 150000;     // about 1 ms
constexpr int64_t kReadBytesPerWindow = 64e6;  // about 1 ms, at least one pass
constexpr int64_t kReadStep = 512;

/// work(t) on every thread t at once; seconds from the common start to the slowest's end, with
/// more threads than processors too.
class Team {
  using Clock = std::chrono::steady_clock;

 public:
  explicit Team(int32_t threads) : cpus_(allowed_cpus()), threads_(threads) {}

  template <typename Work>
  double run(const Work& work) const {
    std::vector<Clock::time_point> starts(threads_), ends(threads_);
    std::atomic<int32_t> ready{0};
    const bool crowded = threads_ > static_cast<int32_t>(cpus_.size());
    const auto body = [&](int32_t t) {
      ++ready;
      while (ready.load(std::memory_order_acquire) < threads_) {
        if (crowded) std::this_thread::yield();
      }
      starts[t] = Clock::now();
      work(t);
      ends[t] = Clock::now();
    };
    if (threads_ == 1) {  // on the caller, who is pinned already
      body(0);
    } else {
      std::vector<std::thread> helpers;
      std::exception_ptr error;
      try {
        for (int32_t t = 0; t < threads_; ++t) {
          helpers.emplace_back([&, t] {
            const PinToCpu pin(cpus_[t % cpus_.size()]);
            body(t);
          });
        }
      } catch (...) {
        error = std::current_exception();
        ready = threads_;  // the others wait for those that cannot be had
      }
      for (std::thread& helper : helpers) helper.join();
      if (error) std::rethrow_exception(error);
    }
    return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) -
                                         *std::min_element(starts.begin(), starts.end()))
        .count();
  }

 private:
  std::vector<int> cpus_;
  int32_t threads_;
};

}  // namespace

struct RooflineMeter::State {
  State(int32_t threads, int64_t bytes_a_thread)
      : team(threads), threads(threads), part(bytes_a_thread), buffer(threads * bytes_a_thread) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    for (float& value : seed) value = uniform(random);
    // Written so that every page is there and none is the shared page of zeros.
    memset(buffer.data(), 1, threads * bytes_a_thread);
  }

  Team team;
  int32_t threads;
  int64_t part;
  HugeBuffer buffer;
  float seed[448];
  fma_loop_t* fma = nullptr;
  fma_loop_t* attention = nullptr;
  read_loop_t* read = nullptr;
  std::atomic<uint64_t> sink{0};
};

RooflineMeter::RooflineMeter(kernels::Isa isa, xsr_compute compute, int32_t threads,
                             int64_t weight_bytes) {
  const int64_t wanted = std::max(weight_bytes / threads, 4 * l2_bytes());
  state_ = std::make_unique<State>(threads, (wanted + kReadStep - 1) / kReadStep * kReadStep);
  const kernels::Isa best = isa == kernels::Isa::kRef ? kernels::best_isa() : isa;
  if (best == kernels::Isa::kRef)
    throw std::runtime_error("the roofline needs AVX2, which this CPU does not have");
  const bool avx512 = best >= kernels::Isa::kAvx512;
  // Products in bf16 on a CPU without AVX512_BF16 widen to f32, and so does their ceiling.
  const bool bytes = compute == XSR_COMPUTE_INT8;
  const bool pairs = (compute == XSR_COMPUTE_BF16 || bytes) && best >= kernels::Isa::kAvx512Bf16;
  state_->attention = pairs ? dot_loop_avx512_bf16 : avx512 ? fma_loop_avx512 : fma_loop_avx2;
  const bool vnni =
      best >= kernels::Isa::kAvx2Vnni && kernels::isa_supported(kernels::Isa::kAvx2Vnni);
  state_->fma = !bytes                              ? state_->attention
                : best >= kernels::Isa::kAvx512Vnni ? dot_loop_avx512_vnni
                : vnni                              ? dot_loop_avx2_vnni
                                                    : madd_loop_avx2;
  state_->read = avx512 ? read_loop_avx512 : read_loop_avx2;
}

RooflineMeter::~RooflineMeter() = default;

void RooflineMeter::measure() {
  State& state = *state_;
  const auto measure_peak = [&](fma_loop_t* loop, double* peak_gflops) {
    for (int window = 0; window < kWindows; ++window) {
      std::atomic<double> flop{0};
      const double seconds = state.team.run([&](int32_t) {
        float sink[16];
        flop = loop(kFmaIterations, state.seed, sink);
        uint32_t bits;
        memcpy(&bits, sink, sizeof bits);
        state.sink.fetch_xor(bits, std::memory_order_relaxed);
      });
      *peak_gflops = std::max(*peak_gflops, 1e-9 * flop * state.threads / seconds);
    }
  };
  measure_peak(state.fma, &roofline_.peak_gflops);
  if (state.attention == state.fma) {
    roofline_.attention_gflops = roofline_.peak_gflops;
  } else {
    measure_peak(state.attention, &roofline_.attention_gflops);
  }
  const int64_t passes = std::max<int64_t>(1, kReadBytesPerWindow / state.part);
  for (int window = 0; window < kWindows; ++window) {
    const double seconds = state.team.run([&](int32_t t) {
      const char* part = static_cast<const char*>(state.buffer.data()) + t * state.part;
      uint64_t value = 0;
      for (int64_t pass = 0; pass < passes; ++pass) value ^= state.read(part, state.part);
      state.sink.fetch_xor(value, std::memory_order_relaxed);
    });
    roofline_.read_gb_per_s =
        std::max(roofline_.read_gb_per_s, 1e-9 * passes * state.part * state.threads / seconds);
  }
}

}  // namespace xsr::bench
