// The emulated device against kernels and callers that are wrong on purpose: what it promises to
// end with a message, or to make as bad as it can be, it does. Without this a green run of the
// other CUDA tests would say little.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/gemm/gemm.h"
#include "kernels/storage.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "runtime/device/cuda/summation_probe.h"
#include "runtime/error.h"
#include "tests/support/device_buffer.h"
#include "tests/support/racing_kernels.h"

namespace xsr::cuda {
namespace {

using test::DeviceBuffer;

class CudaEmulator : public test::DeviceTest {
 protected:
  ~CudaEmulator() override { emulated::set_order(0); }
  /// One launch, to its end.
  template <typename... P>
  void run_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                  typename Same<P>::Type... arguments) {
    StreamOwner own;
    check(launch(kernel, grid, block, shared_bytes, own.get(), arguments...), "launching");
    own.synchronize();
  }
};
using CudaEmulatorDeathTest = CudaEmulator;

// ---- barriers

__global__ void barrier_of_some_kernel(int32_t threads) {
  if ((int32_t)threadIdx.x < threads) __syncthreads();
}

__global__ void barrier_or_shuffle_kernel() {
  if (threadIdx.x < kWarp) {
    __syncthreads();
  } else {
    __syncwarp();
    __shfl_sync(0x0000ffffu << 16 * (threadIdx.x % kWarp / 16), 1, 0);
    if (threadIdx.x % kWarp == 0) __syncwarp();
    __syncthreads();
  }
}

TEST_F(CudaEmulatorDeathTest, ABarrierThatSomeThreadsDoNotReach) {
  run_kernel(barrier_of_some_kernel, 2, 64, 0, 64);
  run_kernel(barrier_of_some_kernel, 2, 64, 0, 0);
  EXPECT_DEATH(run_kernel(barrier_of_some_kernel, 2, 64, 0, 63),
               "block \\(0, 0, 0\\): nothing can go on: thread 0 waits at __syncthreads, thread 63 "
               "has ended");
  EXPECT_DEATH(run_kernel(barrier_or_shuffle_kernel, 1, 64, 0),
               "nothing can go on: thread 0 waits at __syncthreads, thread 32 waits at syncwarp");
}

/// Thread t hands its number to thread t ^ 33, in another warp.
__global__ void exchange_kernel(int32_t* out, bool with_barrier) {
  int32_t* shared = shared_memory<int32_t>();
  const int32_t t = (int32_t)threadIdx.x;
  shared[t] = t;
  if (with_barrier) __syncthreads();
  out[t] = shared[t ^ 33];
}

TEST_F(CudaEmulator, AMissingBarrierChangesResults) {
  for (const bool with_barrier : {true, false}) {
    int wrong_orders = 0;
    for (uint64_t order = 0; order < 4; ++order) {
      emulated::set_order(order);
      DeviceBuffer<int32_t> out(64);
      run_kernel(exchange_kernel, 1, 64, 64 * sizeof(int32_t), out.device(), with_barrier);
      download({&out});
      int wrong = 0;
      for (int32_t t = 0; t < 64; ++t) wrong += out[t] != (t ^ 33);
      wrong_orders += wrong > 0;
    }
    EXPECT_EQ(with_barrier ? 0 : 4, wrong_orders);
  }
}

#ifdef XSR_FOLLOW_ACCESSES
/// launch(barrier, stream) is right with the barrier, and with those that are more.
template <typename Launch>
void expect_barrier(test::Barrier needed, Launch&& launch) {
  using test::Barrier;
  for (const Barrier barrier :
       {Barrier::kNone, Barrier::kShuffle, Barrier::kSyncwarp, Barrier::kSyncthreads}) {
    const auto go = [&] {
      StreamOwner own;
      check(launch(barrier, own.get()), "launching");
      own.synchronize();
    };
    SCOPED_TRACE(static_cast<int>(barrier));
    if (barrier >= needed) {
      go();
    } else {
      EXPECT_DEATH(
          go(),
          "block \\(0, 0, 0\\): thread [0-9]+ (reads shared memory that thread [0-9]+ wrote|"
          "writes shared memory that thread [0-9]+ (read|wrote)), without a barrier");
    }
  }
}

TEST_F(CudaEmulatorDeathTest, SharedMemoryIsUsedWithoutABarrier) {
  using test::Barrier;
  // In whatever order threads run; where the first runs first, most of these give right results.
  for (uint64_t order = 0; order < 3; ++order) {
    emulated::set_order(order);
    DeviceBuffer<int32_t> out(64);
    struct Case {
      int32_t other;
      Barrier needed;
    };
    // To one's own word, to another lane, to another warp.
    for (const Case c :
         {Case{0, Barrier::kNone}, Case{5, Barrier::kSyncwarp}, Case{32, Barrier::kSyncthreads}}) {
      SCOPED_TRACE(c.other);
      expect_barrier(c.needed, [&](Barrier barrier, Stream s) {
        return test::launch_exchange(barrier, c.other, out.device(), s);
      });
      expect_barrier(c.needed, [&](Barrier barrier, Stream s) {
        return test::launch_exchange_static(barrier, c.other, out.device(), s);
      });
      expect_barrier(c.needed, [&](Barrier barrier, Stream s) {
        return test::launch_write_after_read(barrier, c.other, out.device(), s);
      });
    }
    DeviceBuffer<uint32_t> matrix(32);
    expect_barrier(Barrier::kSyncwarp, [&](Barrier barrier, Stream s) {
      return test::launch_matrix(barrier, matrix.device(), s);
    });
    DeviceBuffer<float> in(64), copied(64);
    expect_barrier(Barrier::kSyncwarp, [&](Barrier barrier, Stream s) {
      return test::launch_copy(barrier, in.device(), copied.device(), s);
    });
    expect_barrier(Barrier::kSyncwarp, [&](Barrier barrier, Stream s) {
      return test::launch_copy_after_read(barrier, in.device(), copied.device(), s);
    });
  }
}
#endif

/// Blocks have no order: this kernel takes them for one after the other.
__global__ void blocks_in_order_kernel(int32_t* out) {
  const int32_t b = (int32_t)blockIdx.x;
  out[b] = b == 0 ? 0 : out[b - 1] + 1;
}

TEST_F(CudaEmulator, AnOrderOfBlocksThatIsTakenForGrantedChangesResults) {
  std::set<int32_t> last;
  for (uint64_t order = 0; order < 2; ++order) {
    emulated::set_order(order);
    DeviceBuffer<int32_t> out(8);
    run_kernel(blocks_in_order_kernel, 8, 1, 0, out.device());
    download({&out});
    last.insert(out[7]);
  }
  EXPECT_EQ(2u, last.size());
}

// ---- what lanes do together

enum class Wrong : int32_t {
  kNothing,
  kEnded,
  kOperation,
  kMask,
  kNotNamed,
  kNoSuchLane,
};

__global__ void shuffle_kernel(Wrong wrong) {
  const int32_t lane = lane_id();
  const bool odd_one = lane == 5;
  if (wrong == Wrong::kEnded && odd_one) return;
  if (wrong == Wrong::kOperation && odd_one) {
    __shfl_down_sync(kAllLanes, lane, 1);
  } else if (wrong == Wrong::kMask && odd_one) {
    __shfl_xor_sync(0x0000ffffu, lane, 1);
  } else if (wrong == Wrong::kNotNamed) {
    __shfl_xor_sync(kAllLanes & ~(1u << 5), lane, 1);
  } else {
    __shfl_xor_sync(kAllLanes, lane, 1);
  }
}

TEST_F(CudaEmulatorDeathTest, AShuffleWhoseLanesDoNotMeet) {
  run_kernel(shuffle_kernel, 1, 64, 0, Wrong::kNothing);
  EXPECT_DEATH(run_kernel(shuffle_kernel, 1, 32, 0, Wrong::kEnded),
               "shfl_xor of thread .* waits for thread 5, which has ended");
  EXPECT_DEATH(run_kernel(shuffle_kernel, 1, 32, 0, Wrong::kOperation),
               "with mask ffffffff meets shfl.* of thread .* with mask ffffffff");
  EXPECT_DEATH(run_kernel(shuffle_kernel, 1, 32, 0, Wrong::kMask), "with mask .*ffff meets");
  EXPECT_DEATH(run_kernel(shuffle_kernel, 1, 32, 0, Wrong::kNotNamed),
               "shfl_xor of thread 5: its mask ffffffdf does not name its own lane");
  EXPECT_DEATH(run_kernel(shuffle_kernel, 1, 31, 0, Wrong::kNoSuchLane),
               "its mask ffffffff names lane 31, which the block does not have");
}

// ---- copies to shared memory, ldmatrix

/// out[t] ← in[t], by way of shared memory. `at`: the offset of both ends in bytes.
__global__ void copy_kernel(const float* in, float* out, int32_t at, bool wait) {
  float* shared = shared_memory<float>();
  const int32_t t = (int32_t)threadIdx.x;
  if (t % 4 == 0) {
    copy_16_async(reinterpret_cast<char*>(shared + t) + at,
                  reinterpret_cast<const char*>(in + t) + at, true);
  }
  copy_commit();
  if (wait) copy_wait<0>();
  __syncthreads();
  out[t] = shared[t];
}

TEST_F(CudaEmulatorDeathTest, AnAsynchronousCopyIsThereAfterItsWaitOnly) {
  for (const bool wait : {true, false}) {
    DeviceBuffer<float> in(64), out(64);
    for (int32_t i = 0; i < 64; ++i) in[i] = static_cast<float>(i);
    upload({&in, &out});
    run_kernel(copy_kernel, 1, 64, 64 * sizeof(float), in.device(), out.device(), 0, wait);
    download({&out});
    for (int32_t i = 0; i < 64; ++i)
      ASSERT_TRUE(wait ? out[i] == in[i] : std::isnan(out[i])) << out[i];
  }
  DeviceBuffer<float> in(128), out(64);
  EXPECT_DEATH(
      run_kernel(copy_kernel, 1, 64, 128 * sizeof(float), in.device(), out.device(), 8, true),
      "cp.async of thread 0 with an address that is not 16-byte aligned");
}

__global__ void ldmatrix_kernel(int32_t offset) {
  uint32_t r[4];
  load_matrix_x4(r, shared_memory<uint16_t>() + 8 * lane_id() + offset);
}

TEST_F(CudaEmulatorDeathTest, LdmatrixOffItsAlignment) {
  run_kernel(ldmatrix_kernel, 1, 32, 1024, 0);
  EXPECT_DEATH(run_kernel(ldmatrix_kernel, 1, 32, 1024, 1),
               "ldmatrix of thread 0 from an address that is not 16-byte aligned");
}

__global__ void quad_kernel(float* x, uint16_t* narrow) {
  const Quad four = load_quad(x);
  if (narrow == nullptr) store_quad(x, four);
  if (narrow != nullptr) store_quad(narrow, four);
}

TEST_F(CudaEmulatorDeathTest, FourElementsAtOnceOffTheirAlignment) {
  alignas(16) float x[8] = {1, -2, 3, 1.00390625f, 5, 6, 7, 8};
  alignas(8) uint16_t narrow[8] = {};
  run_kernel(quad_kernel, 1, 1, 0, x, narrow);
  EXPECT_THAT(narrow, testing::ElementsAre(0x3f80, 0xc000, 0x4040, 0x3f80, 0, 0, 0, 0));
  run_kernel(quad_kernel, 1, 1, 0, x + 4, nullptr);
  for (int off = 1; off < 4; ++off) {
    EXPECT_DEATH(run_kernel(quad_kernel, 1, 1, 0, x + off, narrow),
                 "16 bytes at once of thread 0 with an address that is not aligned to them");
    EXPECT_DEATH(run_kernel(quad_kernel, 1, 1, 0, x, narrow + off),
                 "8 bytes at once of thread 0 with an address that is not aligned to them");
  }
}

// ---- launches that a device refuses

__global__ void nothing_kernel() {}

TEST_F(CudaEmulatorDeathTest, ALaunchThatIsTooLarge) {
  run_kernel(nothing_kernel, dim3(1, 65535), 1, 0);
  run_kernel(nothing_kernel, 1, 1024, 163 * 1024);
  EXPECT_DEATH(run_kernel(nothing_kernel, 1, 1025, 0), "a block of 1025 × 1 × 1 threads");
  EXPECT_DEATH(run_kernel(nothing_kernel, 1, dim3(32, 33), 0), "a block of 32 × 33 × 1 threads");
  EXPECT_DEATH(run_kernel(nothing_kernel, dim3(1, 65536), 32, 0), "a grid of 1 × 65536 × 1");
  EXPECT_DEATH(run_kernel(nothing_kernel, 1, 32, 163 * 1024 + 1), "bytes of shared memory");
}

// ---- memory

__global__ void write_shared_kernel(int32_t at) { shared_memory<float>()[at] = 1; }
__global__ void read_shared_kernel(int32_t at, float* out) { *out = shared_memory<float>()[at]; }

TEST_F(CudaEmulatorDeathTest, SharedMemoryEndsWhereItWasAskedTo) {
  run_kernel(write_shared_kernel, 1, 1, 400, 99);
  for (const int32_t at : {-1, -20, 100, 120}) {
    EXPECT_DEATH(run_kernel(write_shared_kernel, 1, 1, 400, at),
                 "something wrote outside its 400 bytes of shared memory");
  }
  // Within: nothing was written yet.
  for (const int32_t at : {-1, 0, 99, 100}) {
    DeviceBuffer<float> out(1);
    out[0] = 0;
    upload({&out});
    run_kernel(read_shared_kernel, 1, 1, 400, at, out.device());
    download({&out});
    EXPECT_TRUE(std::isnan(out[0])) << at;
  }
}

template <typename T>
__global__ void write_kernel(T* data, int32_t at) {
  data[at] = T(1);
}
template <typename T>
__global__ void read_kernel(const T* data, int32_t at, float* out) {
  *out = load(data + at);
}

TEST_F(CudaEmulatorDeathTest, MemoryEndsWhereItWasAskedTo) {
  const auto write = [&](int32_t at) {
    const Memory memory(Place::kDevice, 101 * sizeof(float));
    run_kernel(write_kernel<float>, 1, 1, 0, static_cast<float*>(memory.data()), at);
  };
  write(0);
  write(100);
  for (const int32_t at : {-1, -600, 101, 700})
    EXPECT_DEATH(write(at), "something wrote outside its 404 bytes of memory");
  const Memory wide(Place::kDevice, 101 * sizeof(float));
  const Memory narrow(Place::kDevice, 101 * sizeof(uint16_t));
  for (const int32_t at : {-600, -1, 0, 100, 101, 700}) {
    DeviceBuffer<float> out(2);
    out[0] = out[1] = 0;
    upload({&out});
    run_kernel(read_kernel<float>, 1, 1, 0, static_cast<const float*>(wide.data()), at,
               out.device());
    run_kernel(read_kernel<uint16_t>, 1, 1, 0, static_cast<const uint16_t*>(narrow.data()), at,
               out.device() + 1);
    download({&out});
    EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[1])) << at;
  }
}

