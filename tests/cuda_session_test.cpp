// CUDA sessions behind the C API, out of the library that libxsr loads: against the forward pass in
// double, and the same bits for any batch, order, number of devices, first use or graph. Linked
// twice: cuda_session_emulated_test loads the emulated device, cuda_session_test the real one,
// which is skipped without a device.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>

#include "bench/random_model.h"
#include "runtime/device/cuda/token_bucket.h"
#include "runtime/encoder/device_encoder.h"
#include "runtime/error.h"
#include "tests/support/environment.h"
#include "tests/support/files.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/plain_encoder.h"
#include "tests/support/session.h"
#include "tests/support/test_model.h"
#include "xsr/xsr.h"

namespace xsr {
namespace {

using test::embed;
using test::EnvironmentVariable;
using test::ErrorBudget;
using test::Random;
using test::SessionPointer;
using test::TestModel;
using Sentences = std::vector<std::vector<int32_t>>;

xsr_session_options cuda_options(xsr_compute compute = XSR_COMPUTE_F32, int32_t batch_tokens = 0) {
  xsr_session_options options{};
  options.size = sizeof options;
  options.num_threads = 2;
  options.device = XSR_DEVICE_CUDA;
  options.compute = compute;
  options.max_batch_tokens = batch_tokens;
  return options;
}

/// The status of creating a session, which goes to *session; the message to *detail.
xsr_status create(const TestModel& model, const xsr_session_options& options,
                  SessionPointer* session, std::string* detail) {
  xsr_session* made = nullptr;
  char text[1024] = "";
  const xsr_status status = xsr_session_create(model.get(), &options, &made, text, sizeof text);
  session->reset(made);
  *detail = text;
  return status;
}

SessionPointer make_session(const TestModel& model, const xsr_session_options& options) {
  SessionPointer session;
  std::string detail;
  EXPECT_EQ(XSR_STATUS_OK, create(model, options, &session, &detail)) << detail;
  return session;
}

/// Of 0 tokens, of few, of 70 and of `longest`, beyond the 200 of the model too. (The emulated
/// device takes milliseconds for a long one.)
Sentences random_sentences(uint64_t salt, int count, int32_t vocab_size, int32_t longest = 100) {
  Random random(salt);
  Sentences all = {{}, std::vector<int32_t>(70, 1), std::vector<int32_t>(longest, 1)};
  while (static_cast<int>(all.size()) < count) {
    const int kind = random.range(0, 19);
    all.emplace_back(kind == 0 ? 0 : random.range(1, 40));
  }
  for (auto& sentence : all) {
    for (int32_t& id : sentence) id = random.range(0, vocab_size - 1);
  }
  return all;
}

template <typename T>
std::vector<T> plain_embeddings(const TestModel& model, const Sentences& sentences) {
  const test::PlainEncoder<T> encoder(model.file());
  std::vector<T> all;
  for (const auto& sentence : sentences) {
    const size_t most = static_cast<size_t>(model.file().config().max_seq_len);
    const auto row = encoder.embed({sentence.data(), std::min(sentence.size(), most)});
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

double cosine(const float* a, const double* b, size_t columns) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t c = 0; c < columns; ++c) {
    ab += a[c] * b[c];
    aa += double{a[c]} * a[c];
    bb += b[c] * b[c];
  }
  return ab / std::sqrt(aa * bb);
}

/// Skips where there is no device; the emulated one is always there.
class CudaSession : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("XSR_CUDA_LIBRARY", XSR_CUDA_MODULE, 1);
    unsetenv("XSR_EMULATED_DEVICES");
    const TestModel model({1, 8, 1, 8, 5}, DType::kF32);
    SessionPointer session;
    std::string detail;
    const xsr_status status = create(model, cuda_options(), &session, &detail);
#ifdef XSR_EMULATED
    ASSERT_EQ(XSR_STATUS_OK, status) << detail;
    ASSERT_STREQ("emulated device", xsr_session_get_device_name(session.get()));
#else
    if (status == XSR_STATUS_CUDA && detail.find("no CUDA device can be used") != std::string::npos)
      GTEST_SKIP() << detail;
    ASSERT_EQ(XSR_STATUS_OK, status) << detail;
#endif
    EXPECT_EQ(XSR_ISA_AUTO, xsr_session_get_isa(session.get()));
  }
  /// Up to three that a session takes together.
  static int usable_devices() {
    const TestModel model({1, 8, 1, 8, 5}, DType::kF32);
    for (const int devices : {3, 2}) {
      xsr_session_options options = cuda_options();
      options.cuda_devices = (1u << devices) - 1;
      SessionPointer session;
      std::string detail;
      if (create(model, options, &session, &detail) == XSR_STATUS_OK) return devices;
    }
    return 1;
  }
  static std::string filter() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    return std::string(info->test_suite_name()) + "." + info->name();
  }
};

