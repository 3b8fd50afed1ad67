// xsr-train-steps: xsr-train's own batches in a file for other trainers to read, and its own steps
// on the same batches, some at a time when told to. bench/peers/train_baseline.py is what uses it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "bench/peers/step_work.h"
#include "bench/program.h"
#include "bench/roofline.h"
#include "converter/json_text.h"
#include "kernels/dispatch.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/isa_choice.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "training/config.h"
#include "training/cpu_trainer.h"
#include "training/cuda_library.h"
#include "training/retrieval.h"
#include "training/run_data.h"
#include "training/schedule.h"
#include "training/tensor_file.h"

namespace {

using namespace xsr::training;
using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

/// The batches of a run's first steps, one behind the other.
struct Trace {
  std::vector<PairBatch> batches;
  std::vector<double> learning_rates;

  void write(const std::string& path, const TrainConfig& config, const RunData& data,
             const ParameterTable& table, const FlatBuffer& values) const;
};

void append_lengths(const PairBatch& batch, std::vector<int32_t>& lengths) {
  for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s)
    lengths.push_back(batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
}

template <typename T>
void append(const std::vector<T>& from, std::vector<int32_t>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

/// All of a trace in file order: sentences are those of side 1, then those of side 2, batch by
/// batch; dev.PART.* is one unmasked batch each.
void Trace::write(const std::string& path, const TrainConfig& config, const RunData& data,
                  const ParameterTable& table, const FlatBuffer& values) const {
  std::vector<int32_t> pairs, ids, lengths, masked_id, masked_side;
  for (const PairBatch& batch : batches) {
    pairs.push_back(batch.num_pairs);
    append(batch.token_ids, ids);
    append_lengths(batch, lengths);
    append(batch.masked_id, masked_id);
    append(batch.masked_side, masked_side);
  }
  TensorFile file;
  file.add("learning_rate", "F64", learning_rates);
  file.add("batch.pairs", "I32", pairs);
  file.add("batch.lengths", "I32", lengths);
  file.add("batch.token_ids", "I32", ids);
  file.add("batch.masked_id", "I32", masked_id);
  file.add("batch.masked_side", "I32", masked_side);
  std::vector<PairBatch> dev(data.dev_parts.size());
  std::vector<std::vector<int32_t>> dev_lengths(dev.size());
  for (size_t i = 0; i < dev.size(); ++i) {
    BatchBuilder(data.dev, -1, {}, config.seed).build(data.dev_parts[i].pairs, dev[i]);
    append_lengths(dev[i], dev_lengths[i]);
    file.add("dev." + data.dev_parts[i].name + ".lengths", "I32", dev_lengths[i]);
    file.add("dev." + data.dev_parts[i].name + ".token_ids", "I32", dev[i].token_ids);
  }
  for (const Parameter& p : table.parameters())
    file.add("value." + p.name, "F32", p.shape, values.at(p), static_cast<size_t>(p.size));
  const ordered_json model = {{"num_layers", data.model.num_layers},
                              {"num_heads", data.model.num_heads},
                              {"layer_norm_eps", data.model.layer_norm_eps},
                              {"position_offset", data.model.position_offset},
                              {"activation", xsr::to_string(data.model.activation)},
                              {"pooling", xsr::to_string(data.model.pooling)}};
  const auto& o = config.step.objectives;
  const ordered_json objective = {
      {"weights", {o.ugt_weight, o.align_weight, o.sim_weight}},
      {"other_weights", o.xtr_weight + o.smlm_weight + o.info_nce_weight},
      {"as_released", !o.targets.count_weighted && !o.targets.clean_ids && !o.targets.add_masses &&
                          !o.align.cosine && o.align.temperature == 1 &&
                          !o.align.mean_of_directions && o.align.margin == 0 &&
                          o.sim.argument == SimSettings{}.argument && !o.sim.divide_by_negatives},
      {"sim_min_cosine", o.sim.min_cosine}};
  const auto& a = config.step.optimizer;
  const ordered_json optimizer = {{"amsgrad", a.amsgrad},
                                  {"decoupled_decay", a.decoupled_decay},
                                  {"beta1", a.beta1},
                                  {"beta2", a.beta2},
                                  {"eps", a.eps},
                                  {"weight_decay", a.weight_decay},
                                  {"clip_norm", a.clip_norm}};
  file.write(path, file.head({{"model", xsr::json_text(model)},
                              {"objective", xsr::json_text(objective)},
                              {"optimizer", xsr::json_text(optimizer)},
                              {"dropout", xsr::json_text(ordered_json(config.step.dropout))},
                              {"config", xsr::json_text(ordered_json(fixed_values(config)))}}));
}

/// Answers the lines of stdin with a line of JSON each, until there are no more:
///
///     step N      the next N steps, from the first again behind the last batch
///     evaluate    P@1 of the dev parts
///     roofline    measures the machine; the best of all measurements so far
class StepServer {
 public:
  StepServer(const TrainConfig& config, const RunData& data, const Trace& trace, Trainer& trainer,
             xsr::kernels::Isa isa, xsr::ThreadPool& threads)
      : config_(config),
        data_(data),
        trace_(trace),
        trainer_(trainer),
        threads_(threads),
        meter_(config.step.precision, isa, threads.num_threads(),
               trainer.table().size() * int64_t{sizeof(float)}) {}

  void serve() {
    for (std::string line; std::getline(std::cin, line);) {
      ordered_json answer;
      if (int64_t count = 0; parse_step(line, &count)) {
        answer = steps(count);
      } else if (line == "evaluate") {
        answer = evaluate();
      } else if (line == "roofline") {
        if (config_.device != "cpu") {
          throw xsr::Error(XSR_STATUS_UNSUPPORTED,
                           "the roofline is the processor's; xsr-train-bench measures a device's");
        }
        meter_.measure();
        const xsr::bench::StepRoofline roofline = meter_.roofline();
        answer = {{"peak_gflops", roofline.encoder.peak_gflops},
                  {"objectives_peak_gflops", roofline.objectives.peak_gflops},
                  {"read_gb_per_s", roofline.objectives.read_gb_per_s}};
      } else {
        throw xsr::Error(
            XSR_STATUS_INVALID_ARGUMENT,
            "stdin has \"" + line + "\", expected \"step N\", \"evaluate\" or \"roofline\"");
      }
      fmt::print("{}\n", xsr::json_text(answer));
      std::fflush(stdout);
    }
  }

 private:
  static bool parse_step(std::string_view line, int64_t* count) {
    constexpr std::string_view kStep = "step ";
    if (!line.starts_with(kStep)) return false;
    line.remove_prefix(kStep.size());
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), *count);
    return error == std::errc() && end == line.data() + line.size() && *count >= 0;
  }