/// A number that was never set spoils what it is added to; an index that the host never set is one
/// that ends the program.
TEST_F(CudaEmulator, MemoryHoldsNaNAndIndicesFarOutsideAtFirst) {
  for (const Place place : {Place::kDevice, Place::kPinned}) {
    const Memory memory(place, 16);
    const auto holds = [&](auto value) {
      std::memcpy(&value, memory.data(), sizeof value);
      return value;
    };
    EXPECT_TRUE(std::isnan(holds(0.0f)) && std::isnan(holds(0.0)));
    for (size_t i = 0; i < 8; ++i)
      EXPECT_TRUE(std::isnan(bf16_to_f32(static_cast<const uint16_t*>(memory.data())[i])));
    if (place == Place::kPinned) {
      EXPECT_EQ(std::numeric_limits<int32_t>::max(), holds(0));
    }
  }
}

TEST_F(CudaEmulatorDeathTest, CopiesAndClearingAreKeptToTheirMemory) {
  const std::vector<float> host(20, 1.0f);
  const auto use = [&](bool copies, size_t bytes) {
    const Memory memory(Place::kDevice, 40);
    if (copies) {
      copy_to_device(memory.data(), host.data(), bytes, stream());
    } else {
      fill_zero(memory.data(), bytes, stream());
    }
    Event event;
    event.record(stream());
    event.wait();
  };
  for (const bool copies : {true, false}) {
    use(copies, 40);
    EXPECT_DEATH(use(copies, 44), "something wrote outside its 40 bytes of memory");
  }
}

