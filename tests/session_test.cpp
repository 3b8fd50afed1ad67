// The promises of the C API: the same bits whatever the batch, order and thread count; statuses and
// messages; models shared by many threads.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>
#include <thread>
#include <tuple>

#include "bench/random_model.h"
#include "runtime/device/cgroup.h"
#include "runtime/device/cpu_threads.h"
#include "runtime/device/cuda_library.h"
#include "runtime/encoder/derived_weights.h"
#include "runtime/encoder/encoder.h"
#include "runtime/encoder/model.h"
#include "runtime/encoder/session.h"
#include "runtime/error.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/plain_encoder.h"
#include "tests/support/sanitizers.h"
#include "tests/support/session.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tensor_sources.h"
#include "tests/support/test_model.h"
#include "xsr/xsr.h"

namespace xsr {
namespace {

using test::embed;
using test::ModelPointer;
using test::open_file;
using test::open_memory;
using test::Random;
using test::SessionPointer;

TEST(TunedChunkTokens, FillTheSecondLevelCacheWithAmxAlone) {
  ModelConfig config;
  const auto tokens = [&](kernels::Isa isa, int32_t hidden_size, int32_t intermediate_size,
                          int32_t num_heads = 4) {
    config.hidden_size = hidden_size;
    config.num_heads = num_heads;
    config.intermediate_size = intermediate_size;
    return tuned_chunk_tokens(isa, config);
  };
  EXPECT_EQ(tokens(kernels::Isa::kRef, 768, 3072), 32);
  for (const kernels::Isa isa :
       {kernels::Isa::kAvx2, kernels::Isa::kAvx2Vnni, kernels::Isa::kAvx512,
        kernels::Isa::kAvx512Vnni, kernels::Isa::kAvx512Bf16}) {
    EXPECT_EQ(tokens(isa, 768, 3072), 96);
    EXPECT_EQ(tokens(isa, 64, 64), 96);
  }
  // 2^21 bytes over four times the hidden size and the wider of Q, K and V of two heads, or of all
  // where two are no whole panels, and the FFN's
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 768, 3072), 136);
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 1024, 1024), 204);    // two of four: 1,536
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 768, 1024, 1), 170);  // 2,304
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 768, 1024, 3), 170);
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 720, 1024, 30), 182);  // two of 24 are 48; all: 2,160
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 256, 512), 256);       // 512 would fit
  EXPECT_EQ(tokens(kernels::Isa::kAmx, 1024, 4096), 128);     // 102 would fit
}

TEST(CgroupCpus, AreTheLeastQuotaOfTheProcessAndWhatStandsAboveIt) {
  const test::TempFolder folder;
  const std::string root = folder / "cgroup";
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  };
  const auto cpus = [&](const std::string& membership) { return cgroup_cpus(root, membership); };
  EXPECT_EQ(cpus("0::/\n"), 0);  // nothing is mounted
  write("/a.slice/cpu.max", "300000 100000\n");
  write("/a.slice/b.service/cpu.max", "150000 100000\n");
  write("/c/cpu.max", "max 100000\n");
  EXPECT_EQ(cpus("0::/a.slice/b.service\n"), 1.5);
  EXPECT_EQ(cpus("0::/a.slice/b.service/inner\n"), 1.5);
  EXPECT_EQ(cpus("0::/a.slice\n"), 3);
  EXPECT_EQ(cpus("0::/c\n"), 0);
  EXPECT_EQ(cpus("no line of this kind\n"), 0);
  write("/cpu.max", "50000 100000\n");  // a container's own, whatever its path outside
  EXPECT_EQ(cpus("0::/docker/0123\n"), 0.5);
  EXPECT_EQ(cpus("0::/a.slice\n"), 0.5);
  std::filesystem::remove(root + "/cpu.max");
  write("/cpu/cpu.cfs_quota_us", "-1\n");
  write("/cpu/cpu.cfs_period_us", "100000\n");
  write("/cpu/d/cpu.cfs_quota_us", "250000\n");
  write("/cpu/d/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cpus("4:cpu,cpuacct:/d\n3:cpuset:/a.slice\n0::/\n"), 2.5);
  EXPECT_EQ(cpus("4:cpu,cpuacct:/\n"), 0);
  EXPECT_EQ(cpus("3:cpuset:/d\n"), 0);
}

TEST(CgroupCpus, AQuotaIsRoundedUpToWholeProcessors) {
  EXPECT_EQ(cpus_within(8, 0), 8);
  EXPECT_EQ(cpus_within(8, 1.5), 2);
  EXPECT_EQ(cpus_within(8, 2), 2);
  EXPECT_EQ(cpus_within(8, 2.01), 3);
  EXPECT_EQ(cpus_within(8, 7.5), 8);
  EXPECT_EQ(cpus_within(8, 64), 8);
  EXPECT_EQ(cpus_within(8, 0.1), 1);
  EXPECT_EQ(cpus_within(1, 1.5), 1);
  EXPECT_EQ(cpus_within(8, 1e12), 8);
  EXPECT_EQ(cpus_within(0, 0), 1);
  EXPECT_EQ(cpus_within(0, 1.5), 1);
}

TEST(CudaDevices, AreBitsOfTheOptions) {
  xsr_session_options options = {};
  choose_device("cuda:3,40,0", &options);
  EXPECT_EQ(XSR_DEVICE_CUDA, options.device);
  EXPECT_EQ(uint64_t{1} << 40 | 9, options.cuda_devices);
  choose_device("cpu", &options);
  EXPECT_EQ(XSR_DEVICE_CPU, options.device);
  EXPECT_EQ(0u, options.cuda_devices);
  for (const char* device : {"gpu", "cuda:", "cuda:-1", "cuda:0,", "cuda:1,1", "cuda:0;1",
                             "cuda:64", "cuda:4294967296"}) {
    EXPECT_THROW(choose_device(device, &options), Error) << device;
  }
}

xsr_session_options options_for(xsr_isa isa, int32_t threads, int32_t batch_tokens = 0) {
  xsr_session_options options{};
  options.size = sizeof options;
  options.isa = isa;
  options.num_threads = threads;
  options.max_batch_tokens = batch_tokens;
  return options;
}

constexpr char kShipped[] = XSR_SOURCE_DIR "/models/xsr-multi.xsr";

/// Null where the ISA is not available here.
SessionPointer make_session(const ModelPointer& model, const xsr_session_options& options) {
  xsr_session* session = nullptr;
  char detail[256] = "";
  const xsr_status status =
      xsr_session_create(model.get(), &options, &session, detail, sizeof detail);
  if (status == XSR_STATUS_UNSUPPORTED) return nullptr;
  EXPECT_EQ(XSR_STATUS_OK, status) << detail;
  SessionPointer pointer(session);
  if (options.isa != XSR_ISA_AUTO && xsr_session_get_isa(session) != options.isa) return nullptr;
  return pointer;
}

/// Sentences of 0 to 200 tokens and a few longer ones, in no order.
struct Sentences {
  std::vector<std::vector<int32_t>> all;
  Sentences(uint64_t salt, int count, int32_t vocab_size) {
    Random random(salt);
    for (int i = 0; i < count; ++i) {
      const int kind = random.range(0, 19);
      const int32_t length = kind == 0   ? 0
                             : kind == 1 ? random.range(100, 230)
                                         : random.range(1, 40);
      std::vector<int32_t> ids(length);
      for (int32_t& id : ids) id = random.range(0, vocab_size - 1);
      all.push_back(ids);
    }
  }
};

/// The first row whose bits differ, -1 when there is none. This is the comparison every invariance
/// rests on.
int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b, size_t C) {
  if (a.size() != b.size()) return 0;
  for (size_t row = 0; row < a.size() / C; ++row) {
    if (std::memcmp(&a[row * C], &b[row * C], C * sizeof(float)) != 0)
      return static_cast<int64_t>(row);
  }
  return -1;
}

TEST(Invariance, TheComparisonNoticesOneFlippedBit) {
  std::vector<float> a(3 * 8, 1.5f), b = a;
  EXPECT_EQ(-1, first_difference(a, b, 8));
  uint32_t bits;
  std::memcpy(&bits, &b[21], 4);
  bits ^= 1u;  // the last bit of one mantissa
  std::memcpy(&b[21], &bits, 4);
  EXPECT_EQ(2, first_difference(a, b, 8));
  a[3] = 0.0f;
  b[3] = -0.0f;
  EXPECT_EQ(0, first_difference(a, b, 8)) << "signed zeros are different bits";
}

using test::kSlow;

// What sanitizers look for shows in few sentences as well as in many.
constexpr int kSentencesShare = kSlow ? 8 : 1;

