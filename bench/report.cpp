#include "bench/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "bench/machine.h"

namespace xsr::bench {

double Report::flop_per_token() const {
  const double C = info.hidden_size, F = info.intermediate_size;
  return 2.0 * (4.0 * C * C + 2.0 * C * F) * info.num_layers - (qkv_table ? 6.0 * C * C : 0.0) -
         flop_per_sentence();
}

double Report::flop_per_sentence() const {
  const double C = info.hidden_size, F = info.intermediate_size;
  return pooling == "cls" && info.num_layers > 0 ? 2.0 * (C * C + 2.0 * C * F) : 0.0;
}

double Report::flop_per_token_pair() const { return 4.0 * info.hidden_size * info.num_layers; }

double Report::share_of_roofline(double tokens, double sentences, double token_pairs,
                                 double seconds) const {
  const double read = device == "cpu" ? static_cast<double>(weight_bytes) : 0;
  return floor_seconds(roofline, flop(tokens, sentences), token_pairs * flop_per_token_pair(),
                       read) /
         seconds;
}

namespace {

/// Of the sentence of a row.
double token_pairs(const Latency& row) { return static_cast<double>(row.tokens) * row.tokens; }

}  // namespace

void print_table(const Report& report, std::FILE* to) {
  const xsr_model_info& info = report.info;
  fmt::print(to,
             "model     {}: {} layers, hidden {}, {} heads, intermediate {} ({}), vocabulary {}\n",
             report.model, info.num_layers, info.hidden_size, info.num_heads,
             info.intermediate_size, report.activation, info.vocab_size);
  fmt::print(to,
             "          a pass reads {:.1f} MB of weights; token table {:.1f} MB, stored in {}\n",
             1e-6 * static_cast<double>(report.weight_bytes),
             1e-6 * static_cast<double>(report.token_table_bytes), report.storage);
  const bool on_cpu = report.device == "cpu";
  fmt::print(to, "machine   {}{}; {} thread{}{}; {}computed in {}{}\n",
             on_cpu ? "" : report.device + "; ", cpu_model(), report.threads,
             report.threads == 1 ? "" : "s",
             report.pinned_cpu >= 0 ? fmt::format(" on CPU {}", report.pinned_cpu) : "",
             on_cpu ? "ISA " + report.isa + "; " : "", report.dtype,
             report.qkv_table ? ", QKV table" : "");
  fmt::print(to, "build     xsr {}, {}, commit {}\n", xsr_version_string(), compiler(), commit());
  fmt::print(to, "check     differs from the ref kernels by {:.2g} at most (allowed {:.2g})\n",
             report.check.largest_difference, report.check.allowed);
  if (on_cpu) {
    fmt::print(to, "roofline  {:.1f} GFLOP/s, {:.1f} GB/s from beyond L2; {:.3f} MFLOP a token\n",
               report.roofline.peak_gflops, report.roofline.read_gb_per_s,
               1e-6 * report.flop_per_token());
  } else {
    fmt::print(to, "roofline  {:.1f} GFLOP/s in a large square product; {:.3f} MFLOP a token\n",
               report.roofline.peak_gflops, 1e-6 * report.flop_per_token());
  }
  if (!report.latency.empty()) {
    fmt::print(
        to, "\none sentence, ids to vector\n{:>8}{:>11}{:>11}{:>11}{:>10}{:>12}{:>16}{:>10}\n",
        "tokens", "p50 us", "p90 us", "p99 us", "GFLOP/s", "roofline", "with attention", "calls");
    for (const Latency& row : report.latency) {
      fmt::print(to, "{:>8}{:>11.1f}{:>11.1f}{:>11.1f}{:>10.1f}{:>12.3f}{:>16.3f}{:>10}{}\n",
                 row.tokens, 1e6 * row.p50, 1e6 * row.p90, 1e6 * row.p99,
                 1e-9 * report.flop(row.tokens, 1) / row.p50,
                 report.share_of_roofline(row.tokens, 1, 0, row.p50),
                 report.share_of_roofline(row.tokens, 1, token_pairs(row), row.p50), row.calls,
                 on_cpu ? "" : fmt::format("  ({:.1f} us on the device)", 1e6 * row.device));
    }
  }
  if (!report.chain.empty()) {
    fmt::print(to, "\nbeside oneDNN's matrix products alone, by turns\n{:>8}{:>11}{:>11}{:>22}\n",
               "tokens", "xsr us", "oneDNN us", "oneDNN's time / xsr's");
    for (const ChainLatency& row : report.chain) {
      fmt::print(to, "{:>8}{:>11.1f}{:>11.1f}{:>22.3f}\n", row.tokens, 1e6 * row.xsr_p50,
                 1e6 * row.chain_p50, row.chain_p50 / row.xsr_p50);
    }
  }
  if (report.corpus) {
    const Corpus& corpus = *report.corpus;
    const auto sentences = static_cast<double>(corpus.sentences);
    const auto tokens = static_cast<double>(corpus.tokens);
    fmt::print(to, "\ncorpus ({}), {} sentences, {} tokens, median of {} pass{}\n", corpus.input,
               corpus.sentences, corpus.tokens, corpus.passes, corpus.passes == 1 ? "" : "es");
    fmt::print(to,
               "{:>14.1f} sentences/s{:>12.1f} tokens/s{:>9.1f} GFLOP/s{:>8.3f} of roofline, "
               "{:.3f} with attention\n",
               sentences / corpus.seconds, tokens / corpus.seconds,
               1e-9 * report.flop(tokens, sentences) / corpus.seconds,
               report.share_of_roofline(tokens, sentences, 0, corpus.seconds),
               report.share_of_roofline(tokens, sentences, corpus.token_pairs, corpus.seconds));
    if (corpus.resident_seconds > 0) {
      fmt::print(
          to,
          "{:>14.1f} tokens/s with the ids on the device beforehand, {:.3f} of roofline, "
          "{:.3f} with attention\n",
          tokens / corpus.resident_seconds,
          report.share_of_roofline(tokens, sentences, 0, corpus.resident_seconds),
          report.share_of_roofline(tokens, sentences, corpus.token_pairs, corpus.resident_seconds));
    }
    if (corpus.tokenizer_seconds > 0) {
      fmt::print(to, "{:>14.1f} tokens/s tokenising, {:.1f} % of the time\n",
                 tokens / corpus.tokenizer_seconds,
                 100 * corpus.tokenizer_seconds / (corpus.seconds * report.threads));
    }
  }
}

namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Report& report) {
  Json json;
  json["cpu"] = cpu_model();
  json["device"] = report.device;
  json["isa"] = report.isa;
  json["dtype"] = report.dtype;
  json["qkv_table"] = report.qkv_table;
  json["threads"] = report.threads;
  json["latency"] = Json::array();
  for (const Latency& row : report.latency) {
    json["latency"].push_back(
        {{"tokens", row.tokens},
         {"p50_us", 1e6 * row.p50},
         {"p90_us", 1e6 * row.p90},
         {"p99_us", 1e6 * row.p99},
         {"share_of_roofline", report.share_of_roofline(row.tokens, 1, 0, row.p50)},
         {"share_with_attention",
          report.share_of_roofline(row.tokens, 1, token_pairs(row), row.p50)},
         {"calls", row.calls}});
    if (row.device > 0) json["latency"].back()["device_us"] = 1e6 * row.device;
  }
  json["corpus"] = nullptr;
  if (report.corpus) {
    const Corpus& corpus = *report.corpus;
    const auto sentences = static_cast<double>(corpus.sentences);
    const auto tokens = static_cast<double>(corpus.tokens);
    json["corpus"] = {
        {"sentences_per_s", sentences / corpus.seconds},
        {"tokens_per_s", tokens / corpus.seconds},
        {"gflop_per_s", 1e-9 * report.flop(tokens, sentences) / corpus.seconds},
        {"share_of_roofline", report.share_of_roofline(tokens, sentences, 0, corpus.seconds)},
        {"share_with_attention",
         report.share_of_roofline(tokens, sentences, corpus.token_pairs, corpus.seconds)},
        {"input", corpus.input},
        {"sentences", corpus.sentences},
        {"tokens", corpus.tokens},
        {"passes", corpus.passes}};
    if (corpus.resident_seconds > 0) {
      json["corpus"]["resident_tokens_per_s"] = tokens / corpus.resident_seconds;
      json["corpus"]["resident_share_of_roofline"] =
          report.share_of_roofline(tokens, sentences, 0, corpus.resident_seconds);
      json["corpus"]["resident_share_with_attention"] =
          report.share_of_roofline(tokens, sentences, corpus.token_pairs, corpus.resident_seconds);
    }
    if (corpus.tokenizer_seconds > 0) {
      json["corpus"]["tokenizer_tokens_per_s"] = tokens / corpus.tokenizer_seconds;
      json["corpus"]["tokenizer_share"] =
          corpus.tokenizer_seconds / (corpus.seconds * report.threads);
    }
  }
  json["onednn_chain"] = Json::array();
  for (const ChainLatency& row : report.chain) {
    json["onednn_chain"].push_back({{"tokens", row.tokens},
                                    {"p50_us", 1e6 * row.chain_p50},
                                    {"xsr_p50_us", 1e6 * row.xsr_p50},
                                    {"ratio", row.chain_p50 / row.xsr_p50}});
  }
  json["roofline"] = {{"peak_gflop_per_s", report.roofline.peak_gflops},
                      {"attention_gflop_per_s", report.roofline.attention_gflops},
                      {"read_gb_per_s", report.roofline.read_gb_per_s},
                      {"flop_per_token", report.flop_per_token()},
                      {"flop_per_sentence", report.flop_per_sentence()},
                      {"flop_per_token_pair", report.flop_per_token_pair()},
                      {"weight_bytes", report.weight_bytes}};
  json["check"] = {{"largest_difference", report.check.largest_difference},
                   {"allowed", report.check.allowed}};
  json["model"] = {{"name", report.model},
                   {"num_layers", report.info.num_layers},
                   {"hidden_size", report.info.hidden_size},
                   {"num_heads", report.info.num_heads},
                   {"intermediate_size", report.info.intermediate_size},
                   {"activation", report.activation},
                   {"pooling", report.pooling},
                   {"vocab_size", report.info.vocab_size},
                   {"token_table_bytes", report.token_table_bytes},
                   {"storage", report.storage}};
  json["build"] = {
      {"version", xsr_version_string()}, {"compiler", compiler()}, {"commit", commit()}};
  json["pinned_cpu"] = report.pinned_cpu >= 0 ? Json(report.pinned_cpu) : Json(nullptr);
  return json;
}

}  // namespace

std::string reports_as_json(std::span<const Report> reports) {
  Json list = Json::array();
  for (const Report& report : reports) list.push_back(to_json(report));
  // A model's name may be no UTF-8.
  return (reports.size() == 1 ? list[0] : list)
             .dump(2, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

}  // namespace xsr::bench