// ---- streams

TEST_F(CudaEmulator, AStreamDoesNothingBeforeItIsWaitedFor) {
  const Memory device(Place::kDevice, sizeof(int32_t)), pinned(Place::kPinned, sizeof(int32_t));
  int32_t& host = *static_cast<int32_t*>(pinned.data());
  // What is read too early is not there.
  int32_t found = 7;
  host = 1;
  copy_to_device(device.data(), &host, sizeof host, stream());
  copy_to_host(&found, device.data(), sizeof found, stream());
  EXPECT_EQ(7, found);
  // What is written again too early is what arrives.
  host = 2;
  Event event;
  event.record(stream());
  event.wait();
  EXPECT_EQ(2, found);
  // Another stream's work is not waited for.
  StreamOwner other;
  host = 3;
  copy_to_device(device.data(), &host, sizeof host, other.get());
  copy_to_host(&found, device.data(), sizeof found, stream());
  event.record(stream());
  event.wait();
  EXPECT_EQ(2, found);
  // Nor what comes behind an event.
  copy_to_device(device.data(), &host, sizeof host, stream());
  event.record(stream());
  copy_to_host(&found, device.data(), sizeof found, stream());
  event.wait();
  EXPECT_EQ(2, found);
  other.synchronize();
}

TEST_F(CudaEmulator, AKernelAndAProductWaitLikeCopies) {
  DeviceBuffer<float> out(5), a(std::vector<float>{2}), b(std::vector<float>{3});
  out[0] = out[4] = 0;
  upload({&out, &a, &b});
  check(launch(write_kernel<float>, 1, 1, 0, stream(), out.device(), 0), "launching");
  const Matrix x{a.device(), 1, Dtype::kF32}, y{b.device(), 1, Dtype::kF32};
  Gemm().run({1, 1, 1, x, y, out.device() + 4, 1}, stream());
  EXPECT_EQ(0, out.device()[0]);
  EXPECT_EQ(0, out.device()[4]);
  download({&out});
  EXPECT_EQ(1, out[0]);
  EXPECT_EQ(6, out[4]);
}