TEST_F(CudaSession, F32StaysWithinTheBudgetOfPlainLoops) {
  struct Case {
    bench::RandomShape shape;
    DType storage;
    test::ModelEdit edit;
  };
  // What the layers of an xsr model do not have: a dense layer after the first token's row, unit
  // vectors, another activation.
  const test::DenseLayer dense(96, 40, DType::kF32);
  const auto pooled = [&](ModelConfig& config, std::vector<TensorSource>& sources) {
    dense(config, sources);
    config.pooling = Pooling::kCls;
    config.activation = Activation::kGeluErf;
  };
  const auto maximum = [](ModelConfig& config, std::vector<TensorSource>&) {
    config.pooling = Pooling::kMax;
    config.activation = Activation::kRelu;
  };
  for (const Case& c : {Case{{2, 24, 3, 40, 53}, DType::kF32, nullptr},
                        Case{{1, 65, 5, 33, 77}, DType::kF16, nullptr},
                        Case{{0, 32, 1, 32, 77}, DType::kF32, nullptr},
                        Case{{2, 96, 4, 130, 301}, DType::kBF16, pooled},
                        Case{{1, 128, 1, 64, 61}, DType::kI8, maximum},
                        Case{{2, 256, 4, 512, 500}, DType::kF32, nullptr}}) {
    const TestModel model(c.shape, c.storage, c.edit);
    const Sentences sentences = random_sentences(c.shape.hidden_size, 8, c.shape.vocab_size,
                                                 c.shape.hidden_size == 24 ? 230 : 90);
    const auto exact = plain_embeddings<double>(model, sentences);
    const auto plain = plain_embeddings<float>(model, sentences);
    const auto found = embed(make_session(model, cuda_options()).get(), sentences, model.columns());
    ErrorBudget budget;
    for (size_t i = 0; i < found.size(); ++i)
      budget.add(found[i], plain[i], exact[i], i / model.columns(), i % model.columns());
    EXPECT_TRUE(budget.check("hidden_size " + std::to_string(c.shape.hidden_size), filter()));
    std::printf("  hidden_size %d: %.0f %% of the budget\n", c.shape.hidden_size,
                100 * budget.share());
  }
}

