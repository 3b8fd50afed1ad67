#include "training/run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "converter/json_text.h"
#include "kernels/dispatch.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/isa_choice.h"
#include "runtime/device/machine.h"
#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "runtime/format/partial_file.h"
#include "runtime/text/progress.h"
#include "runtime/text/standard_streams.h"
#include "runtime/text/utf8.h"
#include "training/checkpoint.h"
#include "training/cpu_trainer.h"
#include "training/cuda_library.h"
#include "training/data/log.h"
#include "training/data/pair_stream.h"
#include "training/metrics.h"
#include "training/model_file.h"
#include "training/retrieval.h"
#include "training/run_data.h"
#include "xsr/xsr.h"

namespace xsr::training {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Keeps a second process out of the run's folder, where the file system can lock; the system lets
/// go of it when this one dies.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder)
      : folder_(folder),
        fd_(::open((folder + "/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (fd_ < 0) {
      throw Error(XSR_STATUS_IO, folder + ": cannot create the file .lock in it: " +
                                     std::generic_category().message(errno));
    }
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(fd_);
      throw Error(XSR_STATUS_IO, folder + ": another xsr-train works in this folder");
    }
    folder_fd_ = ::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  }
  ~FolderLock() {
    ::close(fd_);
    if (folder_fd_ >= 0) ::close(folder_fd_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  /// Throws Error(IO) where the folder is no more what was locked: what has its name now may be
  /// another run's.
  void require_kept() const {
    if (folder_fd_ < 0 || has_name(folder_fd_, folder_)) return;
    throw Error(XSR_STATUS_IO, folder_ +
                                   ": the folder was moved or removed while the run went on, and "
                                   "nothing of it is written to what has that name now");
  }

 private:
  const std::string folder_;
  int fd_, folder_fd_ = -1;
};

/// What a checkpoint keeps of the trainer, and what the tensors' names begin with.
constexpr std::pair<State, const char*> kStates[] = {{State::kValue, "value."},
                                                     {State::kFirstMoment, "moment1."},
                                                     {State::kSecondMoment, "moment2."},
                                                     {State::kMaxSecondMoment, "max_moment2."}};

/// Losses of several batches, each part's weighted mean.
class LossMean {
 public:
  void add(const LossParts& loss, double weight) {
    if (parts_.size() != loss.parts.size()) parts_.assign(loss.parts.size(), {});
    for (size_t i = 0; i < parts_.size(); ++i) {
      parts_[i].first = loss.parts[i].name;
      parts_[i].second += weight * loss.parts[i].value;
    }
    total_ += weight * loss.total;
    weight_ += weight;
  }
  double total() const { return total_ / weight_; }
  ordered_json json() const {
    ordered_json out = {{"total", total()}};
    for (const auto& [name, sum] : parts_) out[std::string(name)] = sum / weight_;
    return out;
  }
  std::string text() const {
    std::string out = fmt::format("loss {:.4g}", total());
    for (size_t i = 0; i < parts_.size(); ++i) {
      out += fmt::format("{}{} {:.4g}", i == 0 ? " (" : ", ", parts_[i].first,
                         parts_[i].second / weight_);
    }
    return out + (parts_.empty() ? "" : ")");
  }

 private:
  std::vector<std::pair<std::string_view, double>> parts_;
  double total_ = 0, weight_ = 0;
};

struct DevScores {
  LossMean loss;
  std::vector<std::pair<std::string, RetrievalScore>> parts;

  double mean_p1() const {
    double sum = 0;
    for (const auto& [name, score] : parts) sum += score.mean();
    return sum / static_cast<double>(parts.size());
  }
  ordered_json p1_json() const {
    ordered_json out = {{"mean", mean_p1()}};
    for (const auto& [name, score] : parts) {
      out[name] = {{"forward", score.forward_share()}, {"backward", score.backward_share()}};
    }
    return out;
  }
};

class Run {
 public:
  Run(const TrainConfig& config, const RunOptions& options)
      : config_(config),
        options_(options),
        terminal_(::isatty(STDERR_FILENO) != 0),
        lock_(make_folder(config.run)),
        threads_(config.threads),
        license_(license_text(config)) {
    // Known now, and not when the data is ready.
    if (const auto devices = cuda_devices_of(config.device); !devices.empty())
      require_cuda_training(devices);
    open_checkpoint();
    isa_ = checkpoint_ ? isa_of_checkpoint() : choose_isa(config.isa);
    kernels_ = kernels::resolve_kernels(isa_);
    DataLog log;
    if (!options.quiet) log = stderr_data_log(options.stop);
    log.stop = options.stop;
    data_ = prepare_data(config, checkpoint_ != nullptr, threads_, log,
                         [&](std::span<const InputFile> inputs) { check_inputs(inputs); });
    if (initial_input_) data_.inputs.push_back(*initial_input_);
    trainer_ = make_trainer();
    PairSampler sampler = data_.sampler(config);
    batches_per_epoch_ = static_cast<int64_t>(sampler.batches_per_epoch());
    total_steps_ =
        config.steps > 0 ? config.steps : std::max<int64_t>(1, batches_per_epoch_ * config.epochs);
    schedule_ = config.schedule;
    schedule_.total_steps = total_steps_;
    validate(schedule_);
    restore_or_initialize();
    checkpoint_.reset();
    stream_ = std::make_unique<PairStream>(std::move(sampler), position_);
    metrics_ = std::make_unique<MetricsLog>(config.run, resumed_ ? step() : -1,
                                            evaluation_due_.has_value());
  }

  RunEnd run() {
    say_what_is_trained();
    start_ = last_log_ = last_checkpoint_ = Clock::now();
    first_step_ = step();
    try {
      take_steps();
    } catch (const Stopped&) {
      save_checkpoint();
      return stopped();
    }
    try {
      finish();
    } catch (const Stopped&) {  // the last checkpoint is there, and other weights in the trainer
      return stopped();
    }
    return RunEnd::kDone;
  }

 private:
  void take_steps() {
    PairBatch batch;
    if (evaluation_due_) end_step();
    while (!finished()) {
      throw_if_stopped();
      const uint64_t epoch = position_.epoch;
      stream_->next(batch);
      position_ = stream_->position();
      train_on(batch, epoch);
      const bool epoch_ended = position_.epoch != epoch;
      if (step() % config_.log_every == 0 || is_last_step()) log_step(epoch);
      const bool due = config_.eval_every > 0 ? step() % config_.eval_every == 0 : epoch_ended;
      if (!data_.dev_parts.empty() && (due || is_last_step())) evaluation_due_ = epoch;
      end_step();
    }
  }
  /// What comes behind a step; a run that was stopped in an evaluation begins with it.
  void end_step() {
    if (evaluation_due_) {
      evaluate(*evaluation_due_);
      // By patience it was the last step, which only the evaluation could tell.
      if (finished() && interval_steps_ > 0) log_step(*evaluation_due_);
      evaluation_due_.reset();
    }
    if (finished() || checkpoint_due()) save_checkpoint();
  }
  RunEnd stopped() {
    say(fmt::format("stopped behind step {}; go on with --resume {}", with_separators(step()),
                    config_.run));
    return RunEnd::kStopped;
  }

  std::unique_ptr<Trainer> make_trainer() {
    const std::vector<int32_t> devices = cuda_devices_of(config_.device);
    if (!devices.empty()) return make_cuda_trainer(data_.model, config_.step, {devices});
    return std::make_unique<CpuTrainer>(data_.model, config_.step, kernels_, threads_);
  }
  /// Read at once: what it lacks is to be known before the training, not behind it.
  static std::string license_text(const TrainConfig& config) {
    std::string text = text_or_file(config.license);
    if (is_valid_utf8(text)) return text;
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                fmt::format("model.license: {} is not UTF-8, which model.xsr keeps the terms in; "
                            "convert it (iconv -t UTF-8)",
                            config.license));
  }
  std::string path(const std::string& name) const { return config_.run + "/" + name; }
  std::string checkpoint_path() const { return run_checkpoint_path(config_.run); }
  std::string weights_path(int64_t step) const {
    return path("weights-" + std::to_string(step) + ".safetensors");
  }
  int64_t step() const { return trainer_->steps(); }
  void throw_if_stopped() const {
    if (options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed)) throw Stopped();
  }
  bool is_last_step() const {
    return config_.steps > 0 ? step() >= config_.steps
                             : static_cast<int64_t>(position_.epoch) >= config_.epochs;
  }
  bool finished() const {
    return is_last_step() || (config_.patience > 0 && worse_evaluations_ >= config_.patience);
  }

