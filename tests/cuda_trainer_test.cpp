// Whole steps of training on a device: golden losses and gradients, ten steps of AMSGrad, bits, and
// what is not finite. Linked with the emulated device and, where nvcc is, with a real one.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "kernels/dispatch.h"
#include "tests/support/device_buffer.h"
#include "tests/support/environment.h"
#include "tests/support/golden_model.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/sanitizers.h"
#include "tests/support/trainer_support.h"
#include "training/cpu_trainer.h"
#include "training/cuda/cuda_trainer.h"
#include "training/cuda/device_trainer.h"
#include "training/cuda/vocabulary_tile.h"
#include "training/cuda_library.h"
#include "training/initialization.h"
#include "training/schedule.h"

namespace xsr::training {
namespace {

using test::EnvironmentVariable;
using test::same_bits;

CudaTrainerOptions tiles_of(int32_t words) {
  CudaTrainerOptions options;
  options.vocabulary_tile = words;
  return options;
}

StepConfig release_step(double align_and_sim_weight = 2) {
  return test::release_step(0, align_and_sim_weight);
}

TEST(VocabularyTile, KeepsAllLogitsOfMostBatchesAndAboutAsManyOfLarger) {
  EXPECT_EQ(50000, vocabulary_tile(0, 256, 50000)) << "batch 128";
  EXPECT_EQ(16016, vocabulary_tile(0, 256, 16001));
  EXPECT_EQ(50000, vocabulary_tile(0, 2048, 50000)) << "batch 1,024";
  EXPECT_EQ(16384, vocabulary_tile(0, 8192, 50000)) << "batch 4,096";
  EXPECT_EQ(1024, vocabulary_tile(0, 1 << 20, 50000));
  EXPECT_EQ(48, vocabulary_tile(48, 256, 50000));
  EXPECT_EQ(64, vocabulary_tile(96, 256, 50));
  // The buffers made for the most sentences do for fewer.
  for (const int32_t V : {50, 5000, 50000, 500000}) {
    for (const int32_t most : {1, 256, 700, 5000, 40000}) {
      const int64_t logits = most_logits(0, most, V), tile_of_most = vocabulary_tile(0, most, V);
      for (int32_t S = 1; S <= most; S += 1 + S / 50) {
        const int64_t tile = vocabulary_tile(0, S, V);
        ASSERT_EQ(0, tile % 16);
        ASSERT_GE(logits, S * tile) << S << " of " << most;
        ASSERT_GE(tile, tile_of_most);
      }
    }
  }
}

using CudaTrainerGolden = test::GoldenFixture<test::DeviceTest>;

TEST_P(CudaTrainerGolden, LossesAndEveryGradientMatch) {
  int compared = 0;
  for (const std::string name : {"ugt", "total"}) {
    if (!golden_->has_gradient(name)) continue;
    const test::GoldenLoss exact(*golden_, name);
    // Several tiles, whose logits are computed twice, and one, whose are kept.
    CudaTrainer trainer(golden_->config(), release_step(exact.weight()),
                        name == "ugt" ? tiles_of(32) : CudaTrainerOptions());
    load(trainer);
    const LossParts evaluated = trainer.evaluate(golden_->batch());
    // The first step runs as it stands, the second and third are a graph.
    for (int i = 0; i < 3; ++i) {
      const StepResult result = trainer.step(golden_->batch(), 0);
      EXPECT_EQ(evaluated.total, result.loss.total);
      exact.expect(result, trainer.gradients(), std::string(GetParam()) + " " + name);
    }
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

TEST_P(CudaTrainerGolden, TenStepsOfAmsgradFollow) {
  if (golden_->trajectory().empty()) GTEST_SKIP() << "the file has no trajectory";
  const Schedule schedule;  // as released
  const test::GoldenTrajectory trajectory(*golden_, [&](int64_t t) { return schedule.at(t, 0); });
  CudaTrainer trainer(golden_->config(), release_step(), tiles_of(48));
  load(trainer);
  trajectory.expect_followed(trainer, std::string(GetParam()) + " ten steps");
}

INSTANTIATE_TEST_SUITE_P(Golden, CudaTrainerGolden, ::testing::Values("xsr-tiny", "xsr-odd"),
                         test::golden_test_name);

// ---- against the processor ----

ModelConfig small_config(int32_t hidden_size = 24, int32_t num_heads = 3) {
  ModelConfig config;
  config.family = Family::kXsr;
  config.vocab_size = 90;
  config.hidden_size = hidden_size;
  config.intermediate_size = 40;
  config.num_layers = 2;
  config.num_heads = num_heads;
  config.num_positions = 40;
  config.max_seq_len = 40;
  config.mask_id = 2;
  return config;
}

/// Pairs of 1 to 12 tokens; every other one has a masked word. One sentence is empty, the last has
/// `longer` tokens more.
PairBatch make_batch(const ModelConfig& config, int32_t pairs, uint64_t salt = 5,
                     int32_t longer = 0) {
  test::Random random(salt);
  PairBatch batch;
  batch.num_pairs = pairs;
  batch.cu_seqlens = {0};
  for (int32_t b = 0; b < 2 * pairs; ++b) {
    const int32_t length = b == 2 ? 0 : random.range(1, 12) + (b == 2 * pairs - 1 ? longer : 0);
    for (int32_t i = 0; i < length; ++i)
      batch.token_ids.push_back(random.range(3, config.vocab_size - 1));
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.token_ids.size()));
  }
  for (int32_t b = 0; b < pairs; ++b) {
    const uint8_t side = static_cast<uint8_t>(b / 2 % 2);
    const int32_t first = batch.cu_seqlens[side * pairs + b];
    const bool masked = b % 2 == 1;
    batch.masked_side.push_back(side);
    batch.masked_id.push_back(masked ? batch.token_ids[first] : -1);
    batch.masked_row.push_back(masked ? first : -1);
    if (masked) batch.token_ids[first] = config.mask_id;
    batch.pair_numbers.push_back(b);
  }
  return batch;
}

/// Every objective there is.
StepConfig every_objective() {
  StepConfig step = release_step();
  step.objectives.xtr_weight = 0.5;
  step.objectives.smlm_weight = 0.25;
  step.objectives.info_nce_weight = 1;
  step.objectives.sim.min_cosine = 0.01;
  step.dropout = 0.1;
  step.seed = 77;
  step.optimizer.clip_norm = 1;
  return step;
}

class CudaTrainerTest : public test::DeviceTest {
 protected:
  void SetUp() override {
    test::DeviceTest::SetUp();
    kernels_ = kernels::resolve_kernels(kernels::best_isa());
  }
  void initialize(Trainer& trainer) const {
    initialize_parameters(trainer.config(), trainer.table(), 3, trainer.mutable_values());
  }
  /// As many times the same pair as there are devices, each with one: dropout tells them apart.
  void expect_masks_of_their_own(const ModelConfig& config,
                                 const CudaTrainerOptions& options) const {
    PairBatch batch;
    batch.num_pairs = static_cast<int32_t>(options.devices.size());
    batch.cu_seqlens = {0};
    for (int32_t b = 0; b < batch.num_sentences(); ++b) {
      for (int32_t id : {5, 6, 7}) batch.token_ids.push_back(id);
      batch.cu_seqlens.push_back(3 * (b + 1));
    }
    batch.masked_id.assign(batch.num_pairs, -1);
    batch.masked_row.assign(batch.num_pairs, -1);
    batch.masked_side.assign(batch.num_pairs, 0);
    batch.pair_numbers.assign(batch.num_pairs, 0);
    CudaTrainer trainer(config, every_objective(), options);
    initialize(trainer);
    trainer.evaluate(batch, true);
    std::set<std::vector<float>> different;
    const int32_t C = config.hidden_size;
    for (auto u = trainer.embeddings().begin(); u != trainer.embeddings().end(); u += C)
      different.insert({u, u + C});
    EXPECT_EQ(different.size(), trainer.embeddings().size() / C);
  }
  kernels::KernelTable kernels_;
  ThreadPool threads_{1};
};

double relative_difference(const FlatBuffer& a, const FlatBuffer& b) {
  const test::Norms norms = test::norms_of(a.data(), b.data(), 1, a.size());
  return norms.difference / norms.exact;
}

TEST_F(CudaTrainerTest, DrawsTheMasksAndTakesTheStepsOfTheProcessor) {
  const ModelConfig config = small_config();
  const StepConfig step = every_objective();
  CpuTrainer cpu(config, step, kernels_, threads_);
  CudaTrainer cuda(config, step, tiles_of(32));
  initialize(cpu);
  initialize(cuda);
  for (const int32_t pairs : {6, 3, 6, 6}) {
    const PairBatch batch = make_batch(config, pairs);
    const StepResult a = cpu.step(batch, 1e-3), b = cuda.step(batch, 1e-3);
    ASSERT_EQ(a.loss.parts.size(), b.loss.parts.size());
    for (size_t i = 0; i < a.loss.parts.size(); ++i) {
      EXPECT_EQ(a.loss.parts[i].name, b.loss.parts[i].name);
      EXPECT_NEAR(a.loss.parts[i].value, b.loss.parts[i].value,
                  1e-5 * std::max(1e-2, std::fabs(a.loss.parts[i].value)))
          << a.loss.parts[i].name;
    }
    EXPECT_NEAR(1, b.gradient_norm / a.gradient_norm, 1e-5);
    // Roundings of f32 in another order: another mask would change a tenth of all.
    EXPECT_LT(relative_difference(cuda.gradients(), cpu.gradients()), 1e-5);
    EXPECT_EQ(cpu.embeddings().size(), cuda.embeddings().size());
  }
  EXPECT_EQ(4, cuda.steps());
  EXPECT_LT(relative_difference(cuda.mutable_values(), cpu.values()), 1e-5)
      << "what is changed in part is brought over first";
  EXPECT_LT(relative_difference(cuda.values(), cpu.values()), 1e-5);
}

/// Two tokens a sentence, all of them different: a masked word is one more than the batch's tokens.
/// One of them is the padding, whose row has the gradient of a word alone.
TEST_F(CudaTrainerTest, ABatchMayHaveMoreWordsThanTokens) {
  ModelConfig config = small_config();
  config.pad_id = 3;
  PairBatch batch;
  batch.num_pairs = 16;
  batch.cu_seqlens = {0};
  for (int32_t i = 0; i < 64; ++i) batch.token_ids.push_back(3 + i);
  for (int32_t b = 0; b < 32; ++b) batch.cu_seqlens.push_back(2 * (b + 1));
  for (int32_t b = 0; b < 16; ++b) {
    const uint8_t side = b % 2 != 0;
    const int32_t row = 2 * (side * 16 + b) + 1;
    batch.masked_side.push_back(side);
    batch.masked_row.push_back(row);
    batch.masked_id.push_back(std::exchange(batch.token_ids[row], config.mask_id));
    batch.pair_numbers.push_back(b);
  }
  StepConfig step = every_objective();
  CpuTrainer cpu(config, step, kernels_, threads_);
  CudaTrainer cuda(config, step, tiles_of(32));
  initialize(cpu);
  initialize(cuda);
  for (int i = 0; i < 2; ++i) {
    const double expected = cpu.step(batch, 1e-3).loss.total;
    EXPECT_NEAR(expected, cuda.step(batch, 1e-3).loss.total, 1e-5 * expected);
    EXPECT_LT(relative_difference(cuda.gradients(), cpu.gradients()), 1e-5);
  }
}

TEST_F(CudaTrainerTest, ACheckpointGoesOnOnTheOtherDevice) {
  const ModelConfig config = small_config();
  const StepConfig step = every_objective();
  const PairBatch batch = make_batch(config, 4);
  CpuTrainer cpu(config, step, kernels_, threads_);
  initialize(cpu);
  for (int i = 0; i < 3; ++i) cpu.step(batch, 1e-3);
  const auto copy = [](const Trainer& from, Trainer& to) {
    for (const State state :
         {State::kValue, State::kFirstMoment, State::kSecondMoment, State::kMaxSecondMoment}) {
      std::copy_n(from.read(state)->data(), from.table().size(), to.write(state)->data());
    }
    to.set_steps(from.steps());
  };
  CudaTrainer cuda(config, step);
  copy(cpu, cuda);
  for (int i = 0; i < 3; ++i) cpu.step(batch, 1e-3), cuda.step(batch, 1e-3);
  EXPECT_LT(relative_difference(cuda.values(), cpu.values()), 1e-5);
  CpuTrainer back(config, step, kernels_, threads_);
  copy(cuda, back);
  EXPECT_EQ(6, back.steps());
  for (int i = 0; i < 2; ++i) cpu.step(batch, 1e-3), back.step(batch, 1e-3);
  EXPECT_LT(relative_difference(back.values(), cpu.values()), 1e-5);
  EXPECT_LT(
      relative_difference(*back.read(State::kMaxSecondMoment), *cpu.read(State::kMaxSecondMoment)),
      1e-4);
}

TEST_F(CudaTrainerTest, TwoRunsHaveTheSameBits) {
  ModelConfig config = small_config(32, 2);  // heads of 16, which go to the tensor cores
  struct Case {
    Precision precision;
    int32_t num_layers;
    bool has_words;
    std::vector<int32_t> batches;
  };
  // Of four layers the sums of blocks are more than one launch adds: without those of the head they
  // fill it.
  for (const Case& c :
       {Case{Precision::kF32, 2, true, {2, 5, 5, 2, 5}},
        Case{Precision::kBF16, 4, true, {2, 5, 5, 2}}, Case{Precision::kF32, 4, false, {2}}}) {
    config.num_layers = c.num_layers;
    StepConfig step = every_objective();
    step.precision = c.precision;
    if (!c.has_words)
      step.objectives.xtr_weight = step.objectives.ugt_weight = step.objectives.smlm_weight = 0;
    std::unique_ptr<FlatBuffer> first;
    for (uint64_t run = 0; run < 3; ++run) {
#ifdef XSR_EMULATED
      // Threads and blocks run in other orders; gradients of weights as late as they may, as early,
      // and in between.
      cuda::emulated::set_order(run);
#endif
      CudaTrainer trainer(config, step, tiles_of(32));
      initialize(trainer);
      for (const int32_t pairs : c.batches) trainer.step(make_batch(config, pairs), 1e-3);
      if (first == nullptr) {
        first = std::make_unique<FlatBuffer>(trainer.table().size());
        std::copy_n(trainer.values().data(), first->size(), first->data());
      }
      EXPECT_TRUE(same_bits(*first, trainer.values())) << "run " << run << " gives other bits";
    }
#ifdef XSR_EMULATED
    cuda::emulated::set_order(0);
#endif
  }
}

/// Rows of more than 1,024 columns leave fewer sums of more parts.
TEST_F(CudaTrainerTest, ManyWideLayersHaveRoomForTheirSums) {
  ModelConfig config = small_config(1040, 13);
  config.num_layers = 5;
  config.intermediate_size = 16;
  StepConfig step = every_objective();
  step.precision = Precision::kBF16;
  CudaTrainer trainer(config, step, tiles_of(32));
  initialize(trainer);
  EXPECT_NO_THROW(trainer.step(make_batch(config, 1), 1e-3));
}

/// On the first `count` devices; null where there are not so many, or NCCL is not installed.
std::unique_ptr<CudaTrainer> on_devices(size_t count, const ModelConfig& config,
                                        const StepConfig& step) {
  std::string why;
  if (cuda::devices(&why).size() < count) return nullptr;
  CudaTrainerOptions options = tiles_of(32);
  options.devices.resize(count);
  for (size_t r = 0; r < count; ++r) options.devices[r] = static_cast<int32_t>(r);
  try {
    return std::make_unique<CudaTrainer>(config, step, options);
  } catch (const Error& e) {
    if (e.status() != XSR_STATUS_UNSUPPORTED) throw;
    return nullptr;
  }
}

/// Steps that are told what comes, rightly or not, beside steps that are told nothing.
TEST_F(CudaTrainerTest, MakingTheNextBatchReadyChangesNothing) {
  ModelConfig config = small_config();
  config.num_layers = 1;
  const StepConfig step = every_objective();
  const PairBatch batches[] = {make_batch(config, 3), make_batch(config, 3, 6),
                               make_batch(config, 2), make_batch(config, 4)};
  struct Step {
    int batch, next;  // -1: told nothing
    bool prepared, evaluate;
  };
  const Step steps[] = {
      {0, 1, false, false}, {1, 2, true, false},   {2, 0, true, true},  // evaluates what comes next
      {0, 3, false, false}, {3, 1, false, false},                       // is larger than all before
      {2, 1, false, false},                                             // comes instead of 1
      {1, 3, true, true},                                               // evaluates another
      {3, 0, true, false},  {2, -1, false, false},  // comes instead of 0, which stays ready
      {0, -1, true, false},
  };
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "2");
  const size_t most = on_devices(2, config, step) != nullptr ? 2 : 1;
  for (size_t count = test::kSlow ? most : 1; count <= most; ++count) {
    const auto plain_trainer = on_devices(count, config, step),
               told_trainer = on_devices(count, config, step);
    CudaTrainer &plain = *plain_trainer, &told = *told_trainer;
    initialize(plain);
    initialize(told);
    double rate = 1e-3;
    for (const Step& s : steps) {
      SCOPED_TRACE(std::to_string(count) + " devices, step " + std::to_string(told.steps() + 1));
      rate *= 0.9;
#ifdef XSR_EMULATED
      // What is made ready comes to the device as late as it may, as early, and in between.
      cuda::emulated::set_order(static_cast<uint64_t>(told.steps()) % 3);
#endif
      const StepResult a = plain.step(batches[s.batch], rate);
      const StepResult b =
          told.step(batches[s.batch], rate, s.next < 0 ? nullptr : &batches[s.next]);
      EXPECT_EQ(a.loss.total, b.loss.total);
      EXPECT_EQ(a.gradient_norm, b.gradient_norm);
      EXPECT_FALSE(a.prepared);
      EXPECT_EQ(s.prepared, b.prepared);
      EXPECT_EQ(plain.embeddings(), told.embeddings());
      if (s.evaluate) {
        EXPECT_EQ(plain.evaluate(batches[0]).total, told.evaluate(batches[0]).total);
      }
    }
    EXPECT_TRUE(same_bits(plain.values(), told.values()));
#ifdef XSR_EMULATED
    cuda::emulated::set_order(0);
#endif
  }
}

TEST_F(CudaTrainerTest, GradientsInBf16AreCloseToThoseInF32) {
  for (const auto& [pooling, num_layers] : {std::pair(Pooling::kMean, 2),
                                            {Pooling::kMax, 1},
                                            {Pooling::kCls, 1},
                                            {Pooling::kMean, 0}}) {
    ModelConfig config = small_config(32, 2);
    config.pooling = pooling;
    config.num_layers = num_layers;
    const PairBatch batch = make_batch(config, 8);
    StepConfig step = release_step();
    const auto gradients = [&](auto&& trainer) {
      initialize(trainer);
      trainer.step(batch, 0);
      trainer.step(batch, 0);
      auto copy = std::make_unique<FlatBuffer>(trainer.table().size());
      std::copy_n(trainer.gradients().data(), copy->size(), copy->data());
      return copy;
    };
    const auto exact = gradients(CudaTrainer(config, step, tiles_of(32)));
    step.precision = Precision::kBF16;
    const double found =
        relative_difference(*gradients(CudaTrainer(config, step, tiles_of(32))), *exact);
    kernels_ = kernels::resolve_kernels(kernels::Isa::kRef);
    const double plain =
        relative_difference(*gradients(CpuTrainer(config, step, kernels_, threads_)), *exact);
    std::printf("  relative error of the gradient in bf16 %.4f, of plain loops %.4f\n", found,
                plain);
    EXPECT_LE(found, 3 * plain) << num_layers << " layers";
    EXPECT_GT(found, 1e-4) << "nothing was rounded";
  }
}

/// Attention takes a sentence of more than 64 tokens in chunks, with a launch of their own: batches
/// of as many tokens that have one or not are not one graph.
TEST_F(CudaTrainerTest, LongSentencesComeAndGo) {
  ModelConfig config = small_config(32, 2);
  config.num_positions = config.max_seq_len = 90;
  StepConfig step = release_step();
  step.precision = Precision::kBF16;
  const PairBatch batches[] = {make_batch(config, 3), make_batch(config, 3, 5, 70)};
  ASSERT_LE(batches[1].num_tokens(), 128) << "of one shape otherwise";
  const auto gradients_of = [&](CudaTrainer& trainer, const PairBatch& batch) {
    trainer.step(batch, 0);
    auto copy = std::make_unique<FlatBuffer>(trainer.table().size());
    std::copy_n(trainer.gradients().data(), copy->size(), copy->data());
    return copy;
  };
  std::unique_ptr<FlatBuffer> expected[2];
  for (int i = 0; i < 2; ++i) {
    CudaTrainer fresh(config, step, tiles_of(32));
    initialize(fresh);
    expected[i] = gradients_of(fresh, batches[i]);
  }
  CudaTrainer trainer(config, step, tiles_of(32));
  initialize(trainer);
  for (const int i : {0, 0, 1, 1, 0, 1}) {
    EXPECT_TRUE(same_bits(*expected[i], *gradients_of(trainer, batches[i])))
        << "step " << trainer.steps() << ", " << (i == 1 ? "with a long sentence" : "without");
  }
}

/// Ten steps that move: the losses in bf16 stay as close to those in f32 as plain loops in bf16 do.
TEST_F(CudaTrainerTest, LossesInBf16FollowThoseInF32) {
  // Of the first, heads of 16 go to the tensor cores; heads of 12 do not.
  for (const auto& [hidden_size, num_heads] : {std::pair(32, 2), {24, 2}}) {
    const ModelConfig config = small_config(hidden_size, num_heads);
    StepConfig step = every_objective();
    const auto losses = [&](auto&& trainer) {
      initialize(trainer);
      std::vector<double> found;
      for (int i = 0; i < 10; ++i)
        found.push_back(trainer.step(make_batch(config, 5, 5 + i % 3), 2e-3).loss.total);
      return found;
    };
    const auto exact = losses(CudaTrainer(config, step));
    step.precision = Precision::kBF16;
    const auto found = losses(CudaTrainer(config, step));
    kernels_ = kernels::resolve_kernels(kernels::Isa::kRef);
    const auto plain = losses(CpuTrainer(config, step, kernels_, threads_));
    EXPECT_LT(exact.back(), 0.95 * exact.front()) << "it does not move";
    double error = 0, plain_error = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error += std::fabs(found[i] / exact[i] - 1) / static_cast<double>(exact.size());
      plain_error += std::fabs(plain[i] / exact[i] - 1) / static_cast<double>(exact.size());
    }
    std::printf(
        "  heads of %d: loss %.4f to %.4f; bf16 is %.2e from it in the mean, plain loops %.2e\n",
        hidden_size / num_heads, exact.front(), exact.back(), error, plain_error);
    EXPECT_LE(error, 3 * plain_error);
    EXPECT_GT(error, 1e-6) << "nothing was rounded";
  }
}

