// The model in training beyond the golden tensors: parameters, initialisation and model files; the
// encoder with dropout against plain loops in double, these against central differences; bits and
// threads; bf16; learning.
#include "training/encoder.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "converter/checkpoint.h"
#include "runtime/format/xsr_file.h"
#include "tests/support/files.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/paths.h"
#include "tests/support/plain_model.h"
#include "tests/support/sanitizers.h"
#include "tests/support/temp_folder.h"
#include "tests/support/trainer_support.h"
#include "tests/support/training_isas.h"
#include "tests/support/xsr_checkpoint.h"
#include "training/checkpoint.h"
#include "training/cpu_trainer.h"
#include "training/initialization.h"
#include "training/model_file.h"
#include "xsr/xsr.h"

namespace xsr::training {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using kernels::Dropout;
using test::ErrorBudget;
using test::kSlow;
using test::PlainModel;
using test::same_bits;

ModelConfig make_config(int32_t V, int32_t C, int32_t F, int32_t L, int32_t H, int32_t max_len) {
  ModelConfig c;
  c.family = Family::kXsr;
  c.vocab_size = V;
  c.hidden_size = c.embedding_size = C;
  c.intermediate_size = F;
  c.num_layers = L;
  c.num_heads = H;
  c.num_positions = max_len + 1;
  c.position_offset = 1;
  c.max_seq_len = max_len;
  return c;
}

/// The model of Mao et al. 2021, as released.
ModelConfig released_config() { return make_config(50000, 512, 1024, 2, 8, 200); }

/// Widths that fill no vector, three layers.
ModelConfig odd_config() { return make_config(61, 36, 20, 3, 3, 11); }

/// More tokens, outputs and panels than one task takes.
ModelConfig wide_config() { return make_config(90, 288, 330, 2, 6, 24); }

/// The norm of the difference is at most `share` of that of `exact`; `count` elements of either,
/// `step` apart.
template <typename Found, typename Exact>
testing::AssertionResult near(const Found* found, const Exact* exact, int64_t step, int64_t count,
                              double share) {
  const test::Norms norms = test::norms_of(found, exact, step, count);
  if (norms.difference <= share * norms.exact) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "differs by " << norms.difference << " of " << norms.exact;
}

/// B pairs with one <MASK> (id 2) each but the last; sentences of 1 … max_len tokens, one of them
/// empty where `with_empty`.
PairBatch make_batch(const ModelConfig& config, int32_t B, bool with_empty = false) {
  test::Random random(5);
  PairBatch batch;
  batch.num_pairs = B;
  batch.cu_seqlens = {0};
  for (int32_t s = 0; s < 2 * B; ++s) {
    int32_t length = s == 0 ? config.max_seq_len : random.range(1, config.max_seq_len);
    if (with_empty && s == 2 * B - 1) length = 0;
    for (int32_t i = 0; i < length; ++i)
      batch.token_ids.push_back(random.range(3, config.vocab_size - 1));
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.token_ids.size()));
  }
  for (int32_t b = 0; b < B; ++b) {
    const uint8_t side = b % 2;
    const int32_t sentence = side * B + b;
    const int32_t row =
        random.range(batch.cu_seqlens[sentence], batch.cu_seqlens[sentence + 1] - 1);
    const bool masked = b != B - 1;
    batch.masked_side.push_back(side);
    batch.masked_id.push_back(masked ? batch.token_ids[row] : -1);
    batch.masked_row.push_back(masked ? row : -1);
    batch.pair_numbers.push_back(b);
    if (masked) batch.token_ids[row] = 2;
  }
  return batch;
}

/// Values of the sizes a trained model has: those of initialisation would leave LayerNorms and
/// biases where mistakes do not show.
std::vector<double> random_values(const ParameterTable& table, uint64_t salt) {
  test::Random random(salt);
  std::vector<double> values(table.size());
  for (const Parameter& p : table.parameters()) {
    const bool gamma = p.name.ends_with("norm.weight") || p.name.ends_with("norm.gamma");
    const float scale = p.shape.size() == 2 && !p.name.starts_with("embedding.")
                            ? 1 / std::sqrt(static_cast<float>(p.shape[1]))
                        : p.shape.size() == 2 ? 1.0f
                                              : 0.2f;
    for (int64_t i = 0; i < p.size; ++i)
      values[p.offset + i] = static_cast<float>(gamma) + random.normal(scale);
  }
  return values;
}

Dropout make_dropout(double rate, uint32_t step = 3) {
  Dropout dropout;
  dropout.threshold = static_cast<uint32_t>(rate * 0x1p32);
  dropout.scale = static_cast<float>(1 / (1 - rate));
  dropout.key[0] = 11;
  dropout.key[1] = 12;
  dropout.step = step;
  return dropout;
}

StepConfig release_step() { return test::release_step(0.1); }

// ---- parameters, initialisation, files ----

TEST(Parameters, AreThoseOfTheReleasedModel) {
  const ParameterTable table(released_config());
  int64_t all = 0, end = 0;
  for (const Parameter& p : table.parameters()) {
    EXPECT_EQ(0, p.offset % 16) << p.name;
    EXPECT_GE(p.offset, end) << p.name;
    end = p.offset + p.size;
    all += p.size;
  }
  EXPECT_EQ(30223184, all);  // docs/methods.md, Encoder
  EXPECT_EQ((std::vector<int64_t>{1536, 512}), table.at("layer.1.qkv.weight").shape);
  EXPECT_EQ((std::vector<int64_t>{50000}), table.at("head.output.bias").shape);
  EXPECT_THROW(table.at("layer.2.qkv.weight"), std::out_of_range);
  ModelConfig pre = released_config();
  pre.norm_placement = NormPlacement::kPre;
  EXPECT_THROW(ParameterTable{pre}, Error);
}

