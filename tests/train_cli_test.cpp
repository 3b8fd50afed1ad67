// Runs the built xsr-train on a toy corpus.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <pty.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <cstring>
#include <deque>
#include <random>
#include <regex>

#include <chrono>
#include <csignal>
#include <thread>

#include "kernels/dispatch.h"
#include "runtime/error.h"
#include "support/file_size_limit.h"
#include "support/packing.h"
#include "support/sanitizers.h"
#include "support/system_calls.h"
#include "support/temp_folder.h"
#include "support/train_cli.h"
#include "support/xsr_checkpoint.h"
#include "training/checkpoint.h"
#include "training/config.h"
#include "training/event_file.h"
#include "training/metrics.h"
#include "training/model_file.h"
#include "training/run.h"
#include "training/score.h"

namespace {

namespace fs = std::filesystem;
using testing::ContainsRegex;
using testing::HasSubstr;
using xsr::test::kSlow;
using xsr::test::metrics_of;
using xsr::test::Outcome;
using xsr::test::read_file;
using xsr::test::toy_corpus;
using xsr::test::TrainCli;

constexpr int kKills = kSlow ? 3 : 10;

// ---- config ----

TEST_F(TrainCli, UnknownKeysAreErrorsWithTheNearestKeyAndTheLine) {
  write("bad.toml", "seed = 1\n\n[optimizer]\nbeta_1 = 0.9\n");
  Outcome o = run("--config bad.toml");
  EXPECT_EQ(o.exit_status, 2);
  EXPECT_THAT(o.err, HasSubstr("bad.toml:4: unknown key 'optimizer.beta_1'; did you mean "
                               "'optimizer.beta1'?"));
  write("bad.toml", "learning_rate = 1\n");
  o = run("--config bad.toml");
  EXPECT_THAT(o.err, HasSubstr("bad.toml:1: unknown key 'learning_rate'; did you mean "
                               "'schedule.learning_rate'?"));
  o = run("--config toy.toml --optimiser.beta1 0.5");
  EXPECT_EQ(o.exit_status, 2);
  EXPECT_THAT(o.err, HasSubstr("--optimiser.beta1; did you mean --optimizer.beta1?"));
}

TEST_F(TrainCli, WrongValuesSayWhatWasFoundAndExpected) {
  const std::pair<const char*, const char*> cases[] = {
      {"seed = \"one\"\n", "bad.toml:1: seed is \"one\", expected a whole number of at least 0"},
      {"seed = 9223372036854775807\n",
       "seed is 9223372036854775807, expected a whole number of at least 0 and at most "
       "9000000000000000"},
      {"\n[model]\ndropout = 1.5\n", "bad.toml:3: model.dropout is 1.5, expected a number from 0"},
      {"preset = \"fast\"\n", "preset is \"fast\", expected paper, release or stable"},
      {"[data]\ntrain = \"toy.tsv\ndev = 3\n", "bad.toml:2: "},
      {"[optimizer]\namsgrad = 1\n", "optimizer.amsgrad is 1, expected true or false"},
      {"threads = 2.0\n", "threads is 2.0, expected a whole number from 0 to 1024"},
      {"run = \"a\\u0000b\"\n", "bad.toml:1: run holds a NUL character"},
      {"seed = 1\n[%data]\n", "bad.toml:2: Error while parsing key"},
      // Times the batches of an epoch they would not fit 64 bits.
      {"[train]\nepochs = 1000000000000000\n", "train.epochs is 1000000000000000, expected a"},
  };
  for (const auto& [text, message] : cases) {
    write("bad.toml", text);
    const Outcome o = run("--config bad.toml");
    EXPECT_EQ(o.exit_status, 2) << text;
    EXPECT_THAT(o.err, HasSubstr(message)) << text;
  }
  const Outcome none = run("--run r");
  EXPECT_EQ(none.exit_status, 2);
  EXPECT_THAT(none.err, HasSubstr("data.train is not set"));
}

TEST_F(TrainCli, WhatCannotWorkIsRefusedBeforeAnythingIsDone) {
  const std::pair<const char*, const char*> cases[] = {
      {"--optimizer.eps 0", "optimizer.eps is \"0\", expected a number from 1e-30 to 1"},
      {"--schedule.step_factor 0", "schedule.step_factor is \"0\""},
      // What SentencePiece takes.
      {"--tokenizer.character_coverage 0.97",
       "tokenizer.character_coverage is \"0.97\", expected a number from 0.98 to 1"},
      {"--tokenizer.max_sentences 1", "tokenizer.max_sentences is \"1\""},
      {"--model.max_seq_len 65536", "model.max_seq_len is \"65536\""},
      {"--data.max_ratio 0.5", "max_ratio 0.5"},
      {"--data.max_tokens 41", "max_tokens 41"},
      {"--data.num_columns 1", "data.num_columns is 1, fewer than data.columns"},
      {"--data.columns 2 2", "data.columns must name two different columns"},
      {"--data.weights 1 2", "data.weights has 2 shares for 1 language pair "},
      {"--data.weights 0", "data.weights are all 0"},
      {"--data.train \"$(printf 'caf\\351.tsv')\"", "expected UTF-8"},
      {"--data.train mean.tsv", "mean.tsv: \"mean\" is the mean of all pairs in the metrics; name"},
      {"--data.dev mean=toy.tsv", "toy.tsv: \"mean\" is the mean of all pairs in the metrics"},
      {"--data.train .toy.tsv", ".toy.tsv: nothing stands before the first dot of its name; name"},
      {"--device cuda --precision int8", "precision is int8, which device cuda does not train in"},
      {"--isa sse", "isa is \"sse\", expected auto, ref"},
      {"--data.dev_pairs 0 --train.patience 2", "data.dev_pairs"},
      {"--data.dev_pairs 0 --train.average 2", "data.dev_pairs"},
      {"--data.batch_pairs 1 --objective.ugt_weight 0", "data.batch_pairs is 1"},
      {"--model.num_layers 0 --model.pooling cls", "model.pooling = \"cls\""},
      {"--model.hidden_size 60 --model.num_heads 8",
       "model.hidden_size 60 is not a multiple of model.num_heads 8"},
      {"--objective.mask false", "need objective.mask = true"},
      {"--train.checkpoint_every 0 --train.checkpoint_minutes 0", "are both 0: no checkpoints"},
      {"--schedule.warmup linear", "schedule.warmup = \"linear\" needs schedule.warmup_steps"},
  };
  for (const auto& [flags, message] : cases) {
    const Outcome o = train(std::string("--run r ") + flags);
    EXPECT_EQ(o.exit_status, 2) << flags;
    EXPECT_THAT(o.err, HasSubstr(message)) << flags;
    EXPECT_FALSE(fs::exists(path("r"))) << flags;
    fs::remove_all(path("r"));
  }
}

TEST_F(TrainCli, WhatARunBeginsWithIsNotWrittenOver) {
  fs::create_directory(path("r"));
  write("r/config.toml", std::string("# by hand\n") + kConfig);
  Outcome o = run("--config r/config.toml --run r --train.steps 1");
  EXPECT_EQ(o.exit_status, 2);
  EXPECT_THAT(o.err, HasSubstr("r/config.toml: the run would write its config over this file; "));
  EXPECT_THAT(read_file(path("r/config.toml")), testing::StartsWith("# by hand\n"));
  for (const std::string init : {"model.xsr", "best.safetensors"}) {
    write("r/" + init, "weights");
    o = train("--run r --train.steps 1 --model.init ./r/" + init);
    EXPECT_EQ(o.exit_status, 2);
    EXPECT_THAT(o.err, HasSubstr("r/" + init + ": is an input too, which would be overwritten"));
    EXPECT_EQ(read_file(path("r/" + init)), "weights");
  }
}

TEST_F(TrainCli, WhatHasNoEffectIsTold) {
  const Outcome o = train(
      "--run r --train.steps 1 --schedule.warmup none --schedule.warmup_steps 7 "
      "--schedule.decay cosine --schedule.step_updates 3 --objective.align_weight 0 "
      "--objective.align_margin 0.3 --objective.info_nce_margin 0.3");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  EXPECT_THAT(o.err, HasSubstr("without effect: objective.align_margin (objective.align_weight is "
                               "0.0), schedule.warmup_steps (schedule.warmup is \"none\"), "
                               "schedule.step_updates (schedule.decay is \"cosine\")\n"));
  write("dev.tsv", toy_corpus(710).substr(toy_corpus(700).size()));
  const std::string dev_pairs = "data.dev_pairs (data.dev is [\"dev.tsv\"])";
  EXPECT_THAT(train("--run s --train.steps 1 --data.dev dev.tsv").err,
              HasSubstr("without effect: " + dev_pairs + "\n"));
  for (const auto& [key, file] : {std::pair("tokenizer.model", "r/tokenizer.model"),
                                  std::pair("model.init", "r/model.xsr")}) {
    EXPECT_THAT(train(std::string("--run t --train.steps 1 --") + key + " " + file).err,
                HasSubstr(std::string("without effect: tokenizer.vocab_size (") + key + " is \"" +
                          file + "\"), tokenizer.character_coverage ("));
    fs::remove_all(path("t"));
  }
  // Beside model.init it is what the text is read with.
  EXPECT_THAT(train("--run t --train.steps 1 --tokenizer.model r/tokenizer.model "
                    "--model.init r/model.xsr")
                  .err,
              HasSubstr("without effect: tokenizer.vocab_size (tokenizer.model is "));
}

TEST_F(TrainCli, WhatIsNoConfigFileIsAnError) {
  for (const char* file : {".", "none.toml"}) {
    const Outcome o = run(std::string("--run r --data.train toy.tsv --config ") + file);
    EXPECT_EQ(o.exit_status, 1) << file;
    EXPECT_THAT(o.err, HasSubstr(std::string(file) + ": cannot ")) << file;
  }
}

TEST_F(TrainCli, EveryKeyIsAFlagAndFlagsWin) {
  const Outcome help = run("--help");
  EXPECT_EQ(help.exit_status, 0);
  for (const auto& key : xsr::training::config_keys()) {
    EXPECT_THAT(help.out, testing::AnyOf(HasSubstr("--" + key.full_name() + " "),
                                         HasSubstr("--" + key.full_name() + "\n")));
  }
  for (const char* command : {"plot", "score"}) {  // which read none
    const Outcome its = run(std::string(command) + " --help");
    EXPECT_EQ(its.exit_status, 0);
    EXPECT_THAT(its.out, HasSubstr("Exit status: 0 done, 1 failed, 2 wrong usage.")) << command;
    EXPECT_THAT(its.out, testing::Not(HasSubstr("key"))) << command;
  }
  const Outcome o = train("--print-config --optimizer.beta1 0.5 --data.train a.tsv b.tsv");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  EXPECT_THAT(o.out, HasSubstr("\nbeta1 = 0.5\n"));
  EXPECT_THAT(o.out, HasSubstr("train = [\"a.tsv\", \"b.tsv\"]"));
  EXPECT_THAT(o.out, HasSubstr("\nhidden_size = 32\n"));
  EXPECT_THAT(train("--print-config --data.train ''").out, HasSubstr("\ntrain = []\n"));
  // What it prints reads back to the same.
  write("again.toml", o.out);
  EXPECT_EQ(run("--config again.toml --print-config").out, o.out);
}

/// Each number and switch, and no other with it; and each choice.
TEST(TrainConfig, AKeySetsTheMemberOfItsName) {
  using xsr::training::TrainConfig;
#define GET(member) [](const TrainConfig& c) { return static_cast<double>(c.member); }
  const struct {
    const char *key, *value;
    double (*get)(const TrainConfig&);
  } members[] = {
      {"seed", "9", GET(seed)},
      {"threads", "9", GET(threads)},
      {"data.num_columns", "9", GET(num_columns)},
      {"data.dev_pairs", "9", GET(dev_pairs)},
      {"data.temperature", "0.25", GET(sampler.temperature)},
      {"data.strict", "true", GET(corpus.strict)},
      {"data.max_line_bytes", "99", GET(corpus.max_line_bytes)},
      {"data.min_tokens", "9", GET(corpus.min_tokens)},
      {"data.max_tokens", "9", GET(corpus.max_tokens)},
      {"data.max_ratio", "0.25", GET(corpus.max_ratio)},
      {"data.batch_pairs", "9", GET(sampler.batch_pairs)},
      {"data.batch_tokens", "9", GET(sampler.batch_tokens)},
      {"data.pool_batches", "9", GET(sampler.pool_batches)},
      {"data.drop_last", "false", GET(sampler.drop_last)},
      {"tokenizer.vocab_size", "9", GET(tokenizer_training.vocab_size)},
      {"tokenizer.character_coverage", "0.99", GET(tokenizer_training.character_coverage)},
      {"tokenizer.max_sentences", "9", GET(tokenizer_training.max_sentences)},
      {"tokenizer.temperature", "0.25", GET(tokenizer_training.temperature)},
      {"model.num_layers", "9", GET(model.num_layers)},
      {"model.hidden_size", "9", GET(model.hidden_size)},
      {"model.num_heads", "9", GET(model.num_heads)},
      {"model.intermediate_size", "9", GET(model.intermediate_size)},
      {"model.max_seq_len", "9", GET(model.max_seq_len)},
      {"model.lowercase", "false", GET(model.lowercase)},
      {"model.layer_norm_eps", "0.0625", GET(model.layer_norm_eps)},
      {"model.dropout", "0.25", GET(step.dropout)},
      {"objective.xtr_weight", "0.25", GET(step.objectives.xtr_weight)},
      {"objective.ugt_weight", "0.25", GET(step.objectives.ugt_weight)},
      {"objective.smlm_weight", "0.25", GET(step.objectives.smlm_weight)},
      {"objective.align_weight", "0.25", GET(step.objectives.align_weight)},
      {"objective.sim_weight", "0.25", GET(step.objectives.sim_weight)},
      {"objective.info_nce_weight", "0.25", GET(step.objectives.info_nce_weight)},
      {"objective.mask", "false", GET(mask)},
      {"objective.count_weighted", "true", GET(step.objectives.targets.count_weighted)},
      {"objective.clean_ids", "true", GET(step.objectives.targets.clean_ids)},
      {"objective.add_masses", "true", GET(step.objectives.targets.add_masses)},
      {"objective.align_cosine", "true", GET(step.objectives.align.cosine)},
      {"objective.align_temperature", "0.25", GET(step.objectives.align.temperature)},
      {"objective.align_mean", "true", GET(step.objectives.align.mean_of_directions)},
      {"objective.align_margin", "0.25", GET(step.objectives.align.margin)},
      {"objective.info_nce_cosine", "false", GET(step.objectives.info_nce.cosine)},
      {"objective.info_nce_temperature", "0.25", GET(step.objectives.info_nce.temperature)},
      {"objective.info_nce_mean", "false", GET(step.objectives.info_nce.mean_of_directions)},
      {"objective.info_nce_margin", "0.25", GET(step.objectives.info_nce.margin)},
      {"objective.sim_argument", "0.25", GET(step.objectives.sim.argument)},
      {"objective.sim_divide", "true", GET(step.objectives.sim.divide_by_negatives)},
      {"objective.sim_min_cosine", "0.25", GET(step.objectives.sim.min_cosine)},
      {"optimizer.amsgrad", "false", GET(step.optimizer.amsgrad)},
      {"optimizer.decoupled_decay", "true", GET(step.optimizer.decoupled_decay)},
      {"optimizer.beta1", "0.25", GET(step.optimizer.beta1)},
      {"optimizer.beta2", "0.25", GET(step.optimizer.beta2)},
      {"optimizer.eps", "0.25", GET(step.optimizer.eps)},
      {"optimizer.weight_decay", "0.25", GET(step.optimizer.weight_decay)},
      {"optimizer.clip_norm", "0.25", GET(step.optimizer.clip_norm)},
      {"schedule.learning_rate", "0.25", GET(schedule.learning_rate)},
      {"schedule.warmup_steps", "9", GET(schedule.warmup_steps)},
      {"schedule.step_factor", "0.25", GET(schedule.step_factor)},
      {"schedule.final_fraction", "0.25", GET(schedule.final_fraction)},
      {"train.epochs", "9", GET(epochs)},
      {"train.steps", "9", GET(steps)},
      {"train.log_every", "9", GET(log_every)},
      {"train.eval_every", "9", GET(eval_every)},
      {"train.patience", "9", GET(patience)},
      {"train.average", "9", GET(average)},
      {"train.checkpoint_every", "9", GET(checkpoint_every)},
      {"train.dev_dropout", "true", GET(dev_dropout)},
      {"train.checkpoint_minutes", "0.25", GET(checkpoint_minutes)},
  };
#undef GET
  const TrainConfig defaults;
  for (const auto& [key, value, get] : members) {
    const TrainConfig config = xsr::training::load_config("", {{key, {value}}});
    const std::string text = value;
    EXPECT_EQ(get(config), text == "true" ? 1 : text == "false" ? 0 : std::stod(text)) << key;
    for (const auto& other : members) {
      EXPECT_EQ(other.key != key, other.get(config) == other.get(defaults))
          << key << " " << other.key;
    }
  }
  const auto chosen = [](const char* key, const char* name) {
    return xsr::training::load_config("", {{key, {name}}});
  };
  using namespace xsr::training;
  for (const auto& [name, pooling] : {std::pair("mean", xsr::Pooling::kMean),
                                      {"max", xsr::Pooling::kMax},
                                      {"cls", xsr::Pooling::kCls}})
    EXPECT_EQ(chosen("model.pooling", name).model.pooling, pooling) << name;
  for (const auto& [name, activation] : {std::pair("none", xsr::Activation::kNone),
                                         {"swish", xsr::Activation::kSwish},
                                         {"gelu", xsr::Activation::kGeluErf},
                                         {"gelu-tanh", xsr::Activation::kGeluTanh},
                                         {"relu", xsr::Activation::kRelu},
                                         {"tanh", xsr::Activation::kTanh}})
    EXPECT_EQ(chosen("model.activation", name).model.activation, activation) << name;
  for (const auto& [name, precision] :
       {std::pair("f32", Precision::kF32), {"bf16", Precision::kBF16}, {"int8", Precision::kInt8}})
    EXPECT_EQ(chosen("precision", name).step.precision, precision) << name;
  for (const auto& [name, warmup] : {std::pair("none", Warmup::kNone),
                                     {"linear", Warmup::kLinear},
                                     {"untuned_linear", Warmup::kUntunedLinear}})
    EXPECT_EQ(chosen("schedule.warmup", name).schedule.warmup, warmup) << name;
  for (const auto& [name, decay] : {std::pair("constant", Decay::kConstant),
                                    {"step", Decay::kStep},
                                    {"cosine", Decay::kCosine}})
    EXPECT_EQ(chosen("schedule.decay", name).schedule.decay, decay) << name;
  for (const auto& [name, dtype] :
       {std::pair("f32", xsr::DType::kF32), {"f16", xsr::DType::kF16}, {"bf16", xsr::DType::kBF16}})
    EXPECT_EQ(chosen("train.dtype", name).dtype, dtype) << name;
  for (const auto& [name, selection] :
       {std::pair("retrieval", Selection::kRetrieval), {"loss", Selection::kLoss}})
    EXPECT_EQ(chosen("train.select", name).selection, selection) << name;
  // A key that is none of these is text, a choice or a list.
  TrainConfig any;
  for (const auto& key : xsr::training::config_keys()) {
    const auto slot = key.slot(any);
    const bool listed = std::any_of(std::begin(members), std::end(members),
                                    [&](const auto& m) { return key.full_name() == m.key; });
    const size_t kind = slot.target.index();
    EXPECT_EQ(listed, kind < 5) << key.full_name();
  }
}

TEST_F(TrainCli, PresetsSetWhatTheKeysStartFrom) {
  const auto printed = [&](const std::string& flags) { return run("--print-config " + flags).out; };
  EXPECT_THAT(printed(""), HasSubstr("\nclip_norm = 1.0\n"));
  EXPECT_THAT(printed("--preset release"), HasSubstr("\nclip_norm = 0.0\n"));
  EXPECT_THAT(printed("--preset release"), HasSubstr("\ndev_dropout = true\n"));
  EXPECT_THAT(printed("--preset paper"), HasSubstr("\ncount_weighted = true\n"));
  EXPECT_THAT(printed("--preset paper"), HasSubstr("\ndev_dropout = false\n"));
  EXPECT_THAT(printed(""), HasSubstr("\nselect = \"retrieval\"\n"));
  EXPECT_THAT(printed("--preset release"), HasSubstr("\nselect = \"loss\"\n"));
  // Wherever it stands.
  EXPECT_THAT(
      printed("--objective.add_masses false --preset paper"),
      testing::AllOf(HasSubstr("\ncount_weighted = true\n"), HasSubstr("\nadd_masses = false\n")));
  EXPECT_THAT(printed("--preset paper --objective.count_weighted false"),
              HasSubstr("\ncount_weighted = false\n"));
  EXPECT_EQ(run("--config " XSR_SOURCE_DIR "/presets/xsr-2layer.toml --print-config").exit_status,
            0);
}

TEST_F(TrainCli, TheDocumentationListsTheKeysAsTheyAre) {
  const std::string table = run("--help-markdown").out;
  EXPECT_THAT(read_file(XSR_SOURCE_DIR "/docs/training.md"), HasSubstr(table));
}

// ---- training ----

TEST_F(TrainCli, LearnsAndWritesItsFiles) {
  write("terms.txt", "Anybody may use them.");
  const Outcome o = train("--run r --model.license terms.txt");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  EXPECT_THAT(read_file(path("r/model.xsr")), HasSubstr("Anybody may use them."));
  const auto dev = metrics_of(path("r"), "dev");
  ASSERT_EQ(dev.size(), 3u);
  const double first = dev.front()["p1"]["mean"], last = dev.back()["p1"]["mean"];
  EXPECT_GT(last, 0.2) << "of 100 pairs, by chance 0.01";
  EXPECT_GT(last, first);
  const auto train_lines = metrics_of(path("r"), "train");
  ASSERT_EQ(train_lines.size(), 12u);
  for (const char* part : {"total", "ugt", "info_nce"}) {
    EXPECT_TRUE(train_lines[0]["loss"][part].is_number()) << part;
  }
  EXPECT_LT(train_lines.back()["loss"]["total"], train_lines.front()["loss"]["total"]);

  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  EXPECT_EQ(manifest["steps"], 60);
  EXPECT_EQ(manifest["pairs_seen"], 60 * 32);
  EXPECT_EQ(manifest["inputs"][0]["file"], "toy.tsv");
  EXPECT_GE(manifest["held_out_pairs"], 100);

  // The model that came out finds what the manifest says it finds.
  write("dev.tsv", toy_corpus(50));
  const Outcome score = run("score r/model.xsr toy=dev.tsv --json s.json");
  ASSERT_EQ(score.exit_status, 0) << score.err;
  EXPECT_THAT(score.out, HasSubstr("| toy | 50 | "));
  EXPECT_GT(nlohmann::json::parse(read_file(path("s.json")))[0]["p1_forward"], 0.2);

  const Outcome plot = run("plot r -o r.html");
  ASSERT_EQ(plot.exit_status, 0) << plot.err;
  EXPECT_THAT(read_file(path("r.html")), HasSubstr("loss: info_nce"));
  // A folder opens as a file does, and cannot be read.
  for (const auto& [unreadable, message] : {std::pair("metrics.jsonl", "cannot read the metrics"),
                                            std::pair("config.toml", "is no regular file")}) {
    fs::copy(path("r"), path("unreadable"));
    fs::remove(path("unreadable/") + unreadable);
    fs::create_directory(path("unreadable/") + unreadable);
    const Outcome o = run("plot unreadable -o u.html");
    EXPECT_EQ(o.exit_status, 1);
    EXPECT_THAT(o.err, HasSubstr(std::string("unreadable/") + unreadable + ": " + message));
    EXPECT_FALSE(fs::exists(path("u.html")));
    fs::remove_all(path("unreadable"));
  }

  // The terms stay with a model that is written again.
  fs::remove(path("r/model.xsr"));
  const Outcome written = run("--resume r --tokenizer.model other.model");
  ASSERT_EQ(written.exit_status, 0);
  EXPECT_THAT(written.err, HasSubstr("--tokenizer.model has no effect: a run that goes on has"));
  EXPECT_THAT(read_file(path("r/model.xsr")), HasSubstr("Anybody may use them."));

  const Outcome again = train("--run r");
  EXPECT_EQ(again.exit_status, 1);
  EXPECT_THAT(again.err, HasSubstr("holds a run already"));
}

TEST_F(TrainCli, AnEpochEndsWithAnEvaluationWhereNoStepsAreNamed) {
  ASSERT_EQ(train("--run r --train.eval_every 0").exit_status, 0);
  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  const int batches = (700 - manifest["held_out_pairs"].get<int>()) / 32;
  std::vector<int> steps, wanted = {batches, 2 * batches, 3 * batches, 60};
  ASSERT_LT(wanted[2], 60);
  for (const auto& record : metrics_of(path("r"), "dev")) {
    EXPECT_EQ(record["epoch"], steps.size()) << "the one that has ended";
    steps.push_back(record["step"]);
  }
  EXPECT_EQ(steps, wanted);
}

TEST_F(TrainCli, ColumnsAreThoseOfTheConfig) {
  write("wide.tsv", std::regex_replace(toy_corpus(700), std::regex("(.*)\t(.*)\n"), "$2\tx\t$1\n"));
  ASSERT_EQ(train("--run r --train.steps 1").exit_status, 0);
  ASSERT_EQ(train("--run s --train.steps 1 --data.train wide.tsv --data.columns 3 1").exit_status,
            0);
  EXPECT_TRUE(read_file(path("r/tokenizer.model")) == read_file(path("s/tokenizer.model")));
  for (const char* kind : {"train", "dev"})
    EXPECT_EQ(metrics_of(path("r"), kind)[0]["loss"], metrics_of(path("s"), kind)[0]["loss"]);
}

TEST_F(TrainCli, AFewStepsAreLoggedToo) {
  ASSERT_EQ(train("--run r --train.steps 7").exit_status, 0);
  const auto lines = metrics_of(path("r"), "train");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["step"], 7);
}