  // ---- words for people ----

  void say(const std::string& text) {
    clear_line();
    if (!options_.quiet) tell(fmt::format("xsr-train: {}\n", text));
  }
  void clear_line() {
    if (line_shown_) std::fputs("\r\x1B[K", stderr);
    line_shown_ = false;
  }
  void say_what_is_trained() {
    int64_t parameters = 0;
    for (const Parameter& p : trainer_->table().parameters()) parameters += p.size;
    uint64_t dev_pairs = 0;
    for (const RunData::DevPart& part : data_.dev_parts) dev_pairs += part.pairs.size();
    say(fmt::format(
        "{} layers of {}, vocabulary {}, {} parameters; {} pairs to train on, {} for dev, {} steps "
        "of {} epochs; {}{} threads, {}, {}",
        data_.model.num_layers, data_.model.hidden_size, with_separators(data_.model.vocab_size),
        with_separators(parameters),
        with_separators(data_.train->num_pairs() - data_.excluded.size()),
        with_separators(dev_pairs), with_separators(total_steps_),
        config_.steps > 0 ? fmt::format("{:.1f}", static_cast<double>(total_steps_) /
                                                      static_cast<double>(
                                                          std::max<int64_t>(1, batches_per_epoch_)))
                          : std::to_string(config_.epochs),
        config_.device == "cpu" ? "" : trainer_->device() + ", ", threads_.num_threads(),
        kernels::isa_name(isa_), precision_name(config_.step.precision)));
    if (config_.device == "cpu" && config_.step.precision == Precision::kBF16 &&
        isa_ < kernels::Isa::kAvx512Bf16) {
      say(fmt::format("precision is bf16, which with these instructions ({}) is slower than f32",
                      kernels::isa_name(isa_)));
    }
    if (const std::vector<std::string> idle = idle_keys(config_); !idle.empty())
      say(fmt::format("without effect: {}", fmt::join(idle, ", ")));
    if (resumed_) say(fmt::format("goes on behind step {}", with_separators(step())));
  }
  std::string progress_text(uint64_t epoch, const LossMean& loss, double rate, double token_rate,
                            double learning_rate, double norm) const {
    const double done = static_cast<double>(step() - first_step_);
    const double left = static_cast<double>(total_steps_ - step());
    return fmt::format(
        "step {}/{}, epoch {}: {}; {:.0f} pairs/s, {:.0f} tokens/s, lr {:.3g}, gradient {:.3g}, {} "
        "left",
        with_separators(step()), with_separators(total_steps_), epoch, loss.text(), rate,
        token_rate, learning_rate, norm,
        clock_time(done > 0 ? seconds_since(start_) / done * left : 0));
  }