/// bf16 on the device also rounds the products Q, K, V and up, and probabilities: its vectors turn
/// from those in double by at most twice the angle of bf16 on the processor, which rounds the
/// products' inputs alone. 1 - cosine is half of the angle's square.
TEST_F(CudaSession, Bf16IsAsCloseAsOnTheProcessor) {
  for (const Pooling pooling : {Pooling::kMean, Pooling::kCls}) {
    const TestModel model({2, 256, 4, 512, 500, Activation::kSwish, pooling}, DType::kBF16);
    const Sentences sentences = random_sentences(5, 16, 500);
    const auto exact = plain_embeddings<double>(model, sentences);
    xsr_session_options options = cuda_options(XSR_COMPUTE_BF16);
    const auto found = embed(make_session(model, options).get(), sentences, model.columns());
    const auto wide = embed(make_session(model, cuda_options()).get(), sentences, model.columns());
    EXPECT_NE(wide, found) << "bf16 was not computed with";
    options.device = XSR_DEVICE_CPU;
    const auto on_cpu = embed(make_session(model, options).get(), sentences, model.columns());
    double worst = 0, worst_on_cpu = 0, mean = 0, mean_on_cpu = 0;
    for (size_t i = 0; i < sentences.size(); ++i) {
      if (sentences[i].empty()) continue;
      const size_t at = i * model.columns();
      const double distance = 1 - cosine(&found[at], &exact[at], model.columns());
      const double on_cpu_distance = 1 - cosine(&on_cpu[at], &exact[at], model.columns());
      worst = std::max(worst, distance);
      worst_on_cpu = std::max(worst_on_cpu, on_cpu_distance);
      mean += distance / static_cast<double>(sentences.size());
      mean_on_cpu += on_cpu_distance / static_cast<double>(sentences.size());
    }
    std::printf("  1 - cosine to double: largest %.3g, on the processor %.3g; mean %.3g and %.3g\n",
                worst, worst_on_cpu, mean, mean_on_cpu);
    EXPECT_LE(worst, 4 * worst_on_cpu);
    EXPECT_LE(mean, 4 * mean_on_cpu);
  }
  // Its storage, and what the processor alone computes in.
  const TestModel f32({1, 8, 1, 8, 5}, DType::kF32);
  SessionPointer none;
  std::string detail;
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED, create(f32, cuda_options(XSR_COMPUTE_BF16), &none, &detail));
  EXPECT_NE(std::string::npos, detail.find("--dtype bf16")) << detail;
  for (const xsr_compute compute : {XSR_COMPUTE_INT8, XSR_COMPUTE_BF16X3}) {
    EXPECT_EQ(XSR_STATUS_UNSUPPORTED, create(f32, cuda_options(compute), &none, &detail));
    EXPECT_NE(std::string::npos, detail.find("choose f32, tf32 or bf16")) << detail;
  }
}

TEST_F(CudaSession, SameSentenceSameBits) {
  struct Case {
    bench::RandomShape shape;
    DType storage;
    xsr_compute compute;
    xsr_qkv_table table = XSR_QKV_TABLE_OFF;
  };
  setenv("XSR_EMULATED_DEVICES", "3", 1);
  const int most_devices = usable_devices();
#ifdef XSR_EMULATED
  ASSERT_EQ(3, most_devices);
#endif
  std::vector<Case> cases = {
      {{2, 24, 3, 40, 53}, DType::kF32, XSR_COMPUTE_F32},
      {{1, 65, 5, 33, 77}, DType::kBF16, XSR_COMPUTE_BF16},
      {{2, 64, 2, 64, 77}, DType::kBF16, XSR_COMPUTE_BF16, XSR_QKV_TABLE_ON},
      {{1, 32, 2, 48, 77}, DType::kI8, XSR_COMPUTE_TF32, XSR_QKV_TABLE_ON},
      {{2, 24, 3, 40, 53, Activation::kSwish, Pooling::kCls}, DType::kF32, XSR_COMPUTE_F32},
      {{1, 65, 5, 33, 77, Activation::kSwish, Pooling::kCls},
       DType::kBF16,
       XSR_COMPUTE_BF16,
       XSR_QKV_TABLE_ON}};
  int count = 14;
#ifndef XSR_EMULATED
  // A real device has algorithms of its own for real shapes, and time for whole chunks; not under
  // compute-sanitizer, though.
  if (std::getenv("XSR_TEST_SMALL") == nullptr) count = 500;
  cases.push_back({{2, 512, 8, 1024, 3000}, DType::kF32, XSR_COMPUTE_F32});
  cases.push_back({{2, 512, 8, 1024, 3000}, DType::kF32, XSR_COMPUTE_TF32});
  cases.push_back({{2, 512, 8, 1024, 3000}, DType::kBF16, XSR_COMPUTE_BF16});
#endif
  for (const Case& c : cases) {
    const TestModel model(c.shape, c.storage);
    const size_t C = model.columns();
    const Sentences sentences =
        random_sentences(c.shape.hidden_size, count, c.shape.vocab_size, 100);
    xsr_session_options options = cuda_options(c.compute);
    options.qkv_table = c.table;
    const SessionPointer first = make_session(model, options);
    const std::vector<float> expected = embed(first.get(), sentences, C);
    for (const float value : expected) ASSERT_TRUE(std::isfinite(value));
    const auto expect_rows = [&](xsr_session* session, const std::vector<size_t>& rows,
                                 const std::string& what) {
      Sentences chosen;
      std::vector<float> wanted;
      for (const size_t row : rows) {
        chosen.push_back(sentences[row]);
        wanted.insert(wanted.end(), &expected[row * C], &expected[row * C] + C);
      }
      const std::vector<float> found = embed(session, chosen, C);
      for (size_t i = 0; i < rows.size(); ++i) {
        ASSERT_EQ(0, std::memcmp(&found[i * C], &wanted[i * C], C * sizeof(float)))
            << what << ": row " << i << ", sentence " << rows[i] << " of "
            << sentences[rows[i]].size() << " tokens, C=" << C;
      }
    };
    // Alone; the lengths come again, so that some run as graphs.
    for (size_t i = 0; i < sentences.size(); ++i) expect_rows(first.get(), {i}, "alone");
    std::vector<size_t> order(sentences.size());
    std::iota(order.begin(), order.end(), 0);
    for (int call = 0; call < 2; ++call) expect_rows(first.get(), order, "again");
    Random shuffle(9);
    for (auto [devices, batch_tokens] : {std::pair(1, 17), {3, 1}, {2, 100}, {1, 5000}}) {
      devices = std::min(devices, most_devices);
      options.max_batch_tokens = batch_tokens;
      options.cuda_devices = (1u << devices) - 1;
      const SessionPointer session = make_session(model, options);
      const std::string names = xsr_session_get_device_name(session.get());
      EXPECT_EQ(devices - 1, std::count(names.begin(), names.end(), ',')) << names;
      for (size_t i = order.size(); i-- > 1;)
        std::swap(order[i], order[shuffle.range(0, static_cast<int32_t>(i))]);
      for (int call = 0; call < 2; ++call) {
        expect_rows(session.get(), order,
                    std::to_string(devices) + " devices, " + std::to_string(batch_tokens) +
                        " tokens a chunk");
      }
    }
  }
}