/// A rate of 1e-12 changes no digit, so that what differs is what the flags change.
TEST_F(TrainCli, WhatIsLoggedIsWhatWasComputed) {
  const std::string still =
      "--schedule.learning_rate 1e-12 --train.steps 10 --train.eval_every 10 ";
  write("dev.tsv", toy_corpus(750).substr(toy_corpus(700).size()));  // none of the run's pairs
  const auto dev_loss = [&](const std::string& name, const std::string& flags) {
    const Outcome o = train("--run " + name + " --data.dev dev.tsv " + still + flags);
    EXPECT_EQ(o.exit_status, 0) << o.err;
    return metrics_of(path(name), "dev").back()["loss"];
  };
  const auto loss =
      dev_loss("a", "--train.dtype f32 --train.log_every 1 --objective.smlm_weight 0.5");
  const double ugt = loss["ugt"], smlm = loss["smlm"], info_nce = loss["info_nce"];
  EXPECT_GT(smlm, 1) << "dev has masks, too";
  EXPECT_NEAR(loss["total"], 0.1 * ugt + 0.5 * smlm + info_nce, 1e-9);
  // A batch counts by its pairs; dropout is what it is only if asked for.
  EXPECT_NEAR(dev_loss("b", "--data.batch_pairs 49")["ugt"], ugt, 1e-5);
  EXPECT_GT(std::fabs(dev_loss("c", "--train.dev_dropout true")["ugt"].get<double>() - ugt), 1e-4);
  // P@1 is that of the sentences as they are.
  dev_loss("d", "--objective.mask false --objective.ugt_weight 0");
  EXPECT_EQ(metrics_of(path("a"), "dev").back()["p1"], metrics_of(path("d"), "dev").back()["p1"]);
  const auto manifest = nlohmann::json::parse(read_file(path("a/manifest.json")));
  const auto& hits = manifest["dev"]["hits"]["dev"];
  EXPECT_EQ(hits["pairs"], 50);
  EXPECT_LT(hits["forward"], 20) << "nothing was learned";
  ASSERT_EQ(run("score a/model.xsr dev.tsv --json s.json").exit_status, 0);
  const auto scores = nlohmann::json::parse(read_file(path("s.json")));
  for (const char* way : {"forward", "backward"})
    EXPECT_NEAR(scores[0][way].get<double>(), hits[way].get<double>(), 1) << way;
  const auto lines = metrics_of(path("a"), "train");
  ASSERT_EQ(lines.size(), 10u);
  EXPECT_LT(lines[9]["gradient_norm"], 2 * lines[0]["gradient_norm"].get<double>())
      << "of the step, not of all so far";
  // A line of several steps is their mean.
  dev_loss("e", "--train.dtype f32 --train.log_every 5 --objective.smlm_weight 0.5");
  const auto means = metrics_of(path("e"), "train");
  ASSERT_EQ(means.size(), 2u);
  double norm = 0, total = 0;
  for (size_t i = 5; i < 10; ++i) {
    norm += lines[i]["gradient_norm"].get<double>() / 5;
    total += lines[i]["loss"]["total"].get<double>() / 5;
  }
  EXPECT_NEAR(means[1]["gradient_norm"], norm, 1e-6 * norm);
  EXPECT_NEAR(means[1]["loss"]["total"], total, 1e-6 * total);
}