TEST_F(CudaTrainerTest, EmbeddingsAndEvaluationChangeNothing) {
  const ModelConfig config = small_config();
  StepConfig step = every_objective();
  CudaTrainer trainer(config, step, tiles_of(32));
  initialize(trainer);
  CpuTrainer cpu(config, step, kernels_, threads_);
  initialize(cpu);
  const PairBatch batch = make_batch(config, 5), small = make_batch(config, 2, 9);
  const double before = trainer.evaluate(batch).total;
  EXPECT_NEAR(cpu.evaluate(batch).total, before, 1e-4 * before);
  trainer.embed(small);
  cpu.embed(small);
  const std::vector<float> u = trainer.embeddings();
  ASSERT_EQ(cpu.embeddings().size(), u.size());
  for (size_t i = 0; i < u.size(); ++i) EXPECT_NEAR(cpu.embeddings()[i], u[i], 1e-5);
  const PairBatch other = make_batch(config, 2, 10);
  trainer.embed(other);
  cpu.embed(other);
  for (size_t i = 0; i < u.size(); ++i)
    EXPECT_NEAR(cpu.embeddings()[i], trainer.embeddings()[i], 1e-5) << "of the batch before?";
  EXPECT_EQ(before, trainer.evaluate(batch).total);
  const double dropped = trainer.evaluate(batch, true).total;
  EXPECT_NE(before, dropped);
  EXPECT_NEAR(cpu.evaluate(batch, true).total, dropped, 1e-4 * before);
  EXPECT_EQ(0, trainer.steps());
}