  // ---- one step ----

  void train_on(const PairBatch& batch, uint64_t epoch) {
    const double rate = schedule_.at(step() + 1, static_cast<int64_t>(epoch));
    StepResult result;
    try {
      result = trainer_->step(batch, rate, stream_->peek());
    } catch (const NonFiniteError& error) {
      throw Error(XSR_STATUS_INTERNAL,
                  fmt::format("step {}: {} is not finite (learning rate {:g}). The batch is {}. "
                              "{}. A lower schedule.learning_rate, optimizer.clip_norm and "
                              "objective.sim_min_cosine make such steps rarer.",
                              step() + 1, error.where(), rate, places(batch),
                              fs::exists(checkpoint_path())
                                  ? "The last checkpoint, " + checkpoint_path() + ", is as it was"
                                  : "There is no checkpoint yet"));
    }
    interval_.add(result.loss, 1);
    interval_norm_ += result.gradient_norm;
    ++interval_steps_;
    interval_pairs_ += batch.num_pairs;
    interval_tokens_ += batch.num_tokens();
    pairs_seen_ += batch.num_pairs;
    learning_rate_ = rate;
    if (terminal_ && !options_.quiet && seconds_since(last_line_) > 0.5) {
      last_line_ = Clock::now();
      const double seconds = std::max(1e-9, seconds_since(last_log_));
      const std::string text = progress_text(
          epoch, interval_, static_cast<double>(interval_pairs_) / seconds,
          static_cast<double>(interval_tokens_) / seconds, rate, result.gradient_norm);
      tell(fmt::format("\r{}\x1B[K", terminal_line(text, STDERR_FILENO)));
      line_shown_ = true;
    }
  }