/// Whether a product's algorithm is another than the pinned one is found out by products beside the
/// one that is wanted, which cannot be captured.
TEST_F(CudaEmulator, AnAlgorithmIsChosenBeforeACapture) {
  DeviceBuffer<float> a(1024), b(1), out(1024);
  upload({&a, &b, &out});
  Gemm gemm;
  const Matrix x{a.device(), 1, Dtype::kF32}, y{b.device(), 1, Dtype::kF32};
  const auto capture = [&](int32_t rows) {
    const Graph graph = Graph::capture(stream(), [&] {
      gemm.run({rows, 1, 1, x, y, out.device(), 1}, stream());
    });
  };
  EXPECT_THROW(capture(20), Error);
  gemm.run({20, 1, 1, x, y, out.device(), 1}, stream());
  capture(64);  // the same kind and size
  EXPECT_THROW(capture(65), Error);
  EXPECT_THROW(capture(1024), Error);
}

/// Sums of the probe's products in f32, in ways that algorithms might take.
TEST(SummationProbe, TellsOrdersApart) {
  using Products = std::vector<float>;
  using Order = std::function<float(const Products&)>;
  const auto in_steps = [](size_t step) {  // each step summed by itself
    return [step](const Products& products) {
      float sum = 0;
      for (size_t k = 0; k < products.size(); k += step) {
        float part = 0;
        for (size_t i = k; i < std::min(k + step, products.size()); ++i) part += products[i];
        sum += part;
      }
      return sum;
    };
  };
  const auto in_lanes = [](size_t lanes) {
    return [lanes](const Products& products) {
      std::vector<float> sums(lanes);
      for (size_t k = 0; k < products.size(); ++k) sums[k % lanes] += products[k];
      float sum = 0;
      for (const float lane : sums) sum += lane;
      return sum;
    };
  };
  const auto in_slices = [](size_t slices) {
    return [slices](const Products& products) {
      float sum = 0;
      const size_t size = (products.size() + slices - 1) / slices;
      for (size_t k = 0; k < products.size(); k += size) {
        float part = 0;
        for (size_t i = k; i < std::min(k + size, products.size()); ++i) part += products[i];
        sum += part;
      }
      return sum;
    };
  };
  const std::vector<std::pair<std::string, Order>> orders = {
      {"one by one", in_steps(1)}, {"steps of 8", in_steps(8)}, {"of 16", in_steps(16)},
      {"of 32", in_steps(32)},     {"of 64", in_steps(64)},     {"2 lanes", in_lanes(2)},
      {"4 lanes", in_lanes(4)},    {"5 slices", in_slices(5)},  {"3 slices", in_slices(3)}};
  for (const int32_t K : {SummationProbe::kLeastK, 129, 384, 512, 1024, 3072}) {
    for (const int significand : {8, 24}) {
      const SummationProbe probe(K, significand);
      constexpr int32_t kRows = 8, kOutputs = 16;
      std::vector<std::vector<uint16_t>> results(orders.size());
      for (int32_t m = 0; m < kRows; ++m) {
        for (int32_t n = 0; n < kOutputs; ++n) {
          Products products;
          std::map<double, int> signs;  // of each size: as many above 0 as below
          for (int32_t k = 0; k < K; ++k) {
            const float x = probe.a(m, k), w = probe.b(n, k);
            if (significand == 8) {
              ASSERT_EQ(x, kernels::f32_from_bf16(kernels::bf16_from_f32(x)));
              ASSERT_EQ(w, kernels::f32_from_bf16(kernels::bf16_from_f32(w)));
            }
            products.push_back(x * w);
            const double exact = static_cast<double>(x) * w;
            signs[std::abs(exact)] += exact < 0 ? -1 : exact > 0;
          }
          for (const auto& [size, sum] : signs) ASSERT_EQ(0, sum) << size;
          for (size_t i = 0; i < orders.size(); ++i)
            results[i].push_back(kernels::bf16_from_f32(orders[i].second(products)));
        }
      }
      for (size_t i = 0; i < orders.size(); ++i) {
        for (size_t j = 0; j < i; ++j) {
          int32_t different = 0;
          for (size_t at = 0; at < results[i].size(); ++at)
            different += results[i][at] != results[j][at];
          EXPECT_GT(different, kRows * kOutputs / 2)
              << "K " << K << ", " << significand << " bits, " << orders[j].first << " and "
              << orders[i].first;
        }
      }
      // The places that bias and c join the sum at show, too.
      int32_t different = 0;
      for (int32_t i = 0; i < 512; ++i) {
        Products products;
        for (int32_t k = 0; k < K; ++k) products.push_back(probe.a(i, k) * probe.b(i % 7, k));
        const float sum = in_steps(16)(products), bias = SummationProbe::addend(i),
                    c = SummationProbe::addend(5000 + i);
        different += (sum + bias) + c != (sum + c) + bias;
      }
      EXPECT_GT(different, 8) << K;
    }
  }
}

