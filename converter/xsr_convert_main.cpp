#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "converter/calibrate.h"
#include "converter/convert.h"
#include "converter/inspect.h"
#include "converter/quality.h"
#include "runtime/error.h"
#include "runtime/format/mapped_file.h"
#include "runtime/format/partial_file.h"
#include "runtime/option_checks.h"
#include "runtime/option_names.h"
#include "runtime/text/standard_streams.h"
#include "runtime/text/tokenizer_tables.h"
#include "runtime/text/utf8.h"

namespace {

struct Arguments {
  std::string in, out, spm, license, prefix, inspect, check, calibrate, quality;
  xsr::Family family = xsr::Family::kXsr;
  int32_t heads = 0;
  xsr::Activation activation = xsr::Activation::kNone;
  bool lowercase = false;
  xsr::DType dtype = xsr::DType::kF32;
};

void convert(const Arguments& a, xsr::ConvertOptions options) {
  if (a.out == "-") {
    throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                     "-o -: a model goes to a file; give its path, ./- for one of that name");
  }
  xsr::require_other_file({a.in, a.spm, a.license}, a.out);
  for (const std::string& corpus : {a.calibrate, a.quality}) {
    if (corpus.empty()) continue;
    const xsr::PairFile pairs = xsr::parse_pair_file(corpus);
    xsr::require_other_file({pairs.first, pairs.second}, a.out);
  }
  if (!a.spm.empty()) {
    options.sentencepiece = xsr::read_whole_file(a.spm);
    options.sentencepiece_name = a.spm;
    if (options.sentencepiece.empty()) {
      throw xsr::Error(XSR_STATUS_BAD_FILE,
                       fmt::format("{}: the file is empty, expected a SentencePiece model", a.spm));
    }
  }
  // A licence is a few lines of text or a path to them; a path cannot be mistaken for text that is
  // meant.
  options.license = xsr::text_or_file(a.license);
  if (!xsr::is_valid_utf8(options.license)) {
    throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                     fmt::format("--license: {} is not UTF-8, which the file keeps the terms in; "
                                 "convert it (iconv -t UTF-8)",
                                 a.license));
  }

  std::optional<xsr::FinishedModel> finished;
  if (xsr::is_xsr_file(a.in)) finished.emplace(a.in);
  const auto checkpoint = finished ? nullptr : xsr::Checkpoint::open(a.in);
  const auto convert_to = [&](xsr::DType dtype) {
    if (finished) return finished->retyped(dtype);
    options.dtype = dtype;
    return xsr::convert_checkpoint(*checkpoint, options);
  };
  xsr::ConvertedModel model = convert_to(a.dtype);
  std::string quality_line;
  if (!a.calibrate.empty() || !a.quality.empty()) {
    const xsr::ConvertedModel wide = convert_to(xsr::DType::kF32);
    if (!a.calibrate.empty()) xsr::calibrate(wide, xsr::parse_pair_file(a.calibrate), model);
    if (!a.quality.empty()) {
      const xsr::Quality quality =
          xsr::measure_quality(wide, model, a.dtype, xsr::parse_pair_file(a.quality));
      xsr::record_quality(quality, model);
      quality_line = xsr::quality_text(quality);
    }
  }
  const auto sources = model.sources();
  xsr::write_xsr_file(a.out, model.config, sources, model.tokenizer, model.provenance,
                      xsr::tokenizer_tables_for_file(model.tokenizer));

  const auto& c = model.config;
  xsr::tell(fmt::format(
      "xsr-convert: {}: family {}, {} layers, hidden_size {}, {} heads, intermediate_size "
      "{}, vocab_size {}, at most {} "
      "tokens, {}{}, weights in {}, {} bytes\n",
      a.out, to_string(c.family), c.num_layers, c.hidden_size, c.num_heads, c.intermediate_size,
      c.vocab_size, c.max_seq_len, xsr::to_string(c.activation), c.lowercase ? ", lower-cased" : "",
      xsr::to_string(a.dtype), std::filesystem::file_size(a.out)));
  if (!quality_line.empty()) xsr::tell(fmt::format("xsr-convert: quality: {}\n", quality_line));
  if (!model.dropped.empty()) {
    xsr::tell(fmt::format("xsr-convert: left out, needed for training only: {}\n",
                          fmt::join(model.dropped, ", ")));
  }
  if (checkpoint != nullptr && !checkpoint->outside().empty()) {
    xsr::tell(fmt::format("xsr-convert: left out, not part of the model: {} tensors ({}, ...)\n",
                          checkpoint->outside().size(), checkpoint->outside()[0].name));
  }
  if (model.tokenizer.empty())
    xsr::tell(fmt::format("xsr-convert: no tokenizer{}: the model takes token ids only, not text\n",
                          finished ? " in the file" : ", for want of --spm"));
}