bench::RandomShape with_cls(bench::RandomShape shape) {
  shape.pooling = Pooling::kCls;
  return shape;
}

class InvarianceAt : public ::testing::TestWithParam<xsr_isa> {};

TEST_P(InvarianceAt, SameTextSameBits) {
  struct Case {
    bench::RandomShape shape;
    DType storage;
    int sentences;
    xsr_compute compute = XSR_COMPUTE_F32;
    xsr_qkv_table qkv_table = XSR_QKV_TABLE_OFF;
  };
  // The ref loops are slow: the real width only where there are vector kernels.
  std::vector<Case> cases = {
      {{3, 24, 3, 40, 53}, DType::kF32, 40},
      {{2, 96, 4, 130, 301}, DType::kBF16, 40},
      {{1, 65, 5, 33, 77}, DType::kF16, 30},
      {{2, 65, 5, 33, 77}, DType::kBF16, 30, XSR_COMPUTE_BF16},
      {{2, 65, 5, 33, 77}, DType::kF32, 20, XSR_COMPUTE_BF16X3},
      {{2, 65, 5, 33, 77}, DType::kI8, 20, XSR_COMPUTE_BF16X3, XSR_QKV_TABLE_ON},
      {{2, 65, 5, 33, 77}, DType::kI8, 30, XSR_COMPUTE_INT8},
      {{2, 65, 5, 33, 77}, DType::kBF16, 20, XSR_COMPUTE_INT8},
      {{2, 65, 5, 33, 77}, DType::kI8, 20},
      {{2, 65, 5, 33, 77}, DType::kI8, 20, XSR_COMPUTE_INT8, XSR_QKV_TABLE_ON},
      {{2, 65, 5, 33, 77}, DType::kF32, 30, XSR_COMPUTE_F32, XSR_QKV_TABLE_ON},
      {with_cls({2, 65, 5, 33, 77}), DType::kF32, 30},
      {with_cls({2, 65, 5, 33, 77}), DType::kBF16, 20, XSR_COMPUTE_BF16},
      {with_cls({2, 65, 5, 33, 77}), DType::kF32, 20, XSR_COMPUTE_BF16X3},
      {with_cls({1, 65, 5, 33, 77}), DType::kI8, 20, XSR_COMPUTE_INT8, XSR_QKV_TABLE_ON}};
  if (GetParam() != XSR_ISA_REF) {
    cases.push_back({{2, 512, 8, 1024, 3000}, DType::kF32, 25});
  }
  if (GetParam() != XSR_ISA_REF && !kSlow) {
    cases.push_back({{2, 512, 8, 1024, 3000}, DType::kBF16, 25, XSR_COMPUTE_BF16});
    cases.push_back({{2, 512, 8, 1024, 3000}, DType::kF32, 25, XSR_COMPUTE_BF16X3});
    cases.push_back({{2, 512, 8, 1024, 3000}, DType::kI8, 25, XSR_COMPUTE_INT8});
  }
  bool any = false;
  for (const Case& c : cases) {
    const bench::RandomModel random(c.shape, c.storage, 5);
    const ModelPointer model = open_memory(random.data(), random.size());
    const size_t C = c.shape.hidden_size;
    const Sentences sentences(c.shape.hidden_size, c.sentences / kSentencesShare,
                              c.shape.vocab_size);
    const auto session_with = [&](int32_t threads, int32_t batch_tokens) {
      // Products in bf16 and int8 have AVX-512 forms of their own.
      const xsr_isa own = c.compute == XSR_COMPUTE_INT8  ? XSR_ISA_AVX512_VNNI
                          : c.compute != XSR_COMPUTE_F32 ? XSR_ISA_AVX512_BF16
                                                         : XSR_ISA_AVX512;
      xsr_session_options options =
          options_for(GetParam() == XSR_ISA_AVX512 ? own : GetParam(), threads, batch_tokens);
      options.compute = c.compute;
      options.qkv_table = c.qkv_table;
      return make_session(model, options);
    };
    const SessionPointer one = session_with(1, 0);
    if (one == nullptr) continue;  // a CPU without that form, or an ISA: AMX has none in f32
    any = true;
    const std::vector<float> expected = embed(one.get(), sentences.all, C);
    for (float value : expected) ASSERT_TRUE(std::isfinite(value));

    // alone
    for (size_t i = 0; i < sentences.all.size(); ++i) {
      const std::vector<float> alone = embed(one.get(), {sentences.all[i]}, C);
      ASSERT_EQ(0, std::memcmp(alone.data(), &expected[i * C], C * sizeof(float)))
          << "sentence " << i << " of " << sentences.all[i].size()
          << " tokens has other bits alone, C=" << C;
    }
    // any order, any chunk length, any number of threads, more than the cores too
    std::vector<size_t> order(sentences.all.size());
    std::iota(order.begin(), order.end(), 0);
    Random shuffle(9);
    for (int32_t threads : {1, 2, 3, usable_cpus() + 5}) {
      for (int32_t batch_tokens : {0, 1, 17, 1000}) {
        if (kSlow && batch_tokens > 17) continue;
        const SessionPointer session = session_with(threads, batch_tokens);
        ASSERT_NE(nullptr, session);
        EXPECT_EQ(threads, xsr_session_get_num_threads(session.get()));
        for (size_t i = order.size(); i-- > 1;)
          std::swap(order[i], order[shuffle.range(0, static_cast<int32_t>(i))]);
        std::vector<std::vector<int32_t>> permuted;
        std::vector<float> wanted;
        for (size_t i : order) {
          permuted.push_back(sentences.all[i]);
          wanted.insert(wanted.end(), &expected[i * C], &expected[i * C] + C);
        }
        ASSERT_EQ(-1, first_difference(wanted, embed(session.get(), permuted, C), C))
            << threads << " threads, " << batch_tokens << " tokens a chunk, C=" << C;
        // a few sentences: the threads share each chunk
        for (size_t n : {1, 2, 3}) {
          if (n > permuted.size()) break;
          const std::vector<std::vector<int32_t>> few(permuted.begin(), permuted.begin() + n);
          ASSERT_EQ(-1, first_difference({wanted.begin(), wanted.begin() + n * C},
                                         embed(session.get(), few, C), C))
              << threads << " threads, " << n << " sentences, C=" << C;
        }
      }
    }
  }
  if (!any) GTEST_SKIP() << xsr_isa_string(GetParam()) << " is not available here";
}

INSTANTIATE_TEST_SUITE_P(Isa, InvarianceAt,
                         ::testing::Values(XSR_ISA_REF, XSR_ISA_AVX2, XSR_ISA_AVX2_VNNI,
                                           XSR_ISA_AVX512, XSR_ISA_AMX),
                         [](const auto& info) { return xsr_isa_string(info.param); });

/// More sentences than a session makes ready at a time, most of them without tokens.
TEST(Invariance, ACallOfThousandsOfSentencesIsThatOfEach) {
  const test::DenseLayer dense(24, 17, DType::kF32);
  const test::TestModel model({1, 24, 3, 40, 53}, DType::kF32, dense);
  const size_t E = model.columns();
  const SessionPointer session = make_session(model.pointer(), options_for(XSR_ISA_AUTO, 2));
  std::vector<std::vector<int32_t>> sentences(9000);
  for (int32_t i = 0; i < 9000; i += 7) sentences[i].assign(1 + i % 3, i % 53);
  sentences[8900].assign(300, 5);
  std::vector<xsr_text_result> results;
  const std::vector<float> found = embed(session.get(), sentences, E, &results);
  std::vector<std::vector<float>> rows(3 * 53);
  const std::vector<float> zeros(E);
  for (int32_t i = 0; i < 9000; ++i) {
    const int32_t tokens = i == 8900 ? 200 : i % 7 == 0 ? 1 + i % 3 : 0;
    ASSERT_EQ(tokens, results[i].num_tokens) << i;
    ASSERT_EQ(tokens == 0, results[i].empty) << i;
    ASSERT_EQ(i == 8900, results[i].truncated) << i;
    if (i == 8900) continue;
    std::vector<float>& row = rows[i % 159];
    if (tokens > 0 && row.empty()) row = embed(session.get(), {sentences[i]}, E);
    ASSERT_EQ(
        0, std::memcmp(tokens == 0 ? zeros.data() : row.data(), &found[i * E], E * sizeof(float)))
        << i;
  }
}

class SmallModel : public ::testing::Test {
 protected:
  SmallModel()
      : random_({2, 32, 4, 48, 101}, DType::kF32, 3),
        model_(open_memory(random_.data(), random_.size())) {}
  static constexpr size_t C = 32;
  bench::RandomModel random_;
  ModelPointer model_;
};