TEST(Initialization, IsThatOfPyTorch) {
  const ModelConfig config = make_config(3000, 64, 128, 2, 4, 50);
  const ParameterTable table(config);
  FlatBuffer values(table.size());
  initialize_parameters(config, table, 5, values);
  for (const Parameter& p : table.parameters()) {
    const float* at = values.at(p);
    double sum = 0, squares = 0, largest = 0;
    const int64_t skipped = p.name.starts_with("embedding.") && p.shape.size() == 2 ? 64 : 0;
    for (int64_t i = 0; i < skipped; ++i) EXPECT_EQ(0, at[i]) << p.name;
    for (int64_t i = skipped; i < p.size; ++i) {
      sum += at[i];
      squares += static_cast<double>(at[i]) * at[i];
      largest = std::max(largest, std::fabs(static_cast<double>(at[i])));
    }
    const double n = static_cast<double>(p.size - skipped);
    const double sigma = std::sqrt(squares / n);
    if (skipped > 0) {
      EXPECT_NEAR(0, sum / n, 5 / std::sqrt(n)) << p.name;
      EXPECT_NEAR(1, sigma, 5 / std::sqrt(2 * n)) << p.name;
      EXPECT_GT(largest, 3) << p.name;
    } else if (p.name.find("norm.") != std::string::npos || p.name == "head.output.bias") {
      const bool one = p.name.ends_with("norm.weight") || p.name.ends_with("gamma");
      EXPECT_EQ(one ? n : 0, sum) << p.name;
      EXPECT_EQ(one ? n : 0, squares) << p.name;
    } else {
      const double inputs = p.name.find("down") != std::string::npos ? 128 : 64;
      const double bound = 1 / std::sqrt(inputs);
      EXPECT_LE(largest, bound) << p.name;
      EXPECT_GT(largest, 0.9 * bound) << p.name;
      EXPECT_NEAR(bound / std::sqrt(3), sigma, bound * 2 / std::sqrt(n)) << p.name;
    }
    if (p.name.starts_with("layer.1.")) {
      const Parameter& first = table.at("layer.0." + p.name.substr(8));
      EXPECT_EQ(0, std::memcmp(at, values.at(first), sizeof(float) * p.size)) << p.name;
    }
  }
  FlatBuffer again(table.size()), other(table.size());
  initialize_parameters(config, table, 5, again);
  initialize_parameters(config, table, 6, other);
  EXPECT_TRUE(same_bits(values, again));
  EXPECT_FALSE(same_bits(values, other));
  // Q, K and V are layers of their own, and tensors of one shape differ.
  const float* qkv = values.at(table.at("layer.0.qkv.weight"));
  EXPECT_NE(0, std::memcmp(qkv, qkv + 64 * 64, sizeof(float) * 64));
  EXPECT_NE(0, std::memcmp(values.at(table.at("layer.0.attention_output.weight")),
                           values.at(table.at("head.transform.weight")), sizeof(float) * 64));
}

TEST(ModelFile, GivesBackWhatWasWritten) {
  const ModelConfig config = odd_config();
  const ParameterTable table(config);
  FlatBuffer values(table.size());
  const std::vector<double> wanted = random_values(table, 1);
  std::copy(wanted.begin(), wanted.end(), values.data());
  const test::TempFolder folder;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const std::string path = folder / "model.xsr";
    write_model(path, config, values, dtype, "", "{}");
    const InitialModel model = read_initial_model(path, {}, 9);
    EXPECT_FALSE(model.has_head);
    EXPECT_EQ(config.num_positions, model.config.num_positions);
    FlatBuffer head(table.size());
    initialize_parameters(config, table, 9, head);
    const double unit = dtype == DType::kF32 ? 0 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
    for (const Parameter& p : table.parameters()) {
      const bool from_head = p.name.starts_with("head.");
      for (int64_t i = 0; i < p.size; ++i) {
        const float expected = from_head ? head.at(p)[i] : values.at(p)[i];
        const double bound = p.shape.size() == 2 && !from_head ? unit : 0;
        ASSERT_NEAR(expected, model.values->at(p)[i], bound * std::fabs(expected) + unit * 1e-4)
            << p.name << " " << i << " " << to_string(dtype);
      }
    }
  }
  const ConvertedModel rounded = FinishedModel(folder / "model.xsr").retyped(DType::kI8);
  write_xsr_file(folder / "i8.xsr", rounded.config, rounded.sources(), "", "{}");
  try {
    read_initial_model(folder / "i8.xsr", {}, 9);
    ADD_FAILURE() << "took i8";
  } catch (const Error& error) {
    EXPECT_EQ(XSR_STATUS_UNSUPPORTED, error.status());
    EXPECT_NE(nullptr, std::strstr(error.what(), "embedding.token is i8, training starts from f32"))
        << error.what();
  }
  std::string damaged = test::read_file(folder / "model.xsr");
  damaged[damaged.size() / 2] ^= 1;
  std::ofstream(folder / "damaged.xsr", std::ios::binary) << damaged;
  EXPECT_THROW(read_initial_model(folder / "damaged.xsr", {}, 9), Error);
  const std::string path = folder / "bad.xsr";
  values.at(table.at("layer.1.up.weight"))[3] = 1e6f;  // beyond f16 only
  write_model(path, config, values, DType::kBF16, "", "{}");
  try {
    write_model(path, config, values, DType::kF16, "", "{}");
    ADD_FAILURE() << "wrote an infinite weight";
  } catch (const Error& error) {
    EXPECT_NE(nullptr, std::strstr(error.what(), "layer.1.up.weight")) << error.what();
  }
  ModelConfig larger = config;
  larger.vocab_size = 62;
  try {
    check_same_vocabulary("m.xsr", config, larger);
    ADD_FAILURE() << "another vocabulary was taken";
  } catch (const Error& error) {
    EXPECT_STREQ(
        "m.xsr: vocab_size is 61, the run has 62; train with the tokenizer that the model "
        "was trained with",
        error.what());
  }
}

