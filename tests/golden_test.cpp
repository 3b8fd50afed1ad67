// Whole models against golden tensors made with PyTorch in double precision, at every ISA. The
// folder is XSR_GOLDEN, so that goldens made with another seed run unchanged; the trained model's
// test reads the shared folder (XSR_SHARED).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "converter/checkpoint.h"
#include "converter/convert.h"
#include "tests/support/files.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/paths.h"
#include "xsr/xsr.h"

namespace xsr {
namespace {

using nlohmann::json;
using test::ErrorBudget;

/// A model converted in memory and opened through the C API.
class OpenedModel {
 public:
  OpenedModel(const Checkpoint& checkpoint, const ConvertOptions& options) {
    const ConvertedModel converted = convert_checkpoint(checkpoint, options);
    bytes_ = write_xsr_memory(converted.config, converted.sources(), converted.tokenizer,
                              converted.provenance, &size_);
    char detail[512] = "";
    const xsr_status status =
        xsr_model_open_memory(bytes_.get(), size_, nullptr, &model_, detail, sizeof detail);
    if (status != XSR_STATUS_OK) throw Error(status, detail);
    info_.size = sizeof info_;
    xsr_model_get_info(model_, &info_);
  }
  ~OpenedModel() { xsr_model_close(model_); }
  OpenedModel(const OpenedModel&) = delete;
  const xsr_model* get() const { return model_; }
  int32_t embedding_size() const { return info_.embedding_size; }

 private:
  std::shared_ptr<unsigned char[]> bytes_;
  size_t size_ = 0;
  xsr_model* model_ = nullptr;
  xsr_model_info info_{};
};

class OpenedSession {
 public:
  OpenedSession(const OpenedModel& model, xsr_isa isa, int32_t threads = 1,
                xsr_compute compute = XSR_COMPUTE_F32) {
    xsr_session_options options{};
    options.size = sizeof options;
    options.isa = isa;
    options.num_threads = threads;
    options.compute = compute;
    char detail[512] = "";
    status_ = xsr_session_create(model.get(), &options, &session_, detail, sizeof detail);
    detail_ = detail;
  }
  ~OpenedSession() { xsr_session_destroy(session_); }
  OpenedSession(const OpenedSession&) = delete;
  /// False where this CPU lacks the ISA, or XSR_FORCE_ISA forbids it.
  bool runs(xsr_isa isa) const {
    return status_ == XSR_STATUS_OK && xsr_session_get_isa(session_) == isa;
  }
  xsr_session* get() const { return session_; }