TEST_F(SmallModel, OneModelManyThreadsASessionEach) {
  const Sentences sentences(4, 60, 101);
  const SessionPointer session = make_session(model_, options_for(XSR_ISA_AUTO, 1));
  const std::vector<float> expected = embed(session.get(), sentences.all, C);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 5; ++round) {
        const SessionPointer own = make_session(model_, options_for(XSR_ISA_AUTO, 1 + t % 3));
        if (first_difference(expected, embed(own.get(), sentences.all, C), C) != -1) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(0, wrong);
}

/// What sessions share is of their own kind, whichever came first.
TEST_F(SmallModel, SessionsOfSeveralKindsAtOnceGiveTheBitsOfEachAlone) {
  const Sentences sentences(6, 30, 101);
  std::vector<xsr_session_options> kinds;
  for (const xsr_isa isa : {XSR_ISA_REF, XSR_ISA_AVX2, XSR_ISA_AVX512_VNNI}) {
    for (const xsr_compute compute : {XSR_COMPUTE_F32, XSR_COMPUTE_INT8, XSR_COMPUTE_BF16X3}) {
      kinds.push_back(options_for(isa, 1));
      kinds.back().compute = compute;
      kinds.back().qkv_table = XSR_QKV_TABLE_ON;
    }
  }
  const auto session_of = [&](const xsr_session_options& kind) {
    xsr_session* session = nullptr;
    const xsr_status status = xsr_session_create(model_.get(), &kind, &session, nullptr, 0);
    EXPECT_TRUE(status == XSR_STATUS_OK || status == XSR_STATUS_UNSUPPORTED) << status;
    return SessionPointer(session);
  };
  std::vector<std::vector<float>> alone;
  for (const auto& kind : kinds) {
    const SessionPointer session = session_of(kind);
    alone.push_back(session == nullptr ? std::vector<float>()
                                       : embed(session.get(), sentences.all, C));
  }
  for (const bool backwards : {false, true}) {
    std::vector<SessionPointer> living;
    for (size_t k = 0; k < kinds.size(); ++k) {
      const size_t i = backwards ? kinds.size() - 1 - k : k;
      living.push_back(session_of(kinds[i]));
      if (living.back() == nullptr) continue;
      EXPECT_EQ(-1, first_difference(alone[i], embed(living.back().get(), sentences.all, C), C))
          << xsr_isa_string(kinds[i].isa) << " compute " << kinds[i].compute;
    }
  }
}

TEST_F(SmallModel, SessionsGoOnWhenTheirModelIsClosed) {
  const Sentences sentences(5, 60, 101);
  SessionPointer first = make_session(model_, options_for(XSR_ISA_AUTO, 1));
  const SessionPointer second = make_session(model_, options_for(XSR_ISA_AUTO, 2));
  const std::vector<float> expected = embed(first.get(), sentences.all, C);
  model_.reset();
  EXPECT_EQ(-1, first_difference(expected, embed(first.get(), sentences.all, C), C));
  first.reset();
  EXPECT_EQ(-1, first_difference(expected, embed(second.get(), sentences.all, C), C));
}

/// A child of fork() has none of the session's threads; it embeds without them and lets go of the
/// session.
TEST_F(SmallModel, AForkedProcessUsesAndDestroysTheSession) {
  if (test::kThreadSanitizer) GTEST_SKIP() << "it ends a child of fork() that starts threads";
  SessionPointer session = make_session(model_, options_for(XSR_ISA_AUTO, 3));
  const std::vector<std::vector<int32_t>> sentences(100, {3, 4, 5, 6, 7});
  const std::vector<float> expected = embed(session.get(), sentences, C);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);  // rather than waiting for ever
    const bool same = first_difference(expected, embed(session.get(), sentences, C), C) < 0;
    // Its own threads get the memory of those that are not there.
    const SessionPointer own = make_session(model_, options_for(XSR_ISA_AUTO, 3));
    session.reset();
    _exit(same && first_difference(expected, embed(own.get(), sentences, C), C) < 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(0, WEXITSTATUS(status));
  EXPECT_EQ(-1, first_difference(expected, embed(session.get(), sentences, C), C));
}

/// The calling thread's floating point, and afterwards the default again.
struct FloatingPoint {
  explicit FloatingPoint(unsigned mode) { _mm_setcsr(mode); }
  ~FloatingPoint() { _mm_setcsr(_MM_MASK_MASK); }
};

TEST_F(SmallModel, BitsDoNotDependOnTheCallersFloatingPoint) {
  std::vector<std::vector<int32_t>> sentences;
  for (int32_t i = 0; i < 40; ++i) sentences.emplace_back(1 + i % 7, 3 + i);
  const auto embedded = [&](xsr_compute compute, unsigned mode) {
    xsr_session_options options = options_for(XSR_ISA_AUTO, 3);
    options.compute = compute;
    const FloatingPoint floating_point(mode);
    const SessionPointer session = make_session(model_, options);
    std::vector<float> vectors = embed(session.get(), sentences, C);
    EXPECT_EQ(mode & ~_MM_EXCEPT_MASK, _mm_getcsr() & ~_MM_EXCEPT_MASK) << "it is the caller's";
    return vectors;
  };
  constexpr unsigned kDenormalsAreZeros = 0x40;
  const std::initializer_list<unsigned> modes = {
      _MM_MASK_MASK | _MM_ROUND_UP, _MM_MASK_MASK | _MM_ROUND_TOWARD_ZERO,
      _MM_MASK_MASK | _MM_FLUSH_ZERO_ON | kDenormalsAreZeros, 0 /* all trapped */};
  for (const xsr_compute compute : {XSR_COMPUTE_F32, XSR_COMPUTE_INT8}) {
    const std::vector<float> expected = embedded(compute, _MM_MASK_MASK);
    for (const unsigned mode : modes)
      EXPECT_EQ(-1, first_difference(expected, embedded(compute, mode), C)) << mode;
  }
}

TEST_F(SmallModel, ResultsSayTruncatedAndEmpty) {
  const SessionPointer session = make_session(model_, options_for(XSR_ISA_AUTO, 2));
  std::vector<std::vector<int32_t>> sentences = {
      {}, {5}, std::vector<int32_t>(200, 7), std::vector<int32_t>(201, 7), {}};
  std::vector<xsr_text_result> results;
  const std::vector<float> out = embed(session.get(), sentences, C, &results);
  const int32_t tokens[] = {0, 1, 200, 200, 0};
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(tokens[i], results[i].num_tokens);
    EXPECT_EQ(i == 3, results[i].truncated);
    EXPECT_EQ(tokens[i] == 0, results[i].empty);
  }
  for (size_t c = 0; c < C; ++c) EXPECT_EQ(0.0f, out[c]);
  EXPECT_EQ(0, std::memcmp(&out[2 * C], &out[3 * C], C * sizeof(float)))
      << "truncated to the first 200 tokens";
}

double cosine(const float* a, const float* b, size_t C) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t c = 0; c < C; ++c) {
    ab += double(a[c]) * b[c];
    aa += double(a[c]) * a[c];
    bb += double(b[c]) * b[c];
  }
  return ab / std::sqrt(aa * bb);
}

/// Whether the pages of `address` are to be of 2 MiB: the flag that /proc/self/smaps gives its
/// mapping; nothing where the system has no such flags.
std::optional<bool> wants_large_pages(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const uintptr_t wanted = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long long first = 0, last = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &first, &last) == 2)
      inside = first <= wanted && wanted < last;
    if (inside && line.rfind("VmFlags:", 0) == 0) return line.find(" hg") != std::string::npos;
  }
  return std::nullopt;
}

TEST(DerivedWeights, OnLargePagesWhereTheCachesDoNotHoldThem) {
  for (const auto& [layers, large] : {std::pair(2, false), {4, true}}) {
    const bench::RandomModel random({layers, 512, 8, 1024, 50}, DType::kBF16, 3);
    const Model model(XsrFile::open_memory(random.data(), random.size()));
    for (const Compute compute : {Compute::kInt8, Compute::kBf16x3}) {
      const DerivedWeights derived(model.weights(), compute, false);
      for (const LayerWeights& layer : derived.weights().layers) {
        const LinearWeights& up = layer.up;
        const void* const data =
            compute == Compute::kInt8 ? up.weight.data : static_cast<const void*>(up.split.data);
        const std::optional<bool> found = wants_large_pages(data);
        if (!found) GTEST_SKIP() << "no flags in /proc/self/smaps";
        EXPECT_EQ(large, *found) << layers << " layers, compute " << static_cast<int>(compute);
        EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(data) % 64);
      }
    }
  }
}