TEST(TrainingCheckpoint, AFieldOfAnotherTypeIsNamed) {
  const ParameterTable table(odd_config());
  const test::TempFolder folder;
  const std::string path = folder / "c.safetensors";
  for (const char* text : {"", "{", "[]", R"({"seed":3})", R"([{"key":["x"]}])"}) {
    write_checkpoint(path, table, {}, {{"config", text}, {"inputs", text}});
    const TrainingCheckpoint checkpoint(path);
    try {
      checkpoint.object("config");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(path + ": field \"config\" is no JSON object of text", error.what());
    }
    if (text == std::string("[]")) continue;
    try {
      checkpoint.objects("inputs");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(path + ": field \"inputs\" is no JSON list of objects of text", error.what());
    }
  }
}

TEST(TrainingCheckpoint, WhatDoesNotFitIsNamed) {
  const ParameterTable table(odd_config());
  FlatBuffer values(table.size());
  const test::TempFolder folder;
  const std::string path = folder / "c.safetensors";
  for (const size_t length : {0, 8, 16}) {  // data begins at a multiple of 64, docs/CHECKPOINT.md
    write_checkpoint(path, table, {}, {{"note", std::string(length, 'x')}});
    uint64_t header = 0;
    std::memcpy(&header, test::read_file(path).data(), sizeof header);
    EXPECT_EQ(0u, (sizeof header + header) % 64) << length;
  }
  write_checkpoint(path, table, {{"value.", &values}},
                   {{"step", "-1"}, {"seed", "3x"}, {"pairs_seen", "7"}});
  const std::string bytes = test::read_file(path);
  const auto message = [&](auto&& read) -> std::string {
    try {
      read(TrainingCheckpoint(path));
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const auto integer = [](const char* name) {
    return [name](const TrainingCheckpoint& c) { EXPECT_EQ(7, c.integer(name)); };
  };
  EXPECT_EQ("", message(integer("pairs_seen")));
  EXPECT_EQ(path + ": field \"step\" is \"-1\", expected a whole number", message(integer("step")));
  EXPECT_EQ(path + ": field \"seed\" is \"3x\", expected a whole number", message(integer("seed")));
  const auto read = [](const ModelConfig& config) {
    return [config](const TrainingCheckpoint& c) {
      const ParameterTable other(config);
      FlatBuffer into(other.size());
      c.read(other, "value.", into);
    };
  };
  EXPECT_EQ("", message(read(odd_config())));
  ModelConfig larger = odd_config();
  larger.vocab_size = 62;
  EXPECT_EQ(path + ": value.embedding.token is F32 [61, 36], expected F32 [62, 36]",
            message(read(larger)));
  // Of a later version, whose fields may mean something else.
  std::string later = bytes;
  later.replace(later.find("checkpoint 1"), 12, "checkpoint 2");
  std::ofstream(path, std::ios::binary) << later;
  EXPECT_EQ(path + ": has format \"xsr-train checkpoint 2\", expected \"xsr-train checkpoint 1\"",
            message(read(odd_config())));
}

TEST(ModelFile, LayersPutBehindChangeNothingAtFirst) {
  ModelConfig config = odd_config();
  config.num_layers = 0;
  config.vocab_size = 40;
  const ParameterTable table(config);
  FlatBuffer values(table.size());
  initialize_parameters(config, table, 7, values);
  const test::TempFolder folder;
  const std::string path = folder / "flat.xsr";
  write_model(path, config, values, DType::kF32, "", "{}");

  ModelConfig deep = config;
  deep.num_layers = 2;
  const InitialModel grown = with_layers(read_initial_model(path, {}, 9), 2, 9);
  EXPECT_EQ(2, grown.config.num_layers);
  const ParameterTable deep_table(deep);
  const float* down = grown.values->at(deep_table.at("layer.1.down.weight"));
  const float* up = grown.values->at(deep_table.at("layer.1.up.weight"));
  EXPECT_EQ(0.0f, down[5]);
  EXPECT_NE(0.0f, up[5]);

  const PairBatch batch = make_batch(config, 4, true);
  const int32_t S = batch.num_sentences(), C = config.hidden_size;
  ThreadPool threads(1);
  const kernels::KernelTable kernels = kernels::resolve_kernels(kernels::best_isa());
  const auto embeddings = [&](const ModelConfig& c, const ParameterTable& t, const FlatBuffer& v) {
    std::vector<float> u(static_cast<size_t>(S) * C);
    Encoder encoder(c, t, Precision::kF32, kernels, threads);
    encoder.forward(batch, v, nullptr, make_dropout(0), u.data(), C);
    return u;
  };
  const std::vector<float> flat = embeddings(config, table, values);
  const std::vector<float> layered = embeddings(deep, deep_table, *grown.values);
  // What a model without layers is: the mean of LayerNorm(token + position).
  for (int32_t s = 0; s < S; ++s) {
    const int32_t begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
    std::vector<double> mean(C);
    for (int32_t i = begin; i < end; ++i) {
      const float* token = values.at(table.at("embedding.token")) + batch.token_ids[i] * C;
      const float* position = values.at(table.at("embedding.position")) + (1 + i - begin) * C;
      double sum = 0, squares = 0;
      for (int32_t c = 0; c < C; ++c) sum += double(token[c]) + position[c];
      for (int32_t c = 0; c < C; ++c)
        squares += std::pow(double(token[c]) + position[c] - sum / C, 2);
      for (int32_t c = 0; c < C; ++c)
        mean[c] +=
            (double(token[c]) + position[c] - sum / C) / std::sqrt(squares / C) / (end - begin);
    }
    for (int32_t c = 0; c < C; ++c) {
      ASSERT_NEAR(mean[c], flat[s * C + c], 1e-5) << s << " " << c;
      ASSERT_NEAR(flat[s * C + c], layered[s * C + c], 1e-5) << s << " " << c;
    }
  }

  // The library computes the same, and has no product to keep in a table.
  xsr_model* model = nullptr;
  xsr_session* session = nullptr;
  char detail[256] = "";
  ASSERT_EQ(XSR_STATUS_OK, xsr_model_open(path.c_str(), nullptr, &model, detail, sizeof detail))
      << detail;
  xsr_session_options options = {};
  options.size = sizeof options;
  options.qkv_table = XSR_QKV_TABLE_ON;
  EXPECT_EQ(XSR_STATUS_UNSUPPORTED,
            xsr_session_create(model, &options, &session, detail, sizeof detail));
  EXPECT_NE(nullptr, std::strstr(detail, "no layers")) << detail;
  options.qkv_table = XSR_QKV_TABLE_AUTO;
  ASSERT_EQ(XSR_STATUS_OK, xsr_session_create(model, &options, &session, detail, sizeof detail))
      << detail;
  const std::vector<size_t> offsets(batch.cu_seqlens.begin(), batch.cu_seqlens.end());
  std::vector<float> embedded(flat.size());
  EXPECT_EQ(XSR_STATUS_OK, xsr_session_embed_ids(session, batch.token_ids.data(), offsets.data(), S,
                                                 embedded.data(), nullptr));
  for (size_t i = 0; i < flat.size(); ++i) ASSERT_NEAR(flat[i], embedded[i], 1e-5) << i;
  xsr_session_destroy(session);
  xsr_model_close(model);
}

TEST(ModelFile, TakesTheHeadOfACheckpoint) {
  const auto path = test::golden_folder() / "xsr-checkpoint.pth.tar";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there; set XSR_GOLDEN";
  ConvertOptions options;
  options.num_heads = 4;
  const auto checkpoint = Checkpoint::open(path.string());
  const InitialModel model = read_initial_model(path.string(), options, 1);
  EXPECT_TRUE(model.has_head);
  const ParameterTable table(model.config);
  const std::vector<float> bias = checkpoint->find("model.decoder.bias")->to_f32();
  const Parameter& p = table.at("head.output.bias");
  ASSERT_EQ(static_cast<size_t>(p.size), bias.size());
  EXPECT_EQ(0, std::memcmp(bias.data(), model.values->at(p), sizeof(float) * bias.size()));
  const std::vector<float> token =
      checkpoint->find("model.bert.embedding.word_embedding.embedding.weight")->to_f32();
  EXPECT_EQ(0, std::memcmp(token.data(), model.values->at(table.at("embedding.token")),
                           sizeof(float) * token.size()));
}

/// What read_initial_model() gives of a checkpoint with these tensors.
InitialModel from_checkpoint(const std::vector<test::NamedTensor>& tensors) {
  const test::TempFolder folder;
  const std::string path = folder / "c.safetensors";
  std::ofstream(path, std::ios::binary) << test::safetensors_file(tensors);
  ConvertOptions options;
  options.num_heads = 3;
  return read_initial_model(path, options, 1);
}
std::string refusal(const std::vector<test::NamedTensor>& tensors) {
  try {
    from_checkpoint(tensors);
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), XSR_STATUS_BAD_FILE);
    return error.what();
  }
  return "no error";
}