TEST_F(CudaSession, TheQkvTableEqualsTheProductUpToRounding) {
  for (const DType storage : {DType::kF32, DType::kI8}) {
    const TestModel model({2, 128, 4, 256, 300}, storage);
    const Sentences sentences = random_sentences(6, 8, 300);
    xsr_session_options options = cuda_options();
    const auto multiplied = embed(make_session(model, options).get(), sentences, model.columns());
    options.qkv_table = XSR_QKV_TABLE_ON;
    const auto looked_up = embed(make_session(model, options).get(), sentences, model.columns());
    EXPECT_NE(multiplied, looked_up) << "the table was not used";
    float largest = 0, difference = 0;
    for (size_t i = 0; i < multiplied.size(); ++i) {
      largest = std::max(largest, std::fabs(multiplied[i]));
      difference = std::max(difference, std::fabs(multiplied[i] - looked_up[i]));
    }
    EXPECT_LT(difference, 2e-6f * largest);
  }
}

TEST_F(CudaSession, NormalizesOnRequest) {
  const TestModel model({1, 32, 2, 48, 77}, DType::kF32);
  xsr_session_options options = cuda_options();
  options.normalize = XSR_NORMALIZE_ON;
  const auto unit = embed(make_session(model, options).get(), {{}, {3, 4}, {5}}, 32);
  for (size_t i = 0; i < 3; ++i) {
    double squares = 0;
    for (size_t c = i * 32; c < (i + 1) * 32; ++c) squares += double{unit[c]} * unit[c];
    EXPECT_NEAR(i == 0 ? 0 : 1, squares, 1e-6);
  }
}