TEST(StreamedWeights, AreThoseBeyond64MiB) {
  EncoderWeights weights;
  weights.layers.resize(2);
  for (LayerWeights& layer : weights.layers) {
    for (LinearWeights* linear : products(layer))
      linear->weight = {nullptr, kernels::Storage::kBF16, 2048, 2048};
  }
  const auto streamed = [&] {
    mark_streamed(weights);
    return weights.layers.back().down.weight.streamed;
  };
  EXPECT_FALSE(streamed()) << "64 MiB";
  weights.layers.front().up.weight.N = 2049;
  EXPECT_TRUE(streamed());
  for (LayerWeights& layer : weights.layers) {
    for (LinearWeights* linear : products(layer)) linear->weight.storage = kernels::Storage::kI8;
  }
  EXPECT_FALSE(streamed()) << "half of it";
}

// What an encoder does on AMX, by other kernels; only those of AVX-512 read the sums of weights.
TEST(Heads, TwoAtATimeGiveTheBitsOfAllAtOnce) {
  const bench::RandomShape shape = {2, 64, 4, 96, 100};
  const std::vector<int32_t> lengths = {3, 0, 17, 40};
  const kernels::Isa by = kernels::isa_supported(kernels::Isa::kAvx512Vnni)
                              ? kernels::Isa::kAvx512Vnni
                              : kernels::Isa::kRef;
  const auto embed_as = [&](kernels::Isa isa, Compute compute, bool bf16_attention) {
    const bench::RandomModel random(shape, compute == Compute::kBf16 ? DType::kBF16 : DType::kF32,
                                    3);
    const Model model(XsrFile::open_memory(random.data(), random.size()));
    const DerivedWeights derived(model.weights(), compute, false);
    Encoder encoder{model.config(), compute == Compute::kBf16 ? model.weights() : derived.weights(),
                    kernels::resolve_kernels(by), compute};
    encoder.kernels.isa = isa;
    if (bf16_attention) encoder.kernels.attention_forward_bf16_isa = isa;
    EXPECT_EQ(heads_at_a_time(isa, model.config()), isa == kernels::Isa::kAmx ? 2 : 4);
    Workspace w(model.config(), 60, static_cast<int32_t>(lengths.size()), 1);
    int32_t tokens = 0;
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int32_t t = 0; t < lengths[b]; ++t, ++tokens) {
        w.token_ids[tokens] = 1 + 7 * tokens % 99;
        w.positions[tokens] = model.config().position_offset + t;
      }
      w.cu_seqlens[b + 1] = tokens;
    }
    std::vector<float> embeddings(lengths.size() * shape.hidden_size, NAN);
    encode_chunk(encoder, static_cast<int32_t>(lengths.size()), w, nullptr, embeddings.data());
    return embeddings;
  };
  for (const Compute compute : {Compute::kF32, Compute::kBf16, Compute::kBf16x3, Compute::kInt8}) {
    for (const bool bf16_attention : {false, true}) {
      const auto all = embed_as(kernels::Isa::kAvx512Bf16, compute, bf16_attention);
      const auto few = embed_as(kernels::Isa::kAmx, compute, bf16_attention);
      EXPECT_EQ(-1, first_difference(all, few, shape.hidden_size))
          << "compute " << static_cast<int>(compute) << ", attention in bf16 " << bf16_attention;
    }
  }
}

TEST(Model, WhatIsMadeOfItIsSharedByThoseWhoLive) {
  const bench::RandomModel random({1, 32, 2, 48, 50}, DType::kF32, 3);
  const Model model(XsrFile::open_memory(random.data(), random.size()));
  ThreadPool pool(1);
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::best_isa());
  std::shared_ptr<const DerivedWeights> derived = model.derived_weights(Compute::kInt8);
  std::shared_ptr<const QkvTable> table = model.qkv_table(kernels, pool);
  EXPECT_EQ(derived, model.derived_weights(Compute::kInt8));
  EXPECT_NE(derived, model.derived_weights(Compute::kBf16x3));
  EXPECT_EQ(table, model.qkv_table(kernels, pool));
  const std::weak_ptr<const DerivedWeights> last_derived = derived;
  const std::weak_ptr<const QkvTable> last_table = table;
  derived.reset();
  table.reset();
  EXPECT_TRUE(last_derived.expired()) << "and released with the last of them";
  EXPECT_TRUE(last_table.expired());
}

TEST(Compute, Bf16StaysCloseToF32AndWantsItsStorage) {
  const bench::RandomShape shape = {2, 256, 4, 512, 500};
  const bench::RandomModel narrow(shape, DType::kBF16, 3), wide(shape, DType::kF32, 3);
  const ModelPointer model = open_memory(narrow.data(), narrow.size()),
                     f32_model = open_memory(wide.data(), wide.size());
  const Sentences sentences(5, 40, shape.vocab_size);
  const size_t C = shape.hidden_size;
  xsr_session_options options = options_for(XSR_ISA_AUTO, 2);
  const std::vector<float> exact = embed(make_session(model, options).get(), sentences.all, C);
  options.compute = XSR_COMPUTE_BF16;
  const std::vector<float> rounded = embed(make_session(model, options).get(), sentences.all, C);
  EXPECT_NE(-1, first_difference(exact, rounded, C)) << "bf16 was not computed with";
  for (size_t i = 0; i < sentences.all.size(); ++i) {
    if (sentences.all[i].empty()) continue;
    EXPECT_GT(cosine(&exact[i * C], &rounded[i * C], C), 0.9999) << "sentence " << i;
  }
  xsr_session* session = nullptr;
  char detail[256] = "";
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
            xsr_session_create(f32_model.get(), &options, &session, detail, sizeof detail));
  EXPECT_NE(nullptr, std::strstr(detail, "--dtype bf16")) << detail;
  options.compute = static_cast<xsr_compute>(7);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_create(model.get(), &options, &session, detail, sizeof detail));
}

TEST(Compute, Int8StaysCloseToF32WhateverTheFileStores) {
  const bench::RandomShape shape = {2, 256, 4, 512, 500};
  const Sentences sentences(5, 40, shape.vocab_size);
  const size_t C = shape.hidden_size;
  for (DType storage : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
    const bench::RandomModel random(shape, storage, 3);
    const ModelPointer model = open_memory(random.data(), random.size());
    xsr_session_options options = options_for(XSR_ISA_AUTO, 2);
    const std::vector<float> exact = embed(make_session(model, options).get(), sentences.all, C);
    options.compute = XSR_COMPUTE_INT8;
    const SessionPointer session = make_session(model, options);
    const std::vector<float> rounded = embed(session.get(), sentences.all, C);
    EXPECT_NE(-1, first_difference(exact, rounded, C)) << "int8 was not computed with";
    EXPECT_EQ(-1, first_difference(rounded,
                                   embed(make_session(model, options).get(), sentences.all, C), C));
    for (size_t i = 0; i < sentences.all.size(); ++i) {
      if (sentences.all[i].empty()) continue;
      EXPECT_GT(cosine(&exact[i * C], &rounded[i * C], C), 0.999) << "sentence " << i;
    }
    options.compute = XSR_COMPUTE_BF16;
    if (storage == DType::kI8) {
      xsr_session* none = nullptr;
      char detail[512] = "";
      EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
                xsr_session_create(model.get(), &options, &none, detail, sizeof detail));
    }
  }
}

TEST(Compute, WhatAModelDoesNotAllowIsSaid) {
  const auto refused = [](const bench::RandomShape& shape, const xsr_session_options& options) {
    const bench::RandomModel random(shape, DType::kF32, 3);
    const ModelPointer model = open_memory(random.data(), random.size());
    xsr_session* session = nullptr;
    char detail[256] = "";
    EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
              xsr_session_create(model.get(), &options, &session, detail, sizeof detail));
    EXPECT_EQ(nullptr, session);
    return std::string(detail);
  };
  xsr_session_options options = options_for(XSR_ISA_AUTO, 1);
  options.compute = XSR_COMPUTE_INT8;
  EXPECT_EQ("a product of 65537 inputs is beyond the 65536 that int8 can sum; compute in f32",
            refused({1, 8, 1, 65537, 5}, options));
  options.compute = XSR_COMPUTE_F32;
  options.qkv_table = XSR_QKV_TABLE_ON;
  EXPECT_NE(std::string::npos, refused({0, 8, 1, 8, 5}, options).find("the model has no layers"));
}