int run(int argc, char** argv) {
  CLI::App app{
      "Converts a trained checkpoint (PyTorch, safetensors) to one .xsr file, or a .xsr file of "
      "f32, f16 or bf16 to one of another --dtype. Nothing in a checkpoint is executed."};
  app.name("xsr-convert");
  Arguments a;
  auto* in = app.add_option("IN", a.in, "the checkpoint, or a .xsr file");
  auto* out = app.add_option("-o,--output", a.out, "the .xsr file to write");
  app.add_option("--spm", a.spm, "SentencePiece model; without it the file takes token ids only")
      ->check(xsr::names_one());
  app.add_option("--family", a.family, "model family (default xsr)")
      ->transform(xsr::one_of(std::map<std::string, xsr::Family>{{"xsr", xsr::Family::kXsr}}));
  auto* heads = app.add_option("--heads", a.heads, "attention heads (default hidden_size / 64)")
                    ->check(CLI::Range(1, 65536));
  auto* activation =
      app.add_option("--activation", a.activation,
                     "activation of the feed-forward layers (default: the family's, xsr: swish)")
          ->transform(xsr::one_of(xsr::activation_names()));
  auto* lowercase =
      app.add_flag("--lowercase,!--no-lowercase", a.lowercase,
                   "lower-case texts before tokenising them (default: the family's, xsr: yes)");
  app.add_option("--dtype", a.dtype,
                 "of weight matrices and tables: f32, bf16, f16, i8 (default f32)")
      ->transform(xsr::one_of(std::map<std::string, xsr::DType>{{"f32", xsr::DType::kF32},
                                                                {"bf16", xsr::DType::kBF16},
                                                                {"f16", xsr::DType::kF16},
                                                                {"i8", xsr::DType::kI8},
                                                                {"int8", xsr::DType::kI8}}));
  auto* calibrate = app.add_option(
      "--calibrate", a.calibrate,
      "with --dtype int8: take the ranges of activations from the sentences of CORPUS (as for "
      "--quality) once and for all, instead of from each row at run time");
  calibrate->type_name("CORPUS")->check(xsr::names_one());
  auto* quality = app.add_option(
      "--quality", a.quality,
      "measure what --dtype costs on CORPUS, [NAME=]PAIRS.tsv or [NAME=]FILE,FILE of sentence "
      "pairs, plain, gzip or zstd: cosine to f32 and retrieval P@1, printed and kept in the "
      "model's provenance");
  quality->type_name("CORPUS")->check(xsr::names_one());
  app.add_option("--license", a.license,
                 "terms of the weights, a text or a file with it; kept in the model's provenance");
  app.add_option("--prefix", a.prefix,
                 "look only at tensors whose names begin so, and take it off");
  auto* inspect =
      app.add_option("--inspect", a.inspect,
                     "print configuration, tensors, sizes and checksums of FILE (any format)");
  auto* check = app.add_option(
      "--check", a.check, "verify every checksum of a .xsr FILE and look for NaN and infinity");
  inspect->type_name("FILE")->excludes(check)->excludes(in)->excludes(out);
  check->type_name("FILE")->excludes(in)->excludes(out);
  app.set_version_flag("--version", fmt::format("xsr-convert {}.{}.{}", XSR_VERSION_MAJOR,
                                                XSR_VERSION_MINOR, XSR_VERSION_PATCH));
  try {
    app.parse(argc, argv);
    for (const CLI::Option* alone : {inspect, check}) {
      for (const CLI::Option* option : app.get_options()) {
        if (*alone && *option && option != alone)
          throw CLI::ExcludesError(alone->get_name(), option->get_name());
      }
    }
    if (!*inspect && !*check && (a.in.empty() || a.out.empty())) {
      throw CLI::RequiredError("IN and -o OUT.xsr, or --inspect FILE, or --check FILE");
    }
    if (*calibrate && a.dtype != xsr::DType::kI8) {
      throw CLI::ValidationError("--calibrate", "is for int8: give --dtype int8");
    }
    if (*quality && a.dtype == xsr::DType::kF32) {
      throw CLI::ValidationError("--quality", "compares with f32: give --dtype bf16, f16 or int8");
    }
    if (*in && xsr::is_xsr_file(a.in)) {
      for (const char* option : {"--spm", "--family", "--heads", "--activation", "--lowercase",
                                 "--license", "--prefix"}) {
        if (app.count(option) != 0)
          throw CLI::ValidationError(option, "is for checkpoints: a .xsr file keeps what it has");
      }
    }
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  std::string text;
  if (*inspect) text = xsr::inspect_file(a.inspect);
  if (*check) text = xsr::check_xsr_file(a.check);
  if (!text.empty()) {
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  xsr::ConvertOptions options;
  options.family = a.family;
  if (*heads) options.num_heads = a.heads;
  if (*activation) options.activation = a.activation;
  if (*lowercase) options.lowercase = a.lowercase;
  options.dtype = a.dtype;
  options.prefix = a.prefix;
  convert(a, std::move(options));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return xsr::run_tool("xsr-convert", [&] { return run(argc, argv); });
}