TEST_F(TrainCli, ARateIsThatOfItsStepAndEpoch) {
  const Outcome o = train(
      "--run r --train.log_every 1 --train.eval_every 100 --train.steps 40 "
      "--schedule.warmup linear --schedule.warmup_steps 10 "
      "--schedule.decay step --schedule.step_epochs 1");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  for (const auto& line : metrics_of(path("r"), "train")) {
    const double warmup = std::min(1.0, line["step"].get<double>() / 10);
    EXPECT_NEAR(line["learning_rate"], 5e-3 * warmup * (line["epoch"] == 0 ? 1 : 0.1), 1e-9)
        << line["step"];
  }
  // The cosine ends with train.steps, whatever the epochs.
  ASSERT_EQ(train("--run t --train.log_every 1 --train.steps 15 --schedule.decay cosine "
                  "--schedule.final_fraction 0.2")
                .exit_status,
            0);
  for (const auto& line : metrics_of(path("t"), "train")) {
    const double done = (line["step"].get<double>() - 1) / 15;
    EXPECT_NEAR(line["learning_rate"], 5e-3 * (0.2 + 0.8 * (1 + std::cos(M_PI * done)) / 2), 1e-9)
        << line["step"];
  }
  // The untuned warm-up takes 2 / (1 − β2) steps, of the optimiser's β2.
  ASSERT_EQ(train("--run s --train.log_every 1 --train.steps 15 --optimizer.beta2 0.8 "
                  "--schedule.warmup untuned_linear")
                .exit_status,
            0);
  for (const auto& line : metrics_of(path("s"), "train")) {
    EXPECT_NEAR(line["learning_rate"], 5e-3 * std::min(1.0, line["step"].get<double>() / 10), 1e-9)
        << line["step"];
  }
}

TEST_F(TrainCli, TheModelIsTheMeanOfTheLastEvaluatedWeights) {
  ASSERT_EQ(train("--run r --train.average 2 --train.dtype f32").exit_status, 0);
  EXPECT_FALSE(fs::exists(path("r/weights-20.safetensors")));
  const auto model = xsr::training::read_initial_model(path("r/model.xsr"), {}, 1);
  const xsr::training::ParameterTable table(model.config);
  const xsr::training::Parameter& p = table.at("layer.0.up.weight");
  std::vector<double> mean(p.size);
  for (const char* step : {"40", "60"}) {
    xsr::training::FlatBuffer one(table.size());
    xsr::training::TrainingCheckpoint(path("r/weights-") + step + ".safetensors")
        .read(table, "value.", one);
    for (int64_t i = 0; i < p.size; ++i) mean[i] += one.at(p)[i] / 2;
  }
  for (int64_t i = 0; i < p.size; ++i) EXPECT_NEAR(model.values->at(p)[i], mean[i], 1e-6);
  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  EXPECT_EQ(manifest["weights"], "the mean of steps 40, 60");
}

TEST_F(TrainCli, TheTokenizerFollowsTheRunsSettings) {
  std::string text = toy_corpus(700);
  for (size_t i = 0; i < text.size(); i += 2) text[i] = static_cast<char>(std::toupper(text[i]));
  write("toy.tsv", text);
  const auto tokenizer = [&](const std::string& name, const std::string& flags) {
    const Outcome o = train("--train.steps 1 --tokenizer.max_sentences 400 --run " + name + flags);
    EXPECT_EQ(o.exit_status, 0) << o.err;
    return read_file(path(name + "/tokenizer.model"));
  };
  const std::string plain = tokenizer("a", "");
  EXPECT_FALSE(plain == tokenizer("b", " --seed 4"));
  EXPECT_FALSE(plain == tokenizer("c", " --model.lowercase false"));
  EXPECT_FALSE(plain == tokenizer("d", " --data.max_line_bytes 60"));
}

TEST_F(TrainCli, RunsOfOtherDataHaveTheirOwnCaches) {
  write("more.tsv", toy_corpus(300));
  for (const char* flags :
       {"--run a", "--run b --data.train more.tsv --tokenizer.model a/tokenizer.model",
        "--run c --tokenizer.vocab_size 111"})
    ASSERT_EQ(train(std::string("--train.steps 1 --data.cache cache ") + flags).exit_status, 0);
  // That of a, of b, and of a's data in c's tokenizer.
  EXPECT_EQ(std::distance(fs::directory_iterator(path("cache")), {}), 3);
}