/// Of a product, what cuBLASLt does not take.
TEST_F(CudaEmulator, AProductHasLayoutsAndAddressesThatCublasltTakes) {
  DeviceBuffer<float> a(64), b(64), out(64);
  upload({&a, &b, &out});
  Gemm gemm;
  const Matrix x{a.device(), 4, Dtype::kF32}, y{b.device(), 4, Dtype::kF32};
  const auto refuses = [&](const Product& product) {
    EXPECT_THROW(gemm.run(product, stream()), Error);
  };
  gemm.run({4, 4, 4, x, y, out.device(), 4}, stream());
  Matrix turned = x;
  turned.transposed = true;  // its algorithm cannot be chosen for more rows than its stride
  gemm.run({4, 4, 4, turned, y, out.device(), 4}, stream());
  refuses({8, 4, 4, turned, y, out.device(), 4});
  refuses({4, 4, 8, x, y, out.device(), 4});
  refuses({4, 8, 4, x, y, out.device(), 4});
  refuses({4, 4, 4, x, y, out.device() + 1, 4});
  refuses({4, 4, 4, {a.device() + 2, 4, Dtype::kF32}, y, out.device(), 4});
  download({&out});
}

TEST_F(CudaEmulator, AGraphReadsWhatIsThereWhenItRuns) {
  const Memory device(Place::kDevice, sizeof(int32_t));
  int32_t from = 1, to = 0;
  const Graph graph = Graph::capture(stream(), [&] {
    copy_to_device(device.data(), &from, sizeof from, stream());
    copy_to_host(&to, device.data(), sizeof to, stream());
  });
  Event event;
  event.record(stream());
  event.wait();
  EXPECT_EQ(0, to) << "capturing runs nothing";
  for (from = 5; from < 7; ++from) {
    graph.launch(stream());
    event.record(stream());
    EXPECT_NE(from, to);
    event.wait();
    EXPECT_EQ(from, to);
  }
}