const std::vector<std::string> kHead = {
    "model.transform.dense.weight", "model.transform.dense.bias",
    "model.transform.LayerNorm.weight", "model.transform.LayerNorm.bias", "model.decoder.bias"};

TEST(ModelFile, EveryTensorOfAHeadArrivesInItsPlace) {
  auto tensors = test::xsr_tensors();
  const InitialModel model = from_checkpoint(tensors);
  EXPECT_TRUE(model.has_head);
  const ParameterTable table(model.config);
  const char* targets[] = {"head.transform.weight", "head.transform.bias", "head.norm.gamma",
                           "head.norm.beta", "head.output.bias"};
  for (size_t i = 0; i < kHead.size(); ++i) {
    const std::string& bytes = test::named(tensors, kHead[i]).data;
    const Parameter& p = table.at(targets[i]);
    ASSERT_EQ(bytes.size(), sizeof(float) * static_cast<size_t>(p.size)) << kHead[i];
    EXPECT_EQ(0, std::memcmp(bytes.data(), model.values->at(p), bytes.size())) << kHead[i];
  }
}

TEST(ModelFile, AHeadIsTakenWholeOrNotAtAll) {
  for (const std::string& gone : kHead) {
    auto tensors = test::xsr_tensors();
    std::erase_if(tensors, [&](const auto& t) { return t.name == gone; });
    EXPECT_THAT(refusal(tensors),
                AllOf(HasSubstr("c.safetensors: has model."), HasSubstr(" but not " + gone + ":")));
  }
  auto tensors = test::xsr_tensors();
  std::erase_if(tensors, [](const auto& t) {
    return std::find(kHead.begin(), kHead.end(), t.name) != kHead.end();
  });
  const InitialModel model = from_checkpoint(tensors);
  EXPECT_FALSE(model.has_head);
  const ParameterTable table(model.config);
  const Parameter& gamma = table.at("head.norm.gamma");
  for (int64_t i = 0; i < gamma.size; ++i) EXPECT_EQ(model.values->at(gamma)[i], 1);
}

TEST(ModelFile, AHeadThatIsNotFiniteOrOfAnotherShapeIsRefused) {
  for (const std::string& name : kHead) {
    for (const float value : {std::nanf(""), INFINITY, -INFINITY}) {
      auto tensors = test::xsr_tensors();
      std::memcpy(test::named(tensors, name).data.data() + 4 * 17, &value, sizeof value);
      EXPECT_THAT(refusal(tensors), HasSubstr(name + " is not finite at element 17:"));
    }
    auto tensors = test::xsr_tensors();
    auto& tensor = test::named(tensors, name);
    --tensor.shape[0];
    uint64_t elements = 1;
    for (const uint64_t d : tensor.shape) elements *= d;
    tensor.data.resize(4 * elements);
    EXPECT_THAT(refusal(tensors), AllOf(HasSubstr(name + " is "), HasSubstr("expected ")));
  }
}

// ---- gradients ----