TEST_F(CudaTrainerTest, StopsBeforeWhatIsNotFinite) {
  const ModelConfig config = small_config();
  const PairBatch batch = make_batch(config, 4);
  CudaTrainer trainer(config, release_step());
  initialize(trainer);
  trainer.step(batch, 1e-3);
  test::expect_stops_before_a_nan(trainer, batch, 2);
  trainer.mutable_values().at(trainer.table().at("layer.1.up.bias"))[0] = 0;
  EXPECT_TRUE(std::isfinite(trainer.step(batch, 1e-3).gradient_norm)) << "a NaN stayed behind";
  test::expect_stops_before_an_infinite_gradient(trainer, batch);
}

// ---- several devices ----

#ifdef XSR_EMULATED
/// Memory runs out for the batch itself, then for the activations.
TEST_F(CudaTrainerTest, GoesOnAfterABatchThatMemoryDoesNotSufficeFor) {
  const ModelConfig config = small_config();
  const PairBatch small = make_batch(config, 3), large = make_batch(config, 9);
  CudaTrainer one(config, every_objective(), tiles_of(32));
  CudaTrainer other(config, every_objective(), tiles_of(32));
  initialize(one);
  initialize(other);
  for (const char* bytes : {"100", "100000"}) {
    for (int call = 0; call < 2; ++call) one.step(small, 1e-3), other.step(small, 1e-3);
    try {
      const EnvironmentVariable most("XSR_EMULATED_BYTES", bytes);
      other.step(large, 1e-3);
      ADD_FAILURE() << "a batch of more than " << bytes << " bytes";
    } catch (const Error& e) {
      EXPECT_EQ(XSR_STATUS_OUT_OF_MEMORY, e.status()) << e.what();
    }
    one.step(small, 1e-3);
    other.step(small, 1e-3);
    EXPECT_TRUE(same_bits(one.values(), other.values())) << bytes;
  }
  one.step(large, 1e-3);
  other.step(large, 1e-3);
  EXPECT_TRUE(same_bits(one.values(), other.values()));
}
#endif

