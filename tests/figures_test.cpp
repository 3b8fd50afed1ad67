// The figures of xsr-bench beside ones worked out by hand, over a library and a machine that take
// as long as a test says.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "bench/device_meter.h"
#include "bench/json_file.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/random_model.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/statistics.h"
#include "bench/workload.h"
#include "runtime/error.h"
#include "tests/support/files.h"
#include "tests/support/temp_folder.h"
#include "tests/support/timed_library.h"

namespace xsr::bench {
namespace {

using nlohmann::json;
using test::library;
using test::loops;
using testing::Each;
using testing::ElementsAre;
using testing::UnorderedElementsAre;

TEST(Statistics, PercentilesAreOfTheNearestRank) {
  std::vector<double> sample;
  for (int i = 200; i >= 1; --i) sample.push_back(i * i);
  EXPECT_EQ(percentile(sample, 0.5), 100 * 100);
  EXPECT_EQ(percentile(sample, 0.9), 180 * 180);
  EXPECT_EQ(percentile(sample, 0.99), 198 * 198);
  EXPECT_EQ(percentile({3, 1, 2, 9}, 0.9), 9);
  EXPECT_EQ(percentile({3, 1, 2, 9}, 0), 1);
  EXPECT_EQ(percentile({3, 1, 2, 9}, 1), 9);
  EXPECT_EQ(percentile({7}, 0.99), 7);
}

TEST(Statistics, AMedianIsTheMiddleOne) {
  EXPECT_EQ(median({9, 1, 2}), 2);
  EXPECT_EQ(median({7}), 7);
}

TEST(Statistics, AMedianOfAnEvenCountIsBetweenTheMiddleTwo) {
  EXPECT_EQ(median({3, 1}), 2);
  EXPECT_EQ(median({100, 2, 4, 1}), 3);
}

/// A model of 1000 words, 200 tokens at most, two layers and embeddings of four.
class Measured : public testing::Test {
 protected:
  static Model opened() {
    library = {};
    library.info.size = sizeof library.info;
    library.info.num_layers = 2;
    library.info.vocab_size = 1000;
    library.info.max_seq_len = 200;
    library.info.embedding_size = 4;
    return Model("any");
  }
  ~Measured() override { test::reading_takes = {}; }

  /// The calls of these numbers take so long, and all others `others`.
  static void calls_take(std::vector<double> seconds, double others = 0) {
    library.call_seconds = [=](size_t call) {
      return call < seconds.size() ? seconds[call] : others;
    };
  }
  /// Sentences in each call.
  static std::vector<size_t> sentences_of_calls() {
    std::vector<size_t> counts;
    for (const auto& call : library.calls) counts.push_back(call.lengths.size());
    return counts;
  }

