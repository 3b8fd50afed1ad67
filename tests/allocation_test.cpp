// Memory that runs out, at every allocation there is: calls of the C API say so, and what they were
// called on goes on as if they had not been.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/random_model.h"
#include "runtime/format/xsr_file.h"
#include "runtime/text/tokenizer_tables.h"
#include "tests/support/files.h"
#include "tests/support/session.h"
#include "xsr/xsr.h"

namespace {

constexpr int64_t kUnlimited = int64_t{1} << 62;
std::atomic<int64_t> left = kUnlimited;  // allocations that succeed
std::atomic<int64_t> live = 0;           // allocations that were not given back

void* allocate(size_t size, size_t alignment) {
  if (left.fetch_sub(1) <= 0) throw std::bad_alloc();
  const size_t whole = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, whole > 0 ? whole : alignment);
  if (memory == nullptr) throw std::bad_alloc();
  ++live;
  return memory;
}

void give_back(void* memory) {
  live -= memory != nullptr;
  std::free(memory);
}

}  // namespace

// The others call these.
void* operator new(size_t size) { return allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, size_t) noexcept { give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { give_back(memory); }

namespace xsr {
namespace {

using test::ModelPointer;
using test::open_memory;
using test::SessionPointer;

/// Calls `call` with more and more allocations that succeed until it does; what it gives otherwise
/// is OUT_OF_MEMORY. Each time `after` is called then, with memory enough. Gives how often.
int64_t run_out(const std::function<xsr_status()>& call, const std::function<void()>& after) {
  for (int64_t allowed = 0;; ++allowed) {
    left = allowed;
    const xsr_status status = call();
    left = kUnlimited;
    EXPECT_TRUE(status == XSR_STATUS_OK || status == XSR_STATUS_OUT_OF_MEMORY)
        << allowed << " allocations: " << xsr_status_string(status);
    after();
    if (status != XSR_STATUS_OUT_OF_MEMORY || testing::Test::HasFailure()) return allowed;
  }
}

/// The same, twice; `release` ends what the call has made. Gives how often. The second time leaves
/// what it finds, as the first may not: it fills what is made once.
int64_t run_out_without_leaks(const std::function<xsr_status()>& call,
                              const std::function<void()>& release) {
  run_out(call, [] {});
  release();
  const int64_t before = live;
  const int64_t allowed = run_out(call, [] {});
  release();
  EXPECT_EQ(before, live);
  return allowed;
}

/// A model of no layers that holds a tokenizer: what it embeds is a matter of text alone.
struct TextModel {
  explicit TextModel(const std::string& tokenizer) {
    constexpr int32_t kColumns = 8, kPositions = 66;
    ModelConfig config;
    config.num_heads = 1;
    config.hidden_size = config.embedding_size = config.intermediate_size = kColumns;
    config.vocab_size = 2000;
    config.num_positions = kPositions;
    config.position_offset = 1;
    config.max_seq_len = kPositions - 1;
    config.lowercase = true;
    config.tokenizer = TokenizerKind::kSentencePiece;
    std::vector<float> values(static_cast<size_t>(config.vocab_size) * kColumns);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101);
    const auto source = [&](const char* name, std::vector<uint64_t> dims) {
      return TensorSource{name, DType::kF32, Layout::kRowMajor, std::move(dims), values.data()};
    };
    bytes = write_xsr_memory(config,
                             std::vector{source("embedding.token", {2000, kColumns}),
                                         source("embedding.position", {kPositions, kColumns}),
                                         source("embedding.norm.weight", {kColumns}),
                                         source("embedding.norm.bias", {kColumns})},
                             tokenizer, "{}", &size, tokenizer_tables_for_file(tokenizer));
  }
  std::shared_ptr<unsigned char[]> bytes;
  size_t size = 0;
};

constexpr size_t kColumns = 8;

/// Words enough that what remembers them grows, and a text that is encoded as a whole.
std::vector<std::string> some_texts() {
  std::mt19937 rng(3);
  std::vector<std::string> texts = {"The miller\u2026 e\u0301 \uFB01n\u00A0 \xFF& \u6F22\u5B57",
                                    std::string(3000, 'm')};
  for (int i = 0; i < 30; ++i) {
    std::string text;
    for (int word = 0; word < 12; ++word) text += std::to_string(rng()) + ' ';
    texts.push_back(text);
  }
  return texts;
}

class OutOfMemory : public testing::TestWithParam<const char*> {
 protected:
  OutOfMemory()
      : model_(test::read_file(std::string(XSR_SOURCE_DIR "/tests/data/") + GetParam())),
        strings_(some_texts()) {
    for (const std::string& text : strings_) texts_.push_back({text.data(), text.size()});
  }
  xsr_status embed(xsr_session* session, std::vector<float>& out) const {
    return xsr_session_embed_texts(session, texts_.data(), texts_.size(), out.data(), nullptr);
  }
  static SessionPointer session_of(const ModelPointer& model, int32_t threads) {
    xsr_session_options options = {};
    options.size = sizeof options;
    options.num_threads = threads;
    xsr_session* session = nullptr;
    EXPECT_EQ(XSR_STATUS_OK, xsr_session_create(model.get(), &options, &session, nullptr, 0));
    return SessionPointer(session);
  }

  TextModel model_;
  std::vector<std::string> strings_;
  std::vector<xsr_text> texts_;
};

TEST_P(OutOfMemory, ASessionGoesOnWithTheSameBits) {
  const ModelPointer model = open_memory(model_.bytes.get(), model_.size);
  std::vector<float> expected(texts_.size() * kColumns), found(expected.size());
  ASSERT_EQ(XSR_STATUS_OK, embed(session_of(model, 1).get(), expected));
  for (const int32_t threads : {1, 3}) {
    SessionPointer session;
    const auto in_a_thread = [&] {
      const int64_t allowed = left.exchange(kUnlimited);
      xsr_status status = XSR_STATUS_INTERNAL;
      session = session_of(model, threads);
      // Of its own, since a thread keeps memory from call to call.
      std::thread([&] {
        left = allowed;
        status = embed(session.get(), found);
        left = kUnlimited;
      }).join();
      return status;
    };
    const auto again = [&] {
      std::fill(found.begin(), found.end(), -1.0f);
      ASSERT_EQ(XSR_STATUS_OK, embed(session.get(), found));
      ASSERT_EQ(0, std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)));
    };
    EXPECT_GT(run_out(in_a_thread, again), 10) << threads << " threads";
  }
}