#ifdef XSR_EMULATED
/// Whatever a device refuses, the step fails and can be taken again, behind one that takes other
/// memory too: a step of a new shape, one whose graph is made, one that launches it and one whose
/// batch was made ready.
TEST_F(CudaTrainerTest, WorkThatADeviceRefusesEndsItsStep) {
  ModelConfig config = small_config(32, 2);
  config.num_layers = 1;
  config.vocab_size = 40;
  const PairBatch batch = make_batch(config, 2), next = make_batch(config, 1),
                  large = make_batch(config, 12);
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    StepConfig step = every_objective();
    step.precision = precision;
    for (const int before : {0, 1, 2, 3}) {
      if (precision == Precision::kBF16 && before > 0) continue;
      CudaTrainer undisturbed(config, step, tiles_of(32));
      initialize(undisturbed);
      for (int i = 0; i <= before; ++i) undisturbed.step(batch, 1e-3);
      undisturbed.step(next, 1e-3);
      /// Whether the n-th piece of work was there to be refused.
      const auto refused = [&](int n) {
        CudaTrainer trainer(config, step, tiles_of(32));
        initialize(trainer);
        for (int i = 0; i < before; ++i) trainer.step(batch, 1e-3, before == 3 ? &batch : nullptr);
        bool failed = false;
        try {
          const EnvironmentVariable failure("XSR_EMULATED_FAILURE", std::to_string(n));
          trainer.step(batch, 1e-3, &next);
        } catch (const Error& e) {
          EXPECT_EQ(XSR_STATUS_CUDA, e.status()) << e.what();
          failed = true;
        }
        if (failed) {
          EXPECT_EQ(before, trainer.steps());
          if (n % 2 == 1) trainer.evaluate(large);
          trainer.step(batch, 1e-3);
        }
        trainer.step(next, 1e-3);
        EXPECT_TRUE(same_bits(undisturbed.values(), trainer.values()))
            << "piece " << n << " of the step behind " << before;
        return failed;
      };
      // Some of the pieces, and the last one.
      const int stride = before >= 2 ? 1 : test::kSlow ? 60 : 29;
      int n = 1;
      while (refused(n)) n += stride;
      EXPECT_GT(n, before >= 2 ? 2 : 50);
      for (int last = n - stride; n - last > 1;) {
        const int between = (last + n) / 2;
        (refused(between) ? last : n) = between;
      }
    }
  }
}