// Behind the last attention nothing is computed of the other tokens.
TEST(FirstToken, IsWhatPlainLoopsOverAllTokensGive) {
  for (const bool table : {false, true}) {
    const bench::RandomModel random(with_cls({2, 96, 4, 130, 301}), DType::kBF16, 5);
    const ModelPointer model = open_memory(random.data(), random.size());
    const auto file = XsrFile::open_memory(random.data(), random.size());
    const test::PlainEncoder<double> exact(*file);
    const test::PlainEncoder<float> plain(*file);
    const size_t C = 96;
    const Sentences sentences(8, 40, 301);
    xsr_session_options options = options_for(XSR_ISA_AUTO, 2);
    options.qkv_table = table ? XSR_QKV_TABLE_ON : XSR_QKV_TABLE_OFF;
    std::vector<std::vector<float>> found;
    for (const xsr_compute compute :
         {XSR_COMPUTE_F32, XSR_COMPUTE_BF16X3, XSR_COMPUTE_BF16, XSR_COMPUTE_INT8}) {
      options.compute = compute;
      found.push_back(embed(make_session(model, options).get(), sentences.all, C));
    }
    test::ErrorBudget budget;
    for (size_t i = 0; i < sentences.all.size(); ++i) {
      const std::vector<int32_t>& ids = sentences.all[i];
      const std::span<const int32_t> taken(ids.data(), std::min<size_t>(ids.size(), 200));
      const std::vector<double> wanted = exact.embed(taken);
      const std::vector<float> wide(wanted.begin(), wanted.end()), loops = plain.embed(taken);
      for (size_t c = 0; c < C; ++c) budget.add(found[0][i * C + c], loops[c], wanted[c], i, c);
      if (ids.empty()) continue;
      for (const auto& rows : found)
        EXPECT_GT(cosine(&rows[i * C], wide.data(), C), 0.999) << "sentence " << i;
    }
    EXPECT_TRUE(budget.check("first token", "FirstToken.*"));
  }
}

TEST(DenseLayer, BehindPoolingIsWhatPlainLoopsGive) {
  Sentences sentences(8, 16, 301);
  sentences.all[2].clear();
  for (const auto& [storage, dense_storage, pooling] :
       {std::tuple(DType::kF32, DType::kF32, Pooling::kMean),
        {DType::kBF16, DType::kBF16, Pooling::kMax},
        {DType::kF32, DType::kI8, Pooling::kMean},
        {DType::kI8, DType::kI8, Pooling::kCls}}) {
    const test::DenseLayer dense(48, 40, dense_storage);
    const test::TestModel model({2, 48, 3, 66, 301, Activation::kGeluErf, pooling}, storage, dense);
    const size_t E = model.columns();
    ASSERT_EQ(40u, E);
    const std::vector<float> found =
        embed(make_session(model.pointer(), options_for(XSR_ISA_AUTO, 1)).get(), sentences.all, E);
    const test::PlainEncoder<double> exact(model.file());
    const test::PlainEncoder<float> plain(model.file());
    test::ErrorBudget budget;
    for (size_t i = 0; i < sentences.all.size(); ++i) {
      const std::vector<int32_t>& ids = sentences.all[i];
      const std::span<const int32_t> taken(ids.data(), std::min<size_t>(ids.size(), 200));
      const std::vector<double> wanted = exact.embed(taken);
      const std::vector<float> loops = plain.embed(taken);
      for (size_t e = 0; e < E; ++e) budget.add(found[i * E + e], loops[e], wanted[e], i, e);
    }
    EXPECT_TRUE(
        budget.check("pooling " + std::string(to_string(pooling)) + " of " + to_string(storage),
                     "DenseLayer.*"));
    for (const xsr_compute compute : {XSR_COMPUTE_F32, XSR_COMPUTE_BF16X3, XSR_COMPUTE_INT8}) {
      xsr_session_options options = options_for(XSR_ISA_AUTO, 1);
      options.compute = compute;
      const SessionPointer one = make_session(model.pointer(), options);
      const std::vector<float> expected = embed(one.get(), sentences.all, E);
      options.num_threads = 3;
      options.max_batch_tokens = 17;
      EXPECT_EQ(-1, first_difference(
                        expected,
                        embed(make_session(model.pointer(), options).get(), sentences.all, E), E));
      for (size_t i = 0; i < 5; ++i) {
        const std::vector<float> alone = embed(one.get(), {sentences.all[i]}, E);
        EXPECT_EQ(0, std::memcmp(&expected[i * E], alone.data(), E * sizeof(float)));
      }
    }
  }
}

TEST(Model, TensorsThatDoNotGoWithTheConfigurationAreNamed) {
  using Sources = std::vector<TensorSource>;
  const auto named = [](Sources& sources, const char* name) -> TensorSource& {
    for (TensorSource& source : sources) {
      if (source.name == name) return source;
    }
    throw std::out_of_range(name);
  };
  std::vector<float> zeros(2 * 32);
  const std::tuple<test::ModelEdit, xsr_status, const char*> cases[] = {
      {[&](ModelConfig&, Sources& s) { named(s, "layer.0.up.bias").name = "layer.0.up.bia"; },
       XSR_STATUS_BAD_FILE, "tensor layer.0.up.bias [48] is missing; convert the model again"},
      {[&](ModelConfig&, Sources& s) { named(s, "layer.0.up.bias").dims = {47}; },
       XSR_STATUS_BAD_FILE, "layer.0.up.bias is [47] row-major, expected [48] row-major"},
      {[&](ModelConfig&, Sources& s) { named(s, "layer.0.up.weight").layout = Layout::kRowMajor; },
       XSR_STATUS_BAD_FILE, "layer.0.up.weight is [48, 32] row-major, expected [48, 32] panels32"},
      {[&](ModelConfig&, Sources& s) { named(s, "layer.0.up.bias").dtype = DType::kBF16; },
       XSR_STATUS_UNSUPPORTED, "layer.0.up.bias is bf16, vectors are expected in f32"},
      {[&](ModelConfig&, Sources& s) { named(s, "embedding.position").dtype = DType::kBF16; },
       XSR_STATUS_BAD_FILE, "embedding.position is bf16, embedding.token is f32; they must agree"},
      {[](ModelConfig& c, Sources&) { c.family = Family::kEms; }, XSR_STATUS_UNSUPPORTED,
       "family ems with post layer norm; this version runs family xsr"},
      {[](ModelConfig& c, Sources&) { c.norm_placement = NormPlacement::kPre; },
       XSR_STATUS_UNSUPPORTED, "family xsr with pre layer norm; this version runs"},
      {[](ModelConfig& c, Sources&) { c.has_pooler = true; }, XSR_STATUS_BAD_FILE,
       "tensor pooler.weight [32, 32] is missing"},
      {[](ModelConfig& c, Sources&) { c.num_token_types = 2; }, XSR_STATUS_BAD_FILE,
       "tensor embedding.token_type [2, 32] is missing"},
      {[&](ModelConfig& c, Sources& s) {
         c.num_token_types = 2;
         s.push_back({"embedding.token_type",
                      DType::kBF16,
                      Layout::kRowMajor,
                      {2, 32},
                      zeros.data(),
                      nullptr});
       },
       XSR_STATUS_UNSUPPORTED, "embedding.token_type is bf16, expected f32"}};
  for (const auto& [edit, status, message] : cases) {
    const test::ModelBytes bytes({1, 32, 2, 48, 20}, DType::kF32, edit);
    xsr_model* model = nullptr;
    char detail[512] = "";
    EXPECT_EQ(status, xsr_model_open_memory(bytes.data.get(), bytes.size, nullptr, &model, detail,
                                            sizeof detail));
    EXPECT_NE(nullptr, std::strstr(detail, message)) << detail << "\n  lacks: " << message;
    EXPECT_EQ(nullptr, model);
  }
}

TEST(QkvTable, EqualsTheProductUpToRounding) {
  for (DType storage : {DType::kF32, DType::kBF16, DType::kI8}) {
    const bench::RandomShape shape = {2, 256, 4, 512, 500};
    const bench::RandomModel random(shape, storage, 3);
    const ModelPointer model = open_memory(random.data(), random.size());
    const Sentences sentences(6, 40, shape.vocab_size);
    const size_t C = shape.hidden_size;
    xsr_session_options options = options_for(XSR_ISA_AUTO, 2);
    const std::vector<float> multiplied =
        embed(make_session(model, options).get(), sentences.all, C);
    options.qkv_table = XSR_QKV_TABLE_ON;
    const SessionPointer with_table = make_session(model, options),
                         another = make_session(model, options);
    const std::vector<float> looked_up = embed(with_table.get(), sentences.all, C);
    EXPECT_EQ(-1, first_difference(looked_up, embed(another.get(), sentences.all, C), C))
        << "a shared table";
    EXPECT_NE(-1, first_difference(multiplied, looked_up, C)) << "the table was not used";
    float largest = 0, difference = 0;
    for (size_t i = 0; i < multiplied.size(); ++i) {
      largest = std::max(largest, std::fabs(multiplied[i]));
      difference = std::max(difference, std::fabs(multiplied[i] - looked_up[i]));
    }
    EXPECT_LT(difference, 2e-6f * largest);  // a few ulps of the largest value
  }
}