TEST_F(CudaEmulatorDeathTest, WaitingWhileAGraphIsCaptured) {
  StreamOwner own;
  EXPECT_DEATH(Graph::capture(own.get(), [&] { own.synchronize(); }),
               "a stream that is being captured is waited for");
}

/// A number goes to a, and from there, on another stream, to b; then another takes its place in a.
class CudaEmulatorStreams : public CudaEmulator {
 protected:
  enum class Missing { kNothing, kFork, kRead, kJoin };

  void enqueue(Missing missing) {
    copy_to_device(a_.data(), &host_[0], sizeof(int32_t), stream());
    forked_.record(stream());
    if (missing != Missing::kFork) forked_.hold(other_.get());
    copy_on_device(b_.data(), a_.data(), sizeof(int32_t), other_.get());
    joined_.record(other_.get());
    if (missing == Missing::kNothing || missing == Missing::kFork) joined_.hold(stream());
    copy_to_device(a_.data(), &host_[1], sizeof(int32_t), stream());
    if (missing == Missing::kRead) joined_.hold(stream());
    copy_to_host(&found_, b_.data(), sizeof(int32_t), stream());
  }
  /// Of orders 0, 1 and 2, those that find another number than the first.
  template <typename Go>
  std::set<uint64_t> wrong_orders(Go&& go) {
    std::set<uint64_t> wrong;
    for (uint64_t order = 0; order < 3; ++order) {
      emulated::set_order(order);
      fill_zero(b_.data(), sizeof(int32_t), stream());
      Event cleared;
      cleared.record(stream());
      cleared.wait();
      go();
      Event done;
      done.record(stream());
      done.wait();
      if (found_ != host_[0]) wrong.insert(order);
      other_.synchronize();
    }
    return wrong;
  }