  ordered_json steps(int64_t count) {
    ordered_json losses = ordered_json::array(), parts = ordered_json::array(),
                 norms = ordered_json::array();
    int64_t pairs = 0, tokens = 0;
    StepSeconds took;
    xsr::bench::StepWork work;
    const Clock::time_point begin = Clock::now();
    for (int64_t i = 0; i < count; ++i) {
      const size_t at = next_++ % trace_.batches.size();
      const StepResult result = trainer_.step(trace_.batches[at], trace_.learning_rates[at],
                                              &trace_.batches[next_ % trace_.batches.size()]);
      took.forward += result.seconds.forward;
      took.objectives += result.seconds.objectives;
      took.backward += result.seconds.backward;
      took.update += result.seconds.update;
      work.add(config_.step, data_.model, trainer_.table().size(), trace_.batches[at]);
      losses.push_back(result.loss.total);
      norms.push_back(result.gradient_norm);
      ordered_json part;
      for (const LossPart& p : result.loss.parts) part[std::string(p.name)] = p.value;
      parts.push_back(part);
      pairs += trace_.batches[at].num_pairs;
      tokens += trace_.batches[at].num_tokens();
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return {
        {"seconds", seconds},
        {"pairs", pairs},
        {"tokens", tokens},
        {"loss", losses},
        {"parts", parts},
        {"gradient_norm", norms},
        {"part_seconds",
         {{"forward", took.forward},
          {"objectives", took.objectives},
          {"backward", took.backward},
          {"update", took.update}}},
        {"part_flop",
         {{"forward", work.forward}, {"objectives", work.objectives}, {"backward", work.backward}}},
        {"update_bytes", work.update_bytes}};
  }

  ordered_json evaluate() {
    ordered_json scores = ordered_json::object();
    const BatchBuilder plain(data_.dev, -1, {}, config_.seed);
    for (const RunData::DevPart& part : data_.dev_parts) {
      const xsr::RetrievalScore score =
          score_pairs(trainer_, plain, part.pairs, config_.sampler, threads_);
      scores[part.name] = {score.forward_share(), score.backward_share()};
    }
    return scores;
  }

  const TrainConfig& config_;
  const RunData& data_;
  const Trace& trace_;
  Trainer& trainer_;
  xsr::ThreadPool& threads_;
  xsr::bench::StepMeter meter_;
  size_t next_ = 0;
};

void run(const TrainConfig& config, int64_t num_steps, const std::string& output) {
  validate(config);
  make_folder(config.run);
  xsr::ThreadPool threads(config.threads);
  const RunData data = prepare_data(config, false, threads, {});
  for (const InputFile& input : data.inputs) xsr::require_other_file({input.path}, output);
  const xsr::kernels::Isa isa = xsr::choose_isa(config.isa);
  const xsr::kernels::KernelTable kernels = xsr::kernels::resolve_kernels(isa);
  const std::vector<int32_t> devices = xsr::cuda_devices_of(config.device);
  const std::unique_ptr<Trainer> trainer =
      devices.empty() ? std::make_unique<CpuTrainer>(data.model, config.step, kernels, threads)
                      : make_cuda_trainer(data.model, config.step, {devices});
  data.initialize(config, *trainer);
  PairSampler sampler = data.sampler(config);
  Schedule schedule = config.schedule;
  schedule.total_steps = num_steps;
  DataPosition position;
  Trace trace;
  for (int64_t step = 1; step <= num_steps; ++step) {
    const auto epoch = static_cast<int64_t>(position.epoch);
    sampler.next(position, trace.batches.emplace_back());
    trace.learning_rates.push_back(schedule.at(step, epoch));
  }
  if (!output.empty()) trace.write(output, config, data, trainer->table(), trainer->values());
  fmt::print("{}\n",
             xsr::json_text(ordered_json{{"device", trainer->device()},
                                         {"isa", xsr::kernels::isa_name(isa)},
                                         {"threads", threads.num_threads()},
                                         {"precision", precision_name(config.step.precision)},
                                         {"steps", num_steps}}));
  std::fflush(stdout);
  StepServer(config, data, trace, *trainer, isa, threads).serve();
}

}  // namespace

int main(int argc, char** argv) {
  std::string config_path, output;
  std::vector<std::string> settings;
  int64_t num_steps = 0;
  CLI::App app{"Writes the batches of xsr-train's first steps to a file, then makes the steps."};
  app.add_option("--config", config_path, "The run's config (TOML)");
  app.add_option("--set", settings, "KEY=VALUE over the config, any number of them");
  app.add_option("--steps", num_steps, "Batches to draw")
      ->required()
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000'000}));
  app.add_option("-o,--output", output, "Batches, dev pairs and initial values (safetensors)");
  return xsr::bench::run_program("xsr-train-steps", app, argc, argv, "cpu", [&] {
    std::vector<FlagValue> flags;
    for (const std::string& setting : settings) {
      const std::string key = setting.substr(0, setting.find('='));
      const std::string value = key.size() < setting.size() ? setting.substr(key.size() + 1) : "";
      const auto at = std::find_if(flags.begin(), flags.end(),
                                   [&](const FlagValue& flag) { return flag.key == key; });
      if (at == flags.end()) {
        flags.push_back({key, {value}});
      } else {
        at->values.push_back(value);
      }
    }
    run(load_config(config_path, flags), num_steps, output);
    return 0;
  });
}