/// More texts than a block: the next is made into tokens while one is on the device.
TEST_F(CudaSession, TextsGiveTheBitsOfTheirIds) {
  const auto tokenizer = test::read_file(XSR_SOURCE_DIR "/tests/data/tiny-unigram.spm.model");
  const TestModel model(
      {0, 8, 1, 8, 1000}, DType::kF32,
      [](ModelConfig& config, std::vector<TensorSource>&) {
        config.tokenizer = TokenizerKind::kSentencePiece;
        config.unk_id = 0;
      },
      tokenizer);
  const SessionPointer session = make_session(model, cuda_options());
  std::vector<std::string> texts;
  for (int i = 0; i < 17000; ++i) texts.push_back(i % 50 == 0 ? "" : "a " + std::to_string(i % 97));
  std::vector<xsr_text> views;
  for (const std::string& text : texts) views.push_back({text.data(), text.size()});
  std::vector<float> found(texts.size() * 8, NAN);
  std::vector<xsr_text_result> results(texts.size());
  ASSERT_EQ(XSR_STATUS_OK, xsr_session_embed_texts(session.get(), views.data(), views.size(),
                                                   found.data(), results.data()))
      << xsr_session_get_error(session.get());
  for (size_t i = 0; i < texts.size(); i += 331) {
    std::vector<int32_t> ids(64);
    size_t count = 0;
    ASSERT_EQ(XSR_STATUS_OK, xsr_session_tokenize(session.get(), views[i], ids.data(), ids.size(),
                                                  &count, nullptr));
    ids.resize(count);
    EXPECT_EQ(count, static_cast<size_t>(results[i].num_tokens));
    const auto wanted = embed(session.get(), {ids}, 8);
    ASSERT_EQ(0, std::memcmp(&found[i * 8], wanted.data(), 8 * sizeof(float))) << "text " << i;
  }
}