  StreamOwner other_;
  const Memory a_{Place::kDevice, sizeof(int32_t)}, b_{Place::kDevice, sizeof(int32_t)};
  const int32_t host_[2] = {3, 4};
  int32_t found_ = 0;
  Event forked_, joined_;
};

TEST_F(CudaEmulatorStreams, AWaitThatIsMissingChangesResults) {
  using testing::Contains;
  using testing::IsEmpty;
  EXPECT_THAT(wrong_orders([&] { enqueue(Missing::kNothing); }), IsEmpty());
  EXPECT_THAT(wrong_orders([&] { enqueue(Missing::kFork); }), Contains(1));
  EXPECT_THAT(wrong_orders([&] { enqueue(Missing::kRead); }), Contains(0));
  EXPECT_THAT(wrong_orders([&] { enqueue(Missing::kJoin); }), Contains(0));
}

/// The host gives a stream work that another one must be through with: it waits, or does not.
TEST_F(CudaEmulatorStreams, StreamsThatOnlyTheHostKeepsApart) {
  for (const bool waits : {true, false}) {
    const std::set<uint64_t> wrong = wrong_orders([&] {
      copy_to_device(a_.data(), &host_[0], sizeof(int32_t), stream());
      forked_.record(stream());
      forked_.wait();
      copy_to_host(&found_, a_.data(), sizeof(int32_t), stream());
      forked_.record(stream());
      if (waits) forked_.wait();
      copy_to_device(a_.data(), &host_[1], sizeof(int32_t), other_.get());
      forked_.wait();
    });
    EXPECT_EQ(0u, wrong.count(0));
    EXPECT_EQ(waits ? 0u : 1u, wrong.count(1));
  }
}