TEST(QkvTable, HoldsTheTokenTypeToo) {
  for (const DType storage : {DType::kF32, DType::kI8}) {
    const test::DenseLayer types(48, 40, storage);
    const test::TestModel model({1, 48, 3, 66, 301}, storage, types);
    const size_t E = model.columns();
    const Sentences sentences(8, 10, 301);
    xsr_session_options options = options_for(XSR_ISA_AUTO, 1);
    const std::vector<float> multiplied =
        embed(make_session(model.pointer(), options).get(), sentences.all, E);
    options.qkv_table = XSR_QKV_TABLE_ON;
    const std::vector<float> looked_up =
        embed(make_session(model.pointer(), options).get(), sentences.all, E);
    for (size_t i = 0; i < multiplied.size(); ++i)
      ASSERT_NEAR(multiplied[i], looked_up[i], 1e-5f) << to_string(storage) << " " << i;
  }
}

TEST_F(SmallModel, NormalizesOnRequest) {
  xsr_session_options options = options_for(XSR_ISA_AUTO, 1);
  options.normalize = XSR_NORMALIZE_ON;
  const SessionPointer session = make_session(model_, options);
  const std::vector<float> out = embed(session.get(), {{3, 4, 5}, {}}, C);
  double squares = 0;
  for (size_t c = 0; c < C; ++c) squares += double(out[c]) * out[c];
  EXPECT_NEAR(1.0, squares, 1e-6);
  for (size_t c = 0; c < C; ++c)
    EXPECT_EQ(0.0f, out[C + c]) << "the zero vector of an empty sentence stays zero";
}

/// The bytes of a model file with what edit(config, tensors) makes of another.
template <typename Edit>
std::shared_ptr<unsigned char[]> edited(const bench::RandomModel& model, const Edit& edit,
                                        size_t* size) {
  const auto file = XsrFile::open_memory(model.data(), model.size());
  ModelConfig config = file->config();
  std::vector<TensorSource> sources = test::tensor_sources(*file);
  edit(config, sources);
  return write_xsr_memory(config, sources, "", "{}", size);
}

TEST_F(SmallModel, NormalizesWhereTheModelSaysSoUnlessForbidden) {
  size_t size = 0;
  const auto bytes = edited(
      random_, [](ModelConfig& config, auto&) { config.normalize = true; }, &size);
  const ModelPointer model = open_memory(bytes.get(), size);
  const auto length = [&](xsr_normalize normalize) {
    xsr_session_options options = options_for(XSR_ISA_AUTO, 1);
    options.normalize = normalize;
    double squares = 0;
    for (const float x : embed(make_session(model, options).get(), {{3, 4, 5}}, C))
      squares += double(x) * x;
    return std::sqrt(squares);
  };
  EXPECT_NEAR(1.0, length(XSR_NORMALIZE_MODEL), 1e-6);
  EXPECT_GT(length(XSR_NORMALIZE_OFF), 1.5);
}

TEST_F(SmallModel, ADenseLayerBehindPoolingLeavesEmptySentencesZero) {
  constexpr size_t E = 40;
  Random random(17);
  std::vector<float> weight(E * C), bias(E),
      panels(static_cast<size_t>(kernels::packed_elements(E, C, kernels::Storage::kF32)));
  for (float& x : weight) x = random.normal(0.2f);
  for (float& x : bias) x = random.normal();
  kernels::gemm_pack_panels(weight.data(), E, C, kernels::Storage::kF32, panels.data());
  size_t size = 0;
  const auto bytes = edited(
      random_,
      [&](ModelConfig& config, std::vector<TensorSource>& sources) {
        config.has_pooler = true;
        config.pooler_activation = Activation::kTanh;
        config.embedding_size = E;
        sources.push_back({"pooler.weight", DType::kF32, Layout::kPanels32, {E, C}, panels.data()});
        sources.push_back({"pooler.bias", DType::kF32, Layout::kRowMajor, {E}, bias.data()});
      },
      &size);
  const ModelPointer model = open_memory(bytes.get(), size);
  const std::vector<std::vector<int32_t>> sentences = {{}, {3, 4, 5}, {}, {7}};
  const std::vector<float> pooled =
      embed(make_session(model_, options_for(XSR_ISA_AUTO, 1)).get(), sentences, C);
  const std::vector<float> found =
      embed(make_session(model, options_for(XSR_ISA_AUTO, 1)).get(), sentences, E);
  for (size_t b = 0; b < sentences.size(); ++b) {
    for (size_t e = 0; e < E; ++e) {
      double sum = bias[e];
      for (size_t c = 0; c < C; ++c) sum += double(weight[e * C + c]) * pooled[b * C + c];
      if (sentences[b].empty()) {
        EXPECT_EQ(0.0f, found[b * E + e]) << b;
      } else {
        EXPECT_NEAR(std::tanh(sum), found[b * E + e], 1e-5) << b << " " << e;
      }
    }
  }
}

TEST_F(SmallModel, BadArgumentsHaveTheirStatusAndMessage) {
  const SessionPointer session = make_session(model_, options_for(XSR_ISA_AUTO, 1));
  const int32_t ids[] = {1, 2, 101};
  const size_t offsets[] = {0, 3}, falling[] = {2, 1};
  std::vector<float> out(C, -1.0f);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(session.get(), ids, offsets, 1, out.data(), nullptr));
  EXPECT_STREQ("token_ids[2] (sequence 0) is 101, expected 0 to 100",
               xsr_session_get_error(session.get()));
  for (float value : out) EXPECT_EQ(-1.0f, value) << "results are written only on success";
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(session.get(), ids, falling, 1, out.data(), nullptr));
  EXPECT_STREQ("offsets[1] is 1, below offsets[0] = 2", xsr_session_get_error(session.get()));
  // No id is read where a later offset says that there are fewer.
  const size_t falling_later[] = {0, size_t{1} << 40, 0};
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(session.get(), nullptr, falling_later, 2, out.data(), nullptr));
  EXPECT_STREQ("offsets[2] is 0, below offsets[1] = 1099511627776",
               xsr_session_get_error(session.get()));
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(session.get(), ids, offsets, 1, nullptr, nullptr));
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(session.get(), nullptr, offsets, 1, out.data(), nullptr));
  EXPECT_STREQ("token_ids is NULL", xsr_session_get_error(session.get()));
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(nullptr, ids, offsets, 1, out.data(), nullptr));
  EXPECT_EQ(XSR_STATUS_OK,
            xsr_session_embed_ids(session.get(), nullptr, nullptr, 0, nullptr, nullptr));
  EXPECT_STREQ("", xsr_session_get_error(session.get()));
  // Sequences without ids stand nowhere (UBSan finds an offset from null).
  const size_t same[] = {7, 7};
  xsr_text_result result = {};
  EXPECT_EQ(XSR_STATUS_OK,
            xsr_session_embed_ids(session.get(), nullptr, same, 1, out.data(), &result));
  EXPECT_EQ(1, result.empty);
  const xsr_text text = {"hello", 5};
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
            xsr_session_embed_texts(session.get(), &text, 1, out.data(), nullptr));
  EXPECT_NE(nullptr, std::strstr(xsr_session_get_error(session.get()), "--spm"))
      << xsr_session_get_error(session.get());
  size_t count = 7;
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
            xsr_session_tokenize(session.get(), text, nullptr, 0, &count, nullptr));
  EXPECT_EQ(7u, count);
}

TEST(Shipped, TokenizeFillsWhatThereIsRoomFor) {
  const ModelPointer model = open_file(kShipped);
  ASSERT_NE(nullptr, model);
  const SessionPointer session = make_session(model, options_for(XSR_ISA_AUTO, 1));
  const xsr_text text = {"The cat sleeps\xff.", 16};
  std::vector<int32_t> all(100, -7), few(100, -7);
  size_t count = 0, again = 0;
  xsr_text_result result = {};
  ASSERT_EQ(XSR_STATUS_OK,
            xsr_session_tokenize(session.get(), text, all.data(), all.size(), &count, &result));
  ASSERT_GT(count, 2u);
  EXPECT_EQ(static_cast<int32_t>(count), result.num_tokens);
  EXPECT_EQ(1u, result.replaced_bytes);
  ASSERT_EQ(XSR_STATUS_OK,
            xsr_session_tokenize(session.get(), text, few.data(), 2, &again, nullptr));
  EXPECT_EQ(count, again) << "how many there are, not how many fit";
  all.resize(2);
  all.resize(100, -7);
  EXPECT_EQ(all, few) << "nothing behind the capacity is written";
}

