// xsr-train: from parallel text to a .xsr file; and the pictures and scores of what came out.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/option_checks.h"
#include "runtime/text/standard_streams.h"
#include "runtime/text/stop_signals.h"
#include "training/config.h"
#include "training/plot.h"
#include "training/run.h"
#include "training/score.h"
#include "xsr/xsr.h"

namespace {

using namespace xsr::training;

constexpr int kOk = 0, kFailed = 1, kUsage = 2, kStopped = 3;

std::atomic<bool> stop_requested{false};

struct Options {
  std::string config, resume;
  bool print_config = false, help_markdown = false, quiet = false;
  std::map<std::string, std::vector<std::string>> flags;  // by key
  std::string plot_run, plot_output;
  std::string score_model, score_json;
  std::vector<std::string> score_files;
  int score_threads = 0;
};

/// A new run writes over what an older one left in its folder, but not over what it begins with.
void require_other_folder(const std::string& config_file, const TrainConfig& config) {
  std::error_code ignored;
  if (std::filesystem::equivalent(config_file, run_config_path(config.run), ignored)) {
    throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                     fmt::format("{}: the run would write its config over this file; give another "
                                 "folder as run, or go on with --resume {}",
                                 config_file, config.run));
  }
  for (const char* output : {"/model.xsr", "/best.safetensors"})
    xsr::require_other_file({config.init}, config.run + output);
}

int train_main(const Options& options) {
  std::vector<FlagValue> flags;
  for (const auto& [key, values] : options.flags) {
    if (!values.empty()) flags.push_back({key, values});
  }
  TrainConfig config;
  try {
    std::string file = options.config;
    if (!options.resume.empty()) {
      const auto run = options.flags.find("run");
      if (!options.config.empty() || (run != options.flags.end() && !run->second.empty())) {
        throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                         "--resume RUN goes on in RUN with the config.toml in it: leave --config "
                         "and --run out");
      }
      file = run_config_path(options.resume);
      if (!std::filesystem::exists(file)) {
        throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                         options.resume + ": holds no run: there is no config.toml in it");
      }
      flags.push_back({"run", {options.resume}});  // it may have been moved
    }
    config = load_config(file, flags);
    if (options.print_config) {
      std::fputs(to_toml(config, true).c_str(), stdout);
      return kOk;
    }
    validate(config);
    if (options.resume.empty()) require_other_folder(options.config, config);
  } catch (const xsr::Error& e) {
    xsr::tell(fmt::format("xsr-train: {}\n", e.what()));
    return e.status() == XSR_STATUS_INVALID_ARGUMENT ? kUsage : kFailed;
  }
  if (!options.quiet && !options.resume.empty() &&
      std::filesystem::exists(run_checkpoint_path(options.resume))) {
    for (const auto& [key, values] : flags) {
      if (key != "model.init" && key != "tokenizer.model") continue;
      xsr::tell(
          fmt::format("xsr-train: --{} has no effect: a run that goes on has weights and a "
                      "tokenizer of its own\n",
                      key));
    }
  }
  xsr::install_stop_signals(&stop_requested);
  RunOptions run;
  run.resume = !options.resume.empty();
  run.quiet = options.quiet;
  run.commit = XSR_COMMIT;
  run.stop = &stop_requested;
  return train(config, run) == RunEnd::kDone ? kOk : kStopped;
}

int plot_main(const Options& options) {
  const std::string output =
      options.plot_output.empty() ? options.plot_run + "/curves.svg" : options.plot_output;
  plot_run(options.plot_run, output);
  xsr::tell(fmt::format("xsr-train: wrote {}\n", output));
  return kOk;
}

int score_main(const Options& options) {
  std::vector<xsr::PairFile> files;
  xsr::require_other_file({options.score_model}, options.score_json);
  for (const std::string& text : options.score_files) {
    files.push_back(xsr::parse_pair_file(text));
    xsr::require_other_file({files.back().first, files.back().second}, options.score_json);
  }
  const std::vector<PairFileScore> scores =
      score_model(options.score_model, files, options.score_threads);
  if (options.score_json == "-") {
    std::fputs(scores_as_json(scores).c_str(), stdout);
    xsr::tell(scores_as_markdown(scores));
    return kOk;
  }
  if (!options.score_json.empty()) {
    xsr::write_whole_file(options.score_json, scores_as_json(scores));
  }
  std::fputs(scores_as_markdown(scores).c_str(), stdout);
  return kOk;
}

