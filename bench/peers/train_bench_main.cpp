// xsr-train-bench: how long a step of training takes, on the processor or on a CUDA device, and how
// far that is from what the machine can do. Made-up pairs: it needs no data.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/device_meter.h"
#include "bench/json_file.h"
#include "bench/machine.h"
#include "bench/peers/step_work.h"
#include "bench/program.h"
#include "bench/random_model.h"
#include "bench/roofline.h"
#include "bench/statistics.h"
#include "bench/workload.h"
#include "converter/json_text.h"
#include "kernels/dispatch.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/isa_choice.h"
#include "runtime/error.h"
#include "runtime/option_checks.h"
#include "training/cpu_trainer.h"
#include "training/cuda_library.h"
#include "training/initialization.h"
#include "training/presets.h"

namespace xsr::bench {
namespace {

using namespace training;
using nlohmann::ordered_json;

constexpr uint32_t kSeed = 20261128;
// Batches that come again and again, of different numbers of tokens as a corpus has them.
constexpr int32_t kBatches = 8;
constexpr int32_t kCheckedPairs = 8;

struct Options {
  std::vector<int32_t> random, pairs{128, 1024};
  std::string device = "cpu", precision = "f32", json;
  int32_t threads = 0;
  int32_t vocabulary_tile = 0;  // 0: the trainer's own
  bool exchange = false;
  double seconds = 5;
};

ModelConfig model_of(const std::vector<int32_t>& random) {
  ModelConfig model;
  model.num_layers = random[0];
  model.hidden_size = model.embedding_size = random[1];
  model.num_heads = random[2];
  model.intermediate_size = random[3];
  model.vocab_size = random[4];
  model.max_seq_len = 200;
  model.position_offset = 1;
  model.num_positions = model.max_seq_len + model.position_offset;
  model.mask_id = 2;
  validate(model);
  return model;
}

/// XTR, amsgrad with weight decay and no clipping, dropout.
StepConfig step_of(const std::string& precision) {
  StepConfig step;
  step.objectives = objective_preset(Preset::kRelease);
  ObjectiveConfig& o = step.objectives;
  o.ugt_weight = o.smlm_weight = o.align_weight = o.sim_weight = o.info_nce_weight = 0;
  o.xtr_weight = 1;
  step.optimizer = optimizer_preset(Preset::kRelease);
  step.precision = precision == "int8"   ? Precision::kInt8
                   : precision == "bf16" ? Precision::kBF16
                                         : Precision::kF32;
  return step;
}

PairBatch random_batch(const ModelConfig& model, int32_t pairs, uint32_t seed) {
  const IdBatch ids = log_normal_sentences(2 * pairs, model.vocab_size, model.max_seq_len, seed);
  PairBatch batch;
  batch.num_pairs = pairs;
  batch.token_ids = ids.token_ids;
  batch.cu_seqlens.assign(ids.offsets.begin(), ids.offsets.end());
  batch.masked_id.assign(static_cast<size_t>(pairs), -1);
  batch.masked_row = batch.masked_id;
  batch.masked_side.assign(static_cast<size_t>(pairs), 0);
  for (int32_t b = 0; b < pairs; ++b) batch.pair_numbers.push_back(static_cast<uint64_t>(b));
  return batch;
}

void initialize(Trainer& trainer) {
  initialize_parameters(trainer.config(), trainer.table(), kSeed, trainer.mutable_values());
}

/// Loss and norm of the gradient beside those of plain loops in f32, on few pairs. The trainer's
/// dropout is `dropout`.
ordered_json check(const Options& options, const ModelConfig& model, double dropout,
                   Trainer& trainer, ThreadPool& threads) {
  const kernels::KernelTable plain = kernels::resolve_kernels(kernels::Isa::kRef);
  StepConfig step = step_of("f32");
  step.dropout = dropout;
  CpuTrainer reference(model, step, plain, threads);
  initialize(reference);
  initialize(trainer);
  const PairBatch batch = random_batch(model, kCheckedPairs, kSeed);
  const StepResult wanted = reference.step(batch, 0), found = trainer.step(batch, 0);
  trainer.set_steps(0);
  const double loss = std::fabs(found.loss.total / wanted.loss.total - 1),
               norm = std::fabs(found.gradient_norm / wanted.gradient_norm - 1);
  const double allowed = options.precision == "f32" ? 1e-4 : 2e-2;
  if (!(loss <= allowed && norm <= allowed)) {
    throw Error(XSR_STATUS_INTERNAL,
                fmt::format("a step's loss differs from that of plain loops in f32 by {:.3g} of "
                            "it, its gradient's norm by {:.3g}, allowed is {:.3g}; a wrong result "
                            "is not timed",
                            loss, norm, allowed));
  }
  return {{"loss", loss}, {"gradient_norm", norm}, {"allowed", allowed}};
}

/// The trainer's machine at its best.
class Meter {
 public:
  Meter(const Options& options, const Trainer& trainer, kernels::Isa isa, int32_t threads) {
    if (options.device == "cpu") {
      cpu_.emplace(step_of(options.precision).precision, isa, threads,
                   trainer.table().size() * int64_t{sizeof(float)});
      return;
    }
    const bool bf16 = options.precision == "bf16";
    // The products that it measures are its own; the model is there because an encoder has one.
    model_ = std::make_unique<RandomModel>(RandomShape{1, 32, 1, 32, 16},
                                           bf16 ? DType::kBF16 : DType::kF32, kSeed);
    file_ = XsrFile::open_memory(model_->data(), model_->size());
    device_.emplace(*file_,
                    bf16                          ? XSR_COMPUTE_BF16
                    : options.precision == "tf32" ? XSR_COMPUTE_TF32
                                                  : XSR_COMPUTE_F32,
                    false, 0, options.device);
  }
  void measure() { cpu_ ? cpu_->measure() : device_->measure(); }
  StepRoofline roofline() const {
    return cpu_ ? cpu_->roofline() : StepRoofline{device_->roofline(), device_->roofline()};
  }