  /// "en-fr.tsv: lines 3, 17; en-de.tsv: line 5".
  std::string places(const PairBatch& batch) const {
    std::map<std::string, std::vector<uint64_t>> lines;
    for (const uint64_t pair : batch.pair_numbers) {
      const std::string place = data_.train->place(pair);
      const size_t colon = place.rfind(':');
      lines[place.substr(0, colon)].push_back(std::stoull(place.substr(colon + 1)));
    }
    std::string text;
    for (auto& [file, numbers] : lines) {
      std::sort(numbers.begin(), numbers.end());
      text += fmt::format("{}{}: line{} {}", text.empty() ? "" : "; ", file,
                          numbers.size() == 1 ? "" : "s", fmt::join(numbers, ", "));
    }
    return text;
  }

  void log_step(uint64_t epoch) {
    const double seconds = std::max(1e-9, seconds_since(last_log_));
    const double rate = static_cast<double>(interval_pairs_) / seconds;
    const double token_rate = static_cast<double>(interval_tokens_) / seconds;
    const double norm = interval_norm_ / static_cast<double>(interval_steps_);
    metrics_->write({{"kind", "train"},
                     {"step", step()},
                     {"epoch", epoch},
                     {"time", unix_time()},
                     {"loss", interval_.json()},
                     {"learning_rate", learning_rate_},
                     {"gradient_norm", norm},
                     {"pairs", pairs_seen_},
                     {"pairs_per_second", rate},
                     {"tokens_per_second", token_rate}});
    if (!terminal_ && !options_.quiet) {
      tell(fmt::format("{}\n",
                       progress_text(epoch, interval_, rate, token_rate, learning_rate_, norm)));
    }
    begin_interval();
  }
  void begin_interval() {
    interval_ = {};
    interval_norm_ = 0;
    interval_steps_ = interval_pairs_ = interval_tokens_ = 0;
    last_log_ = Clock::now();
  }

  // ---- evaluation ----

  /// Throws Stopped between two batches.
  DevScores score_dev() {
    DevScores scores;
    const BatchBuilder masked(data_.dev, config_.mask ? data_.model.mask_id : -1, data_.maskable,
                              config_.seed);
    const BatchBuilder plain(data_.dev, -1, {}, config_.seed);
    PairBatch batch;
    for (const RunData::DevPart& part : data_.dev_parts) {
      for (std::span<const uint64_t> left(part.pairs); !left.empty();) {
        throw_if_stopped();
        const size_t count =
            masked.fitting(left, config_.sampler.batch_pairs, config_.sampler.batch_tokens);
        masked.build(left.first(count), batch);
        scores.loss.add(trainer_->evaluate(batch, config_.dev_dropout), static_cast<double>(count));
        left = left.subspan(count);
      }
      scores.parts.emplace_back(part.name,
                                score_pairs(*trainer_, plain, part.pairs, config_.sampler, threads_,
                                            [this] { throw_if_stopped(); }));
    }
    return scores;
  }