TEST(PlainModelInDouble, GradientsAreThoseOfCentralDifferences) {
  const ModelConfig config = make_config(23, 12, 10, 2, 3, 6);
  const PairBatch batch = make_batch(config, 3, true);
  const Dropout dropout = make_dropout(0.3);
  PlainModel<double> model(config);
  model.values = random_values(model.table, 2);
  model.forward_backward(batch, 2, 2, dropout);
  const std::vector<double> values = model.values, gradients = model.gradients;
  test::Random random(8);
  for (const Parameter& p : model.table.parameters()) {
    std::vector<double> direction(p.size);
    double expected = 0, scale = 0;
    for (int64_t i = 0; i < p.size; ++i) {
      direction[i] = random.normal();
      expected += direction[i] * gradients[p.offset + i];
      scale += std::fabs(direction[i] * gradients[p.offset + i]);
    }
    constexpr double kStep = 1e-5;
    double losses[2];
    for (int sign = 0; sign < 2; ++sign) {
      model.values = values;
      for (int64_t i = 0; i < p.size; ++i)
        model.values[p.offset + i] += (sign == 0 ? 1 : -1) * kStep * direction[i];
      losses[sign] = model.losses(batch, 2, 2, dropout).total;
    }
    // Truncation is O(step²), rounding about 1e-14 / step.
    EXPECT_NEAR(expected, (losses[0] - losses[1]) / (2 * kStep), 1e-6 * (scale + 1)) << p.name;
  }
}

TEST(TrainingEncoder, GradientsUnderDropoutMatchPlainLoops) {
  const struct {
    ModelConfig config;
    int32_t num_pairs;
    bool with_empty;
  } cases[] = {
      {odd_config(), 40, true},                        // several times the rows that a task takes
      {make_config(61, 36, 20, 2, 3, 200), 2, false},  // sentences of more than those
      {wide_config(), 5, false},
  };
  for (const auto& c : cases) {
    const ModelConfig& config = c.config;
    const PairBatch batch = make_batch(config, c.num_pairs, c.with_empty);
    const ParameterTable table(config);
    std::vector<double> values = random_values(table, 3);
    FlatBuffer parameters(table.size());
    std::copy(values.begin(), values.end(), parameters.data());
    test::Random random(4);
    std::vector<double> du(batch.num_sentences() * config.hidden_size);
    for (double& d : du) d = random.normal();
    for (const double rate : {0.0, 0.25}) {
      const Dropout dropout = make_dropout(rate);
      PlainModel<double> exact(config);
      PlainModel<float> plain(config);
      std::copy(values.begin(), values.end(), exact.values.begin());
      std::copy(values.begin(), values.end(), plain.values.begin());
      exact.forward(batch, dropout);
      exact.backward(batch, dropout, du);
      plain.forward(batch, dropout);
      plain.backward(batch, dropout, {du.begin(), du.end()});
      const std::vector<float> narrow_du(du.begin(), du.end());
      for (const kernels::Isa isa : test::training_isas()) {
        const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
        ThreadPool threads(2);
        FlatBuffer gradients(table.size());
        std::vector<float> u(du.size(), NAN);
        const auto pass = [&](Precision precision) {
          Encoder encoder(config, table, precision, kernels, threads);
          std::fill_n(gradients.data(), gradients.size(), 0.0f);
          encoder.forward(batch, parameters, nullptr, dropout, u.data(), config.hidden_size);
          encoder.backward(batch, parameters, nullptr, dropout, narrow_du.data(),
                           config.hidden_size, gradients);
        };
        for (const Precision precision : {Precision::kBF16, Precision::kInt8}) {
          if (rate == 0) continue;  // is no different
          pass(precision);
          for (const Parameter& p : table.parameters()) {
            EXPECT_TRUE(near(gradients.at(p), &exact.gradients[p.offset], 1, p.size, 0.05))
                << isa_name(isa) << " in " << precision_name(precision) << ": " << p.name;
          }
        }
        pass(Precision::kF32);
        const std::string what =
            std::string(isa_name(isa)) + " C=" + std::to_string(config.hidden_size) +
            " tokens=" + std::to_string(batch.num_tokens()) + " dropout=" + std::to_string(rate);
        ErrorBudget embeddings;
        for (size_t i = 0; i < u.size(); ++i)
          embeddings.add(u[i], plain.u[i], exact.u[i], i / config.hidden_size,
                         i % config.hidden_size);
        EXPECT_TRUE(embeddings.check(what + " u", "*"));
        double worst = 0;
        for (const Parameter& p : table.parameters()) {
          ErrorBudget budget(3);
          for (int64_t i = 0; i < p.size; ++i) {
            budget.add(gradients.at(p)[i], plain.gradients[p.offset + i],
                       exact.gradients[p.offset + i], i / p.shape.back(), i % p.shape.back());
          }
          EXPECT_TRUE(budget.check(what + " " + p.name, "*"));
          worst = std::max(worst, budget.share());
        }
        std::printf("  %s: u %.0f %%, gradients at most %.0f %% of their budget\n", what.c_str(),
                    100 * embeddings.share(), 100 * worst);
      }
    }
  }
}