/// The others do not wait for it, and end with it.
TEST_F(CudaTrainerTest, ADeviceThatRefusesWorkEndsTheStepOfAll) {
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "2");
  ModelConfig config = small_config(32, 2);
  config.num_layers = 1;
  const PairBatch batch = make_batch(config, 2);
  for (const int before : {0, 1, 2}) {
    for (const int n : {1, 2, 30, 90}) {
      if (before == 2 && n > 2) continue;
      const auto two = on_devices(2, config, every_objective());
      initialize(*two);
      for (int i = 0; i < before; ++i) two->step(batch, 1e-3);
      const EnvironmentVariable failure("XSR_EMULATED_FAILURE", std::to_string(n));
      EXPECT_THROW(two->step(batch, 1e-3), Error) << "piece " << n << " behind " << before;
      EXPECT_EQ(before, two->steps());
    }
  }
}
#endif

TEST(SlicePairs, HasTheSentencesOfItsPairs) {
  const PairBatch batch = make_batch(small_config(), 7);
  for (int32_t first = 0; first <= 7; ++first) {
    for (int32_t last = first; last <= 7; ++last) {
      const PairBatch slice = slice_pairs(batch, first, last);
      ASSERT_EQ(last - first, slice.num_pairs);
      ASSERT_EQ(static_cast<size_t>(2 * slice.num_pairs + 1), slice.cu_seqlens.size());
      for (int32_t side = 0; side < 2; ++side) {
        for (int32_t b = 0; b < slice.num_pairs; ++b) {
          const auto sentence = [](const PairBatch& from, int32_t i) {
            return std::vector<int32_t>(from.token_ids.begin() + from.cu_seqlens[i],
                                        from.token_ids.begin() + from.cu_seqlens[i + 1]);
          };
          ASSERT_EQ(sentence(batch, side * 7 + first + b),
                    sentence(slice, side * slice.num_pairs + b));
        }
      }
      for (int32_t b = 0; b < slice.num_pairs; ++b) {
        const int32_t row = slice.masked_row[b];
        ASSERT_EQ(batch.masked_id[first + b], slice.masked_id[b]);
        ASSERT_EQ(batch.masked_id[first + b] < 0, row < 0);
        if (row >= 0) {
          ASSERT_EQ(small_config().mask_id, slice.token_ids[row]);
        }
      }
    }
  }
}

