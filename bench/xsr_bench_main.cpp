// xsr-bench: how fast a model is on this machine, and how far from what the machine can do.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "bench/device_meter.h"
#include "bench/json_file.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/program.h"
#include "bench/random_model.h"
#include "bench/report.h"
#include "kernels/isa.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/format/xsr_file.h"
#include "runtime/option_checks.h"
#include "runtime/option_names.h"
#include "runtime/text/standard_streams.h"

namespace xsr::bench {
namespace {

constexpr uint32_t kSeed = 20261124;

struct Options {
  std::string model;
  std::vector<int32_t> random;
  Activation activation = Activation::kSwish;
  Pooling pooling = Pooling::kMean;
  std::string storage = "auto", device = "cpu", isa = "auto", dtype = "f32", yardstick = "auto";
  std::vector<int32_t> threads{1}, tokens{1, 5, 10, 20, 50, 100};
  std::string corpus, corpus_ids, json;
  bool no_corpus = false, qkv_table = false;
  int32_t cpu = -1;
  int32_t batch_tokens = 0;
  int32_t sentences = 3000;
  double seconds = 0.5, corpus_seconds = 60;
};

/// What the roofline and the yardstick need to know of the model, from its file.
struct Shape {
  int64_t weight_bytes = 0, token_table_bytes = 0;
  std::string storage;
  Activation activation = Activation::kNone;
  Pooling pooling = Pooling::kMean;
};

/// Bytes that a session reads of a weight, at least (the steps of int8 on AVX2 are 1 to 3).
int64_t bytes_read(xsr_compute compute, DType stored) {
  switch (compute) {
    case XSR_COMPUTE_INT8:
      return 1;
    case XSR_COMPUTE_BF16:
      return 2;
    case XSR_COMPUTE_BF16X3:
      return 4;
    default:
      return stored == DType::kI8 ? 4 : kernels::storage_size(stored);
  }
}

Shape shape_of(const XsrFile& file, xsr_compute compute, bool qkv_table) {
  Shape shape;
  for (const TensorView& tensor : file.tensors()) {
    if (qkv_table && tensor.name == "layer.0.qkv.weight") continue;
    if (tensor.name.starts_with("layer.") && tensor.dims.size() == 2) {
      shape.weight_bytes += static_cast<int64_t>(tensor.size) /
                            kernels::storage_size(tensor.dtype) * bytes_read(compute, tensor.dtype);
      shape.storage = to_string(tensor.dtype);
    }
    if (tensor.name == "embedding.token")
      shape.token_table_bytes = static_cast<int64_t>(tensor.size);
  }
  shape.activation = file.config().activation;
  shape.pooling = file.config().pooling;
  return shape;
}

/// What a random model stores: what is asked for, else what its session computes in.
DType storage_of(const Options& options) {
  const std::string& name = options.storage == "auto" ? options.dtype : options.storage;
  if (name == "bf16") return DType::kBF16;
  if (name == "f16") return DType::kF16;
  if (name == "i8" || name == "int8") return DType::kI8;
  return DType::kF32;
}

/// The corpus that the options name, through the session. Sets *batch to its ids, where it is one
/// of ids.
Corpus measure_corpus(const Options& options, const Model& model, Session& session,
                      IdBatch* batch) {
  Corpus corpus;
  if (!options.corpus.empty()) {
    corpus = measure_texts(model, session, read_lines(options.corpus), options.corpus_seconds);
  } else {
    *batch = options.corpus_ids.empty()
                 ? log_normal_sentences(options.sentences, model.info().vocab_size,
                                        model.info().max_seq_len, kSeed)
                 : read_ids(options.corpus_ids, model.info().vocab_size);
    corpus = measure_ids(model, session, *batch, options.corpus_seconds);
    if (options.corpus_ids.empty()) corpus.input = "log-normal";
  }
  if (corpus.tokens == 0) {
    throw Error(
        XSR_STATUS_INVALID_ARGUMENT,
        options.corpus + options.corpus_ids + ": no sentence has tokens; there is nothing to time");
  }
  return corpus;
}

Report measure(const Options& options, const Model& model, const XsrFile& file, const Shape& shape,
               const std::string& name, int32_t threads) {
  const bool on_cpu = options.device == "cpu";
  Report report;
  report.model = name;
  report.dtype = options.dtype;
  report.storage = shape.storage;
  report.activation = to_string(shape.activation);
  report.pooling = to_string(shape.pooling);
  report.info = model.info();
  report.weight_bytes = shape.weight_bytes;
  report.token_table_bytes = shape.token_table_bytes;

  // One thread stays where it is, so that the clock and the caches are one core's. The last
  // processor, since the first serves most interrupts.
  std::unique_ptr<PinToCpu> pin;
  if (threads == 1 && on_cpu) {
    const int cpu = options.cpu >= 0 ? options.cpu : allowed_cpus().back();
    pin = std::make_unique<PinToCpu>(cpu);
    if (pin->pinned()) report.pinned_cpu = cpu;
    if (!pin->pinned() && options.cpu >= 0)
      throw Error(XSR_STATUS_INVALID_ARGUMENT, "--cpu " + std::to_string(cpu) + ": " +
                                                   std::strerror(errno) +
                                                   "; this process may not run there");
  }
  const xsr_compute compute = compute_named(options.dtype);
  Session session(model, isa_named(options.isa), compute, threads, options.batch_tokens,
                  options.qkv_table, options.device);
  report.device = session.device_name();
  report.qkv_table = options.qkv_table;
  report.isa = xsr_isa_string(session.isa());
  report.threads = session.num_threads();
  report.check = check_against_ref(model, session);
  if (!report.check.passed) {
    throw Error(XSR_STATUS_INTERNAL,
                fmt::format("{}: the {} embeddings differ from the ref kernels' by {:.3g}, allowed "
                            "is {:.3g}; a wrong result is not timed",
                            name, on_cpu ? report.isa : report.device,
                            report.check.largest_difference, report.check.allowed));
  }

  std::optional<RooflineMeter> meter;
  std::optional<DeviceMeter> device;
  if (on_cpu) {
    meter.emplace(static_cast<kernels::Isa>(session.isa()), compute, report.threads,
                  shape.weight_bytes);
  } else {
    device.emplace(file, compute, options.qkv_table, options.batch_tokens, options.device);
  }
  const auto measure_roofline = [&] { on_cpu ? meter->measure() : device->measure(); };
  measure_roofline();
  for (const int32_t tokens : options.tokens) {
    if (tokens > model.info().max_seq_len) {
      tell(fmt::format("xsr-bench: {} tokens are left out, the model takes {} at most\n", tokens,
                       model.info().max_seq_len));
      continue;
    }
    report.latency.push_back(measure_latency(model, session, tokens, options.seconds));
    if (device) report.latency.back().device = device->sentence_seconds(tokens);
    measure_roofline();
  }
  // The yardstick's products are f32's, and all tokens'.
  if (on_cpu && threads == 1 && options.yardstick != "none" && compute == XSR_COMPUTE_F32 &&
      shape.pooling != Pooling::kCls) {
    const auto chain = OnednnChain::create(model.info().num_layers, model.info().hidden_size,
                                           model.info().intermediate_size, shape.activation);
    if (chain == nullptr && options.yardstick == "onednn")
      throw Error(XSR_STATUS_UNSUPPORTED,
                  "--yardstick onednn: built without oneDNN; install libdnnl-dev and configure "
                  "with -DXSR_ONEDNN=ON");
    for (const Latency& row : report.latency) {
      if (chain != nullptr)
        report.chain.push_back(measure_chain(model, session, *chain, row.tokens, options.seconds));
    }
  }
  if (!options.no_corpus) {
    IdBatch batch;
    report.corpus = measure_corpus(options, model, session, &batch);
    // What was timed is what is told.
    if (device && batch.count() > 0 && report.corpus->sentences == batch.count())
      report.corpus->resident_seconds = device->corpus_seconds(batch);
  }
  measure_roofline();
  report.roofline = on_cpu ? meter->roofline() : device->roofline();
  return report;
}

int run(const Options& options) {
  std::unique_ptr<RandomModel> random;
  std::unique_ptr<Model> model;
  std::unique_ptr<XsrFile> file;  // the same again, for what the C API does not tell
  std::string name = options.model;
  if (!options.random.empty()) {
    const RandomShape random_shape{options.random[0], options.random[1], options.random[2],
                                   options.random[3], options.random[4], options.activation,
                                   options.pooling};
    const DType storage = storage_of(options);
    if (options.dtype == "bf16" && storage != DType::kBF16) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT, "--storage " + options.storage +
                                                   ": computing in bf16 needs weights in bf16; "
                                                   "leave --storage out");
    }
    random = std::make_unique<RandomModel>(random_shape, storage, kSeed);
    model = std::make_unique<Model>(random->data(), random->size());
    file = XsrFile::open_memory(random->data(), random->size());
    name = "random";
  } else {
    model = std::make_unique<Model>(options.model);
    file = XsrFile::open(options.model);
  }
  const Shape shape = shape_of(*file, compute_named(options.dtype), options.qkv_table);
  if (!options.corpus.empty() && model->info().has_tokenizer == 0)
    throw Error(XSR_STATUS_UNSUPPORTED,
                name + ": the model has no tokenizer, so it cannot embed the text of " +
                    options.corpus + "; give token ids with --corpus-ids");