TEST_F(TrainCli, TheSameBitsTwiceAndWithOtherThreads) {
  ASSERT_EQ(train("--run a").exit_status, 0);
  ASSERT_EQ(train("--run b").exit_status, 0);
  ASSERT_EQ(train("--run c --threads 1").exit_status, 0);
  expect_same_results("a", "b");
  expect_same_results("a", "c");
  ASSERT_EQ(train("--run d --seed 4").exit_status, 0);
  EXPECT_FALSE(read_file(path("a/model.xsr")) == read_file(path("d/model.xsr")));
}

/// Each with everything else held still: a batch of all pairs, which are all the same, has no
/// order.
TEST_F(TrainCli, TheSeedIsThatOfAllThatIsRandom) {
  ASSERT_EQ(train("--run a --train.steps 20").exit_status, 0);
  const std::string pair = toy_corpus(1);
  std::string same;
  for (int i = 0; i < 64; ++i) same += pair;
  write("same.tsv", same);
  write("dev.tsv", toy_corpus(750).substr(toy_corpus(700).size()));
  const auto differs = [&](const std::string& kind, const std::string& flags) {
    double losses[2];
    for (const int k : {0, 1}) {
      const Outcome o = train(
          "--run s --train.steps 1 --train.log_every 1 --schedule.learning_rate 1e-12 "
          "--objective.info_nce_weight 0 --objective.ugt_weight 0 --objective.xtr_weight 1 " +
          flags + (k == 0 ? "--seed 3" : "--seed 4"));
      EXPECT_EQ(o.exit_status, 0) << o.err;
      losses[k] = metrics_of(path("s"), kind).at(0)["loss"]["total"];
      fs::remove_all(path("s"));
    }
    return std::fabs(losses[0] - losses[1]) > 1e-9 * losses[0];  // sums in another order
  };
  const std::string init = "--model.init a/best.safetensors ", whole = "--model.dropout 0 ",
                    unmasked = "--objective.mask false ", dev = "--data.dev dev.tsv ",
                    alike = dev + "--data.train same.tsv --data.batch_pairs 64 ";
  EXPECT_FALSE(differs("train", init + whole + unmasked + alike));
  EXPECT_FALSE(differs("dev", init + whole + unmasked + alike));
  EXPECT_TRUE(differs("train", init + unmasked + alike)) << "dropout";
  EXPECT_TRUE(differs("train", init + whole + alike + "--objective.smlm_weight 1 ")) << "masks";
  EXPECT_TRUE(differs("dev", init + whole + alike + "--objective.smlm_weight 1 "))
      << "masks of dev";
  EXPECT_TRUE(differs("train", "--model.init a/model.xsr " + whole + unmasked + alike))
      << "the head, which a model has none of";
  EXPECT_TRUE(differs("train", init + whole + unmasked + dev)) << "order";
  EXPECT_TRUE(differs("dev", init + whole + unmasked)) << "held-out pairs";
  EXPECT_TRUE(differs("dev", "--tokenizer.model a/tokenizer.model " + whole + unmasked + alike))
      << "initial weights";
}

TEST_F(TrainCli, KilledAnywhereAndResumedGivesTheSameBits) {
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(train("--run whole --train.average 2").exit_status, 0);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::mt19937 random(11);
  // Each life of the run is killed after a random time, and the next goes on from what it left.
  for (int life = 0; life < kKills; ++life) {
    const std::string run_name = "run" + std::to_string(life);
    // One that has come to its end before, as others leave the processor to it, lives once more.
    for (double wait = seconds * std::uniform_real_distribution<double>(0.05, 1)(random);;
         wait /= 2) {
      const pid_t child = start("--config toy.toml --train.average 2 --run " + run_name);
      std::this_thread::sleep_for(std::chrono::duration<double>(wait));
      kill(child, SIGKILL);
      if (wait_for(child).exit_status == 128 + SIGKILL) break;
      ASSERT_GT(wait, 1e-3);
      fs::remove_all(path(run_name));
    }
    // Killed before it had even written its config, it begins anew.
    const bool begun = fs::exists(path(run_name + "/config.toml"));
    const Outcome o =
        begun ? run("--resume " + run_name) : train("--train.average 2 --run " + run_name);
    ASSERT_EQ(o.exit_status, 0) << o.err;
    expect_same_results("whole", run_name);
    // Metrics are neither lost nor doubled.
    EXPECT_EQ(metrics_of(path(run_name), "dev").size(), 3u);
    EXPECT_EQ(metrics_of(path(run_name), "train").size(), 12u);
    fs::remove_all(path(run_name));
  }
}

/// Several language pairs by temperature, batches by tokens and sorted, narrow products, averaged
/// checkpoints: what the shipped model was trained with, and batches by tokens.
class TrainCliIn : public TrainCli, public testing::WithParamInterface<std::string> {};
INSTANTIATE_TEST_SUITE_P(, TrainCliIn, testing::Values("bf16", "int8"),
                         [](const auto& info) { return info.param; });

TEST_P(TrainCliIn, SeveralLanguagePairsInBatchesByTokens) {
  write("more.tsv", toy_corpus(250));
  const std::string settings =
      "--data.train aa=toy.tsv --data.train bb=more.tsv --data.temperature 2 --data.dev_pairs 40 "
      "--data.batch_tokens 400 --data.batch_pairs 64 --data.pool_batches 4 "
      "--train.average 2 --train.checkpoint_every 3 --precision " +
      GetParam() + " ";
  const Outcome o = train(settings + "--run whole");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  const auto dev = metrics_of(path("whole"), "dev");
  ASSERT_FALSE(dev.empty());
  for (const char* part : {"aa", "bb"})
    EXPECT_GT(dev.back()["p1"][part]["forward"], 0.2) << part << ", of 40 pairs, by chance 0.025";
  const auto last = metrics_of(path("whole"), "train").back();
  EXPECT_LT(last["pairs"], 60 * 40) << "64 a batch, were it not for their tokens";
  EXPECT_GT(last["pairs"], 60 * 5);

  const pid_t child = start("--config toy.toml " + settings + "--threads 1 --run cut");
  while (!fs::exists(path("cut/checkpoint.safetensors")))
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  kill(child, SIGKILL);
  ASSERT_EQ(wait_for(child).exit_status, 128 + SIGKILL);
  ASSERT_EQ(run("--resume cut").exit_status, 0);
  expect_same_results("whole", "cut");
}