TEST_F(CudaEmulatorStreams, AGraphHasTheWorkOfStreamsThatWaitForIt) {
  const auto captured = [&](Missing missing) {
    return Graph::capture(stream(), [&] { enqueue(missing); });
  };
  for (const Missing missing : {Missing::kNothing, Missing::kRead}) {
    const Graph graph = captured(missing);
    EXPECT_EQ(0u, other_.get()->given()) << "capturing runs nothing";
    for (int launch = 0; launch < 2; ++launch) {
      const std::set<uint64_t> wrong = wrong_orders([&] { graph.launch(stream()); });
      EXPECT_EQ(missing == Missing::kRead, wrong.count(0) != 0);
      if (missing == Missing::kNothing) {
        EXPECT_THAT(wrong, testing::IsEmpty());
      }
    }
  }
  // An event that the graph does not have; a stream that is not waited for in the end.
  EXPECT_THROW(captured(Missing::kFork), Error);
  EXPECT_THROW(captured(Missing::kJoin), Error);
  // An event of a capture is none outside of it.
  EXPECT_THROW(joined_.wait(), Error);
  EXPECT_THROW(joined_.hold(stream()), Error);
  EXPECT_THAT(wrong_orders([&] { enqueue(Missing::kNothing); }), testing::IsEmpty());
}

TEST_F(CudaEmulatorStreams, ProductsOfTwoStreamsDoNotShareAWorkspace) {
  DeviceBuffer<float> a(1), b(1), out(1);
  upload({&a, &b, &out});
  Gemm gemm;
  const Product product{1, 1, 1, {a.device(), 1}, {b.device(), 1}, out.device(), 1};
  gemm.run(product, stream());
  gemm.run(product, stream());
  EXPECT_THROW(gemm.run(product, other_.get()), Error);
  download({&out});
}

TEST_F(CudaEmulator, TimingBetweenPointsThatHaveNotPassedIsAnError) {
  Event start, end;
  EXPECT_THROW(end.milliseconds_since(start), Error);
  start.record(stream());
  end.record(stream());
  EXPECT_THROW(end.milliseconds_since(start), Error);
  start.wait();
  EXPECT_THROW(end.milliseconds_since(start), Error);
  end.wait();
  EXPECT_GE(end.milliseconds_since(start), 0);
}

}  // namespace
}  // namespace xsr::cuda