TEST_F(CudaTrainerTest, SeveralDevicesTakeTheStepOfOne) {
  const ModelConfig config = small_config();
  StepConfig step = every_objective();
  step.dropout = 0;
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "3");
  std::string why;
  const int32_t most = static_cast<int32_t>(cuda::devices(&why).size());
  for (int32_t count = test::kSlow ? std::min(most, 3) : 1; count <= std::min(most, 3); ++count) {
    CudaTrainerOptions options = tiles_of(32);
    CudaTrainer one(config, step, options);
    options.exchange = true;
    options.devices.resize(count);
    for (int32_t r = 0; r < count; ++r) options.devices[r] = r;
    std::optional<CudaTrainer> made;
    try {
      made.emplace(config, step, options);
    } catch (const Error& e) {
      if (e.status() != XSR_STATUS_UNSUPPORTED) throw;
      GTEST_SKIP() << e.what();  // NCCL is not installed
    }
    CudaTrainer& several = *made;
    initialize(one);
    initialize(several);
    // Of 2 pairs one of three devices has none; of 5 and of 6 the second of two has as many, but
    // not the other.
    std::vector<PairBatch> batches;
    for (const int32_t pairs : {5, 6, 2, 7, 7}) batches.push_back(make_batch(config, pairs));
    for (size_t k = 0; k < batches.size(); ++k) {
      const PairBatch& batch = batches[k];
      const StepResult a = one.step(batch, 1e-3);
      const StepResult b =
          several.step(batch, 1e-3, k + 1 < batches.size() ? &batches[k + 1] : nullptr);
      for (size_t i = 0; i < a.loss.parts.size(); ++i) {
        EXPECT_NEAR(a.loss.parts[i].value, b.loss.parts[i].value,
                    1e-5 * std::max(1e-2, std::fabs(a.loss.parts[i].value)))
            << a.loss.parts[i].name;
      }
      EXPECT_LT(relative_difference(several.gradients(), one.gradients()), 1e-5);
      ASSERT_EQ(one.embeddings().size(), several.embeddings().size());
      for (size_t i = 0; i < one.embeddings().size(); ++i)
        EXPECT_NEAR(one.embeddings()[i], several.embeddings()[i], 1e-4);
      EXPECT_NEAR(one.evaluate(batch).total, several.evaluate(batch).total, 1e-4 * a.loss.total);
    }
    EXPECT_LT(relative_difference(several.values(), one.values()), 1e-5);
    expect_masks_of_their_own(config, options);
    std::printf("  %d device%s\n", count, count == 1 ? "" : "s");
  }
}