TEST_F(TrainCli, ASecondRunWaitsForTheCacheThatTheyShare) {
  ASSERT_EQ(train("--run a --train.steps 1 --data.cache cache").exit_status, 0);
  const std::string cache = fs::directory_iterator(path("cache"))->path();
  fs::rename(cache, path("made"));
  const int folder = ::open(path("cache").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(::flock(folder, LOCK_EX), 0);
  const pid_t child = start("--config toy.toml --run b --train.steps 1 --data.cache cache");
  while (read_file(path("err")).find("waits for another process") == std::string::npos) {
    ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << read_file(path("err"));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  fs::rename(path("made"), cache);
  ::close(folder);
  const Outcome o = wait_for(child);
  EXPECT_EQ(o.exit_status, 0) << o.err;
  EXPECT_THAT(o.err, testing::Not(HasSubstr("making the corpus cache")));
  expect_same_results("a", "b");
}

TEST_F(TrainCli, TheCosineEndsWithARunOfBatchesByTokens) {
  const Outcome o = train(
      "--run r --data.batch_tokens 40 --train.steps 0 --train.epochs 2 --schedule.decay cosine "
      "--train.log_every 1 --train.eval_every 1000");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  const auto lines = metrics_of(path("r"), "train");
  const double peak = lines.front()["learning_rate"];
  EXPECT_LT(lines.back()["learning_rate"], 1e-3 * peak);
  EXPECT_GT(lines[lines.size() * 9 / 10]["learning_rate"], 1e-2 * peak);
}

TEST_F(TrainCli, DevComesInBatchesAsLargeAsThoseOfTraining) {
  const auto dev_loss = [&](const std::string& batch_pairs) {
    const Outcome o = train("--run r" + batch_pairs + " --data.batch_tokens 400 --train.steps 1 " +
                            "--schedule.learning_rate 1e-12 --data.batch_pairs " + batch_pairs);
    EXPECT_EQ(o.exit_status, 0) << o.err;
    return metrics_of(path("r" + batch_pairs), "dev").back()["loss"]["info_nce"].get<double>();
  };
  EXPECT_NEAR(dev_loss("64"), dev_loss("100000"), 1e-6) << "the tokens are the limit of both";
}

TEST_F(TrainCli, AnEqualsSignInAFoldersNameIsNoName) {
  fs::create_directory(path("lang=aa"));
  write("lang=aa/toy.tsv", toy_corpus(200));
  const Outcome o =
      train("--run r --train.steps 1 --data.train ./lang=aa/toy.tsv y=lang=aa/toy.tsv");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  EXPECT_EQ(manifest["data"]["toy"]["lines"], 200);
  EXPECT_EQ(manifest["data"]["y"]["lines"], 200);
  EXPECT_EQ(run("score r/model.xsr ./lang=aa/toy.tsv").exit_status, 0);
}

TEST_F(TrainCli, TermsThatAreNotUtf8AreRefusedBeforeTheTraining) {
  write("terms.txt", "libert\xe9\n");
  const Outcome o = train("--run r --model.license terms.txt");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("model.license: terms.txt is not UTF-8"));
  EXPECT_FALSE(fs::exists(path("r/tokenizer.model")));
}

TEST_F(TrainCli, SignalsWriteACheckpointAndEndTheRun) {
  ASSERT_EQ(train("--run whole").exit_status, 0);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    const std::string run_name = "run" + std::to_string(signal);
    const pid_t child = start("--config toy.toml --train.checkpoint_every 1000 --run " + run_name);
    while (!fs::exists(path(run_name + "/metrics.jsonl")) ||
           fs::file_size(path(run_name + "/metrics.jsonl")) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    for (int i = 0; i < (signal == SIGHUP ? 2 : 1); ++i) kill(child, signal);
    const Outcome stopped = wait_for(child);
    ASSERT_EQ(stopped.exit_status, 3) << stopped.err;
    EXPECT_THAT(stopped.err, HasSubstr("go on with --resume " + run_name));
    EXPECT_TRUE(fs::exists(path(run_name + "/checkpoint.safetensors")));
    EXPECT_FALSE(fs::exists(path(run_name + "/model.xsr")));
    const Outcome o = run("--resume " + run_name);
    ASSERT_EQ(o.exit_status, 0) << o.err;
    expect_same_results("whole", run_name);
  }
}

TEST_F(TrainCli, ACheckpointIsWrittenWhenItsMinutesAreOver) {
  const std::string endless =
      "--config toy.toml --train.steps 1000000 --train.eval_every 1000000 "
      "--train.log_every 1 --train.checkpoint_every 0 ";
  const auto logged = [&](const std::string& run) {
    const std::string metrics = path(run + "/metrics.jsonl");
    if (!fs::exists(metrics)) return std::ptrdiff_t{0};
    const std::string text = read_file(metrics);
    return std::count(text.begin(), text.end(), '\n');
  };
  const auto end = [&](pid_t child) {
    kill(child, SIGKILL);
    wait_for(child);
  };
  const auto until = [](const auto& done) {
    for (int i = 0; i < 30000 && !done(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return done();
  };
  // Six tenths of a second, and a day.
  const auto begin = std::chrono::steady_clock::now();
  const pid_t often = start(endless + "--train.checkpoint_minutes 0.01 --run often");
  const std::string file = path("often/checkpoint.safetensors");
  const auto step = [&] { return xsr::training::TrainingCheckpoint(file).integer("step"); };
  const bool written = until([&] { return fs::exists(file); });
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(600));
  const int64_t first = written ? step() : 0;
  int64_t second = 0;
  const bool again = written && until([&] { return (second = step()) > first; });
  end(often);
  ASSERT_GT(first, 0) << "no checkpoint";
  ASSERT_TRUE(again) << "a single one";
  double times[2] = {};
  for (const auto& line : metrics_of(path("often"), "train")) {
    if (line["step"] == first) times[0] = line["time"];
    if (line["step"] == second) times[1] = line["time"];
  }
  EXPECT_GT(times[1] - times[0], 0.5);
  const pid_t rarely = start(endless + "--train.checkpoint_minutes 1440 --run rarely");
  EXPECT_TRUE(until([&] { return logged("rarely") > 2 * first; }));
  end(rarely);
  EXPECT_FALSE(fs::exists(path("rarely/checkpoint.safetensors")));
}

/// It may take minutes, in which a machine that sends SIGTERM is gone.
TEST_F(TrainCli, ASignalEndsAnEvaluationToo) {
  const std::string both = toy_corpus(kSlow ? 3000 : 10000);
  write("dev.tsv", both.substr(toy_corpus(700).size()));  // dev has none of the run's pairs
  const std::string flags =
      "--config toy.toml --data.dev dev.tsv --train.steps 10 --train.eval_every 5 "
      "--train.patience 2 --train.checkpoint_every 1000 --run ";
  ASSERT_EQ(run(flags + "whole").exit_status, 0);
  // As soon as `begun` holds.
  const auto stop_when = [&](pid_t child, const auto& begun) {
    while (!begun()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    kill(child, SIGTERM);
    const Outcome stopped = wait_for(child);
    EXPECT_EQ(stopped.exit_status, 3) << stopped.err;
    return stopped.err;
  };
  // The record of step 5 is written, and the evaluation begins.
  EXPECT_THAT(stop_when(start(flags + "cut"),
                        [&] {
                          return fs::exists(path("cut/metrics.jsonl")) &&
                                 !metrics_of(path("cut"), "train").empty();
                        }),
              HasSubstr("stopped behind step 5; go on with --resume cut"));
  EXPECT_TRUE(metrics_of(path("cut"), "dev").empty());
  EXPECT_FALSE(fs::exists(path("cut/best.safetensors")));
  // A crash behind that evaluation and before the next checkpoint leaves its record.
  std::ofstream(path("cut/metrics.jsonl"), std::ios::app) << R"({"kind":"dev","step":5,"time":1})"
                                                          << "\n";
  // The last evaluation, of the weights that were chosen: the model is written before.
  EXPECT_THAT(stop_when(start("--resume cut"), [&] { return fs::exists(path("cut/model.xsr")); }),
              HasSubstr("stopped behind step 10; go on with --resume cut"));
  EXPECT_FALSE(fs::exists(path("cut/manifest.json")));
  const Outcome o = run("--resume cut");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  expect_same_results("whole", "cut");
  for (const char* kind : {"train", "dev"}) {
    std::vector<nlohmann::json> records[2] = {metrics_of(path("whole"), kind),
                                              metrics_of(path("cut"), kind)};
    ASSERT_EQ(records[0].size(), records[1].size()) << kind;
    for (size_t i = 0; i < records[0].size(); ++i) {
      for (const char* field : {"step", "epoch", "loss", "p1"})
        EXPECT_EQ(records[0][i][field], records[1][i][field]) << kind << " " << i << " " << field;
    }
  }
}

TEST_F(TrainCli, ASecondSignalEndsTheRunAtOnceWhicheverItIs) {
  const pid_t child = start("--config toy.toml --train.steps 1000000 --run r");
  while (!fs::exists(path("r/metrics.jsonl"))) std::this_thread::yield();
  // Both wait for it, so that it cannot end in good order between them.
  for (const int signal : {SIGSTOP, SIGINT, SIGTERM, SIGCONT}) kill(child, signal);
  EXPECT_THAT(wait_for(child).exit_status, testing::AnyOf(128 + SIGINT, 128 + SIGTERM));
}

TEST_F(TrainCli, ASignalWhileTheDataIsMadeReadyIsToldToo) {
  ASSERT_EQ(train("--run a --train.steps 1").exit_status, 0);
  write("long.tsv", toy_corpus(kSlow ? 30000 : 100000));
  const pid_t child = start(
      "--config toy.toml --tokenizer.model a/tokenizer.model --run r "
      "--threads 1 --data.train long.tsv");
  while (!fs::exists(path("r/config.toml"))) std::this_thread::yield();
  kill(child, SIGTERM);
  const Outcome o = wait_for(child);
  EXPECT_EQ(o.exit_status, 3);
  EXPECT_THAT(o.err, HasSubstr("stopped while the data was made ready; go on with --resume r"));
}

TEST_F(TrainCli, StopsEarly) {
  const Outcome o = train(
      "--run r --schedule.learning_rate 1e-12 --train.eval_every 5 --train.patience 2 "
      "--train.log_every 10");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  EXPECT_EQ(manifest["steps"], 15);
  EXPECT_EQ(manifest["best_step"], 5);
  EXPECT_EQ(manifest["stopped_early"], true);
  const auto lines = metrics_of(path("r"), "train");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["step"], 15);
  // It stays at its end, and what a crash left of later steps goes.
  std::ofstream(path("r/metrics.jsonl"), std::ios::app) << R"({"kind":"train","step":16,"time":1})"
                                                        << "\n";
  ASSERT_EQ(run("--resume r").exit_status, 0);
  EXPECT_EQ(nlohmann::json::parse(read_file(path("r/manifest.json")))["steps"], 15);
  EXPECT_EQ(metrics_of(path("r"), "train").size(), 2u);
}

TEST_F(TrainCli, PatienceCountsFromTheLastBestWhichIsTheModel) {
  ASSERT_EQ(train("--run r --train.eval_every 1 --train.patience 8 --train.dtype f32").exit_status,
            0);
  const auto dev = metrics_of(path("r"), "dev");
  ASSERT_EQ(dev.size(), 60u);
  int best_step = 0, worse = 0;
  double best = -1;
  for (const auto& record : dev) {
    const double score = record["p1"]["mean"];
    if (score > best) {
      best = score;
      best_step = record["step"];
    } else {
      ++worse;
    }
  }
  EXPECT_GT(worse, 8) << "in all, but never one behind the other";
  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  EXPECT_EQ(manifest["best_step"], best_step);
  EXPECT_EQ(manifest["stopped_early"], false);
  // The model is that of the best one, and not of the last.
  ASSERT_LT(best_step, 60);
  const auto model = xsr::training::read_initial_model(path("r/model.xsr"), {}, 1);
  const xsr::training::ParameterTable table(model.config);
  const auto same = [&](const std::string& file) {
    xsr::training::FlatBuffer values(table.size());
    xsr::training::TrainingCheckpoint(path(file)).read(table, "value.", values);
    const xsr::training::Parameter& p = table.at("layer.0.up.weight");
    return std::equal(values.at(p), values.at(p) + p.size, model.values->at(p));
  };
  EXPECT_TRUE(same("r/best.safetensors"));
  EXPECT_FALSE(same("r/checkpoint.safetensors"));
}

/// By the loss, whose score is below 0: a best score that was taken for 0 would never be beaten.
TEST_F(TrainCli, AResumedRunKnowsTheBestSoFar) {
  const std::string flags =
      "--config toy.toml --train.select loss --train.eval_every 5 --train.steps 200 --run ";
  ASSERT_EQ(run(flags + "whole").exit_status, 0);
  // To the last bit: a tie is no new best.
  double least = HUGE_VAL;
  for (const auto& record : metrics_of(path("whole"), "dev"))
    least = std::min(least, record["loss"]["total"].get<double>());
  const xsr::training::TrainingCheckpoint last(path("whole/checkpoint.safetensors"));
  EXPECT_EQ(std::strtod(last.field("best_score").c_str(), nullptr), -least);
  const pid_t child = start(flags + "cut");
  while (!fs::exists(path("cut/best.safetensors")))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  kill(child, SIGTERM);
  ASSERT_EQ(wait_for(child).exit_status, 3);
  ASSERT_EQ(run("--resume cut").exit_status, 0);
  expect_same_results("whole", "cut");
}

/// The decay takes the weights to nothing, where the loss of sentences that are all alike is 0.
TEST_F(TrainCli, ALossThatIsNoNumberIsNotTheBest) {
  const std::string pair = toy_corpus(1);
  std::string same;
  for (int i = 0; i < 64; ++i) same += pair;
  write("same.tsv", same);
  // Side 1 differs, side 2 does not: a cosine of more than half a turn.
  write("dev.tsv", std::regex_replace(toy_corpus(750).substr(toy_corpus(700).size()),
                                      std::regex("\t.*"), "\tmumyma"));
  ASSERT_EQ(train("--run a --train.steps 1").exit_status, 0);
  const Outcome o = train(
      "--run r --tokenizer.model a/tokenizer.model --model.hidden_size 128 "
      "--data.train same.tsv --data.dev dev.tsv --train.steps 20 --train.eval_every 1 "
      "--train.select loss --objective.ugt_weight 0 --objective.info_nce_weight 0 "
      "--objective.sim_weight 1 --objective.sim_argument 3.14159 --objective.sim_min_cosine 0 "
      "--optimizer.decoupled_decay true --optimizer.weight_decay 100");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  const auto dev = metrics_of(path("r"), "dev");
  ASSERT_EQ(dev.size(), 20u);
  EXPECT_TRUE(dev.front()["loss"]["sim"].is_null()) << dev.front();
  ASSERT_TRUE(dev.back()["loss"]["sim"].is_number()) << dev.back();
  double least = HUGE_VAL;
  int best_step = 0;
  for (const auto& record : dev) {
    if (!record["loss"]["total"].is_number() || record["loss"]["total"] >= least) continue;
    least = record["loss"]["total"];
    best_step = record["step"];
  }
  EXPECT_EQ(nlohmann::json::parse(read_file(path("r/manifest.json")))["best_step"], best_step);
}

TEST_F(TrainCli, AFolderIsOneRunsAtATime) {
  ASSERT_EQ(train("--run r --train.steps 10 --isa avx2").exit_status, 0);
  const int lock = ::open(path("r/.lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  const Outcome o = run("--resume r");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("r: another xsr-train works in this folder"));
  ::close(lock);
  EXPECT_EQ(run("--resume r --isa auto").exit_status, 0);
  const auto manifest = nlohmann::json::parse(read_file(path("r/manifest.json")));
  EXPECT_EQ(manifest["environment"]["isa"], "avx2") << "as it was begun with";
}

/// By someone who has forgotten that the run still lives.
TEST_F(TrainCli, ARunWhoseFolderIsRemovedWritesNothingIntoTheNextOnes) {
  // Long before it next writes anything.
  const auto stopped = [&](const std::string& arguments) {
    const pid_t child = start("--config toy.toml -q --run r --train.steps 3000 " + arguments);
    const std::string metrics = path("r/metrics.jsonl");
    while (!fs::exists(metrics) || fs::file_size(metrics) == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    kill(child, SIGSTOP);
    waitpid(child, nullptr, WUNTRACED);
    fs::remove_all(path("r"));
    return child;
  };
  ASSERT_EQ(train("--run whole -q --seed 4").exit_status, 0);
  std::vector<pid_t> old = {stopped("--train.checkpoint_every 500 --train.eval_every 3000"),
                            stopped("--train.checkpoint_every 3000 --train.eval_every 500"),
                            stopped("--train.checkpoint_every 3000 --train.eval_every 3000")};
  kill(old.back(), SIGTERM);
  ASSERT_EQ(train("--run r -q --seed 4").exit_status, 0);
  for (const pid_t child : old) {
    kill(child, SIGCONT);
    const Outcome o = wait_for(child);
    EXPECT_EQ(o.exit_status, 1);
    EXPECT_THAT(o.err, HasSubstr("xsr-train: r: the folder was moved or removed while the run"));
  }
  expect_same_results("whole", "r");
}

TEST_F(TrainCli, AFoldersNameMayNeedQuotes) {
  // A line end in it must not end a line of config.toml.
  for (const std::string name : {R"('we"ird\q')", "'two\nlines\t'"}) {
    ASSERT_EQ(train("--train.steps 1 --run " + name).exit_status, 0);
    const Outcome o = run("--resume " + name);
    EXPECT_EQ(o.exit_status, 0) << o.err;
  }
}

/// A crash behind a new best leaves a later one than the checkpoint knows; elsewhere the same steps
/// may find none.
TEST_F(TrainCli, TheManifestNamesTheWeightsThatTheModelIsMadeOf) {
  for (const char* steps : {"20", "40"}) {
    ASSERT_EQ(train(std::string("--train.select loss --run to") + steps + " --train.steps " + steps)
                  .exit_status,
              0);
  }
  fs::copy_file(path("to40/best.safetensors"), path("to20/best.safetensors"),
                fs::copy_options::overwrite_existing);
  ASSERT_EQ(run("--resume to20").exit_status, 0);
  const auto manifest = nlohmann::json::parse(read_file(path("to20/manifest.json")));
  EXPECT_EQ(manifest["best_step"], 40);
  EXPECT_EQ(manifest["weights"], "step 40, the best on dev");
}

TEST_F(TrainCli, StartsFromAModelOrACheckpoint) {
  ASSERT_EQ(train("--run a").exit_status, 0);
  for (const char* init : {"a/model.xsr", "a/checkpoint.safetensors", "a/best.safetensors"}) {
    const std::string run_name = "from-" + fs::path(init).stem().string();
    const Outcome o = train("--run " + run_name + " --train.steps 1 --train.eval_every 1 " +
                            "--schedule.learning_rate 1e-12 --model.init " + init);
    ASSERT_EQ(o.exit_status, 0) << o.err;
    const double p1 = metrics_of(path(run_name), "dev").front()["p1"]["mean"];
    EXPECT_GT(p1, 0.2) << init;
    // The manifest says from what, also when the run was resumed.
    for (const std::string& again : {std::string(), "--resume " + run_name}) {
      if (!again.empty()) {
        EXPECT_EQ(run(again).exit_status, 0);
      }
      const auto manifest = nlohmann::json::parse(read_file(path(run_name + "/manifest.json")));
      EXPECT_EQ(manifest["inputs"].back()["key"], "model.init");
      EXPECT_EQ(manifest["inputs"].back()["file"], fs::path(init).filename().string());
      EXPECT_EQ(manifest["inputs"].back()["xxh3_128"].get<std::string>().size(), 32u);
    }
  }
  for (const char* init : {"a/model.xsr", "a/checkpoint.safetensors", "a/best.safetensors"}) {
    const Outcome o = train(std::string("--run b --model.hidden_size 64 --model.num_layers 0 ") +
                            "--model.num_heads 4 --model.activation gelu --model.pooling max "
                            "--model.layer_norm_eps 1e-5 --model.max_seq_len 41 "
                            "--model.intermediate_size 50 --model.lowercase false --model.init " +
                            init);
    EXPECT_EQ(o.exit_status, 1);
    EXPECT_THAT(o.err, HasSubstr(std::string(init) +
                                 ": the run's model is another one:\n"
                                 "  model.num_layers is 0, the file has 1\n"
                                 "  model.hidden_size is 64, the file has 32\n"
                                 "  model.num_heads is 4, the file has 2\n"
                                 "  model.intermediate_size is 50, the file has 48\n"
                                 "  model.max_seq_len is 41, the file has 40\n"
                                 "  model.activation is \"gelu\", the file has \"swish\"\n"
                                 "  model.pooling is \"max\", the file has \"mean\"\n"
                                 "  model.lowercase is false, the file has true\n"
                                 "  model.layer_norm_eps is 1e-05, the file has 1e-12\n"
                                 "Set these keys as the file has them"));
  }
}

TEST_F(TrainCli, StartsFromFewerLayersOrAnAuthorsCheckpoint) {
  ASSERT_EQ(train("--run a --model.num_layers 0").exit_status, 0);
  const Outcome grown = train(
      "--run b --model.init a/model.xsr --train.steps 1 --train.eval_every 1 "
      "--schedule.learning_rate 1e-12");
  ASSERT_EQ(grown.exit_status, 0) << grown.err;
  EXPECT_GT(metrics_of(path("b"), "dev")[0]["p1"]["mean"], 0.2) << "what a has learned";
  // What a checkpoint does not tell is as the run has it.
  write("c.safetensors", xsr::test::safetensors_file(xsr::test::xsr_tensors({110, 41, 32, 48, 1})));
  const Outcome authors = train(
      "--run c --model.init c.safetensors --tokenizer.model a/tokenizer.model --train.steps 1 "
      "--model.num_heads 4 --model.activation relu --model.pooling max --model.lowercase false "
      "--model.layer_norm_eps 1e-5");
  EXPECT_EQ(authors.exit_status, 0) << authors.err;
}

TEST_F(TrainCli, RefusesATokenizerOfOtherPiecesThanTheModelsItStartsFrom) {
  ASSERT_EQ(train("--run a --train.steps 1").exit_status, 0);
  std::string text = read_file(path("toy.tsv"));
  std::replace(text.begin(), text.end(), 'b', 'z');
  write("other.tsv", text);
  ASSERT_EQ(train("--run b --train.steps 1 --data.train other.tsv").exit_status, 0);
  write("none.model",
        std::regex_replace(read_file(path("a/tokenizer.model")), std::regex("<MASK>"), "<NONE>"));
  const Outcome none = train("--run n --tokenizer.model none.model");
  EXPECT_EQ(none.exit_status, 1);
  EXPECT_THAT(none.err,
              HasSubstr("none.model: has no piece \"<MASK>\", which objective.mask needs"));
  for (const char* init : {"a/model.xsr", "a/checkpoint.safetensors", "a/best.safetensors"}) {
    const std::string from = std::string(" --train.steps 1 --model.init ") + init;
    const Outcome o = train("--run c --tokenizer.model b/tokenizer.model" + from);
    EXPECT_EQ(o.exit_status, 1);
    EXPECT_THAT(o.err, ContainsRegex(std::string(init) +
                                     ": token [0-9]+ is \".+\", in b/tokenizer.model it is \".+\"; "
                                     "leave tokenizer.model out"));
    fs::remove_all(path("c"));
    EXPECT_EQ(train("--run c --tokenizer.model a/tokenizer.model" + from).exit_status, 0);
    fs::remove_all(path("c"));
  }
}

// ---- what goes wrong ----

TEST_F(TrainCli, ARunThatGoesOnWithOtherInstructionsSaysSo) {
  ASSERT_EQ(train("--run r --train.steps 10").exit_status, 0);
  const auto isa = nlohmann::json::parse(read_file(path("r/manifest.json")))["environment"]["isa"];
  const Outcome same = run("--resume r");
  EXPECT_EQ(same.exit_status, 0);
  EXPECT_THAT(same.err, testing::Not(HasSubstr("warning")));
  const Outcome other = run("--resume r", "XSR_FORCE_ISA=ref ");
  EXPECT_EQ(other.exit_status, 0);
  if (isa == "ref") GTEST_SKIP() << "there are no others";
  EXPECT_THAT(other.err, HasSubstr("the run was computed with " + isa.get<std::string>() +
                                   ", which XSR_FORCE_ISA forbids; it goes on with ref"));
}

/// A run that was begun with avx2_vnni has the bits of avx2, and goes on so without the former.
TEST_F(TrainCli, ARunGoesOnWithOtherInstructionsOfTheSameBits) {
  using namespace xsr::training;
  if (!xsr::kernels::isa_supported(xsr::kernels::Isa::kAvx2)) GTEST_SKIP() << "no AVX2";
  ASSERT_EQ(train("--run r --isa avx2 --train.steps 10").exit_status, 0);
  const std::string file = path("r/checkpoint.safetensors");
  const ParameterTable table(read_initial_model(path("r/model.xsr"), {}, 1).config);
  std::deque<FlatBuffer> buffers;
  std::vector<CheckpointBuffer> named;
  CheckpointFields fields;
  {
    const TrainingCheckpoint checkpoint(file);
    fields = checkpoint.fields();
    for (const char* prefix : {"value.", "moment1.", "moment2.", "max_moment2."}) {
      checkpoint.read(table, prefix, buffers.emplace_back(table.size()));
      named.push_back({prefix, nullptr});
    }
  }
  for (size_t i = 0; i < named.size(); ++i) named[i].buffer = &buffers[i];
  for (const char* own : {"checksum", "format"}) fields.erase(own);
  if (fields.at("isa") != "avx2") GTEST_SKIP() << "XSR_FORCE_ISA forbids AVX2";
  fields["isa"] = "avx2_vnni";
  write_checkpoint(file, table, named, fields);
  const Outcome o = run("--resume r");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  EXPECT_THAT(o.err, testing::Not(HasSubstr("warning")));
  const auto isa = nlohmann::json::parse(read_file(path("r/manifest.json")))["environment"]["isa"];
  EXPECT_THAT(isa.get<std::string>(), testing::StartsWith("avx2"));
}

TEST_F(TrainCli, ResumeRefusesAnotherConfigAndOtherData) {
  ASSERT_EQ(train("--run r --train.steps 10").exit_status, 0);
  Outcome o = run("--resume r --optimizer.beta1 0.5");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("optimizer.beta1 is 0.5, the run has 0.9"));
  EXPECT_EQ(run("--resume r --threads 1").exit_status, 0);
  for (const char* ignored : {"--config toy.toml", "--run s"}) {
    o = run(std::string("--resume r ") + ignored);
    EXPECT_EQ(o.exit_status, 2) << ignored;
    EXPECT_THAT(o.err, HasSubstr("leave --config and --run out"));
  }
  write("toy.tsv", toy_corpus(701));
  o = run("--resume r");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("toy.tsv (data.train): its content is not what the run has read"));
  // Known before a cache is made of the other data.
  EXPECT_THAT(o.err, testing::Not(HasSubstr("making the corpus cache")));
  write("toy.tsv", toy_corpus(700));
  o = run("--resume r --data.train other=toy.tsv");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err,
              HasSubstr("toy.tsv: is data.train other now, the run has read it as data.train "
                        "toy"));
  ASSERT_EQ(train("--run s --train.steps 1 --tokenizer.max_sentences 400").exit_status, 0);
  const std::string own = read_file(path("r/tokenizer.model"));
  write("r/tokenizer.model", read_file(path("s/tokenizer.model")));
  o = run("--resume r");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("r/tokenizer.model (tokenizer): its content is not what the run"));
  write("r/tokenizer.model", own);
  write("more.tsv", toy_corpus(10));
  o = run("--resume r --data.train toy.tsv more.tsv");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("data.train: 2 files now, the run has read 1. Bring the old data "
                               "back, or begin another run."));
  o = run("--resume nothing");
  EXPECT_EQ(o.exit_status, 2);
  EXPECT_THAT(o.err, HasSubstr("nothing: holds no run"));
}

TEST_F(TrainCli, ARunThatGoesOnBeforeItsFirstCheckpointMayHaveAnotherConfig) {
  EXPECT_EQ(train("--run r", "ulimit -f 100;").exit_status, 1) << "the tokenizer does not fit";
  ASSERT_EQ(run("--resume r --train.steps 10").exit_status, 0);
  const Outcome o = run("--resume r");
  EXPECT_EQ(o.exit_status, 0) << o.err;
}

TEST_F(TrainCli, ADamagedCheckpointIsRefused) {
  ASSERT_EQ(train("--run r --train.steps 10").exit_status, 0);
  const std::string file = path("r/checkpoint.safetensors"), whole = read_file(file);
  for (const size_t at : {whole.size() - 1, whole.size() / 2, size_t{300}}) {
    std::string broken = whole;
    broken[at] = static_cast<char>(broken[at] ^ 1);
    write("r/checkpoint.safetensors", broken);
    const Outcome o = run("--resume r");
    EXPECT_EQ(o.exit_status, 1) << at;
    EXPECT_THAT(o.err, HasSubstr("checkpoint.safetensors")) << at;
  }
  for (const size_t size : {whole.size() - 4, size_t{100}, size_t{0}}) {
    write("r/checkpoint.safetensors", whole.substr(0, size));
    EXPECT_EQ(run("--resume r").exit_status, 1) << size;
  }
  // What cannot be read is not called something else, which its owner might remove.
  fs::remove(path("r/checkpoint.safetensors"));
  fs::create_directory(path("r/checkpoint.safetensors"));
  const Outcome unread = run("--resume r");
  EXPECT_EQ(unread.exit_status, 1);
  EXPECT_THAT(unread.err, HasSubstr("r/checkpoint.safetensors: cannot read the file; is it a"));
  fs::remove(path("r/checkpoint.safetensors"));
  // The file ends within the digits that the checksum should have.
  const std::string header =
      R"({"__metadata__":{"format":"xsr-train checkpoint 1","checksum":""}})";
  write("r/checkpoint.safetensors",
        std::string(1, static_cast<char>(header.size())) + std::string(7, '\0') + header);
  const Outcome o = run("--resume r");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("checkpoint.safetensors: has no checksum"));
  write("r/checkpoint.safetensors", whole);
  EXPECT_EQ(run("--resume r").exit_status, 0);
}