  const Model model_ = opened();
};

TEST_F(Measured, LatencyIsThatOfTimedCallsAlone) {
  // A second to warm up, then 100 ms, 99 ms, ... 1 ms: a hundred calls, longer than two seconds.
  std::vector<double> seconds = {1};
  for (int i = 100; i >= 1; --i) seconds.push_back(1e-3 * i);
  calls_take(seconds);
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const Latency latency = measure_latency(model_, session, 7, 2);
  EXPECT_EQ(latency.tokens, 7);
  EXPECT_EQ(latency.calls, 100u);
  EXPECT_NEAR(latency.p50, 0.050, 1e-9);
  EXPECT_NEAR(latency.p90, 0.090, 1e-9);
  EXPECT_NEAR(latency.p99, 0.099, 1e-9);
  EXPECT_EQ(latency.device, 0);
}

TEST_F(Measured, LatencyIsOfOneSentenceACallNeverTheSame) {
  calls_take({}, 0.01);
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  measure_latency(model_, session, 7, 0.5);
  std::set<std::vector<int32_t>> sentences;
  for (const auto& call : library.calls) {
    EXPECT_THAT(call.lengths, ElementsAre(7));
    EXPECT_THAT(call.token_ids, Each(testing::AllOf(testing::Ge(3), testing::Lt(1000))));
    sentences.insert(call.token_ids);
  }
  EXPECT_EQ(sentences.size(), library.calls.size());
}

TEST_F(Measured, LatencyWarmsUpForATenthOfItsTime) {
  calls_take({}, 0.015625);
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const Latency latency = measure_latency(model_, session, 7, 4);
  EXPECT_EQ(latency.calls, 256u);                        // 4 s
  EXPECT_EQ(library.calls.size() - latency.calls, 26u);  // beyond 0.4 s
}

TEST_F(Measured, LatencyOfSlowCallsIsThatOfFewCalls) {
  calls_take({}, 1);
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  EXPECT_EQ(measure_latency(model_, session, 7, 0.5).calls, 5u);
  // Four times the wanted time.
  EXPECT_EQ(measure_latency(model_, session, 7, 2).calls, 8u);
}

/// 3000 sentences of 5 tokens, all different.
IdBatch three_thousand() {
  IdBatch batch;
  for (int32_t i = 0; i < 3000; ++i) batch.append({3 + i % 900, i / 900, 1, 2, 3});
  return batch;
}

TEST_F(Measured, ACorpusTakesTheMedianPass) {
  // 100 s to warm up, then passes of 1, 2 and 6 s.
  calls_take({100, 0.25, 0.25, 0.5, 1, 0.5, 0.5, 3, 2, 1});
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const IdBatch batch = three_thousand();
  const Corpus corpus = measure_ids(model_, session, batch, 60);
  EXPECT_EQ(corpus.input, "ids");
  EXPECT_EQ(corpus.passes, 3);
  EXPECT_NEAR(corpus.seconds, 2, 1e-9);
  EXPECT_EQ(corpus.sentences, 3000u);
  EXPECT_EQ(corpus.tokens, 15000u);
  EXPECT_EQ(corpus.token_pairs, 75000);
  EXPECT_EQ(corpus.tokenizer_seconds, 0);
  EXPECT_EQ(corpus.resident_seconds, 0);
  EXPECT_THAT(sentences_of_calls(),
              ElementsAre(128, 1024, 1024, 952, 1024, 1024, 952, 1024, 1024, 952));
  std::vector<int32_t> pass;
  for (size_t i = 1; i <= 3; ++i) {
    const auto& ids = library.calls[i].token_ids;
    pass.insert(pass.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(pass, batch.token_ids);
}

TEST_F(Measured, NoPassBeginsBeyondTheLimit) {
  calls_take({100, 0.25, 0.25, 0.5, 1, 1, 1, 3, 2, 1});
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const Corpus two = measure_ids(model_, session, three_thousand(), 3.5);
  EXPECT_EQ(two.passes, 2);
  EXPECT_NEAR(two.seconds, 2, 1e-9);  // of 1 and 3
  EXPECT_EQ(two.sentences, 3000u);
}

TEST_F(Measured, ACorpusThatTakesTooLongIsAsLargeAsWhatWasDone) {
  calls_take({}, 1);
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const Corpus corpus = measure_ids(model_, session, three_thousand(), 1.5);
  EXPECT_EQ(corpus.passes, 1);
  EXPECT_NEAR(corpus.seconds, 2, 1e-9);
  EXPECT_EQ(corpus.sentences, 2048u);
  EXPECT_EQ(corpus.tokens, 10240u);
}

TEST_F(Measured, ACorpusIsNeverNothing) {
  calls_take({}, 1);
  test::reading_takes = std::chrono::milliseconds(2);  // as where another program runs meanwhile
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  EXPECT_EQ(measure_ids(model_, session, three_thousand(), 0.001).sentences, 1024u);
}

TEST_F(Measured, TheRefKernelsTakeShortSlices) {
  calls_take({}, 1);
  Session session(model_, XSR_ISA_REF, XSR_COMPUTE_F32, 2);
  measure_ids(model_, session, three_thousand(), 1.5);
  EXPECT_THAT(sentences_of_calls(), ElementsAre(4, 32, 32));
}

TEST_F(Measured, TokensBeyondTheModelsMostDoNotCount) {
  IdBatch batch;
  for (const size_t tokens : {300, 200, 0, 7}) batch.append(std::vector<int32_t>(tokens, 3));
  calls_take({}, 1);
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const Corpus corpus = measure_ids(model_, session, batch, 60);
  EXPECT_EQ(corpus.tokens, 407u);
  EXPECT_EQ(corpus.token_pairs, 2 * 200 * 200 + 7 * 7);
}

TEST_F(Measured, ACorpusOfTextTimesTheTokenizerAlone) {
  // 1500 texts of 10 tokens and 1500 of 300, of which 200 count; 2048 of them are reached.
  std::vector<std::string> lines(1500, std::string(10, 'a'));
  lines.resize(3000, std::string(300, 'b'));
  calls_take({}, 1);
  library.tokenize_seconds = 0.001;
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const Corpus corpus = measure_texts(model_, session, lines, 1.5);
  EXPECT_EQ(corpus.input, "text");
  EXPECT_EQ(corpus.sentences, 2048u);
  EXPECT_EQ(corpus.tokens, 15000u + 548 * 200);
  EXPECT_EQ(corpus.token_pairs, 150000 + 548 * 200 * 200);
  EXPECT_NEAR(corpus.seconds, 2, 1e-9);
  EXPECT_NEAR(corpus.tokenizer_seconds, 2.048, 1e-9);
}

TEST_F(Measured, TheYardstickAndTheSessionTakeTurns) {
  // In blocks of 16, of which the first call is warm-up and slow.
  struct Chain final : OnednnChain {
    void prepare(int32_t M) override { prepared = M; }
    void run(int32_t M) override {
      EXPECT_EQ(M, prepared);
      test::pass_seconds(calls++ % 17 == 0 ? 1000 : 0.003);
    }
    int32_t prepared = 0, calls = 0;
  } chain;
  library.call_seconds = [](size_t call) { return call % 17 == 0 ? 1000 : 0.002; };
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  const ChainLatency latency = measure_chain(model_, session, chain, 9, 0.5);
  EXPECT_EQ(latency.tokens, 9);
  EXPECT_NEAR(latency.chain_p50, 0.003, 1e-9);
  EXPECT_NEAR(latency.xsr_p50, 0.002, 1e-9);
  EXPECT_THAT(library.calls.front().lengths, ElementsAre(9));
}

TEST_F(Measured, TheCheckTakesTheLargestDifference) {
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  library.element = 64;
  library.error = 0.5;  // which f32 has exactly
  const Check check = check_against_ref(model_, session);
  EXPECT_EQ(check.largest_difference, 0.5);
  EXPECT_NEAR(check.allowed, 64e-5, 1e-12);
  EXPECT_FALSE(check.passed);
  EXPECT_THAT(library.calls.at(0).lengths, ElementsAre(1, 2, 5, 20, 37));
}

TEST_F(Measured, TheCheckAllowsMoreForMoreLayersAndNarrowerProducts) {
  const auto allowed = [&](xsr_compute compute, int32_t layers) {
    library.info.num_layers = layers;
    const Model model("any");
    Session session(model, XSR_ISA_AVX2, compute, 1);
    return check_against_ref(model, session).allowed;
  };
  library.element = 1;
  EXPECT_NEAR(allowed(XSR_COMPUTE_F32, 1), 1e-5, 1e-12);
  EXPECT_NEAR(allowed(XSR_COMPUTE_F32, 2), 1e-5, 1e-12);
  EXPECT_NEAR(allowed(XSR_COMPUTE_F32, 12), 6e-5, 1e-12);
  EXPECT_NEAR(allowed(XSR_COMPUTE_BF16, 2), 2e-2, 1e-12);
  EXPECT_NEAR(allowed(XSR_COMPUTE_BF16X3, 2), 1e-4, 1e-12);
  EXPECT_NEAR(allowed(XSR_COMPUTE_INT8, 2), 5e-2, 1e-12);
  EXPECT_NEAR(allowed(XSR_COMPUTE_TF32, 2), 5e-3, 1e-12);
}

TEST_F(Measured, TheCheckPassesWhatIsAllowedAndNoNan) {
  Session session(model_, XSR_ISA_AVX2, XSR_COMPUTE_F32, 1);
  library.element = 1024;  // 0.01024
  const auto passes = [&](float error) {
    library.error = error;
    return check_against_ref(model_, session).passed;
  };
  EXPECT_TRUE(passes(0));
  EXPECT_TRUE(passes(0.01f));
  EXPECT_TRUE(passes(-0.01f));
  EXPECT_FALSE(passes(0.011f));
  EXPECT_FALSE(passes(-0.011f));
  EXPECT_FALSE(passes(std::numeric_limits<float>::quiet_NaN()));
  EXPECT_FALSE(passes(std::numeric_limits<float>::infinity()));
}

TEST(Workload, LogNormalLengthsHaveTheMeanAndTheSpreadThatTheySay) {
  const IdBatch batch = log_normal_sentences(40000, 1000, 512, 5);
  ASSERT_EQ(batch.count(), 40000u);
  std::vector<double> lengths, logarithms;
  for (size_t i = 0; i < batch.count(); ++i) {
    lengths.push_back(static_cast<double>(batch.offsets[i + 1] - batch.offsets[i]));
    logarithms.push_back(std::log(lengths.back()));
  }
  const auto mean = [](const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  // The standard error of the mean is 0.1.
  EXPECT_NEAR(mean(lengths), 24.9, 0.4);
  const double middle = mean(logarithms);
  double variance = 0;
  for (const double value : logarithms) variance += (value - middle) * (value - middle) / 40000;
  EXPECT_NEAR(std::sqrt(variance), 0.7, 0.02);
  EXPECT_EQ(*std::max_element(lengths.begin(), lengths.end()), 195);
  EXPECT_GE(*std::min_element(lengths.begin(), lengths.end()), 1);
  EXPECT_THAT(batch.token_ids, Each(testing::AllOf(testing::Ge(3), testing::Lt(1000))));
}

TEST(Workload, LogNormalLengthsEndAtTheModelsMost) {
  const IdBatch batch = log_normal_sentences(1000, 1000, 30, 5);
  size_t longest = 0;
  for (size_t i = 0; i < batch.count(); ++i)
    longest = std::max(longest, batch.offsets[i + 1] - batch.offsets[i]);
  EXPECT_EQ(longest, 30u);
}

TEST(Workload, TheIdsOfASmallVocabularyAreInIt) {
  EXPECT_THAT(RandomIds(1, 5).take(20), Each(0));
  EXPECT_THAT(RandomIds(3, 5).take(20), Each(2));
}

TEST(Workload, LogNormalSentencesAreAFunctionOfTheSeed) {
  const auto ids = [](uint32_t seed) { return log_normal_sentences(50, 900, 200, seed).token_ids; };
  EXPECT_EQ(ids(1), ids(1));
  EXPECT_NE(ids(1), ids(2));
}

TEST(Roofline, TheFloorIsTheSlowerOfProductsAndWeights) {
  const Roofline roofline{200, 50, 20};  // GFLOP/s twice, GB/s
  EXPECT_DOUBLE_EQ(floor_seconds(roofline, 8e11, 0, 2e10), 4);
  EXPECT_DOUBLE_EQ(floor_seconds(roofline, 1e11, 0, 2e10), 1);
  EXPECT_DOUBLE_EQ(floor_seconds(roofline, 1e11, 0, 0), 0.5);
  EXPECT_DOUBLE_EQ(floor_seconds(roofline, 1e11, 1e11, 2e10), 2.5) << "attention at its own rate";
}

TEST(Roofline, ThePeakIsTheBestWindowsTimesTheThreads) {
  // 10^8 operations on each of three threads, the slowest of which takes 6 ms, in the eighth
  // window 2 ms: 150 GFLOP/s.
  int32_t calls = 0;
  loops.flop = 1e8;
  loops.seconds = [&](const std::string& name, int64_t) {
    if (name.starts_with("read")) return 0.001;
    const int32_t window = calls / 3, thread = calls++ % 3;
    return (window == 7 ? 1 : 3) * (thread == 1 ? 0.002 : 0.001);
  };
  RooflineMeter meter(kernels::Isa::kAvx2, XSR_COMPUTE_F32, 3, 1);
  meter.measure();
  EXPECT_EQ(calls, 45);
  EXPECT_NEAR(meter.roofline().peak_gflops, 150, 1e-6);
  EXPECT_EQ(meter.roofline().attention_gflops, meter.roofline().peak_gflops) << "the same loop";
  // The eighth window is gone, and its peak stands.
  meter.measure();
  EXPECT_NEAR(meter.roofline().peak_gflops, 150, 1e-6);
  EXPECT_EQ(meter.roofline().attention_gflops, meter.roofline().peak_gflops);
}

TEST(Roofline, AttentionOfBytesHasAPeakOfItsOwn) {
  loops.flop = 1e8;
  double seconds = 0.001;
  loops.seconds = [&](const std::string& name, int64_t) {
    return name == "dot_loop_avx512_bf16" ? 2 * seconds : seconds;
  };
  RooflineMeter meter(kernels::Isa::kAvx512Bf16, XSR_COMPUTE_INT8, 1, 1);
  meter.measure();
  EXPECT_NEAR(meter.roofline().peak_gflops, 100, 1e-6);
  EXPECT_NEAR(meter.roofline().attention_gflops, 50, 1e-6);
  seconds = 0.002;
  meter.measure();
  EXPECT_NEAR(meter.roofline().attention_gflops, 50, 1e-6) << "the best so far stands";
}

TEST(Roofline, TheReadRateIsThatOfAllThreads) {
  const int64_t l2 = l2_bytes();
  std::set<int64_t> parts;
  double gb_per_s = 0;
  loops.flop = 1;
  loops.seconds = [&](const std::string& name, int64_t bytes) {
    if (!name.starts_with("read")) return 0.001;
    parts.insert(bytes);
    return static_cast<double>(bytes) / (1e9 * gb_per_s);
  };
  const auto measured = [&](int32_t threads, int64_t weight_bytes, double each) {
    gb_per_s = each;
    parts.clear();
    RooflineMeter meter(kernels::Isa::kAvx2, XSR_COMPUTE_F32, threads, weight_bytes);
    meter.measure();
    const double first = meter.roofline().read_gb_per_s;
    gb_per_s = each / 2;
    meter.measure();
    EXPECT_EQ(meter.roofline().read_gb_per_s, first) << "the best so far stands";
    return first;
  };
  // Few weights: four times L2 a thread.
  EXPECT_NEAR(measured(1, 1000, 10), 10, 1e-3);
  EXPECT_THAT(parts, ElementsAre(4 * l2));
  EXPECT_NEAR(measured(2, 1000, 10), 20, 1e-3);
  EXPECT_THAT(parts, ElementsAre(4 * l2));
  // Many: each thread its part, in whole steps of 512 bytes.
  EXPECT_NEAR(measured(2, 10 * l2 + 2, 10), 20, 1e-3);
  EXPECT_THAT(parts, ElementsAre(5 * l2 + 512));
}

TEST(Roofline, TheLoopsAreThoseOfTheProductsAndTheInstructionSet) {
  using kernels::Isa;
  const auto used = [](Isa isa, xsr_compute compute) {
    std::set<std::string> names;
    loops.flop = 1;
    loops.seconds = [&](const std::string& name, int64_t) {
      names.insert(name);
      return 0.001;
    };
    RooflineMeter(isa, compute, 1, 1).measure();
    return names;
  };
  const std::string read2 = "read_loop_avx2", read512 = "read_loop_avx512";
  const auto f32 = XSR_COMPUTE_F32, bf16 = XSR_COMPUTE_BF16, int8 = XSR_COMPUTE_INT8;
  EXPECT_THAT(used(Isa::kAvx2, f32), ElementsAre("fma_loop_avx2", read2));
  EXPECT_THAT(used(Isa::kAvx2, bf16), ElementsAre("fma_loop_avx2", read2));
  EXPECT_THAT(used(Isa::kAvx2, int8), ElementsAre("fma_loop_avx2", "madd_loop_avx2", read2));
  EXPECT_THAT(used(Isa::kAvx512, f32), ElementsAre("fma_loop_avx512", read512));
  EXPECT_THAT(used(Isa::kAvx512, bf16), ElementsAre("fma_loop_avx512", read512));
  const bool vnni = kernels::isa_supported(Isa::kAvx2Vnni);  // some CPUs of AVX-512 have it, too
  const std::string bytes = vnni ? "dot_loop_avx2_vnni" : "madd_loop_avx2";
  if (vnni) {
    EXPECT_THAT(used(Isa::kAvx2Vnni, int8), ElementsAre(bytes, "fma_loop_avx2", read2));
  }
  EXPECT_THAT(used(Isa::kAvx512, int8), UnorderedElementsAre("fma_loop_avx512", bytes, read512));
  EXPECT_THAT(used(Isa::kAvx512Vnni, int8),
              ElementsAre("dot_loop_avx512_vnni", "fma_loop_avx512", read512));
  EXPECT_THAT(used(Isa::kAvx512Bf16, int8),
              ElementsAre("dot_loop_avx512_bf16", "dot_loop_avx512_vnni", read512));
  EXPECT_THAT(used(Isa::kAvx512Vnni, bf16), ElementsAre("fma_loop_avx512", read512));
  EXPECT_THAT(used(Isa::kAvx512Bf16, bf16), ElementsAre("dot_loop_avx512_bf16", read512));
  EXPECT_THAT(used(Isa::kAmx, bf16), ElementsAre("dot_loop_avx512_bf16", read512));
  EXPECT_THAT(used(Isa::kAmx, f32), ElementsAre("fma_loop_avx512", read512));
  EXPECT_THAT(used(Isa::kAmx, XSR_COMPUTE_BF16X3), ElementsAre("fma_loop_avx512", read512));
}

TEST(DeviceMeter, GivesWhatTheDeviceSays) {
  const RandomModel model({1, 32, 2, 48, 500}, DType::kF32, 1);  // 200 tokens at most
  const auto file = XsrFile::open_memory(model.data(), model.size());
  DeviceMeter meter(*file, XSR_COMPUTE_TF32, false, 77, "cuda:2,1");
  EXPECT_EQ(test::device.options.compute, Compute::kTf32);
  EXPECT_EQ(test::device.options.chunk_tokens, 77);
  EXPECT_THAT(test::device.options.devices, ElementsAre(2));

  test::device.peak = 6e13;
  test::device.bandwidth = 4e12;
  meter.measure();
  EXPECT_DOUBLE_EQ(meter.roofline().peak_gflops, 60000);
  EXPECT_DOUBLE_EQ(meter.roofline().read_gb_per_s, 4000);
  test::device.peak = 5e13;
  test::device.bandwidth = 5e12;
  meter.measure();
  EXPECT_DOUBLE_EQ(meter.roofline().peak_gflops, 60000);
  EXPECT_DOUBLE_EQ(meter.roofline().attention_gflops, 60000);
  EXPECT_DOUBLE_EQ(meter.roofline().read_gb_per_s, 5000);

  test::device.resident_seconds = 0.125;
  EXPECT_EQ(meter.sentence_seconds(9), 0.125);
  EXPECT_THAT(test::device.lengths, ElementsAre(9));
  EXPECT_EQ(test::device.passes, 100);
  IdBatch batch;
  for (const size_t tokens : {3, 250, 0}) batch.append(std::vector<int32_t>(tokens, 4));
  EXPECT_EQ(meter.corpus_seconds(batch), 0.125);
  EXPECT_THAT(test::device.lengths, ElementsAre(3, 200, 0));
  EXPECT_EQ(test::device.passes, 5);
}

/// Two layers of C 512 and F 1024: 2 (4 · 512² + 2 · 512 · 1024) · 2 = 8,388,608 operations a
/// token, and 16,777,216 bytes of f32. At 100 GFLOP/s and 10 GB/s a token's products take 83.9 µs,
/// the weights 1677.7 µs.
Report figures() {
  Report report;
  report.model = "m.xsr";
  report.activation = "swish";
  report.pooling = "mean";
  report.isa = "avx2";
  report.dtype = "f32";
  report.storage = "bf16";
  report.threads = 2;
  report.info.num_layers = 2;
  report.info.hidden_size = 512;
  report.info.num_heads = 8;
  report.info.intermediate_size = 1024;
  report.info.vocab_size = 50000;
  report.weight_bytes = 16777216;
  report.token_table_bytes = 102400000;
  report.check = {2.5e-7, 1e-5, true};
  report.roofline = {100, 50, 10};
  report.latency = {{1, 4321, 0.002, 0.003, 0.005, 0}, {100, 123, 0.016, 0.017, 0.019, 0}};
  Corpus corpus;
  corpus.input = "text";
  corpus.sentences = 3000;
  corpus.tokens = 75000;
  corpus.token_pairs = 2.5e6;
  corpus.seconds = 10;
  corpus.passes = 3;
  corpus.tokenizer_seconds = 1.5;
  report.corpus = corpus;
  report.chain = {{1, 0.0015, 0.002}};
  return report;
}

/// The same on a device: with the ids there beforehand a pass takes 8 s, a sentence 1 and 4 ms.
Report device_figures() {
  Report report = figures();
  report.device = "GPU";
  report.isa = "auto";
  report.chain.clear();
  report.latency[0].device = 0.001;
  report.latency[1].device = 0.004;
  report.corpus->input = "ids";
  report.corpus->tokenizer_seconds = 0;
  report.corpus->resident_seconds = 8;
  return report;
}

TEST(Report, CountsTheProductsOfAToken) {
  Report report = figures();
  EXPECT_EQ(report.flop_per_token(), 8388608);
  report.qkv_table = true;  // less 6 · 512²
  EXPECT_EQ(report.flop_per_token(), 6815744);
  report.info.num_layers = 1;
  EXPECT_EQ(report.flop_per_token(), 2621440);
  EXPECT_EQ(report.flop(7, 2), 7 * 2621440);
}

TEST(Report, CountsTheLastLayerOfFirstTokensAlone) {
  Report report = figures();
  report.pooling = "cls";  // 2 (512² + 2 · 512 · 1024) a sentence, not a token
  EXPECT_EQ(report.flop_per_token(), 5767168);
  EXPECT_EQ(report.flop_per_sentence(), 2621440);
  EXPECT_EQ(report.flop(1, 1), 8388608);
  EXPECT_DOUBLE_EQ(report.share_of_roofline(100, 2, 0, 0.016), 0.363724800);
  report.info.num_layers = 0;
  EXPECT_EQ(report.flop(9, 3), 0);
}

TEST(Report, TheShareIsTheSlowerOfProductsAndWeights) {
  Report report = figures();
  EXPECT_DOUBLE_EQ(report.share_of_roofline(1, 1, 0, 0.002), 0.8388608);   // weights
  EXPECT_DOUBLE_EQ(report.share_of_roofline(1, 1, 1, 0.002), 0.8388608);   // weights
  EXPECT_DOUBLE_EQ(report.share_of_roofline(100, 1, 0, 0.016), 0.524288);  // products
  // and of attention 4 · 512 · 2 · 10^4, at half the rate: 0.8192 of 16 ms
  EXPECT_DOUBLE_EQ(report.share_of_roofline(100, 1, 1e4, 0.016), 0.575488);
  report.qkv_table = true;
  EXPECT_DOUBLE_EQ(report.share_of_roofline(100, 1, 0, 0.016), 0.425984);
  EXPECT_DOUBLE_EQ(report.share_of_roofline(100, 1, 1e4, 0.016), 0.477184);
  report.device = "GPU";  // products alone
  report.qkv_table = false;
  EXPECT_DOUBLE_EQ(report.share_of_roofline(1, 1, 0, 0.002), 0.04194304);
}

/// What print_table() writes, with one space where it has several.
std::string table(const Report& report) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* const to = open_memstream(&text, &size);
  print_table(report, to);
  std::fclose(to);
  std::string squeezed;
  for (size_t i = 0; i < size; ++i) {
    const bool indents = squeezed.empty() || squeezed.back() == ' ' || squeezed.back() == '\n';
    if (text[i] != ' ' || !indents) squeezed += text[i];
  }
  std::free(text);
  return squeezed;
}

TEST(Report, TheTableHasEveryFigure) {
  EXPECT_EQ(
      table(figures()),
      fmt::format(
          R"(model m.xsr: 2 layers, hidden 512, 8 heads, intermediate 1024 (swish), vocabulary 50000
a pass reads 16.8 MB of weights; token table 102.4 MB, stored in bf16
machine {}; 2 threads; ISA avx2; computed in f32
build xsr 1.2.3, {}, commit {}
check differs from the ref kernels by 2.5e-07 at most (allowed 1e-05)
roofline 100.0 GFLOP/s, 10.0 GB/s from beyond L2; 8.389 MFLOP a token

one sentence, ids to vector
tokens p50 us p90 us p99 us GFLOP/s roofline with attention calls
1 2000.0 3000.0 5000.0 4.2 0.839 0.839 4321
100 16000.0 17000.0 19000.0 52.4 0.524 0.575 123

beside oneDNN's matrix products alone, by turns
tokens xsr us oneDNN us oneDNN's time / xsr's
1 2000.0 1500.0 0.750

corpus (text), 3000 sentences, 75000 tokens, median of 3 passes
300.0 sentences/s 7500.0 tokens/s 62.9 GFLOP/s 0.629 of roofline, 0.650 with attention
50000.0 tokens/s tokenising, 7.5 % of the time
)",
          cpu_model(), compiler(), commit()));
}

TEST(Report, TheTableOfADeviceHasEveryFigure) {
  Report report = device_figures();
  report.qkv_table = true;
  EXPECT_EQ(
      table(report),
      fmt::format(
          R"(model m.xsr: 2 layers, hidden 512, 8 heads, intermediate 1024 (swish), vocabulary 50000
a pass reads 16.8 MB of weights; token table 102.4 MB, stored in bf16
machine GPU; {}; 2 threads; computed in f32, QKV table
build xsr 1.2.3, {}, commit {}
check differs from the ref kernels by 2.5e-07 at most (allowed 1e-05)
roofline 100.0 GFLOP/s in a large square product; 6.816 MFLOP a token

one sentence, ids to vector
tokens p50 us p90 us p99 us GFLOP/s roofline with attention calls
1 2000.0 3000.0 5000.0 3.4 0.034 0.034 4321 (1000.0 us on the device)
100 16000.0 17000.0 19000.0 42.6 0.426 0.477 123 (4000.0 us on the device)

corpus (ids), 3000 sentences, 75000 tokens, median of 3 passes
300.0 sentences/s 7500.0 tokens/s 51.1 GFLOP/s 0.511 of roofline, 0.532 with attention
9375.0 tokens/s with the ids on the device beforehand, 0.639 of roofline, 0.665 with attention
)",
          cpu_model(), compiler(), commit()));
}

TEST(Report, TheTableSaysWhereOneThreadIs) {
  Report report = figures();
  report.threads = 1;
  report.pinned_cpu = 3;
  report.corpus->passes = 1;
  EXPECT_THAT(table(report), testing::HasSubstr("; 1 thread on CPU 3; ISA avx2"));
  EXPECT_THAT(table(report), testing::HasSubstr("median of 1 pass\n"));
  EXPECT_THAT(table(report), testing::HasSubstr(" tokenising, 15.0 % of the time"));
}

/// Every leaf of the JSON by its path; numbers may differ by rounding.
void expect_leaves(const json& found, const json& expected) {
  const json leaves = found.flatten();
  std::set<std::string> keys, expected_keys;
  for (const auto& leaf : leaves.items()) keys.insert(leaf.key());
  for (const auto& leaf : expected.items()) expected_keys.insert(leaf.key());
  EXPECT_EQ(keys, expected_keys);
  for (const auto& [path, value] : expected.items()) {
    if (!leaves.contains(path)) continue;
    if (value.is_number()) {
      const double number = value.get<double>();
      EXPECT_NEAR(leaves[path].get<double>(), number, 1e-12 * std::fabs(number)) << path;
    } else {
      EXPECT_EQ(leaves[path], value) << path;
    }
  }
}

const json kLeaves = {{"/cpu", cpu_model()},
                      {"/device", "cpu"},
                      {"/isa", "avx2"},
                      {"/dtype", "f32"},
                      {"/qkv_table", false},
                      {"/threads", 2},
                      {"/latency/0/tokens", 1},
                      {"/latency/0/p50_us", 2000},
                      {"/latency/0/p90_us", 3000},
                      {"/latency/0/p99_us", 5000},
                      {"/latency/0/share_of_roofline", 0.8388608},
                      {"/latency/0/share_with_attention", 0.8388608},
                      {"/latency/0/calls", 4321},
                      {"/latency/1/tokens", 100},
                      {"/latency/1/p50_us", 16000},
                      {"/latency/1/p90_us", 17000},
                      {"/latency/1/p99_us", 19000},
                      {"/latency/1/share_of_roofline", 0.524288},
                      {"/latency/1/share_with_attention", 0.575488},
                      {"/latency/1/calls", 123},
                      {"/corpus/sentences_per_s", 300},
                      {"/corpus/tokens_per_s", 7500},
                      {"/corpus/gflop_per_s", 62.91456},
                      {"/corpus/share_of_roofline", 0.6291456},
                      {"/corpus/share_with_attention", 0.6496256},
                      {"/corpus/input", "text"},
                      {"/corpus/sentences", 3000},
                      {"/corpus/tokens", 75000},
                      {"/corpus/passes", 3},
                      {"/corpus/tokenizer_tokens_per_s", 50000},
                      {"/corpus/tokenizer_share", 0.075},
                      {"/onednn_chain/0/tokens", 1},
                      {"/onednn_chain/0/p50_us", 1500},
                      {"/onednn_chain/0/xsr_p50_us", 2000},
                      {"/onednn_chain/0/ratio", 0.75},
                      {"/roofline/peak_gflop_per_s", 100},
                      {"/roofline/attention_gflop_per_s", 50},
                      {"/roofline/read_gb_per_s", 10},
                      {"/roofline/flop_per_token", 8388608},
                      {"/roofline/flop_per_sentence", 0},
                      {"/roofline/flop_per_token_pair", 4096},
                      {"/roofline/weight_bytes", 16777216},
                      {"/check/largest_difference", 2.5e-7},
                      {"/check/allowed", 1e-5},
                      {"/model/name", "m.xsr"},
                      {"/model/num_layers", 2},
                      {"/model/hidden_size", 512},
                      {"/model/num_heads", 8},
                      {"/model/intermediate_size", 1024},
                      {"/model/activation", "swish"},
                      {"/model/pooling", "mean"},
                      {"/model/vocab_size", 50000},
                      {"/model/token_table_bytes", 102400000},
                      {"/model/storage", "bf16"},
                      {"/build/version", "1.2.3"},
                      {"/build/compiler", compiler()},
                      {"/build/commit", commit()},
                      {"/pinned_cpu", nullptr}};

TEST(Report, TheJsonHasEveryFigure) {
  const std::vector<Report> reports = {figures()};
  expect_leaves(json::parse(reports_as_json(reports)), kLeaves);
}

TEST(Report, TheJsonOfADeviceHasEveryFigure) {
  json leaves = kLeaves;
  for (const char* key : {"tokens", "p50_us", "xsr_p50_us", "ratio"})
    leaves.erase(std::string("/onednn_chain/0/") + key);
  leaves["/onednn_chain"] = nullptr;  // as flatten() has an empty array
  leaves.erase("/corpus/tokenizer_tokens_per_s");
  leaves.erase("/corpus/tokenizer_share");
  leaves["/device"] = "GPU";
  leaves["/isa"] = "auto";
  leaves["/corpus/input"] = "ids";
  leaves["/latency/0/share_of_roofline"] = 0.04194304;
  leaves["/latency/0/share_with_attention"] = 0.04198400;
  leaves["/latency/0/device_us"] = 1000;
  leaves["/latency/1/device_us"] = 4000;
  leaves["/corpus/resident_tokens_per_s"] = 9375;
  leaves["/corpus/resident_share_of_roofline"] = 0.786432;
  leaves["/corpus/resident_share_with_attention"] = 0.812032;
  const std::vector<Report> reports = {device_figures()};
  expect_leaves(json::parse(reports_as_json(reports)), leaves);
}

TEST(Report, TheJsonOfSeveralIsAnArrayInTheirOrder) {
  std::vector<Report> reports = {figures(), figures()};
  reports[1].corpus.reset();
  reports[1].pinned_cpu = 5;
  reports[1].qkv_table = true;
  reports[1].threads = 1;
  const json both = json::parse(reports_as_json(reports));
  ASSERT_TRUE(both.is_array());
  ASSERT_EQ(both.size(), 2u);
  expect_leaves(both[0], kLeaves);
  EXPECT_EQ(both[1]["corpus"], nullptr);
  EXPECT_EQ(both[1]["pinned_cpu"], 5);
  EXPECT_EQ(both[1]["qkv_table"], true);
  EXPECT_EQ(both[1]["threads"], 1);
}

TEST(JsonFile, IsWholeAndWhereItShouldBe) {
  const test::TempFolder folder;
  require_writable(folder / "figures.json");
  EXPECT_THAT(folder.names(), ElementsAre());
  write_json(folder / "figures.json", "{}\n");
  EXPECT_EQ(test::read_file(folder / "figures.json"), "{}\n");
  EXPECT_THAT(folder.names(), ElementsAre("figures.json"));
  EXPECT_THROW(require_writable(folder / "none/figures.json"), Error);
  EXPECT_NO_THROW(require_writable("-"));
  EXPECT_NO_THROW(require_writable(""));
  EXPECT_EQ(table_stream("-"), stderr);
  EXPECT_EQ(table_stream("figures.json"), stdout);
}

TEST(Machine, APinnedThreadIsOnOneProcessorUntilItIsLetGo) {
  const std::vector<int> before = allowed_cpus();
  ASSERT_FALSE(before.empty());
  {
    const PinToCpu pin(before.back());
    EXPECT_TRUE(pin.pinned());
    EXPECT_THAT(allowed_cpus(), ElementsAre(before.back()));
  }
  EXPECT_EQ(allowed_cpus(), before);
  EXPECT_FALSE(PinToCpu(CpuSet::kMostCpus - 1).pinned());
  EXPECT_EQ(allowed_cpus(), before);
}

}  // namespace
}  // namespace xsr::bench