/// NCCL's calls are to be captured on every device or on none, also where shares differ in tokens,
/// and where one device alone has got larger buffers, with which its graphs are gone.
TEST_F(CudaTrainerTest, DevicesHaveTheirGraphsTogether) {
  ModelConfig config = small_config(8, 2);
  config.num_layers = 1;
  config.num_positions = config.max_seq_len = 80;
  StepConfig step = every_objective();
  step.dropout = 0;
  /// Pairs of so many tokens a sentence; more than 32 are another number for two of them.
  const auto batch_of = [&](const std::vector<int32_t>& lengths) {
    const int32_t pairs = static_cast<int32_t>(lengths.size());
    PairBatch batch = make_batch(config, pairs);
    batch.token_ids.clear();
    batch.cu_seqlens = {0};
    for (int32_t b = 0; b < 2 * pairs; ++b) {
      for (int32_t i = 0; i < lengths[b % pairs]; ++i)
        batch.token_ids.push_back(3 + (7 * b + i) % 80);
      batch.cu_seqlens.push_back(static_cast<int32_t>(batch.token_ids.size()));
    }
    batch.masked_id.assign(pairs, -1);
    batch.masked_row.assign(pairs, -1);
    return batch;
  };
  struct Case {
    size_t devices;
    Precision precision;
    std::vector<std::vector<int32_t>> batches;
  };
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "5");
  bool any = false;
  // Of 3 pairs the third of five devices has none, of 2 it has one; in bf16 attention takes 65
  // tokens in chunks.
  for (const Case& c :
       {Case{2,
             Precision::kF32,
             {{33, 33, 9, 9}, {33, 33, 9, 9}, {33, 33, 33, 33}, {9, 9, 33, 33}, {9, 9, 9, 9}}},
        Case{2, Precision::kBF16, {{65, 9}, {65, 65}, {9, 65}}},
        Case{5, Precision::kF32, {{9, 9, 9}, {9, 9, 9}, {9, 9}, {9, 9, 9}}}}) {
    config.hidden_size = c.precision == Precision::kBF16 ? 32 : 8;
    step.precision = c.precision;
    const auto several = on_devices(c.devices, config, step);
    if (several == nullptr) break;  // fewer devices, or no NCCL
    any = true;
    CudaTrainer one(config, step, tiles_of(32));
    initialize(one);
    initialize(*several);
    for (const std::vector<int32_t>& lengths : c.batches) {
      const PairBatch batch = batch_of(lengths);
      const double expected = one.step(batch, 1e-3).loss.total;
      EXPECT_NEAR(expected, several->step(batch, 1e-3).loss.total, 1e-5 * std::fabs(expected));
      EXPECT_LT(relative_difference(several->gradients(), one.gradients()), 1e-5);
    }
  }
  if (!any) GTEST_SKIP() << "one device, or no NCCL";
}