TEST_F(TrainCli, MetricsThatAreNestedTooDeepAreNone) {
  ASSERT_EQ(train("--run r --train.steps 10").exit_status, 0);
  std::string deep = R"({"kind":"train","step":5,"time":1,"loss":)";
  for (int i = 0; i < 200'000; ++i) deep += "{\"a\":";
  deep += "1" + std::string(200'001, '}') + "\n";
  write("r/metrics.jsonl", deep + read_file(path("r/metrics.jsonl")));
  const Outcome o = run("--resume r");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("metrics.jsonl:1: is no record of metrics"));
}

TEST_F(TrainCli, StandardErrorMayBeFullOrClosed) {
  ASSERT_EQ(train("--run whole").exit_status, 0);
  EXPECT_EQ(status_of("--config toy.toml --run full 2>/dev/full"), 0);
  expect_same_results("whole", "full");
  EXPECT_EQ(status_of("--config toy.toml --run closed <&- >&- 2>&-"), 0);
  expect_same_results("whole", "closed");
  EXPECT_EQ(status_of("--config missing.toml --run none 2>&-"), 1);
}

/// Figures and configs that nobody gets are a failure.
TEST_F(TrainCli, AFullStandardOutputOrDiskIsToldByTheOtherCommandsToo) {
  ASSERT_EQ(train("--run r --train.steps 10").exit_status, 0);
  for (const std::string command :
       {"score r/model.xsr toy.tsv", "--print-config", "--help-markdown", "--help", "--version"}) {
    EXPECT_EQ(status_of(command + " >/dev/full 2>err"), 1) << command;
    EXPECT_EQ(read_file(path("err")),
              "xsr-train: standard output: cannot write; is it closed, or its disk full?\n")
        << command;
  }
  for (const std::string input : {"toy.tsv", "r/model.xsr"}) {
    const Outcome same = run("score r/model.xsr toy.tsv --json " + input);
    EXPECT_EQ(same.exit_status, 1);
    EXPECT_THAT(same.err, HasSubstr(input + ": is an input too"));
  }
  const Outcome full = run("plot r -o r.svg", "ulimit -f 1;");
  EXPECT_EQ(full.exit_status, 1);
  EXPECT_THAT(full.err, HasSubstr("r.svg.partial: cannot write after "));
  EXPECT_FALSE(fs::exists(path("r.svg.partial")));
}