TEST(Shipped, ATextWithoutBytesMayHaveNoData) {
  const ModelPointer model = open_file(kShipped);
  ASSERT_NE(nullptr, model);
  const SessionPointer session = make_session(model, options_for(XSR_ISA_AUTO, 1));
  xsr_text texts[] = {{"cat", 3}, {nullptr, 0}};
  xsr_text_result results[2];
  std::vector<float> out(2 * 512);
  EXPECT_EQ(XSR_STATUS_OK, xsr_session_embed_texts(session.get(), texts, 2, out.data(), results));
  EXPECT_TRUE(results[1].empty);
  texts[1].size = 1;
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_texts(session.get(), texts, 2, out.data(), results));
  EXPECT_STREQ("texts[1].data is NULL but its size is 1", xsr_session_get_error(session.get()));
}

/// More texts than a session tokenises at a time.
TEST(Shipped, ACallOfThousandsOfTextsIsThatOfEach) {
  const ModelPointer model = open_file(kShipped);
  ASSERT_NE(nullptr, model);
  const SessionPointer session = make_session(model, options_for(XSR_ISA_AUTO, 2));
  const auto C = static_cast<size_t>(XsrFile::open(kShipped)->config().embedding_size);
  const std::string words[] = {"cat", "chat\xff", "", "Katze und Maus"};
  std::vector<float> rows(4 * C);
  xsr_text_result row_results[4];
  for (size_t i = 0; i < 4; ++i) {
    const xsr_text text = {words[i].data(), words[i].size()};
    ASSERT_EQ(XSR_STATUS_OK,
              xsr_session_embed_texts(session.get(), &text, 1, &rows[i * C], &row_results[i]));
  }
  // Words where one set of texts ends and the next begins.
  constexpr size_t kCount = 8194;
  const auto word_of = [](size_t i) { return i % 4096 < 20 || i % 4096 > 4080 ? i % 3 : 2; };
  std::vector<xsr_text> texts;
  for (size_t i = 0; i < kCount; ++i)
    texts.push_back({words[word_of(i)].data(), words[word_of(i)].size()});
  texts.back() = {words[3].data(), words[3].size()};
  std::vector<float> found(kCount * C);
  std::vector<xsr_text_result> results(kCount);
  ASSERT_EQ(XSR_STATUS_OK, xsr_session_embed_texts(session.get(), texts.data(), kCount,
                                                   found.data(), results.data()));
  for (size_t i = 0; i < kCount; ++i) {
    const size_t word = i + 1 == kCount ? 3 : word_of(i);
    ASSERT_EQ(0, std::memcmp(&rows[word * C], &found[i * C], C * sizeof(float))) << i;
    ASSERT_EQ(row_results[word].num_tokens, results[i].num_tokens) << i;
    ASSERT_EQ(row_results[word].empty, results[i].empty) << i;
    ASSERT_EQ(row_results[word].replaced_bytes, results[i].replaced_bytes) << i;
  }
}

/// What is too long and what is empty, whether it is embedded or tokenised.
TEST(Shipped, ResultsOfTextsSayTruncatedAndEmpty) {
  const ModelPointer model = open_file(kShipped);
  ASSERT_NE(nullptr, model);
  const SessionPointer session = make_session(model, options_for(XSR_ISA_AUTO, 1));
  const ModelConfig config = XsrFile::open(kShipped)->config();
  std::string text;
  for (int32_t i = 0; i <= config.max_seq_len; ++i) text += "cat ";
  for (const std::string& words : {text, std::string(" "), std::string("cat")}) {
    const xsr_text one = {words.data(), words.size()};
    std::vector<float> row(config.embedding_size);
    xsr_text_result embedded = {}, tokenized = {};
    size_t count = 0;
    ASSERT_EQ(XSR_STATUS_OK,
              xsr_session_embed_texts(session.get(), &one, 1, row.data(), &embedded));
    ASSERT_EQ(XSR_STATUS_OK,
              xsr_session_tokenize(session.get(), one, nullptr, 0, &count, &tokenized));
    for (const xsr_text_result& result : {embedded, tokenized}) {
      EXPECT_EQ(words == text, result.truncated);
      EXPECT_EQ(words == " ", result.empty);
      EXPECT_EQ(static_cast<int32_t>(count), result.num_tokens);
      EXPECT_EQ(words == text, config.max_seq_len == result.num_tokens);
    }
  }
}

TEST(Shipped, InfoIsWhatTheFileSays) {
  const ModelPointer model = open_file(kShipped);
  ASSERT_NE(nullptr, model);
  const auto file = XsrFile::open(kShipped);
  const ModelConfig& config = file->config();
  xsr_model_info info = {};
  info.size = sizeof info;
  ASSERT_EQ(XSR_STATUS_OK, xsr_model_get_info(model.get(), &info));
  EXPECT_STREQ("xsr", info.family);
  EXPECT_EQ(config.num_layers, info.num_layers);
  EXPECT_EQ(config.hidden_size, info.hidden_size);
  EXPECT_EQ(config.num_heads, info.num_heads);
  EXPECT_EQ(config.intermediate_size, info.intermediate_size);
  EXPECT_NE(info.hidden_size, info.intermediate_size);
  EXPECT_EQ(config.vocab_size, info.vocab_size);
  EXPECT_EQ(config.max_seq_len, info.max_seq_len);
  EXPECT_EQ(config.embedding_size, info.embedding_size);
  EXPECT_EQ(1, info.has_tokenizer);
  EXPECT_EQ(1, info.lowercase);
  EXPECT_EQ(0, info.normalize);
  EXPECT_EQ(file->provenance(), info.provenance);
  EXPECT_EQ(file->size(), info.file_size);
}

TEST_F(SmallModel, WhatALaterVersionAddedToTheOptionsMayNotBeSet) {
  struct {
    xsr_session_options known{};
    uint64_t added = 0;
  } later;
  const auto status = [&](std::string* message) {
    char detail[256] = "";
    xsr_session* session = nullptr;
    const xsr_status result =
        xsr_session_create(model_.get(), &later.known, &session, detail, sizeof detail);
    xsr_session_destroy(session);
    *message = detail;
    return result;
  };
  std::string message;
  later.known.num_threads = 1;
  later.known.size = sizeof later;
  EXPECT_EQ(XSR_STATUS_OK, status(&message)) << message;
  later.added = uint64_t{1} << 16;
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED, status(&message));
  EXPECT_EQ(0u, message.find("byte " + std::to_string(sizeof later.known + 2) + " of the options"))
      << message;
  later.known.size = SIZE_MAX;  // never set
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status(&message));
  EXPECT_NE(std::string::npos, message.find("xsr_session_options.size is not set")) << message;
}

TEST_F(SmallModel, OptionsAreChecked) {
  char detail[256] = "";
  xsr_session* session = nullptr;
  const auto status_of = [&](xsr_session_options options) {
    const xsr_status status =
        xsr_session_create(model_.get(), &options, &session, detail, sizeof detail);
    if (status == XSR_STATUS_OK) xsr_session_destroy(session);
    return status;
  };
  xsr_session_options options{};
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options)) << "size is 0";
  options.size = sizeof(size_t);  // a caller who knows the first member only
  options.num_threads = -5;       // beyond the caller's size: not looked at
  EXPECT_EQ(XSR_STATUS_OK, status_of(options));
  options.size = sizeof options;
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  EXPECT_NE(nullptr, std::strstr(detail, "num_threads is -5")) << detail;
  options.num_threads = 1025;
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.num_threads = 1;
  options.device = static_cast<xsr_device>(2);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.device = XSR_DEVICE_CPU;
  options.isa = static_cast<xsr_isa>(99);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.isa = static_cast<xsr_isa>(XSR_ISA_AMX + 1);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.isa = XSR_ISA_REF;
  options.max_batch_tokens = -1;
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.max_batch_tokens = (1 << 20) + 1;
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.max_batch_tokens = 1 << 20;
  EXPECT_EQ(XSR_STATUS_OK, status_of(options));
  options.max_batch_tokens = 0;
  options.normalize = static_cast<xsr_normalize>(9);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  options.normalize = XSR_NORMALIZE_MODEL;
  options.qkv_table = static_cast<xsr_qkv_table>(5);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_of(options));
  EXPECT_EQ(XSR_STATUS_OK, xsr_session_create(model_.get(), nullptr, &session, nullptr, 0));
  EXPECT_EQ(usable_cpus(), xsr_session_get_num_threads(session));
  xsr_session_destroy(session);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_create(nullptr, nullptr, &session, detail, sizeof detail));
  char tiny[4] = "";
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_create(nullptr, nullptr, &session, tiny, sizeof tiny));
  EXPECT_STREQ("mod", tiny) << "a message is cut to the buffer, with its NUL";
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_create(nullptr, nullptr, &session, nullptr, sizeof tiny));
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, xsr_session_create(nullptr, nullptr, &session, tiny, 0));
  EXPECT_STREQ("mod", tiny) << "no room for a message";
}