/// An option of a run in front of `plot` or `score`, which do not read it, throws.
void require_no_options_of_a_run(const CLI::App& app) {
  for (const CLI::App* command : app.get_subcommands()) {
    for (const CLI::Option* option : app.get_options()) {
      if (option->count() == 0) continue;
      throw CLI::ArgumentMismatch(fmt::format(
          "{} is of a training run, {} does not read it: leave it out (xsr-train {} --help)",
          option->get_name(), command->get_name(), command->get_name()));
    }
  }
}

/// A flag that no key has: says so, with the nearest one.
int unknown_flag(const std::vector<std::string>& extras) {
  for (const std::string& word : extras) {
    if (!word.starts_with("--")) continue;
    const std::string name = word.substr(2, word.find('=') - 2);
    const std::string near = nearest_key(name);
    xsr::tell(fmt::format("xsr-train: unknown flag --{}{}\n", name,
                          near.empty() ? "; --help lists them" : "; did you mean --" + near + "?"));
    return kUsage;
  }
  xsr::tell(fmt::format("xsr-train: \"{}\" is no flag and belongs to none; --help lists them\n",
                        extras.empty() ? "" : extras.front()));
  return kUsage;
}

int tool_main(int argc, char** argv) {
  Options options;
  CLI::App app{"Trains a light cross-lingual sentence encoder from sentence pairs."};
  app.footer(
      "Every key of the config is a flag of the same name, and a flag wins over the file. Lists "
      "take "
      "several values.\n"
      "--print-config shows all keys with their values. SIGINT, SIGTERM and SIGHUP write a "
      "checkpoint and end the run.\n"
      "Exit status: 0 done, 1 failed, 2 wrong usage or config, 3 stopped by a signal; --resume "
      "goes "
      "on.");
  app.add_option("--config", options.config, "The run's config (TOML)")->check(xsr::names_one());
  app.add_option("--resume", options.resume, "Folder of a run to go on with, to the bit")
      ->check(xsr::names_one("folder"));
  app.add_flag("--print-config", options.print_config, "Print the config in full and end");
  app.add_flag("--help-markdown", options.help_markdown, "Print the table of all keys and end");
  app.add_flag("-q,--quiet", options.quiet, "No progress and no summary");
  app.set_version_flag("--version", std::string("xsr-train ") + xsr_version_string());
  const TrainConfig defaults;
  for (const ConfigKey& key : config_keys()) {
    CLI::Option* flag = app.add_option("--" + key.full_name(), options.flags[key.full_name()],
                                       key.help + (" [" + value_text(key, defaults) + "]"));
    flag->group(key.section[0] == '\0' ? "Keys" : std::string("Keys: ") + key.section);
    flag->type_name("");
    if (!is_list(key)) flag->expected(1);
  }
  app.require_subcommand(0, 1);
  CLI::App* plot = app.add_subcommand("plot", "Draw a run's curves");
  plot->add_option("RUN", options.plot_run, "The run's folder")->required();
  plot->add_option("-o,--output", options.plot_output,
                   "An .svg picture or an .html page [RUN/curves.svg]")
      ->check([](const std::string& name) {
        return is_picture_name(name) ? "" : name + ": expected a name that ends with .svg or .html";
      });
  CLI::App* score = app.add_subcommand("score", "P@1 of a model, both ways, on files of pairs");
  score->add_option("MODEL", options.score_model, "Model file (.xsr)")->required();
  score
      ->add_option(
          "FILES", options.score_files,
          "[NAME=]FILE.tsv, or [NAME=]FILE,FILE of one sentence a line; plain, gzip or zstd")
      ->required();
  score
      ->add_option(
          "--json", options.score_json,
          "Also write the scores to this file, - for stdout (the table then goes to stderr)")
      ->check(xsr::names_one());
  score
      ->add_option("--threads", options.score_threads,
                   "Threads; 0: the processors this process may use")
      ->check(CLI::Range(0, 1024));
  for (CLI::App* command : {plot, score})
    command->footer("Exit status: 0 done, 1 failed, 2 wrong usage.");
  try {
    app.parse(argc, argv);
    require_no_options_of_a_run(app);
  } catch (const CLI::ExtrasError&) {
    return unknown_flag(app.remaining(true));
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kOk : kUsage;
  }
  if (options.help_markdown) {
    std::fputs(keys_as_markdown().c_str(), stdout);
    return kOk;
  }
  if (plot->parsed()) return plot_main(options);
  if (score->parsed()) return score_main(options);
  return train_main(options);
}

}  // namespace

int main(int argc, char** argv) {
  return xsr::run_tool("xsr-train", [&] { return tool_main(argc, argv); });
}