  void evaluate(uint64_t epoch) {
    const Clock::time_point begin = Clock::now();
    const DevScores scores = score_dev();
    double score =
        config_.selection == Selection::kRetrieval ? scores.mean_p1() : -scores.loss.total();
    // No number is larger than one that is none.
    if (std::isnan(score)) score = -std::numeric_limits<double>::infinity();
    const bool best = best_step_ < 0 || score > best_score_;
    if (best) {
      best_step_ = step();
      best_score_ = score;
      worse_evaluations_ = 0;
      write_weights(path("best.safetensors"));
    } else {
      ++worse_evaluations_;
    }
    if (config_.average > 0) keep_for_average();
    metrics_->write({{"kind", "dev"},
                     {"step", step()},
                     {"epoch", epoch},
                     {"time", unix_time()},
                     {"loss", scores.loss.json()},
                     {"p1", scores.p1_json()}});
    say(fmt::format("dev at step {}: {}; P@1 {:.2f} %{}", with_separators(step()),
                    scores.loss.text(), 100 * scores.mean_p1(), best ? ", the best so far" : ""));
    // Neither the speed nor the time left is that of evaluations.
    last_log_ += Clock::now() - begin;
  }

  std::string config_json() const { return json_text(ordered_json(fixed_values(config_))); }

  void write_weights(const std::string& file) {
    lock_.require_kept();
    write_checkpoint(file, trainer_->table(), {{"value.", &trainer_->values()}},
                     {{"step", std::to_string(step())}, {"config", config_json()}});
  }

  void keep_for_average() {
    write_weights(weights_path(step()));
    evaluated_.push_back(step());
    while (static_cast<int64_t>(evaluated_.size()) > config_.average) {
      fs::remove(weights_path(evaluated_.front()));
      evaluated_.erase(evaluated_.begin());
    }
  }

  // ---- checkpoints ----

  bool checkpoint_due() const {
    const bool by_step = config_.checkpoint_every > 0 && step() % config_.checkpoint_every == 0;
    const bool by_time = config_.checkpoint_minutes > 0 &&
                         seconds_since(last_checkpoint_) >= 60 * config_.checkpoint_minutes;
    return by_step || by_time;
  }

  void save_checkpoint() {
    lock_.require_kept();
    std::vector<CheckpointBuffer> buffers;
    for (const auto& [state, prefix] : kStates) {
      if (const FlatBuffer* buffer = trainer_->read(state)) buffers.push_back({prefix, buffer});
    }
    ordered_json inputs = ordered_json::array();
    for (const InputFile& input : data_.inputs) {
      inputs.push_back({{"key", input.key},
                        {"pair", input.pair},
                        {"file", input.file_name()},
                        {"hash", input.hash}});
    }
    CheckpointFields fields = {
        {"step", std::to_string(step())},
        {"seed", std::to_string(config_.seed)},
        {"position.epoch", std::to_string(position_.epoch)},
        {"position.pool", std::to_string(position_.pool)},
        {"position.batch", std::to_string(position_.batch)},
        {"pairs_seen", std::to_string(pairs_seen_)},
        {"worse_evaluations", std::to_string(worse_evaluations_)},
        {"evaluated", fmt::format("{}", fmt::join(evaluated_, " "))},
        {"isa", kernels::isa_name(isa_)},
        {"config", config_json()},
        {"inputs", json_text(inputs)},
    };
    if (evaluation_due_) fields["evaluation_due"] = std::to_string(*evaluation_due_);
    if (best_step_ >= 0) {
      fields["best_step"] = std::to_string(best_step_);
      fields["best_score"] = fmt::format("{:a}", best_score_);
    }
    metrics_->flush();  // a run that goes on from there has no other
    write_checkpoint(checkpoint_path(), trainer_->table(), buffers, fields);
    last_checkpoint_ = Clock::now();
  }