 private:
  xsr_session* session_ = nullptr;
  xsr_status status_;
  std::string detail_;
};

/// A padded batch [B, T] and its lengths, as the golden files hold them.
struct PaddedBatch {
  std::vector<int32_t> ids;
  std::vector<size_t> offsets = {0};
  PaddedBatch(const Checkpoint& file, const std::string& ids_name, const std::string& lens_name) {
    const CheckpointTensor& padded = tensor(file, ids_name);
    const std::vector<int64_t> all = padded.to_i64(), lens = tensor(file, lens_name).to_i64();
    const size_t T = padded.shape.at(1);
    for (size_t b = 0; b < lens.size(); ++b) {
      for (int64_t t = 0; t < lens[b]; ++t) ids.push_back(static_cast<int32_t>(all[b * T + t]));
      offsets.push_back(ids.size());
    }
  }
  static const CheckpointTensor& tensor(const Checkpoint& file, const std::string& name) {
    const CheckpointTensor* found = file.find(name);
    if (found == nullptr) throw Error(XSR_STATUS_BAD_FILE, file.name() + " has no tensor " + name);
    return *found;
  }
  size_t count() const { return offsets.size() - 1; }
};

std::vector<float> embed(xsr_session* session, const PaddedBatch& batch, int32_t embedding_size) {
  std::vector<float> out(batch.count() * embedding_size, NAN);
  EXPECT_EQ(XSR_STATUS_OK, xsr_session_embed_ids(session, batch.ids.data(), batch.offsets.data(),
                                                 batch.count(), out.data(), nullptr))
      << xsr_session_get_error(session);
  return out;
}

/// Embeds at every ISA and holds each against `exact`; the plain f32 loops of the ref ISA set the
/// budget.
void expect_embeddings(const OpenedModel& model, const PaddedBatch& batch,
                       const std::vector<double>& exact, const std::string& what) {
  OpenedSession ref(model, XSR_ISA_REF);
  ASSERT_TRUE(ref.runs(XSR_ISA_REF));
  const int32_t C = model.embedding_size();
  const std::vector<float> plain = embed(ref.get(), batch, C);
  for (xsr_isa isa : {XSR_ISA_REF, XSR_ISA_AVX2, XSR_ISA_AVX512}) {
    OpenedSession session(model, isa);
    if (!session.runs(isa)) {
      std::printf("  %s: %s skipped, not available here\n", what.c_str(), xsr_isa_string(isa));
      continue;
    }
    const std::vector<float> out = isa == XSR_ISA_REF ? plain : embed(session.get(), batch, C);
    ErrorBudget budget;
    double largest = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      // A sentence of no tokens has no exact embedding; ours is zero.
      const size_t b = i / C;
      const bool empty = batch.offsets[b] == batch.offsets[b + 1];
      const double expected = empty ? 0 : exact[i];
      budget.add(out[i], plain[i], expected, b, i % C);
      largest = std::max(largest, std::fabs(out[i] - expected));
    }
    EXPECT_TRUE(budget.check(what + " " + xsr_isa_string(isa), "*")) << what;
    std::printf("  %s %s: largest error %.3g, %.0f %% of its budget\n", what.c_str(),
                xsr_isa_string(isa), largest, 100 * budget.share());
  }
}

/// bf16x3 stands for f32: 1 - cosine to `exact` at most 1e-9, shown beside that of plain f32.
void expect_bf16x3(const OpenedModel& model, const PaddedBatch& batch,
                   const std::vector<double>& exact, const std::string& what) {
  const size_t C = model.embedding_size();
  for (xsr_isa isa : {XSR_ISA_REF, XSR_ISA_AVX2, XSR_ISA_AVX512_BF16, XSR_ISA_AMX}) {
    OpenedSession plain(model, isa), session(model, isa, 1, XSR_COMPUTE_BF16X3);
    if (!session.runs(isa)) continue;
    double worst[2] = {0, 0};
    const std::vector<float> out[2] = {embed(plain.get(), batch, C),
                                       embed(session.get(), batch, C)};
    EXPECT_NE(out[0], out[1]) << what << ": bf16x3 was not computed with";
    for (size_t b = 0; b < batch.count(); ++b) {
      if (batch.offsets[b] == batch.offsets[b + 1]) continue;
      for (int mode : {0, 1}) {
        double ab = 0, aa = 0, bb = 0;
        for (size_t i = b * C; i < (b + 1) * C; ++i) {
          ab += exact[i] * out[mode][i];
          aa += exact[i] * exact[i];
          bb += double{out[mode][i]} * out[mode][i];
        }
        worst[mode] = std::max(worst[mode], 1 - ab / std::sqrt(aa * bb));
      }
    }
    EXPECT_LE(worst[1], 1e-9) << what << " " << xsr_isa_string(isa);
    std::printf("  %s %s: largest 1 - cosine %.2g in bf16x3, %.2g in f32\n", what.c_str(),
                xsr_isa_string(isa), worst[1], worst[0]);
  }
}

class GoldenModel : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, EmbeddingsMatch) {
  const auto path = test::golden_folder() / (std::string(GetParam()) + ".safetensors");
  if (!std::filesystem::exists(path))
    GTEST_SKIP() << path << " is not there; set XSR_GOLDEN to the golden folder";
  const auto file = Checkpoint::open(path.string());
  const json config = json::parse(file->metadata().at("config"));
  ConvertOptions options;
  options.prefix = "parameter.";
  options.num_heads = config.at("num_heads").get<int32_t>();
  const OpenedModel model(*file, options);
  for (const char* side : {"1", "2"}) {
    const PaddedBatch batch(*file, std::string("ids") + side, std::string("len") + side);
    const std::vector<double> exact =
        PaddedBatch::tensor(*file, std::string("embedding") + side).to_f64();
    expect_embeddings(model, batch, exact, std::string(GetParam()) + " side " + side);
    expect_bf16x3(model, batch, exact, std::string(GetParam()) + " side " + side);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenModel, ::testing::Values("xsr-tiny", "xsr-odd", "xsr-256"),
                         [](const auto& info) {
                           std::string name = info.param;
                           name[3] = '_';
                           return name;
                         });

class GoldenCheckpoint : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenCheckpoint, ConvertsAndMatches) {
  const std::string stem = (test::golden_folder() / GetParam()).string();
  if (!std::filesystem::exists(stem + ".pth.tar")) {
    GTEST_SKIP() << stem << ".pth.tar is not there; set XSR_GOLDEN to the golden folder";
  }
  const auto expected = Checkpoint::open(
      (test::golden_folder() / (std::string(GetParam()) + ".pth.expected.safetensors")).string());
  const auto checkpoint = Checkpoint::open(stem + ".pth.tar");
  ConvertOptions options;
  options.num_heads = json::parse(expected->metadata().at("config")).at("num_heads").get<int32_t>();
  const OpenedModel model(*checkpoint, options);
  expect_embeddings(model, PaddedBatch(*expected, "ids", "lens"),
                    PaddedBatch::tensor(*expected, "embedding").to_f64(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenCheckpoint,
                         ::testing::Values("xsr-checkpoint", "xsr-checkpoint-legacy",
                                           "xsr-checkpoint-module-prefix"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

class TrainedModel : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto folder = test::shared_folder() / "models";
    if (!std::filesystem::exists(folder / "xsr-enfr-16k.pth.tar")) {
      GTEST_SKIP()
          << folder
          << " holds no xsr-enfr-16k.pth.tar; set XSR_SHARED to the folder with models/ and data/";
    }
    const auto checkpoint = Checkpoint::open((folder / "xsr-enfr-16k.pth.tar").string());
    ConvertOptions options;
    options.dtype = dtype_;
    options.sentencepiece = test::read_file(folder / "xsr-enfr-16k.spm.model");
    model_ = std::make_unique<OpenedModel>(*checkpoint, options);
  }
  DType dtype_ = DType::kF32;
  std::unique_ptr<OpenedModel> model_;
};

TEST_F(TrainedModel, GivesTheExpectedIdsAndEmbeddings) {
  const auto expected = Checkpoint::open(
      (test::shared_folder() / "models" / "xsr-enfr-16k.expected.safetensors").string());
  const PaddedBatch batch(*expected, "ids", "lens");
  const std::vector<std::string> texts = json::parse(expected->metadata().at("texts"));
  ASSERT_EQ(batch.count(), texts.size());
  OpenedSession session(*model_, XSR_ISA_AUTO);
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<int32_t> ids(1024);
    size_t count = 0;
    ASSERT_EQ(XSR_STATUS_OK, xsr_session_tokenize(session.get(), {texts[i].data(), texts[i].size()},
                                                  ids.data(), ids.size(), &count, nullptr));
    ids.resize(count);
    const std::vector<int32_t> wanted(batch.ids.begin() + batch.offsets[i],
                                      batch.ids.begin() + batch.offsets[i + 1]);
    EXPECT_EQ(wanted, ids) << "text " << i << ": " << texts[i];
  }
  expect_embeddings(*model_, batch, PaddedBatch::tensor(*expected, "embedding").to_f64(),
                    "trained model");
}

struct Retrieval {
  int correct = 0;
  int ties = 0;  // queries whose best and second-best cosines an f32 embedding cannot tell apart
};

/// P@1 of queries over keys by cosine in double precision, ties to the lower index.
Retrieval retrieve(const std::vector<float>& queries, const std::vector<float>& keys, size_t C) {
  const auto normalise = [C](const std::vector<float>& x) {
    std::vector<double> unit(x.begin(), x.end());
    for (size_t r = 0; r < x.size() / C; ++r) {
      double squares = 0;
      for (size_t c = 0; c < C; ++c) squares += unit[r * C + c] * unit[r * C + c];
      for (size_t c = 0; c < C; ++c) unit[r * C + c] /= std::sqrt(squares);
    }
    return unit;
  };
  const std::vector<double> q = normalise(queries), k = normalise(keys);
  Retrieval result;
  for (size_t i = 0; i < q.size() / C; ++i) {
    double best = -2, second = -2;
    size_t at = 0;
    for (size_t j = 0; j < k.size() / C; ++j) {
      double cosine = 0;
      for (size_t c = 0; c < C; ++c) cosine += q[i * C + c] * k[j * C + c];
      if (cosine > best) {
        second = best;
        best = cosine;
        at = j;
      } else if (cosine > second) {
        second = cosine;
      }
    }
    result.correct += at == i;
    result.ties += best - second < 1e-6;
  }
  return result;
}

// Stated beside the checkpoint: P@1 on Tatoeba fra-eng, 1,000 pairs, by PyTorch in double
// precision.
constexpr int kEnglishToFrench = 718, kFrenchToEnglish = 699;

/// P@1 both ways; no pairs where the session does not run the ISA or the corpus is not there.
std::vector<Retrieval> tatoeba(const OpenedModel& model, const OpenedSession& session) {
  const auto folder = test::shared_folder() / "data/eval/tatoeba";
  const size_t C = model.embedding_size();
  std::vector<float> sides[2];
  for (int side = 0; side < 2; ++side) {
    const auto lines =
        test::read_lines(folder / (side == 0 ? "tatoeba.fra-eng.eng" : "tatoeba.fra-eng.fra"));
    EXPECT_EQ(1000u, lines.size());
    std::vector<xsr_text> texts;
    for (const std::string& line : lines) texts.push_back({line.data(), line.size()});
    sides[side].resize(lines.size() * C);
    EXPECT_EQ(XSR_STATUS_OK, xsr_session_embed_texts(session.get(), texts.data(), texts.size(),
                                                     sides[side].data(), nullptr));
  }
  return {retrieve(sides[0], sides[1], C), retrieve(sides[1], sides[0], C)};
}

TEST_F(TrainedModel, FindsTheTranslationsThatTheBaselineFinds) {
  const auto folder = test::shared_folder() / "data/eval/tatoeba";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
  for (xsr_isa isa : {XSR_ISA_AVX2, XSR_ISA_AVX512}) {  // the plain loops would take minutes
    OpenedSession session(*model_, isa, 0);
    if (!session.runs(isa)) {
      std::printf("  %s skipped, not available here\n", xsr_isa_string(isa));
      continue;
    }
    const std::vector<Retrieval> found = tatoeba(*model_, session);
    std::printf("  %s: en-fr %d (%d near-ties), fr-en %d (%d near-ties) of 1000\n",
                xsr_isa_string(isa), found[0].correct, found[0].ties, found[1].correct,
                found[1].ties);
    EXPECT_LE(std::abs(found[0].correct - kEnglishToFrench), std::min(2, found[0].ties));
    EXPECT_LE(std::abs(found[1].correct - kFrenchToEnglish), std::min(2, found[1].ties));
  }
}

/// The trained model stored narrow; `points` of P@1 may be lost, of 1000.
class NarrowTrainedModel : public TrainedModel {
 protected:
  void expect_within(xsr_compute compute, int points) {
    const auto folder = test::shared_folder() / "data/eval/tatoeba";
    if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
    OpenedSession session(*model_, XSR_ISA_AUTO, 0, compute);
    ASSERT_NE(nullptr, session.get());
    const std::vector<Retrieval> found = tatoeba(*model_, session);
    std::printf("  %s: en-fr %d, fr-en %d of 1000\n",
                xsr_isa_string(xsr_session_get_isa(session.get())), found[0].correct,
                found[1].correct);
    EXPECT_GE(found[0].correct, kEnglishToFrench - points);
    EXPECT_GE(found[1].correct, kFrenchToEnglish - points);
  }
};

class TrainedModelInInt8 : public NarrowTrainedModel {
 protected:
  TrainedModelInInt8() { dtype_ = DType::kI8; }
};
TEST_F(TrainedModelInInt8, LosesAtMostHalfAPoint) { expect_within(XSR_COMPUTE_INT8, 5); }

class TrainedModelInBf16 : public NarrowTrainedModel {
 protected:
  TrainedModelInBf16() { dtype_ = DType::kBF16; }
};
TEST_F(TrainedModelInBf16, LosesAtMostAFifthOfAPoint) { expect_within(XSR_COMPUTE_BF16, 2); }

}  // namespace
}  // namespace xsr