  require_other_file({options.model, options.corpus, options.corpus_ids}, options.json);
  require_writable(options.json);
  std::FILE* const table = table_stream(options.json);
  std::vector<Report> reports;
  for (size_t i = 0; i < options.threads.size(); ++i) {
    reports.push_back(measure(options, *model, *file, shape, name, options.threads[i]));
    try {
      if (i > 0) fmt::print(table, "\n");
      print_table(reports.back(), table);
    } catch (const std::system_error&) {
      if (table == stdout) throw;  // on stderr it is words beside the figures, which are worth more
    }
  }
  if (!options.json.empty()) write_json(options.json, reports_as_json(reports));
  return 0;
}

}  // namespace
}  // namespace xsr::bench

int main(int argc, char** argv) {
  xsr::bench::Options options;
  CLI::App app(
      "Times a model: latency of one sentence, throughput on a corpus, and the share of what the "
      "machine can do (the roofline, measured in the same run). Checks the embeddings against the "
      "ref kernels first and refuses to time wrong ones.");
  app.set_version_flag("--version", std::string("xsr-bench ") + xsr_version_string());
  auto* source = app.add_option_group("model");
  source->add_option("-m,--model", options.model, "the .xsr file");
  auto* random =
      source
          ->add_option("--random", options.random,
                       "a random model: layers,hidden,heads,intermediate,vocabulary, e.g. "
                       "2,512,8,1024,50000")
          ->delimiter(',')
          ->expected(5);
  source->require_option(1);
  app.add_option("--storage", options.storage,
                 "of the random model's weights; auto: bf16 or i8 where --dtype is bf16 or int8, "
                 "else f32")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16", "i8"}))
      ->needs(random)
      ->capture_default_str();
  app.add_option("--activation", options.activation,
                 "of the random model's feed-forward layers (default swish)")
      ->transform(xsr::one_of(xsr::activation_names()))
      ->needs(random);
  app.add_option("--pooling", options.pooling, "of the random model (default mean)")
      ->transform(xsr::one_of(xsr::pooling_names()))
      ->needs(random);
  app.add_option("--threads", options.threads,
                 "one or more, each timed by itself; 0: all processors. One thread is pinned")
      ->delimiter(',')
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--cpu", options.cpu, "where one thread is pinned; default: the last processor")
      ->check(CLI::Range(0, 4095));
  app.add_option(
         "--device", options.device,
         "cpu; cuda; or cuda:0,1 for several devices. The roofline of a CUDA device is a large "
         "square product in the session's precision; threads are then those that make tokens")
      ->capture_default_str();
  app.add_option("--isa", options.isa, "auto: the fastest of this CPU")
      ->check(CLI::IsMember(xsr::isa_names()))
      ->capture_default_str();
  app.add_option("--dtype", options.dtype,
                 "what the matrix products compute in; bf16 needs bf16 weights; int8 rounds other "
                 "weights than i8 when it opens; a CUDA device has f32, tf32 and bf16")
      ->check(CLI::IsMember(xsr::compute_names()))
      ->capture_default_str();
  app.add_flag("--qkv-table", options.qkv_table,
               "look the first layer's Q, K and V up in a table of the vocabulary; the roofline is "
               "then that of "
               "the other products");
  app.add_option("--tokens", options.tokens, "lengths of the single sentences")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of timing for each length")
      ->check(xsr::number_within(0.001, 3600))
      ->capture_default_str();
  app.add_option("--batch-tokens", options.batch_tokens,
                 "tokens per chunk of work of a corpus; 0: what the library thinks best")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  auto* text = app.add_option(
      "--corpus", options.corpus,
      "throughput on this file, a sentence a line, plain, gzip or zstd, text to vector");
  auto* ids = app.add_option("--corpus-ids", options.corpus_ids,
                             "the same from token ids, space-separated, a sentence a line");
  for (CLI::Option* corpus : {text, ids}) corpus->check(xsr::names_one());
  auto* none = app.add_flag("--no-corpus", options.no_corpus, "latency only");
  text->excludes(ids);
  none->excludes(text)->excludes(ids);
  app.add_option(
         "--sentences", options.sentences,
         "random sentences of log-normal lengths (mean 24.9 tokens) when no corpus is given")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--corpus-seconds", options.corpus_seconds, "stop the corpus after so long")
      ->check(xsr::number_within(0.001, 86400))
      ->capture_default_str();
  app.add_option("--yardstick", options.yardstick,
                 "oneDNN's matrix products beside xsr, one thread; auto: when built")
      ->check(CLI::IsMember({"auto", "onednn", "none"}))
      ->capture_default_str();
  app.add_option("--json", options.json,
                 "write the figures to this file, - for stdout (the table then goes to stderr); an "
                 "array when --threads has several values")
      ->check(xsr::names_one());
  return xsr::bench::run_program("xsr-bench", app, argc, argv, options.device,
                                 [&] { return xsr::bench::run(options); });
}