  void open_checkpoint() {
    const std::string file = checkpoint_path();
    const bool there = fs::exists(file);
    if (options_.resume && there) {
      checkpoint_ = std::make_unique<TrainingCheckpoint>(file);
      check_config();
    } else if (there) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  fmt::format("{}: holds a run already. Go on with it by --resume {}, give another "
                              "folder as run, or remove this one.",
                              file, config_.run));
    }
    // A run that goes on before its first checkpoint may have another config.
    if (!checkpoint_) write_whole_file(run_config_path(config_.run), to_toml(config_, false));
  }

  void check_config() const {
    CheckpointFields then = checkpoint_->object("config");
    std::string changes;
    for (const auto& [key, now] : fixed_values(config_)) {
      const std::string& before = then[key];
      if (before == now) continue;
      changes += fmt::format("\n  {} is {}, the run has {}", key, now,
                             before.empty() ? "no such key" : before);
    }
    if (!changes.empty()) {
      throw Error(
          XSR_STATUS_INVALID_ARGUMENT,
          fmt::format("{}: the run cannot go on with another config:{}\nLeave these keys as "
                      "they were, or begin another run (model.init = \"{}\" starts it from "
                      "these weights).",
                      config_.run, changes, checkpoint_->path()));
    }
  }

  kernels::Isa isa_of_checkpoint() const {
    const std::string& name = checkpoint_->field("isa");
    kernels::Isa then;
    if (!kernels::parse_isa(name.c_str(), &then)) {
      throw Error(XSR_STATUS_BAD_FILE,
                  checkpoint_->path() + ": field \"isa\" is \"" + name + "\", which is none");
    }
    if (!kernels::isa_supported(then)) then = kernels::isa_of_bits(then);
    const bool supported = kernels::isa_supported(then);
    const kernels::Isa now = supported ? choose_isa(then) : choose_isa(std::nullopt);
    if (kernels::isa_of_bits(now) != kernels::isa_of_bits(then)) {
      tell(fmt::format(
          "xsr-train: warning: the run was computed with {}, which {}; it goes on with {}, and its "
          "bits will not be those of an uninterrupted run\n",
          name, supported ? "XSR_FORCE_ISA forbids" : "this machine does not have",
          kernels::isa_name(now)));
    }
    return now;
  }

  void check_inputs(std::span<const InputFile> inputs) {
    if (!checkpoint_) return;
    std::vector<InputFile> before;
    for (CheckpointFields& input : checkpoint_->objects("inputs")) {
      before.push_back({input["key"], input["file"], input["hash"], input["pair"]});
      // What the weights began with is not read again.
      if (before.back().key != "model.init") continue;
      initial_input_ = before.back();
      before.pop_back();
    }
    const auto refuse = [&](const std::string& message) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  message + ". Bring the old data back, or begin another run.");
    };
    for (const char* key : {"data.train", "data.dev"}) {
      const auto of_key = [key](const InputFile& file) { return file.key == key; };
      const auto now = std::count_if(inputs.begin(), inputs.end(), of_key);
      const auto then = std::count_if(before.begin(), before.end(), of_key);
      if (now != then) {
        refuse(fmt::format("{}: {} file{} now, the run has read {}", key, now, now == 1 ? "" : "s",
                           then));
      }
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      const InputFile& now = inputs[i];
      if (i >= before.size() || before[i].hash != now.hash) {
        refuse(
            fmt::format("{} ({}): its content is not what the run has read so far (hash {}, the "
                        "run has {})",
                        now.path, now.key, now.hash, i >= before.size() ? "none" : before[i].hash));
      }
      if (before[i].key != now.key || (!before[i].pair.empty() && before[i].pair != now.pair)) {
        refuse(fmt::format("{}: is {} {} now, the run has read it as {} {}", now.path, now.key,
                           now.pair, before[i].key, before[i].pair));
      }
    }
  }

  void restore_or_initialize() {
    if (!checkpoint_) {
      data_.initialize(config_, *trainer_);
      data_.initial.reset();
      return;
    }
    resumed_ = true;
    for (const auto& [state, prefix] : kStates) {
      if (FlatBuffer* buffer = trainer_->write(state))
        checkpoint_->read(trainer_->table(), prefix, *buffer);
    }
    trainer_->set_steps(checkpoint_->integer("step"));
    position_.epoch = static_cast<uint64_t>(checkpoint_->integer("position.epoch"));
    position_.pool = static_cast<uint64_t>(checkpoint_->integer("position.pool"));
    position_.batch = static_cast<uint64_t>(checkpoint_->integer("position.batch"));
    pairs_seen_ = checkpoint_->integer("pairs_seen");
    worse_evaluations_ = checkpoint_->integer("worse_evaluations");
    std::istringstream evaluated(checkpoint_->field("evaluated"));
    for (int64_t s; evaluated >> s;) evaluated_.push_back(s);
    if (checkpoint_->has("evaluation_due")) {
      evaluation_due_ = static_cast<uint64_t>(checkpoint_->integer("evaluation_due"));
    }
    if (checkpoint_->has("best_step")) {
      best_step_ = checkpoint_->integer("best_step");
      best_score_ = std::strtod(checkpoint_->field("best_score").c_str(), nullptr);
    }
  }

  // ---- the end ----

  /// The weights that become the model, in trainer_->values(); says which.
  std::string choose_weights() {
    FlatBuffer& values = trainer_->mutable_values();
    if (config_.average > 0 && !evaluated_.empty()) {
      std::vector<double> sum(static_cast<size_t>(values.size()), 0.0);
      FlatBuffer one(values.size());
      for (const int64_t s : evaluated_) {
        TrainingCheckpoint(weights_path(s)).read(trainer_->table(), "value.", one);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += one.data()[i];
      }
      const double count = static_cast<double>(evaluated_.size());
      for (size_t i = 0; i < sum.size(); ++i) {
        values.data()[i] = static_cast<float>(sum[i] / count);
      }
      return fmt::format("the mean of steps {}", fmt::join(evaluated_, ", "));
    }
    if (best_step_ >= 0) {
      const TrainingCheckpoint best(path("best.safetensors"));
      best.read(trainer_->table(), "value.", values);
      // Where a run crashed behind a new best, and went on on another device or instruction set
      // without finding one there, it is a later one than the checkpoint knew.
      best_step_ = best.integer("step");
      return fmt::format("step {}, the best on dev", best_step_);
    }
    return fmt::format("step {}, the last", step());
  }

  void finish() {
    const int64_t steps = step();
    const std::string weights = choose_weights();
    // What the model's bytes depend on, and nothing else: no time, no folder.
    ordered_json provenance = {{"trained_with", std::string("xsr-train ") + xsr_version_string()},
                               {"weights", weights},
                               {"steps", steps},
                               {"pairs_seen", pairs_seen_},
                               {"config", fixed_values(config_)}};
    ordered_json inputs = ordered_json::array();
    for (const InputFile& input : data_.inputs) {
      inputs.push_back({{"key", input.key}, {"file", input.file_name()}, {"xxh3_128", input.hash}});
    }
    provenance["inputs"] = inputs;
    if (!license_.empty()) provenance["license"] = license_;
    lock_.require_kept();
    write_model(path("model.xsr"), data_.model, trainer_->values(), config_.dtype, data_.tokenizer,
                json_text(provenance));

    ordered_json manifest = {{"model", "model.xsr"}, {"weights", weights}, {"steps", steps}};
    manifest["pairs_seen"] = pairs_seen_;
    manifest["stopped_early"] = !is_last_step();
    if (best_step_ >= 0) manifest["best_step"] = best_step_;
    if (!data_.dev_parts.empty()) {
      const DevScores scores = score_dev();
      manifest["dev"] = {{"loss", scores.loss.json()}, {"p1", scores.p1_json()}};
      ordered_json& counts = manifest["dev"]["hits"];
      for (const auto& [name, score] : scores.parts) {
        counts[name] = {
            {"pairs", score.pairs}, {"forward", score.forward}, {"backward", score.backward}};
      }
      say(fmt::format("dev with {}: {}; P@1 {:.2f} %", weights, scores.loss.text(),
                      100 * scores.mean_p1()));
    }
    for (size_t i = 0; i < data_.inputs.size(); ++i) inputs[i]["path"] = data_.inputs[i].path;
    manifest["inputs"] = inputs;
    ordered_json drops = ordered_json::object();
    for (const TokenizedCorpus::Part& part : data_.train->parts()) {
      drops[part.name] = {{"lines", part.drops.lines},
                          {"pairs", part.num_pairs},
                          {"truncated_sentences", part.drops.truncated}};
      for (size_t r = 0; r < kNumDropReasons; ++r) {
        if (part.drops.counts[r] > 0) {
          drops[part.name]["dropped"][to_string(static_cast<DropReason>(r))] = part.drops.counts[r];
        }
      }
    }
    manifest["data"] = drops;
    manifest["held_out_pairs"] = data_.excluded.size();
    manifest["config"] = fixed_values(config_);
    manifest["environment"] = {{"xsr", xsr_version_string()}, {"commit", options_.commit},
                               {"compiler", compiler()},      {"isa", kernels::isa_name(isa_)},
                               {"cpu", cpu_model()},          {"threads", threads_.num_threads()},
                               {"device", trainer_->device()}};
    manifest["times"] = {{"finished", unix_time()},
                         {"seconds_since_start_or_resume", seconds_since(start_)},
                         {"first_step_of_this_process", first_step_}};
    lock_.require_kept();
    write_whole_file(path("manifest.json"), json_text(manifest, 2) + "\n");
    say(fmt::format("wrote {} from {}", path("model.xsr"), weights));
  }

  const TrainConfig config_;
  const RunOptions options_;
  const bool terminal_;
  const FolderLock lock_;
  ThreadPool threads_;
  const std::string license_;
  std::unique_ptr<TrainingCheckpoint> checkpoint_;  // that the run goes on from, until it is read
  bool resumed_ = false;
  std::optional<InputFile> initial_input_;  // of the checkpoint
  kernels::Isa isa_ = kernels::Isa::kRef;
  kernels::KernelTable kernels_;
  RunData data_;
  std::unique_ptr<Trainer> trainer_;
  Schedule schedule_;
  int64_t batches_per_epoch_ = 0, total_steps_ = 0;
  std::unique_ptr<PairStream> stream_;
  std::unique_ptr<MetricsLog> metrics_;

  // What a checkpoint keeps beside the trainer.
  DataPosition position_;
  int64_t pairs_seen_ = 0, worse_evaluations_ = 0, best_step_ = -1;
  double best_score_ = 0;
  std::optional<uint64_t> evaluation_due_;  // of this step, which is of that epoch; not yet made
  std::vector<int64_t> evaluated_;          // steps whose weights are still to be averaged

  // Since the last line of metrics.
  LossMean interval_;
  double interval_norm_ = 0, learning_rate_ = 0;
  int64_t interval_steps_ = 0, interval_pairs_ = 0, interval_tokens_ = 0;
  int64_t first_step_ = 0;
  Clock::time_point start_, last_log_, last_line_, last_checkpoint_;
  bool line_shown_ = false;
};

}  // namespace

RunEnd train(const TrainConfig& config, const RunOptions& options) {
  validate(config);
  try {
    return Run(config, options).run();
  } catch (const Stopped&) {
    if (!options.quiet) {
      tell(fmt::format("xsr-train: stopped while the data was made ready; go on with --resume {}\n",
                       config.run));
    }
    return RunEnd::kStopped;
  }
}

std::string run_config_path(const std::string& run) { return run + "/config.toml"; }

std::string run_checkpoint_path(const std::string& run) { return run + "/checkpoint.safetensors"; }

}  // namespace xsr::training