TEST_F(SmallModel, WhatFailsLeavesItsResultsAsTheyWere) {
  char there = 0;
  xsr_model* const some_model = reinterpret_cast<xsr_model*>(&there);
  xsr_session* const some_session = reinterpret_cast<xsr_session*>(&there);
  xsr_model* model = some_model;
  EXPECT_EQ(XSR_STATUS_IO, xsr_model_open("no/such/file.xsr", nullptr, &model, nullptr, 0));
  EXPECT_EQ(some_model, model);
  alignas(64) const char none[64] = {};
  EXPECT_EQ(XSR_STATUS_BAD_FILE,
            xsr_model_open_memory(none, sizeof none, nullptr, &model, nullptr, 0));
  EXPECT_EQ(some_model, model);
  xsr_session* created = some_session;
  const xsr_session_options threads = options_for(XSR_ISA_AUTO, -1);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_create(model_.get(), &threads, &created, nullptr, 0));
  EXPECT_EQ(some_session, created);

  const SessionPointer session = make_session(model_, options_for(XSR_ISA_AUTO, 1));
  const int32_t ids[] = {1, 2, -1};
  const size_t offsets[] = {0, 2, 3};
  std::vector<float> out(2 * C, -1.0f);
  xsr_text_result results[2] = {};
  results[0].num_tokens = results[1].num_tokens = 77;
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_embed_ids(session.get(), ids, offsets, 2, out.data(), results));
  EXPECT_STREQ("token_ids[2] (sequence 1) is -1, expected 0 to 100",
               xsr_session_get_error(session.get()));
  EXPECT_EQ(std::vector<float>(2 * C, -1.0f), out);
  EXPECT_EQ(77, results[0].num_tokens);
  EXPECT_EQ(77, results[1].num_tokens);
}

TEST(Library, AModelOrSessionThatIsNoneIsTold) {
  EXPECT_EQ(XSR_ISA_AUTO, xsr_session_get_isa(nullptr));
  EXPECT_STREQ("", xsr_session_get_device_name(nullptr));
  char detail[64] = "";
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, xsr_model_verify(nullptr, detail, sizeof detail));
  EXPECT_STREQ("model is NULL", detail);
}

TEST_F(SmallModel, InfoIsFilledAsFarAsTheCallerKnows) {
  struct {
    xsr_model_info info;
    int32_t beyond;
  } memory;
  xsr_model_info& info = memory.info;
  const auto status_with = [&](size_t size) {
    std::memset(&memory, 0x5a, sizeof memory);
    info.size = size;
    return xsr_model_get_info(model_.get(), &info);
  };
  EXPECT_EQ(XSR_STATUS_OK, status_with(offsetof(xsr_model_info, hidden_size)));
  EXPECT_EQ(offsetof(xsr_model_info, hidden_size), info.size);
  EXPECT_EQ(2, info.num_layers);
  EXPECT_EQ(0x5a5a5a5a, info.hidden_size);
  EXPECT_EQ(XSR_STATUS_OK, status_with(sizeof memory)) << "a caller who knows more";
  EXPECT_EQ(sizeof info, info.size);
  EXPECT_EQ(32, info.hidden_size);
  EXPECT_EQ(random_.size(), info.file_size);
  EXPECT_EQ(0x5a5a5a5a, memory.beyond);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, status_with(0));
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, xsr_model_get_info(nullptr, &info));
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT, xsr_model_get_info(model_.get(), nullptr));
}

TEST_F(SmallModel, ForcedIsaCapsTheChoiceAndCanBeQueried) {
  const char* before = std::getenv("XSR_FORCE_ISA");
  const std::string saved = before == nullptr ? "" : before;
  setenv("XSR_FORCE_ISA", "ref", 1);
  xsr_session* session = nullptr;
  char detail[256] = "";
  ASSERT_EQ(XSR_STATUS_OK,
            xsr_session_create(model_.get(), nullptr, &session, detail, sizeof detail))
      << detail;
  EXPECT_EQ(XSR_ISA_REF, xsr_session_get_isa(session));
  xsr_session_destroy(session);
  for (const char* cap : {xsr_isa_string(static_cast<xsr_isa>(kernels::best_isa())), ""}) {
    setenv("XSR_FORCE_ISA", cap, 1);
    const SessionPointer below = make_session(model_, options_for(XSR_ISA_REF, 1));
    EXPECT_NE(nullptr, below) << "a cap, or none, leaves what is asked for below it";
  }
  for (int isa = XSR_ISA_REF; isa <= XSR_ISA_AMX; ++isa) {
    if (kernels::isa_supported(static_cast<kernels::Isa>(isa))) continue;
    setenv("XSR_FORCE_ISA", xsr_isa_string(static_cast<xsr_isa>(isa)), 1);
    EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
              xsr_session_create(model_.get(), nullptr, &session, detail, sizeof detail));
    EXPECT_NE(nullptr, std::strstr(detail, "XSR_FORCE_ISA asks for ")) << detail;
  }
  setenv("XSR_FORCE_ISA", "sse9", 1);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_session_create(model_.get(), nullptr, &session, detail, sizeof detail));
  EXPECT_STREQ(
      "XSR_FORCE_ISA is \"sse9\"; it can be ref, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 "
      "or amx",
      detail);
  if (saved.empty()) {
    unsetenv("XSR_FORCE_ISA");
  } else {
    setenv("XSR_FORCE_ISA", saved.c_str(), 1);
  }
}

TEST(Model, WhatCannotBeMappedForWantOfMemoryIsToldAsSuch) {
  if (test::kSlow) GTEST_SKIP() << "sanitizers take more addresses";
  rlimit before;
  ASSERT_EQ(0, getrlimit(RLIMIT_AS, &before));
  const rlimit none = {1, before.rlim_max};
  xsr_model* model = nullptr;
  char detail[256] = "";
  ASSERT_EQ(0, setrlimit(RLIMIT_AS, &none));
  const xsr_status status = xsr_model_open(XSR_SOURCE_DIR "/models/xsr-multi.xsr", nullptr, &model,
                                           detail, sizeof detail);
  ASSERT_EQ(0, setrlimit(RLIMIT_AS, &before));
  EXPECT_EQ(XSR_STATUS_OUT_OF_MEMORY, status) << detail;
  EXPECT_EQ(nullptr, model);
}

TEST(Model, OpenErrorsNameThePath) {
  xsr_model* model = nullptr;
  char detail[256] = "";
  EXPECT_EQ(XSR_STATUS_IO,
            xsr_model_open("no/such/file.xsr", nullptr, &model, detail, sizeof detail));
  EXPECT_NE(nullptr, std::strstr(detail, "no/such/file.xsr")) << detail;
  EXPECT_EQ(nullptr, model);
  EXPECT_EQ(XSR_STATUS_INVALID_ARGUMENT,
            xsr_model_open(nullptr, nullptr, &model, detail, sizeof detail));
  xsr_model_close(nullptr);
  xsr_session_destroy(nullptr);
}

TEST(Library, StringsAreThere) {
  EXPECT_STREQ("0.1.0", xsr_version_string());
  EXPECT_STREQ("bad file", xsr_status_string(XSR_STATUS_BAD_FILE));
  EXPECT_STREQ("unknown status", xsr_status_string(static_cast<xsr_status>(77)));
  EXPECT_STREQ("avx512", xsr_isa_string(XSR_ISA_AVX512));
}

TEST(ThreadPool, DoesEveryTaskOnceAndPassesExceptionsOn) {
  for (int32_t threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    for (int32_t total : {0, 1, 2, 100, 70000}) {
      std::vector<std::atomic<int>> done(total);
      pool.for_each(total, [&](int32_t task, int32_t thread) {
        ASSERT_LT(thread, threads);
        ++done[task];
      });
      for (auto& count : done) ASSERT_EQ(1, count);
    }
    EXPECT_THROW(pool.for_each(50,
                               [](int32_t task, int32_t) {
                                 if (task == 30) throw std::runtime_error("task 30");
                               }),
                 std::runtime_error);
    std::atomic<int> sum = 0;
    for (int round = 0; round < 2000; ++round)
      pool.for_each(3, [&](int32_t task, int32_t) { sum += task; });
    EXPECT_EQ(6000, sum);
  }
}

}  // namespace
}  // namespace xsr