/// Neither is left unread in silence: the config is another's, or the threads are not those meant.
TEST_F(TrainCli, PlotAndScoreRefuseTheOptionsOfARun) {
  ASSERT_EQ(train("--run r --train.steps 10").exit_status, 0);
  const std::string score = "score r/model.xsr toy.tsv";
  for (const std::string option : {"--config", "--resume", "--threads", "--data.train"}) {
    const Outcome o = run(option + " 2 plot r");
    EXPECT_EQ(o.exit_status, 2) << option;
    EXPECT_THAT(o.err, HasSubstr(option + " is of a training run, plot does not read it")) << o.err;
  }
  for (const std::string option : {"--quiet", "--print-config", "--help-markdown"}) {
    const Outcome o = run(option + " " + score);
    EXPECT_EQ(o.exit_status, 2) << option;
    EXPECT_EQ(o.out, "") << option;
    EXPECT_THAT(o.err, HasSubstr(option + " is of a training run, score does not read it"));
  }
  EXPECT_EQ(run("plot r " + score).exit_status, 2) << "two commands at once";
  EXPECT_FALSE(fs::exists(path("r/curves.svg")));
  EXPECT_EQ(run("score --threads 1 r/model.xsr toy.tsv").exit_status, 0);
  for (const std::string name : {"r.png", "r", "''"}) {
    const Outcome o = run("plot r -o " + name);
    EXPECT_EQ(o.exit_status, 2) << name;
    EXPECT_THAT(o.err, HasSubstr("expected a name that ends with .svg or .html")) << name;
  }
}

/// A variable that was not set is neither the config's defaults nor figures for nobody.
TEST_F(TrainCli, AnEmptyNameIsRefused) {
  const std::pair<std::string, std::string> cases[] = {
      {"--config '' --run r --data.train toy.tsv", "--config: names no file; leave it out"},
      {"--resume '' --run r --data.train toy.tsv", "--resume: names no folder; leave it out"},
      {"score none.xsr toy.tsv --json ''", "--json: names no file; leave it out"},
  };
  for (const auto& [options, message] : cases) {
    const Outcome o = run(options);
    EXPECT_EQ(o.exit_status, 2) << options;
    EXPECT_THAT(o.err, HasSubstr(message)) << options;
  }
  EXPECT_FALSE(fs::exists(path("r")));
}

TEST_F(TrainCli, ScoreIsUsedWronglyWithThreadsThatNoSessionTakes) {
  for (const char* threads : {"-1", "1025"}) {
    const Outcome o = run(std::string("score none.xsr toy.tsv --threads ") + threads);
    EXPECT_EQ(o.exit_status, 2) << threads;
    EXPECT_THAT(o.err, HasSubstr("not in range 0 to 1024")) << threads;
  }
}

TEST_F(TrainCli, AThreadThatIsNotToBeHadIsTold) {
  if (kSlow) GTEST_SKIP() << "sanitizers take more addresses";
  const Outcome o = train("--run r --threads 1", xsr::test::kNoThreads);
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("xsr-train: cannot start a thread: "));
  EXPECT_EQ(run("--resume r").exit_status, 0);
}

TEST_F(TrainCli, ATerminalsLineOfProgressFitsIntoItsWidth) {
  winsize size = {24, 60, 0, 0};
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, &size);
  if (child == 0) {
    if (chdir(folder_.c_str()) == 0)
      execl(tool_.c_str(), "xsr-train", "--config", "toy.toml", "--run", "r", nullptr);
    _exit(127);
  }
  std::string text;
  char block[4096];
  for (ssize_t got; (got = read(terminal, block, sizeof block)) > 0;)  // EIO at the end
    text.append(block, static_cast<size_t>(got));
  close(terminal);
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << text;
  const size_t begin = text.find("\rstep 1/60");
  ASSERT_NE(begin, text.npos) << text;
  EXPECT_EQ(text.find("\x1B[K", begin) - (begin + 1), 59u) << text;
}

TEST_F(TrainCli, AModelOfLongSentencesTakesTheMemoryOfThoseThatCome) {
  if (kSlow) GTEST_SKIP() << "sanitizers take more addresses";
  const Outcome o =
      train("--run r --train.steps 2 --model.max_seq_len 65535", "ulimit -v 4000000 && ");
  EXPECT_EQ(o.exit_status, 0) << o.err;
}

TEST_F(TrainCli, AFullDiskLeavesTheCheckpointBefore) {
  ASSERT_EQ(train("--run whole").exit_status, 0);
  ASSERT_EQ(
      train("--run r --train.checkpoint_every 1000 --train.steps 60", "ulimit -f 100;").exit_status,
      1)
      << "the first checkpoint does not fit";
  EXPECT_FALSE(fs::exists(path("r/checkpoint.safetensors")));
  EXPECT_FALSE(fs::exists(path("r/checkpoint.safetensors.partial")));

  const pid_t child = start("--config toy.toml --run s");
  while (!fs::exists(path("s/checkpoint.safetensors"))) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  kill(child, SIGKILL);
  wait_for(child);
  const std::string before = read_file(path("s/checkpoint.safetensors"));
  const Outcome full = run("--resume s", "ulimit -f 100;");
  EXPECT_EQ(full.exit_status, 1);
  EXPECT_THAT(full.err, HasSubstr("checkpoint.safetensors.partial"));
  EXPECT_TRUE(read_file(path("s/checkpoint.safetensors")) == before);
  EXPECT_EQ(run("--resume s").exit_status, 0);
  expect_same_results("whole", "s");
}

TEST_F(TrainCli, WhatIsNotFiniteStopsWithStepTensorAndLines) {
  const Outcome o = train("--run r --schedule.learning_rate 1e30 --train.checkpoint_every 1");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, testing::ContainsRegex("step [0-9]+: (loss|gradient) [a-z_.0-9]+ is not "
                                            "finite"));
  EXPECT_THAT(o.err, HasSubstr("toy.tsv: lines "));
  EXPECT_THAT(o.err, HasSubstr("The last checkpoint, r/checkpoint.safetensors, is as it was."));
  EXPECT_THAT(train("--run s --schedule.learning_rate 1e30 --train.checkpoint_every 1000").err,
              HasSubstr("There is no checkpoint yet."));
  EXPECT_FALSE(fs::exists(path("r/model.xsr")));
  write("few.tsv", "\tan empty side\n" + toy_corpus(5));
  EXPECT_THAT(train("--run t --schedule.learning_rate 1e30 --data.train few.tsv --data.dev_pairs 0 "
                    "--data.batch_pairs 5 --tokenizer.model r/tokenizer.model")
                  .err,
              HasSubstr("The batch is few.tsv: lines 2, 3, 4, 5, 6. "));
}