TEST_P(OutOfMemory, OpeningAndCreatingGiveNothing) {
  char detail[256] = "";
  xsr_model* model = nullptr;
  const auto open = [&] {
    const xsr_status status = xsr_model_open_memory(model_.bytes.get(), model_.size, nullptr,
                                                    &model, detail, sizeof detail);
    return status != XSR_STATUS_OK && model != nullptr ? XSR_STATUS_INTERNAL : status;
  };
  const auto close = [&] {
    EXPECT_STREQ("out of memory", detail);
    xsr_model_close(std::exchange(model, nullptr));
  };
  EXPECT_GT(run_out_without_leaks(open, close), 10);
  ASSERT_EQ(XSR_STATUS_OK, open());
  const ModelPointer opened(model);
  xsr_session* session = nullptr;
  const auto create = [&] {
    const xsr_status status =
        xsr_session_create(opened.get(), nullptr, &session, detail, sizeof detail);
    return status != XSR_STATUS_OK && session != nullptr ? XSR_STATUS_INTERNAL : status;
  };
  EXPECT_GT(
      run_out_without_leaks(create, [&] { xsr_session_destroy(std::exchange(session, nullptr)); }),
      5);
  ASSERT_EQ(XSR_STATUS_OK, create());
  const SessionPointer created(session);
  std::vector<float> found(texts_.size() * kColumns);
  EXPECT_EQ(XSR_STATUS_OK, embed(created.get(), found));
}

TEST(OutOfMemoryOfIds, SessionsOfEveryKindGoOnWithTheSameBits) {
  const bench::RandomModel random({2, 32, 4, 48, 101}, DType::kF32, 3);
  const ModelPointer model = open_memory(random.data(), random.size());
  constexpr size_t kHidden = 32;
  const std::vector<int32_t> ids = {5, 6, 7, 8, 9, 10, 11, 12, 100};
  const std::vector<size_t> offsets = {0, 3, 3, 9};
  const size_t count = offsets.size() - 1;
  xsr_session_options options = {};
  options.size = sizeof options;
  for (const xsr_compute compute : {XSR_COMPUTE_F32, XSR_COMPUTE_BF16X3, XSR_COMPUTE_INT8}) {
    for (const int32_t threads : {1, 3}) {
      options.compute = compute;
      options.num_threads = threads;
      options.qkv_table = XSR_QKV_TABLE_ON;
      SessionPointer session;
      const auto create = [&] {
        xsr_session* made = nullptr;
        const xsr_status status = xsr_session_create(model.get(), &options, &made, nullptr, 0);
        session.reset(made);
        return status;
      };
      EXPECT_GT(run_out_without_leaks(create, [&] { session.reset(); }), 5);
      ASSERT_EQ(XSR_STATUS_OK, create());
      std::vector<float> expected(count * kHidden), found(expected.size());
      const auto embed = [&](std::vector<float>& out) {
        return xsr_session_embed_ids(session.get(), ids.data(), offsets.data(), count, out.data(),
                                     nullptr);
      };
      ASSERT_EQ(XSR_STATUS_OK, embed(expected));
      ASSERT_EQ(XSR_STATUS_OK, create());
      run_out([&] { return embed(found); },
              [&] {
                ASSERT_EQ(XSR_STATUS_OK, embed(found));
                ASSERT_EQ(expected, found);
              });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizer, OutOfMemory,
                         testing::Values("tiny-bpe.spm.model", "tiny-unigram.spm.model",
                                         "tiny-rules.spm.model"),
                         [](const auto& info) {
                           std::string name(info.param);
                           name.resize(name.find('.'));
                           return name.replace(4, 1, "_");
                         });

}  // namespace
}  // namespace xsr