TEST(TrainingEncoder, WeightsInBf16GiveTheBitsOfThoseThatItRounds) {
  const ModelConfig config = odd_config();
  const PairBatch batch = make_batch(config, 6);
  const int32_t C = config.hidden_size;
  const ParameterTable table(config);
  const std::vector<double> random = random_values(table, 6);
  FlatBuffer values(table.size());
  std::copy(random.begin(), random.end(), values.data());
  std::vector<uint16_t> rounded(table.size());
  for (int64_t i = 0; i < table.size(); ++i) rounded[i] = kernels::bf16_from_f32(values.data()[i]);
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(1);
  const auto pass = [&](Precision precision, const uint16_t* narrow, FlatBuffer& gradients) {
    std::vector<float> u(static_cast<size_t>(batch.num_sentences()) * C);
    Encoder encoder(config, table, precision, kernels, threads);
    encoder.forward(batch, values, narrow, make_dropout(0.1), u.data(), C);
    encoder.backward(batch, values, narrow, make_dropout(0.1), u.data(), C, gradients);
    return u;
  };
  FlatBuffer gradients[5] = {FlatBuffer(table.size()), FlatBuffer(table.size()),
                             FlatBuffer(table.size()), FlatBuffer(table.size()),
                             FlatBuffer(table.size())};
  EXPECT_EQ(pass(Precision::kBF16, nullptr, gradients[0]),
            pass(Precision::kBF16, rounded.data(), gradients[1]));
  EXPECT_TRUE(same_bits(gradients[0], gradients[1]));
  // f32 does not read them
  EXPECT_EQ(pass(Precision::kF32, nullptr, gradients[2]),
            pass(Precision::kF32, rounded.data(), gradients[3]));
  EXPECT_TRUE(same_bits(gradients[2], gradients[3]));
  // and they are what bf16 reads.
  const std::vector<uint16_t> zeros(rounded.size());
  pass(Precision::kBF16, zeros.data(), gradients[4]);
  EXPECT_FALSE(same_bits(gradients[0], gradients[4]));
}

/// More rows than gemm_backward_weight_i8 sums at a time, and a last block of fewer than four.
TEST(TrainingEncoder, LongSentencesIn8BitsAreSeveralBlocks) {
  const ModelConfig config = make_config(61, 16, 20, 1, 2, 2 * kernels::kMaxRowsI8 + 3);
  const PairBatch batch = make_batch(config, 1);
  ASSERT_EQ(batch.cu_seqlens[1], config.max_seq_len);
  const ParameterTable table(config);
  const std::vector<double> random = random_values(table, 7);
  FlatBuffer values(table.size());
  std::copy(random.begin(), random.end(), values.data());
  std::vector<float> du(batch.num_sentences() * config.hidden_size, 1.0f);
  for (size_t i = 0; i < du.size(); ++i) du[i] = static_cast<float>(i % 7) - 3;
  ThreadPool threads(2);
  for (const kernels::Isa isa : test::training_isas()) {
    const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
    FlatBuffer gradients[2] = {FlatBuffer(table.size()), FlatBuffer(table.size())};
    for (const Precision precision : {Precision::kF32, Precision::kInt8}) {
      std::vector<float> u(du.size());
      FlatBuffer& sum = gradients[precision == Precision::kInt8];
      Encoder encoder(config, table, precision, kernels, threads);
      encoder.forward(batch, values, nullptr, make_dropout(0), u.data(), config.hidden_size);
      encoder.backward(batch, values, nullptr, make_dropout(0), du.data(), config.hidden_size, sum);
    }
    for (const Parameter& p : table.parameters()) {
      EXPECT_TRUE(near(gradients[1].at(p), gradients[0].at(p), 1, p.size, 0.1))
          << isa_name(isa) << " " << p.name;
    }
  }
}

TEST(TrainingEncoder, WholeStepsOfRandomModelsMatchPlainLoops) {
  const ModelConfig config = odd_config();
  const PairBatch batch = make_batch(config, 6);
  const ParameterTable table(config);
  const std::vector<double> values = random_values(table, 6);
  for (const double rate : {0.0, 0.25}) {
    StepConfig step = release_step();
    step.dropout = rate;
    step.seed = uint64_t{7} << 32 | 5;
    Dropout first;  // docs/methods.md, Dropout and random numbers
    first.threshold = rate == 0 ? 0 : uint32_t{1} << 30;
    first.scale = rate == 0 ? 1.0f : 4.0f / 3;
    first.key[0] = 5;
    first.key[1] = 7;
    first.step = 1;
    const test::PlainBudget budget(config, values, batch, 2, 2, first);
    PlainModel<double> exact(config);
    exact.values = values;
    const test::PlainLosses losses = exact.forward_backward(batch, 2, 2, first);
    for (const kernels::Isa isa : test::training_isas()) {
      const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
      ThreadPool threads(1);
      CpuTrainer trainer(config, step, kernels, threads);
      std::copy(values.begin(), values.end(), trainer.mutable_values().data());
      const StepResult result = trainer.step(batch, 0);
      budget.check(result.loss, trainer.gradients(), losses, table, exact.gradients,
                   isa_name(isa) + std::string(" dropout ") + std::to_string(rate));
    }
  }
}

// ---- bits ----

TEST(Trainer, BitsDoNotDependOnThreadsOrTheRun) {
  const ModelConfig config = wide_config();
  // Plain loops alone, under XSR_FORCE_ISA=ref, are as slow.
  const bool slow = kSlow || test::training_isas().size() == 1;
  const PairBatch batch = make_batch(config, slow ? 5 : 24, true), small = make_batch(config, 3);
  ASSERT_GT(batch.num_tokens(), slow ? 80 : 400);
  for (const Precision precision : {Precision::kF32, Precision::kBF16, Precision::kInt8}) {
    for (const kernels::Isa isa : test::training_isas()) {
      if (kSlow && isa != test::training_isas().back()) continue;
      if (isa == kernels::Isa::kRef && test::training_isas().size() > 1) continue;  // slow
      const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
      StepConfig step = release_step();
      step.precision = precision;
      step.seed = 77;
      std::unique_ptr<FlatBuffer> first;
      double first_loss = 0;
      for (const int32_t num_threads : {1, 1, 2, 3}) {
        if (kSlow && num_threads == 2) continue;
        ThreadPool threads(num_threads);
        CpuTrainer trainer(config, step, kernels, threads);
        initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
        trainer.step(small, 1e-3);  // the larger batch comes later: buffers grow
        trainer.step(batch, 1e-3);
        trainer.step(small, 1e-3);
        const double loss = trainer.step(batch, 1e-3).loss.total;
        if (first == nullptr) {
          first = std::make_unique<FlatBuffer>(trainer.table().size());
          std::copy_n(trainer.values().data(), first->size(), first->data());
          first_loss = loss;
        }
        EXPECT_EQ(first_loss, loss) << num_threads << " threads";
        EXPECT_TRUE(same_bits(*first, trainer.values()))
            << isa_name(isa) << " with " << num_threads << " threads gives other bits";
      }
    }
  }
}