 private:
  std::optional<StepMeter> cpu_;
  std::unique_ptr<RandomModel> model_;
  std::unique_ptr<XsrFile> file_;
  std::optional<DeviceMeter> device_;
};

/// Steps of one size of batch.
struct Timing {
  int32_t pairs = 0;
  double tokens = 0;  // of a batch, the mean
  std::vector<double> seconds;
  StepWork work;  // of the mean batch
};

Timing measure(const Options& options, const ModelConfig& model, Trainer& trainer, int32_t pairs) {
  using Clock = std::chrono::steady_clock;
  Timing timing;
  timing.pairs = pairs;
  std::vector<PairBatch> batches;
  StepWork all;
  for (int32_t i = 0; i < kBatches; ++i) {
    batches.push_back(random_batch(model, pairs, kSeed + 1 + static_cast<uint32_t>(i)));
    timing.tokens += static_cast<double>(batches.back().num_tokens()) / kBatches;
    all.add(step_of(options.precision), model, trainer.table().size(), batches.back());
  }
  timing.work = {all.forward / kBatches, all.objectives / kBatches, all.backward / kBatches,
                 all.update_bytes / kBatches};
  // On a device a shape runs as it stands, then is captured, then is a graph.
  const size_t untimed = options.device == "cpu" ? 1 : 3 * kBatches;
  constexpr double kLearningRate = 1e-4;
  const auto step = [&](size_t i) {
    trainer.step(batches[i % kBatches], kLearningRate, &batches[(i + 1) % kBatches]);
  };
  for (size_t i = 0; i < untimed; ++i) step(i);
  const Clock::time_point begin = Clock::now();
  for (size_t i = 0; i % kBatches != 0 || i == 0 ||
                     std::chrono::duration<double>(Clock::now() - begin).count() < options.seconds;
       ++i) {
    const Clock::time_point start = Clock::now();
    step(i);
    timing.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  return timing;
}

void run(const Options& options) {
  const ModelConfig model = model_of(options.random);
  const std::vector<int32_t> devices = cuda_devices_of(options.device);
  if (!devices.empty() && options.precision == "int8") {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "--precision int8 is for the processor; a CUDA device takes f32, tf32 or bf16");
  }
  if (devices.empty() && (options.exchange || options.precision == "tf32")) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "--exchange and --precision tf32 are for CUDA devices alone; give --device cuda");
  }
  if (devices.empty() && options.vocabulary_tile != 0) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "--vocabulary-tile is for CUDA devices alone; give --device cuda");
  }
  require_writable(options.json);
  ThreadPool threads(options.threads);
  const kernels::Isa isa = choose_isa(std::nullopt);
  const kernels::KernelTable kernels = kernels::resolve_kernels(isa);
  const StepConfig step = step_of(options.precision);
  const auto make_trainer = [&](const StepConfig& config) -> std::unique_ptr<Trainer> {
    if (devices.empty()) return std::make_unique<CpuTrainer>(model, config, kernels, threads);
    CudaTrainerOptions cuda;
    cuda.devices = devices;
    cuda.exchange = options.exchange;
    cuda.tf32 = options.precision == "tf32";
    cuda.vocabulary_tile = options.vocabulary_tile;
    return make_cuda_trainer(model, config, cuda);
  };
  ordered_json checked;
  if (devices.size() > 1) {  // whose masks of dropout are others than the processor's
    StepConfig whole = step;
    whole.dropout = 0;
    checked = check(options, model, whole.dropout, *make_trainer(whole), threads);
  }
  const std::unique_ptr<Trainer> trainer = make_trainer(step);
  if (devices.size() <= 1) checked = check(options, model, step.dropout, *trainer, threads);
  Meter meter(options, *trainer, isa, threads.num_threads());
  meter.measure();
  std::vector<Timing> timings;
  for (const int32_t pairs : options.pairs) {
    initialize(*trainer);
    timings.push_back(measure(options, model, *trainer, pairs));
    meter.measure();
  }
  const StepRoofline roofline = meter.roofline();

  std::FILE* const table = table_stream(options.json);
  fmt::print(table,
             "machine   {}, {}; {} threads; {}{}\nbuild     xsr {}, {}, commit {}\n"
             "roofline  {:.1f} GFLOP/s, the objectives' {:.1f}; {:.1f} "
             "GB/s\n{:>8}{:>10}{:>8}{:>12}{:>12}{:>12}{:>8}\n",
             trainer->device(), cpu_model(), threads.num_threads(), options.precision,
             options.exchange ? ", talking to itself" : "", xsr_version_string(), compiler(),
             commit(), roofline.encoder.peak_gflops, roofline.objectives.peak_gflops,
             roofline.objectives.read_gb_per_s, "pairs", "tokens", "steps", "ms a step", "pairs/s",
             "floor ms", "share");
  ordered_json batches = ordered_json::array();
  for (const Timing& t : timings) {
    const double p50 = median(t.seconds), floor = t.work.floor_seconds(roofline);
    fmt::print(table, "{:>8}{:>10.0f}{:>8}{:>12.3f}{:>12.0f}{:>12.3f}{:>8.3f}\n", t.pairs, t.tokens,
               t.seconds.size(), 1e3 * p50, t.pairs / p50, 1e3 * floor, floor / p50);
    batches.push_back({{"pairs", t.pairs},
                       {"tokens", t.tokens},
                       {"steps", t.seconds.size()},
                       {"median_ms", 1e3 * p50},
                       {"p10_ms", 1e3 * percentile(t.seconds, 0.1)},
                       {"p90_ms", 1e3 * percentile(t.seconds, 0.9)},
                       {"pairs_per_s", t.pairs / p50},
                       {"floor_ms", 1e3 * floor},
                       {"floor_products_ms", 1e3 * t.work.product_seconds(roofline)},
                       {"floor_update_ms", 1e3 * t.work.update_seconds(roofline)},
                       {"share_of_floor", floor / p50}});
  }
  if (options.json.empty()) return;
  const ordered_json report = {{"device", trainer->device()},
                               {"cpu", cpu_model()},
                               {"threads", threads.num_threads()},
                               {"isa", kernels::isa_name(isa)},
                               {"precision", options.precision},
                               {"exchange", options.exchange},
                               {"vocabulary_tile", options.vocabulary_tile},
                               {"model", options.random},
                               {"parameters", trainer->table().size()},
                               {"objective", "xtr"},
                               {"optimizer", "adam, amsgrad"},
                               {"check", checked},
                               {"roofline",
                                {{"peak_gflop_per_s", roofline.encoder.peak_gflops},
                                 {"objectives_peak_gflop_per_s", roofline.objectives.peak_gflops},
                                 {"gb_per_s", roofline.objectives.read_gb_per_s}}},
                               {"batches", batches},
                               {"xsr", xsr_version_string()},
                               {"compiler", compiler()},
                               {"commit", commit()}};
  write_json(options.json, json_text(report, 2) + "\n");
}

}  // namespace
}  // namespace xsr::bench