/// The first batch has fewer pairs than there are devices: one has never had a sentence, and adds
/// nothing.
TEST_F(CudaTrainerTest, ADeviceMayHaveNoPairFromTheStart) {
  const EnvironmentVariable devices("XSR_EMULATED_DEVICES", "2");
  ModelConfig config = small_config(32, 2);
  config.num_layers = 1;
  const PairBatch batch = make_batch(config, 1);
  for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
    StepConfig step = every_objective();
    step.precision = precision;
    step.dropout = 0;
    const auto two = on_devices(2, config, step);
    if (two == nullptr) GTEST_SKIP() << "one device, or no NCCL";
    CudaTrainer one(config, step, tiles_of(32));
    initialize(one);
    initialize(*two);
    for (int i = 0; i < 2; ++i) {
      const double expected = one.step(batch, 1e-3).loss.total;
      EXPECT_NEAR(expected, two->step(batch, 1e-3).loss.total, 1e-5 * std::fabs(expected));
      EXPECT_LT(relative_difference(two->gradients(), one.gradients()), 1e-5);
    }
  }
}

/// As xsr-train gets it.
TEST_F(CudaTrainerTest, ComesOutOfItsLibrary) {
  setenv("XSR_TRAIN_CUDA_LIBRARY", "/no/such/library.so", 1);
  try {
    make_cuda_trainer(small_config(), release_step(), {});
    FAIL() << "loaded a library that is not there";
  } catch (const Error& e) {
    EXPECT_EQ(XSR_STATUS_CUDA, e.status());
    EXPECT_NE(nullptr, std::strstr(e.what(), "/no/such/library.so")) << e.what();
  }
  setenv("XSR_TRAIN_CUDA_LIBRARY", XSR_CUDA_MODULE, 1);
  EXPECT_FALSE(make_cuda_trainer(small_config(), release_step(), {})->device().empty());
  EXPECT_THROW(make_cuda_trainer(small_config(), release_step(), {{1000}}), Error);
}

TEST_F(CudaTrainerTest, SaysWhatItDoesNotTake) {
  CudaTrainerOptions far;
  far.devices = {1000};
  EXPECT_THROW(CudaTrainer(small_config(), release_step(), far), Error);
  EXPECT_THROW(CudaTrainer(small_config(26, 2), release_step()), Error);
  EXPECT_THROW(CudaTrainer(small_config(264, 2), release_step()), Error);
  EXPECT_THROW(CudaTrainer(small_config(), release_step(), tiles_of(7)), Error);
}

}  // namespace
}  // namespace xsr::training