TEST(Trainer, GradientsAreThoseOfTheLastStep) {
  const ModelConfig config = wide_config();
  const PairBatch batch = make_batch(config, 3);
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(2);
  CpuTrainer trainer(config, test::release_step(0), kernels, threads);
  ASSERT_GT(trainer.table().size(), 3 << 18) << "more than the threads clear at a time";
  initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
  trainer.step(batch, 0);
  FlatBuffer first(trainer.table().size());
  std::copy_n(trainer.gradients().data(), first.size(), first.data());
  trainer.step(batch, 0);
  EXPECT_TRUE(same_bits(first, trainer.gradients()));
}

/// Those that make the model at the end of a run, or that a run goes on from.
TEST(Trainer, ValuesThatAreWrittenAreThoseThatItComputesWith) {
  const ModelConfig config = odd_config();
  const PairBatch batch = make_batch(config, 6);
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(1);
  StepConfig step = release_step();
  for (const Precision precision : {Precision::kBF16, Precision::kInt8}) {
    step.precision = precision;
    double losses[2];
    for (const bool behind_a_step : {false, true}) {
      CpuTrainer trainer(config, step, kernels, threads);
      initialize_parameters(config, trainer.table(), 4, trainer.mutable_values());
      if (behind_a_step) trainer.step(batch, 1e-3);
      initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
      losses[behind_a_step] = trainer.evaluate(batch, false).total;
    }
    EXPECT_EQ(losses[0], losses[1]) << precision_name(precision);
  }
}

/// Its row of the table stays as it was.
TEST(Trainer, PaddingHasNoGradient) {
  ModelConfig config = odd_config();
  config.pad_id = 0;
  PairBatch batch = make_batch(config, 6);
  batch.token_ids[1] = config.pad_id;
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(1);
  StepConfig step = release_step();
  step.objectives.ugt_weight = 0;  // which reaches it as a word of the vocabulary
  CpuTrainer trainer(config, step, kernels, threads);
  initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
  trainer.step(batch, 0);
  const float* row = trainer.gradients().at(trainer.table().at("embedding.token"));
  for (int32_t c = 0; c < config.hidden_size; ++c)
    EXPECT_EQ(0, row[config.pad_id * config.hidden_size + c]);
  EXPECT_NE(0, row[batch.token_ids[0] * config.hidden_size]);
}

/// Fewer tokens in all, but a longer sentence: what the threads compute the attention in grows.
TEST(Trainer, ALongerSentenceMayComeLater) {
  const ModelConfig config = wide_config();
  PairBatch some = make_batch(config, 24), longer = make_batch(config, 3);
  for (size_t s = 0; s < some.cu_seqlens.size(); ++s)
    some.cu_seqlens[s] = static_cast<int32_t>(4 * s);
  some.token_ids.assign(4 * 48, 7);
  std::fill(some.masked_row.begin(), some.masked_row.end(), -1);
  std::fill(some.masked_id.begin(), some.masked_id.end(), -1);
  ASSERT_LT(longer.num_tokens(), some.num_tokens());
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  std::unique_ptr<FlatBuffer> alone;
  for (const bool before : {false, true}) {
    ThreadPool threads(2);
    CpuTrainer trainer(config, release_step(), kernels, threads);
    initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
    if (before) trainer.embed(some);
    for (int i = 0; i < 8; ++i) trainer.step(longer, 1e-3);
    if (!before) {
      alone = std::make_unique<FlatBuffer>(trainer.table().size());
      std::copy_n(trainer.values().data(), alone->size(), alone->data());
    } else {
      EXPECT_TRUE(same_bits(*alone, trainer.values()));
    }
  }
}

TEST(Trainer, DropsOutInStepsAndNotInEvaluation) {
  const ModelConfig config = odd_config();
  const PairBatch batch = make_batch(config, 4);
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(1);
  const auto first_loss = [&](double dropout, uint64_t seed, int32_t steps) {
    StepConfig step = release_step();
    step.dropout = dropout;
    step.seed = seed;
    CpuTrainer trainer(config, step, kernels, threads);
    initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
    const double before = trainer.evaluate(batch).total;
    double loss = 0;
    for (int32_t i = 0; i < steps; ++i) loss = trainer.step(batch, 0).loss.total;
    EXPECT_EQ(before, trainer.evaluate(batch).total);
    EXPECT_EQ(dropout == 0, before == trainer.evaluate(batch, true).total) << "when asked for";
    return std::pair(before, loss);
  };
  const auto [plain, without] = first_loss(0, 1, 1);
  EXPECT_EQ(plain, without);
  const auto [evaluated, one] = first_loss(0.1, 1, 1);
  EXPECT_EQ(plain, evaluated);
  EXPECT_NE(one, plain);
  for (const uint64_t seed : {uint64_t{2}, (uint64_t{1} << 32) + 1})
    EXPECT_NE(one, first_loss(0.1, seed, 1).second) << "the seed does not matter";
  EXPECT_NE(one, first_loss(0.1, 1, 2).second) << "every step has the same mask";
}

// ---- bf16 and int8 ----

class TrainerIn : public testing::TestWithParam<Precision> {};
INSTANTIATE_TEST_SUITE_P(, TrainerIn, testing::Values(Precision::kBF16, Precision::kInt8),
                         [](const auto& info) { return precision_name(info.param); });