TEST_F(TrainCli, WeightsThatDoNotFitTheModelsTypeAreNotLost) {
  const Outcome o = train(
      "--run r --train.steps 3 --train.dtype f16 --schedule.learning_rate 1e6 "
      "--optimizer.clip_norm 0");
  EXPECT_EQ(o.exit_status, 1);
  EXPECT_THAT(o.err, HasSubstr("r/model.xsr: not written: embedding.token has a value that is not "
                               "finite in f16; go on with --resume and another train.dtype"));
  EXPECT_EQ(run("--resume r --train.dtype f32").exit_status, 0);
  EXPECT_TRUE(fs::exists(path("r/model.xsr")));
}

TEST_F(TrainCli, BadDataNamesFileAndLine) {
  write("toy.tsv", toy_corpus(300) + "only one column\n" + toy_corpus(10));
  const Outcome strict = train("--run r --data.strict true --train.steps 1");
  EXPECT_EQ(strict.exit_status, 1);
  EXPECT_THAT(strict.err, HasSubstr("toy.tsv:301"));
  const Outcome dropped = train("--run s --train.steps 1");
  EXPECT_EQ(dropped.exit_status, 0) << dropped.err;
  EXPECT_THAT(dropped.err, HasSubstr("toy.tsv:301"));
  EXPECT_EQ(nlohmann::json::parse(read_file(path("s/manifest.json")))["data"]["toy"]["dropped"],
            nlohmann::json({{"fewer columns than expected", 1}}));
  // Not one pair: the tokenizer's training is the first to see it.
  const std::pair<std::string, const char*> useless[] = {
      {"one\none\n", "toy.tsv:1: has 1 column, expected 2"},
      {"one\none\n", "become one by `paste FILE FILE > PAIRS.tsv`"},
      {"a\tb\tc\n", "toy.tsv:1: has 3 columns, expected 2"},
      {"\xff\tb\n", "toy.tsv:1: byte 1 is 0xFF, which is not UTF-8 there"},
      {"\ta\n", "toy.tsv:1: column 1 is empty"},
      {"", "toy: not one pair is left of 0 lines"},
  };
  for (const auto& [text, message] : useless) {
    write("toy.tsv", text);
    const Outcome o = train("--run u --train.steps 1");
    EXPECT_EQ(o.exit_status, 1) << text;
    EXPECT_THAT(o.err, HasSubstr("toy: not one pair is left of ")) << text;
    EXPECT_THAT(o.err, HasSubstr(message)) << text;
  }
  write("toy.tsv", std::regex_replace(toy_corpus(700), std::regex("\n"), "\t0.5\n"));
  EXPECT_EQ(train("--run v --train.steps 1 --data.num_columns 3").exit_status, 0);
  const Outcome shared = train("--run w --train.steps 1 --data.num_columns 3 --data.dev toy.tsv");
  EXPECT_EQ(shared.exit_status, 1);
  EXPECT_THAT(shared.err, HasSubstr("no pair to train on that shares no sentence with dev"));
  const Outcome no_cache = train("--run x --data.num_columns 3 --data.cache toy.tsv/cache");
  EXPECT_EQ(no_cache.exit_status, 1);
  EXPECT_THAT(no_cache.err, HasSubstr("xsr-train: toy.tsv/cache: cannot create the folder: Not a"));
  const Outcome missing = train("--run t --data.train none.tsv");
  EXPECT_EQ(missing.exit_status, 1);
  EXPECT_THAT(missing.err, HasSubstr("none.tsv"));
}

TEST_F(TrainCli, ScoresGoToStandardOutputToo) {
  const std::string scored = "score " XSR_SOURCE_DIR "/models/xsr-multi.xsr " XSR_SOURCE_DIR
                             "/examples/data/tatoeba.en-fr.tsv --json ";
  const Outcome o = run(scored + "-");
  ASSERT_EQ(o.exit_status, 0) << o.err;
  EXPECT_EQ(nlohmann::json::parse(o.out)[0]["pairs"], 400);
  EXPECT_THAT(o.err, HasSubstr("| P@1, % |"));
  EXPECT_FALSE(fs::exists(path("-")));
  ASSERT_EQ(run(scored + "s.json").exit_status, 0);
  EXPECT_EQ(read_file(path("s.json")), o.out);
  write("tatoeba.en-fr.tsv.gz",
        xsr::test::gzip(read_file(XSR_SOURCE_DIR "/examples/data/tatoeba.en-fr.tsv")));
  const Outcome packed =
      run("score " XSR_SOURCE_DIR "/models/xsr-multi.xsr tatoeba.en-fr.tsv.gz --json -");
  EXPECT_EQ(packed.exit_status, 0) << packed.err;
  EXPECT_EQ(packed.out, o.out);
}

TEST(Score, TheTableEndsWithTheMeanOfItsFiles) {
  EXPECT_EQ(xsr::training::scores_as_markdown({{"a", {100, 80, 60}}, {"b", {10, 1, 2}}}),
            "| P@1, % | pairs | 1 → 2 | 2 → 1 | mean |\n| --- | --- | --- | --- | --- |\n"
            "| a | 100 | 80.0 | 60.0 | 70.00 |\n"
            "| b | 10 | 10.0 | 20.0 | 15.00 |\n"
            "| mean | 110 | 45.0 | 40.0 | 42.50 |\n");
  const auto json = nlohmann::json::parse(xsr::training::scores_as_json({{"a", {100, 80, 60}}}));
  EXPECT_EQ(json, nlohmann::json::parse(R"([{"name": "a", "pairs": 100, "forward": 80,
            "backward": 60, "p1_forward": 0.8, "p1_backward": 0.6}])"));
}

// ---- event files ----

/// The records of a TFRecord file, both checksums checked.
std::vector<std::string> read_records(const std::string& bytes) {
  std::vector<std::string> records;
  size_t at = 0;
  const auto u32 = [&](size_t i) {
    uint32_t v;
    std::memcpy(&v, bytes.data() + i, 4);
    return v;
  };
  while (at < bytes.size()) {
    uint64_t length;
    std::memcpy(&length, bytes.data() + at, 8);
    EXPECT_EQ(u32(at + 8), xsr::training::masked_crc32c(bytes.substr(at, 8)));
    records.push_back(bytes.substr(at + 12, length));
    EXPECT_EQ(u32(at + 12 + length), xsr::training::masked_crc32c(records.back()));
    at += 16 + length;
  }
  return records;
}

TEST(EventFile, ChecksumIsCastagnolis) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(xsr::training::crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(xsr::training::crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(xsr::training::crc32c("123456789"), 0xe3069283u);
}

/// When the machine dies, the lines that a checkpoint counts on are on the disk as it is.
TEST_F(TrainCli, MetricsAreFlushedBeforeTheirCheckpoint) {
  const auto config =
      xsr::training::load_config(path("toy.toml"), {{"data.train", {path("toy.tsv")}},
                                                    {"run", {path("r")}},
                                                    {"train.steps", {"10"}},
                                                    {"train.checkpoint_every", {"4"}}});
  std::vector<std::string> flushed;
  xsr::test::before_fsync = [&](const std::string& name) {
    const std::string file = fs::path(name).filename();
    if (file.starts_with("metrics") || file.starts_with("checkpoint")) flushed.push_back(file);
  };
  xsr::training::RunOptions options;
  options.quiet = true;
  const auto end = xsr::training::train(config, options);
  xsr::test::before_fsync = nullptr;
  EXPECT_EQ(end, xsr::training::RunEnd::kDone);
  std::vector<std::string> expected = {"metrics.jsonl.partial"};  // as the run begins
  for (int checkpoint = 0; checkpoint < 3; ++checkpoint)
    expected.insert(expected.end(), {"metrics.jsonl", "checkpoint.safetensors.partial"});
  EXPECT_EQ(flushed, expected);
}

TEST(MetricsLog, AFullDiskIsToldWithFileAndReason) {
  const xsr::test::TempFolder folder;
  const nlohmann::ordered_json record = {{"kind", "train"}, {"step", 1}, {"time", 0.5}, {"x", 2}};
  const auto message = [](const auto& write) -> std::string {
    try {
      write();
    } catch (const xsr::Error& error) {
      return error.what();
    }
    return "no error";
  };
  xsr::training::MetricsLog log(folder / "", -1);
  xsr::training::EventFile events(folder / "events", 1.5);
  const xsr::test::FileSizeLimit limit(1);
  EXPECT_EQ(message([&] { log.write(record); }),
            folder / "/metrics.jsonl: cannot write the metrics: File too large");
  EXPECT_EQ(message([&] {
              events.write(2.5, 1, {{"x", 2}});
            }),
            folder / "events: cannot write the event file: File too large");
}

/// Those of steps that the run goes on from; what a crash cut short goes, too.
TEST(MetricsLog, KeepsTheLinesOfTheStepsBefore) {
  const xsr::test::TempFolder folder;
  {
    xsr::training::MetricsLog log(folder / "", -1);
    for (int step : {1, 2, 3, 4}) {
      log.write({{"kind", "train"}, {"step", step}, {"time", 0.5}, {"x", 2}});
    }
  }
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << R"({"kind":"tr)";
  { xsr::training::MetricsLog log(folder / "", 2); }
  const auto kept = xsr::training::read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept[1]["step"], 2);
  EXPECT_EQ(read_records(read_file(folder / "events.out.tfevents.xsr")).size(), 3u);
  // An evaluation that is to be made again has no record yet; those before it have.
  {
    xsr::training::MetricsLog log(folder / "", 1);
    for (int step : {2, 3}) {
      for (const char* kind : {"train", "dev"})
        log.write({{"kind", kind}, {"step", step}, {"time", 0.5}});
    }
  }
  { xsr::training::MetricsLog log(folder / "", 3, true); }
  const auto due = xsr::training::read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(due.size(), 4u);
  EXPECT_EQ(due[2]["kind"], "dev");
  EXPECT_EQ(due[2]["step"], 2);
  EXPECT_EQ(due[3]["kind"], "train");
  { xsr::training::MetricsLog log(folder / "", -1); }
  EXPECT_TRUE(read_file(folder / "metrics.jsonl").empty());
}

TEST(EventFile, HoldsWhatWasWritten) {
  const std::string path = fs::temp_directory_path() / ("xsr-events-" + std::to_string(getpid()));
  xsr::training::EventFile(path, 1.5).write(2.5, 300, {{"train/loss", 0.25}});
  const std::vector<std::string> records = read_records(read_file(path));
  fs::remove(path);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_THAT(records[0], HasSubstr("\x1a\x0d"
                                    "brain.Event:2"));
  double wall = 0;
  std::memcpy(&wall, records[1].data() + 1, 8);
  EXPECT_EQ(records[1][0], 0x09);
  EXPECT_EQ(wall, 2.5);
  // step 300 as a varint, then the summary with its one value.
  EXPECT_EQ(records[1].substr(9), std::string("\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0a", 9) +
                                      "train/loss" + std::string("\x15\x00\x00\x80\x3e", 5));
}

}  // namespace