int main(int argc, char** argv) {
  xsr::bench::Options options;
  CLI::App app(
      "Times steps of training on made-up pairs (XTR, Adam with amsgrad, dropout), and gives their "
      "share of the floor: the products of linear layers and vocabulary at the rate of large "
      "products, then the update's bytes at the rate of memory, both measured in the same run. "
      "Checks loss and gradient against plain loops first and refuses to time wrong ones.");
  app.set_version_flag("--version", std::string("xsr-train-bench ") + xsr_version_string());
  app.add_option("--random", options.random,
                 "the model: layers,hidden,heads,intermediate,vocabulary, e.g. 2,512,8,1024,50000")
      ->delimiter(',')
      ->expected(5)
      ->check(CLI::Range(1, std::numeric_limits<int32_t>::max()))
      ->required();
  app.add_option("--pairs", options.pairs,
                 "of a batch, one or more sizes; sentences of log-normal lengths, 24.9 tokens in "
                 "the mean")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--device", options.device,
                 "cpu; cuda; or cuda:0,1 for several that share every batch")
      ->capture_default_str();
  app.add_option("--precision", options.precision, "what the matrix products read")
      ->check(CLI::IsMember({"f32", "tf32", "bf16", "int8"}))
      ->capture_default_str();
  app.add_flag("--exchange", options.exchange,
               "a single CUDA device goes the way of several, by NCCL, talking to itself");
  app.add_option("--vocabulary-tile", options.vocabulary_tile,
                 "words whose logits a CUDA device holds at a time, a multiple of 16; as many as "
                 "the vocabulary has: none are computed twice; 0: the trainer's choice")
      ->check(CLI::Range(0, std::numeric_limits<int32_t>::max() - 15));
  app.add_option("--threads", options.threads, "0: all processors")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of timing for each size of batch")
      ->check(xsr::number_within(0.001, 3600))
      ->capture_default_str();
  app.add_option("--json", options.json,
                 "write the figures to this file, - for stdout (the table then goes to stderr)")
      ->check(xsr::names_one());
  return xsr::bench::run_program("xsr-train-bench", app, argc, argv, options.device, [&] {
    xsr::bench::run(options);
    return 0;
  });
}