TEST_P(TrainerIn, GradientsAreCloseToThoseInF32) {
  const ModelConfig config = wide_config();
  const PairBatch batch = make_batch(config, kSlow ? 4 : 16);
  const ParameterTable table(config);
  const auto gradients = [&](kernels::Isa isa, Precision precision) {
    const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
    ThreadPool threads(2);
    StepConfig step = release_step();
    step.precision = precision;
    CpuTrainer trainer(config, step, kernels, threads);
    initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
    trainer.step(batch, 0);  // writes the parameters in bf16, for the next one
    trainer.step(batch, 0);
    return std::vector<double>(trainer.gradients().data(),
                               trainer.gradients().data() + trainer.gradients().size());
  };
  const auto error = [](const std::vector<double>& a, const std::vector<double>& b) {
    double squares = 0, difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      difference += (a[i] - b[i]) * (a[i] - b[i]);
      squares += b[i] * b[i];
    }
    return std::sqrt(difference / squares);
  };
  const std::vector<double> exact = gradients(test::training_isas().back(), Precision::kF32);
  const Precision precision = GetParam();
  double plain = 0;  // of the ref kernels
  for (const kernels::Isa isa : test::training_isas()) {
    const std::vector<double> rounded = gradients(isa, precision);
    const double relative = error(rounded, exact);
    if (isa == kernels::Isa::kRef) plain = relative;
    std::printf("  %s: relative error of the gradient in %s %.4f\n", isa_name(isa),
                precision_name(precision), relative);
    // Half a unit of bf16 is 2⁻⁹; it comes in once for each operand of some ten products in a row,
    // and the softmax of logits of size 20 amplifies it. Of 8 bits it is 2⁻⁸ of a row's or column's
    // largest value.
    EXPECT_LT(relative, 0.05) << isa_name(isa);
    EXPECT_LE(relative, 3 * plain) << isa_name(isa);
    EXPECT_GT(relative, 1e-4) << isa_name(isa) << ": nothing was rounded";
    // No row or column, of which the sum above has hundreds, is a stale or a missing one.
    for (const Parameter& p : table.parameters()) {
      const int64_t columns = p.shape.size() == 2 ? p.shape[1] : 1, rows = p.size / columns;
      const auto line = [&](const char* what, int64_t first, int64_t step, int64_t count) {
        if (count == 1) return;
        const int64_t at = p.offset + first;
        EXPECT_TRUE(near(&rounded[at], &exact[at], step, count, 0.5))
            << isa_name(isa) << " " << p.name << ": " << what << " at " << first;
      };
      for (int64_t r = 0; r < rows; ++r) line("row", r * columns, 1, columns);
      for (int64_t c = 0; c < columns; ++c) line("column", c, columns, rows);
    }
  }
}

/// The encoder's products and, with no layers, those of the words.
TEST(Trainer, ThePrecisionIsThatOfEncoderAndWords) {
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(1);
  std::vector<float> embeddings[3];
  double losses[3];
  for (const int layers : {0, 2}) {
    const ModelConfig config = make_config(61, 36, 20, layers, 3, 12);
    const PairBatch batch = make_batch(config, 4);
    for (const Precision precision : {Precision::kF32, Precision::kBF16, Precision::kInt8}) {
      StepConfig step = release_step();
      step.precision = precision;
      CpuTrainer trainer(config, step, kernels, threads);
      initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
      losses[static_cast<int>(precision)] = trainer.evaluate(batch).parts[0].value;
      embeddings[static_cast<int>(precision)] = trainer.embeddings();
    }
    if (layers == 0) {
      EXPECT_EQ(embeddings[0], embeddings[1]);
      EXPECT_EQ(embeddings[0], embeddings[2]);
      EXPECT_NE(losses[0], losses[1]);
      EXPECT_EQ(losses[1], losses[2]) << "the words of int8 are bf16";
    } else {
      EXPECT_NE(embeddings[0], embeddings[1]);
      EXPECT_NE(embeddings[0], embeddings[2]);
      EXPECT_NE(embeddings[1], embeddings[2]);
    }
  }
}

// ---- learning ----

TEST(Trainer, LearnsAFewPairsByHeart) {
  const ModelConfig config = make_config(60, 32, 64, 2, 4, 8);
  const PairBatch batch = make_batch(config, 8);
  for (const Precision precision : {Precision::kF32, Precision::kBF16, Precision::kInt8}) {
    const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
    ThreadPool threads(1);
    StepConfig step;
    step.objectives = objective_preset(Preset::kStable);
    step.optimizer = optimizer_preset(Preset::kStable);
    step.precision = precision;
    step.dropout = 0.1;
    CpuTrainer trainer(config, step, kernels, threads);
    initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
    const double before = trainer.evaluate(batch).total;
    for (int i = 0; i < 300; ++i) trainer.step(batch, 3e-3);
    const double after = trainer.evaluate(batch).total;
    std::printf("  %s: loss %.3f, after 300 steps %.3f\n", precision_name(precision), before,
                after);
    EXPECT_LT(after, 0.1 * before);
  }
}

// ---- what is not finite ----

TEST(Trainer, StopsBeforeWhatIsNotFinite) {
  const ModelConfig config = odd_config();
  const PairBatch batch = make_batch(config, 4);
  const kernels::KernelTable kernels = kernels::resolve_kernels(test::training_isas().back());
  ThreadPool threads(1);
  for (const Precision precision : {Precision::kF32, Precision::kInt8}) {
    StepConfig step = release_step();
    step.precision = precision;
    CpuTrainer trainer(config, step, kernels, threads);
    initialize_parameters(config, trainer.table(), 3, trainer.mutable_values());
    trainer.step(batch, 1e-3);
    test::expect_stops_before_a_nan(trainer, batch, 1);
    trainer.mutable_values().at(trainer.table().at("layer.1.up.bias"))[0] = 0;
    test::expect_stops_before_an_infinite_gradient(trainer, batch);
  }
  EXPECT_THROW(CpuTrainer(
                   config,
                   [] {
                     StepConfig step = release_step();
                     step.dropout = 1;
                     return step;
                   }(),
                   kernels, threads),
               Error);
}

}  // namespace
}  // namespace xsr::training