TEST_F(CudaSession, SessionsOfSeveralThreadsAtOnce) {
  const TestModel model({2, 32, 4, 48, 101}, DType::kF32);
  const Sentences sentences = random_sentences(4, 8, 101, 75);
  const auto expected = embed(make_session(model, cuda_options()).get(), sentences, 32);
  std::vector<std::vector<float>> found(3);
  std::vector<std::thread> threads;
  for (auto& own : found) {
    threads.emplace_back([&] {
      const SessionPointer session = make_session(model, cuda_options(XSR_COMPUTE_F32, 64));
      for (int round = 0; round < 2; ++round) own = embed(session.get(), sentences, 32);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& own : found) EXPECT_EQ(expected, own);
}

#ifdef XSR_EMULATED
/// Whatever a device refuses, the call fails, and the next one gives the bits that it should have:
/// the first call of a session, and one whose graphs are there.
TEST_F(CudaSession, WorkThatADeviceRefusesEndsItsCallAndNothingElse) {
  const TestModel model({1, 32, 2, 48, 101}, DType::kBF16);
  const Sentences sentences = {{}, {5}, {7, 8, 9}, std::vector<int32_t>(20, 3), {1, 2}};
  const Sentences alone = {{4, 5, 6}};
  for (const xsr_compute compute : {XSR_COMPUTE_F32, XSR_COMPUTE_BF16}) {
    for (const int devices : {1, 2}) {
      const EnvironmentVariable emulated("XSR_EMULATED_DEVICES", std::to_string(devices));
      xsr_session_options options = cuda_options(compute, 16);
      options.cuda_devices = (1u << devices) - 1;
      const SessionPointer lasting = make_session(model, options);
      const auto expected = embed(lasting.get(), sentences, 32);
      const auto expected_alone = embed(lasting.get(), alone, 32);
      for (const bool first : {true, false}) {
        int refused = 0;
        for (bool all = false; !all;) {
          const SessionPointer made = first ? make_session(model, options) : nullptr;
          xsr_session* const session = first ? made.get() : lasting.get();
          const std::string text = std::to_string(refused + 1);
          std::vector<float> rows;
          const xsr_status status = [&] {
            const EnvironmentVariable failure("XSR_EMULATED_FAILURE", text);
            return test::try_embed(session, sentences, 32, &rows);
          }();
          const std::string error = xsr_session_get_error(session);
          all = status == XSR_STATUS_OK;
          if (all) {
            EXPECT_EQ(expected, rows);
          } else {
            EXPECT_EQ(XSR_STATUS_CUDA, status);
            EXPECT_NE(std::string::npos, error.find("status 701")) << error;
            ++refused;
          }
          EXPECT_EQ(expected_alone, embed(session, alone, 32)) << text;
          EXPECT_EQ(expected, embed(session, sentences, 32)) << text;
          EXPECT_EQ(expected_alone, embed(session, alone, 32)) << text;
        }
        EXPECT_GT(refused, 2);
      }
    }
  }
}
#endif

TEST_F(CudaSession, SaysWhatItDoesNotTake) {
  SessionPointer session;
  std::string detail;
  const TestModel wide({1, 1032, 8, 8, 5}, DType::kF32), small({1, 8, 1, 8, 5}, DType::kF32);
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED, create(wide, cuda_options(), &session, &detail));
  EXPECT_NE(std::string::npos, detail.find("hidden_size 1032")) << detail;
  xsr_session_options options = cuda_options();
  options.cuda_devices = uint64_t{1} << 63;
  EXPECT_EQ(XSR_STATUS_CUDA, create(small, options, &session, &detail));
  EXPECT_NE(std::string::npos, detail.find("no CUDA device 63")) << detail;
}

TEST_F(CudaSession, MeasuresForBenches) {
  const TestModel model({1, 32, 2, 48, 101}, DType::kBF16);
  CudaEncoderOptions options;
  options.compute = Compute::kBf16;
  options.chunk_tokens = 64;
  const auto encoder =
      make_cuda_encoder(model.file().config(), bind_weights(model.file()), options);
  const Sentences sentences = random_sentences(4, 8, 101, 75);
  std::vector<std::span<const int32_t>> views;
  for (const auto& sentence : sentences)
    views.emplace_back(sentence.data(), std::min<size_t>(sentence.size(), 200));
  EXPECT_GT(encoder->measure_resident(views, 3), 0);
  EXPECT_GT(encoder->measure_resident({&views[3], 1}, 3), 0);
  EXPECT_GT(encoder->measure_peak(), 0);
  EXPECT_GT(encoder->measure_bandwidth(), 0);
  // A measurement leaves nothing behind that changes bits.
  std::vector<float> before(views.size() * 32), after(before);
  encoder->embed(views, before.data());
  encoder->measure_resident(views, 2);
  encoder->embed(views, after.data());
  EXPECT_EQ(before, after);
}

// ---- What is missing is said, with or without a device.

TEST(CudaLibrary, SaysWhatIsMissing) {
  const TestModel model({1, 8, 1, 8, 5}, DType::kF32);
  SessionPointer session;
  std::string detail;
  setenv("XSR_CUDA_LIBRARY", "/no/such/libxsr_cuda.so", 1);
  EXPECT_EQ(XSR_STATUS_CUDA, create(model, cuda_options(), &session, &detail));
  for (const char* part : {"/no/such/libxsr_cuda.so", "XSR_CUDA=ON", "XSR_CUDA_LIBRARY"})
    EXPECT_NE(std::string::npos, detail.find(part)) << detail;
  setenv("XSR_CUDA_LIBRARY", "libm.so.6", 1);
  EXPECT_EQ(XSR_STATUS_CUDA, create(model, cuda_options(), &session, &detail));
  EXPECT_NE(std::string::npos, detail.find(kCudaEncoderEntry)) << detail;
  setenv("XSR_CUDA_LIBRARY", XSR_CUDA_MODULE, 1);
  xsr_session_options options = cuda_options(XSR_COMPUTE_TF32);
  options.device = XSR_DEVICE_CPU;
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED, create(model, options, &session, &detail));
#ifdef XSR_EMULATED
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "0");
  EXPECT_EQ(XSR_STATUS_CUDA, create(model, cuda_options(), &session, &detail));
  EXPECT_NE(std::string::npos, detail.find("no CUDA device can be used")) << detail;
#endif
}

TEST(TokenBucket, IsAtLeastTheTokensAndAtMostASixteenthMore) {
  for (const uint32_t least : {16u, 64u}) {
    for (int32_t tokens = 0; tokens < 20000; ++tokens) {
      const int32_t bucket = cuda::token_bucket(tokens, least);
      ASSERT_GE(bucket, std::max(tokens, 1));
      ASSERT_LE(bucket, tokens + std::max(static_cast<int32_t>(least), tokens / 16));
      ASSERT_EQ(bucket, cuda::token_bucket(bucket, least));
    }
  }
}

}  // namespace
}  // namespace xsr
