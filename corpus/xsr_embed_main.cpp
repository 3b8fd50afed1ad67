// xsr-embed: one sentence a line in, one vector a line out.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "corpus/resume_point.h"
#include "corpus/token_line.h"
#include "corpus/vector_memo.h"
#include "corpus/vector_writer.h"
#include "input/text_file.h"
#include "kernels/dispatch.h"
#include "runtime/device/cuda_library.h"
#include "runtime/device/isa_choice.h"
#include "runtime/error.h"
#include "runtime/format/partial_file.h"
#include "runtime/format/xsr_file.h"
#include "runtime/option_checks.h"
#include "runtime/option_names.h"
#include "runtime/text/line_reader.h"
#include "runtime/text/progress.h"
#include "runtime/text/standard_streams.h"
#include "runtime/text/stop_signals.h"
#include "xsr/xsr.h"

namespace {

using xsr::LineBatch;
using xsr::with_separators;

constexpr int kOk = 0, kFailed = 1, kUsage = 2;
// A batch ends at the first of these; with them memory does not depend on the input.
constexpr size_t kBatchLines = 8192;
constexpr size_t kBatchTextBytes = 8 << 20;
constexpr size_t kBatchVectorBytes = 16 << 20;
constexpr size_t kDeviceBatches = 8;  // times as much for a CUDA device, which soon runs dry
// A batch takes about so long, where the model and the text are slow: rows reach the disk, progress
// the terminal and a signal the run between two of them.
constexpr double kBatchSeconds = 2;
// Until it is known how long they take.
constexpr size_t kFirstBatchLines = 256, kFirstBatchTextBytes = 16 << 10;
constexpr size_t kMaxLineBytes = 16 << 20;
constexpr size_t kMessageBytes = 1024;
// On a thread of its own; where none is to be had, in its turn.
constexpr auto kAsync = std::launch::async | std::launch::deferred;
constexpr size_t kMemoBytes = 64 << 20;  // of vectors kept for sentences that come again

std::atomic<bool> stop_requested{false};

struct Options {
  std::string model, input = "-", output, device = "cpu", isa = "auto", compute = "f32";
  bool ids = false, quiet = false, dedup = true, qkv_table = false, normalize = false,
       resume = false;
  int threads = 0;
  double save_seconds = 30;
};

/// Of a run: rows are lines, repeated are those whose vector was not computed again.
using Totals = xsr::ResumePoint;

struct ModelDeleter {
  void operator()(xsr_model* m) const { xsr_model_close(m); }
};
struct SessionDeleter {
  void operator()(xsr_session* s) const { xsr_session_destroy(s); }
};

void check(xsr_status status, const std::string& message) {
  if (status != XSR_STATUS_OK) {
    throw xsr::Error(status, message.empty() ? xsr_status_string(status) : message);
  }
}

/// The most that a batch may have.
struct BatchLimits {
  size_t lines = 0, text_bytes = 0;

  /// Less where `done` computed lines of `bytes` took so many seconds that a batch of this size
  /// would take more than kBatchSeconds. What a line that comes again costs says nothing of others.
  BatchLimits after(size_t done, size_t bytes, double seconds, const BatchLimits& before) const {
    const double share = kBatchSeconds / std::max(seconds, 1e-6);
    const auto fitting = [share](size_t count, size_t least, size_t most) {
      return static_cast<size_t>(std::clamp(share * static_cast<double>(count),
                                            static_cast<double>(least), static_cast<double>(most)));
    };
    return {done > 0 ? fitting(done, 1, lines) : before.lines,
            bytes > 0 ? fitting(bytes, 1, text_bytes) : before.text_bytes};
  }
};

class Embedder {
 public:
  explicit Embedder(const Options& options) : options_(options) {
    char detail[kMessageBytes] = "";
    xsr_model* model = nullptr;
    xsr_status status =
        xsr_model_open(options.model.c_str(), nullptr, &model, detail, sizeof detail);
    check(status, detail);
    model_.reset(model);
    info_.size = sizeof info_;
    check(xsr_model_get_info(model, &info_), "");
    if (!options.ids && !info_.has_tokenizer) {
      throw xsr::Error(
          XSR_STATUS_UNSUPPORTED,
          options.model +
              ": the model has no tokenizer and takes token ids only; give ids with --ids, or "
              "convert the model with --spm");
    }
    xsr_session_options session_options = {};
    session_options.size = sizeof session_options;
    session_options.isa = xsr::isa_named(options.isa);
    session_options.compute = xsr::compute_named(options.compute);
    session_options.num_threads = options.threads;
    session_options.qkv_table = options.qkv_table ? XSR_QKV_TABLE_ON : XSR_QKV_TABLE_OFF;
    if (options.normalize) session_options.normalize = XSR_NORMALIZE_ON;
    xsr::choose_device(options.device, &session_options);
    xsr_session* session = nullptr;
    status = xsr_session_create(model, &session_options, &session, detail, sizeof detail);
    check(status, detail);
    session_.reset(session);
    if (options.dedup) memo_.emplace(columns(), kMemoBytes);
  }

  size_t columns() const { return static_cast<size_t>(info_.embedding_size); }

  /// What a row's bits depend on beside its line. Several devices are of one kind, and of the
  /// processor's instruction set there is only the table. Where products have no kernel of it,
  /// they are another's than the rest.
  std::string run() const {
    namespace kernels = xsr::kernels;
    std::string device = xsr_session_get_device_name(session_.get());
    device.resize(std::min(device.size(), device.find(", ")));
    const bool on_cpu = device == "cpu";
    if (on_cpu || options_.qkv_table) {
      const kernels::Isa isa =
          kernels::resolve_kernels(xsr::choose_isa(options_.isa)).gemm_forward_f32_isa;
      device += fmt::format(" {}", kernels::isa_name(isa));
      const kernels::Isa products =
          kernels::isa_of_bits(static_cast<kernels::Isa>(xsr_session_get_isa(session_.get())));
      if (on_cpu && products != isa) device += fmt::format(" and {}", kernels::isa_name(products));
    }
    const bool unit_length = options_.normalize && info_.normalize == 0;  // by this option alone
    return fmt::format("xsr {}, model {:016x}, {}, {}{}{}{}", xsr_version_string(),
                       xsr::XsrFile::open(options_.model)->header_checksum(), device,
                       options_.compute, options_.qkv_table ? ", QKV table" : "",
                       unit_length ? ", unit length" : "", options_.ids ? ", token ids" : "");
  }

  /// vectors [batch.size(), columns()]. file: for messages. A row's bits depend on its line alone,
  /// so a line that comes again gets a copy of the row it got before.
  void embed(const LineBatch& batch, const std::string& file, std::vector<float>& vectors,
             Totals& totals) {
    const size_t count = batch.size();
    vectors.resize(count * columns());
    results_.assign(count, xsr_text_result{});
    find_repeated(batch, vectors);
    if (computed_.size() == count) {
      compute(batch, file, vectors.data(), results_.data());
    } else {
      computed_vectors_.resize(computed_.size() * columns());
      computed_results_.assign(computed_.size(), xsr_text_result{});
      compute(batch, file, computed_vectors_.data(), computed_results_.data());
      for (size_t k = 0; k < computed_.size(); ++k) {
        set_row(vectors, computed_[k], &computed_vectors_[k * columns()], computed_results_[k]);
      }
      for (const auto& [line, first] : copies_) {
        set_row(vectors, line, &vectors[first * columns()], results_[first]);
      }
    }
    if (memo_) {
      for (size_t i : computed_) {
        if (!batch.cut[i]) memo_->insert(batch.line(i), &vectors[i * columns()], results_[i]);
      }
    }
    for (size_t i = 0; i < count; ++i) {
      const xsr_text_result& r = results_[i];
      totals.tokens += static_cast<uint64_t>(r.num_tokens);
      totals.truncated += r.truncated || batch.cut[i];
      totals.empty += r.empty;
      totals.replaced_bytes += r.replaced_bytes;
    }
    totals.rows += count;
    totals.repeated += count - computed_.size();
  }

  /// Lines of the last batch that were computed, and their bytes.
  std::pair<size_t, size_t> computed(const LineBatch& batch) const {
    size_t bytes = 0;
    for (size_t i : computed_) bytes += batch.line(i).size();
    return {computed_.size(), bytes};
  }

 private:
  void set_row(std::vector<float>& vectors, size_t row, const float* vector,
               const xsr_text_result& result) {
    std::copy_n(vector, columns(), &vectors[row * columns()]);
    results_[row] = result;
  }

  /// Sets the rows of lines known from earlier batches, and sorts the others into those to be
  /// computed and copies of an earlier line of this batch.
  void find_repeated(const LineBatch& batch, std::vector<float>& vectors) {
    computed_.clear();
    copies_.clear();
    first_seen_.clear();
    for (size_t i = 0; i < batch.size(); ++i) {
      // Of a line that was cut the rest is unknown.
      if (!memo_ || batch.cut[i]) {
        computed_.push_back(i);
      } else if (const auto known = memo_->find(batch.line(i))) {
        set_row(vectors, i, known->vector, known->result);
      } else if (const auto [at, is_first] = first_seen_.try_emplace(batch.line(i), i); is_first) {
        computed_.push_back(i);
      } else {
        copies_.emplace_back(i, at->second);
      }
    }
  }

  /// The lines computed_ names, into the first rows of vectors and results.
  void compute(const LineBatch& batch, const std::string& file, float* vectors,
               xsr_text_result* results) {
    if (computed_.empty()) return;
    xsr_status status;
    if (options_.ids) {
      parse_ids(batch, file);
      status = xsr_session_embed_ids(session_.get(), ids_.data(), offsets_.data(), computed_.size(),
                                     vectors, results);
    } else {
      texts_.clear();
      for (size_t i : computed_) {
        const std::string_view line = batch.line(i);
        texts_.push_back({line.data(), line.size()});
      }
      status =
          xsr_session_embed_texts(session_.get(), texts_.data(), texts_.size(), vectors, results);
    }
    check(status, xsr_session_get_error(session_.get()));
  }

  void parse_ids(const LineBatch& batch, const std::string& file) {
    ids_.clear();
    offsets_.assign(1, 0);
    for (size_t i : computed_) {
      std::string_view line = batch.line(i);
      // The cut may have gone through a number.
      if (batch.cut[i]) line = line.substr(0, line.find_last_of(" \t") + 1);
      std::string_view bad;
      if (!xsr::parse_token_line(line, info_.vocab_size, ids_, &bad)) {
        constexpr size_t kShown = 40;
        throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                         fmt::format("{}:{}: \"{}{}\" is no token id; expected numbers from 0 to "
                                     "{}, separated by spaces",
                                     file, batch.first_line + i, bad.substr(0, kShown),
                                     bad.size() > kShown ? "..." : "", info_.vocab_size - 1));
      }
      offsets_.push_back(ids_.size());
    }
  }

  const Options& options_;
  std::unique_ptr<xsr_model, ModelDeleter> model_;
  std::unique_ptr<xsr_session, SessionDeleter> session_;
  xsr_model_info info_ = {};
  std::vector<xsr_text> texts_;
  std::vector<xsr_text_result> results_;
  std::vector<int32_t> ids_;
  std::vector<size_t> offsets_;
  // Of the batch at hand, by line: those computed, and those that copy an earlier line's row.
  std::vector<size_t> computed_;
  std::vector<std::pair<size_t, size_t>> copies_;
  std::unordered_map<std::string_view, size_t> first_seen_;
  std::vector<float> computed_vectors_;
  std::vector<xsr_text_result> computed_results_;
  std::optional<xsr::VectorMemo> memo_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Where a run of a file goes on after a crash, noted beside its partial file while it is under
/// way.
class ResumeFile {
 public:
  explicit ResumeFile(const Options& options)
      : path_(options.output == "-" ? "" : xsr::resume_path(options.output)),
        partial_(options.output + ".partial"),
        every_(options.save_seconds) {}

  /// The point that the run begins at: an earlier run's, or none. Throws Error where one is there
  /// that was not asked for, or was asked for and does not fit.
  xsr::ResumePoint begin(const Options& options, const std::string& run) {
    xsr::ResumePoint start;
    start.run = run;
    std::optional<xsr::ResumePoint> found;
    if (!path_.empty()) found = xsr::load_resume_point(path_);
    if (!std::filesystem::exists(partial_))
      found.reset();  // what it speaks of is gone, or finished
    if (found && !options.resume) {
      throw xsr::Error(
          XSR_STATUS_INVALID_ARGUMENT,
          fmt::format("{}: {} rows of an earlier run are in {}; go on with --resume, or "
                      "remove {} to begin anew",
                      path_, with_separators(found->rows), partial_, path_));
    }
    if (!found) return start;
    if (found->run != run) {
      throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                       fmt::format("{}: the rows there are of \"{}\", this run is \"{}\" and its "
                                   "rows would have other bits; run it as it was, or remove {} to "
                                   "begin anew",
                                   path_, found->run, run, path_));
    }
    saved_rows_ = found->rows;
    return *found;
  }

  /// Passes over the text that is done. Throws Error where it is another.
  void skip(xsr::LineReader& reader, const xsr::ResumePoint& done, bool quiet) const {
    xsr::Progress progress(stderr, ::isatty(STDERR_FILENO), done.text_bytes,
                           "passing over what is done: ");
    const auto start = std::chrono::steady_clock::now();
    const auto tell = [&](uint64_t bytes) {
      const double share = static_cast<double>(bytes) / static_cast<double>(done.text_bytes);
      const double lines = share * static_cast<double>(done.rows);
      progress.update(bytes, static_cast<uint64_t>(lines), seconds_since(start));
    };
    const auto told = quiet ? std::function<void(uint64_t)>() : tell;
    try {
      reader.skip(done.text_bytes, done.rows, done.text_hash, told);
      progress.clear();
    } catch (const xsr::Error& e) {
      progress.clear();
      if (e.status() != XSR_STATUS_INVALID_ARGUMENT) throw;
      throw xsr::Error(e.status(), fmt::format("{}; give that text, or remove {} to begin anew",
                                               e.what(), path_));
    }
  }
  /// After an append(): the writer's rows are those of the text up to `point`.
  void appended(xsr::ResumePoint point, xsr::VectorWriter& writer) {
    if (path_.empty()) return;
    last_ = std::move(point);
    if (seconds_since(tried_) < every_) return;
    tried_ = std::chrono::steady_clock::now();
    writer.flush();
    try {
      save();
    } catch (const xsr::Error& e) {  // the rows are worth more than the note about them
      if (!std::exchange(warned_, true))
        xsr::tell(fmt::format("xsr-embed: warning: {}\n", e.what()));
    }
  }
  /// Of a run that ends early: words that tell how it can go on, or "".
  std::string keep(xsr::VectorWriter& writer) {
    std::error_code ignored;
    if (path_.empty() || !std::filesystem::exists(partial_, ignored)) return "";
    try {
      if (last_) {
        writer.flush();
        save();
      }
    } catch (...) {  // what was saved before still holds
    }
    if (saved_rows_ == 0) return "";
    return " --resume goes on behind row " + with_separators(saved_rows_) + ".";
  }
  void remove() {
    std::error_code ignored;
    if (path_.empty()) return;
    for (const char* crashed : {"", ".partial"}) std::filesystem::remove(path_ + crashed, ignored);
  }

 private:
  void save() {
    xsr::save_resume_point(path_, *last_);
    saved_rows_ = last_->rows;
  }

  const std::string path_;  // empty for standard output
  const std::string partial_;
  const double every_;
  std::optional<xsr::ResumePoint> last_;
  uint64_t saved_rows_ = 0;
  std::chrono::steady_clock::time_point tried_ = std::chrono::steady_clock::now();
  bool warned_ = false;
};

int run(const Options& options) {
  const xsr::VectorFormat format = xsr::vector_format(options.output);
  xsr::require_other_file({options.input == "-" ? "/dev/stdin" : options.input, options.model},
                          options.output);
  Embedder embedder(options);
  xsr::LineReader reader(xsr::open_text_file(options.input, &stop_requested), kMaxLineBytes,
                         &stop_requested);
  ResumeFile resume(options);
  const xsr::ResumePoint start_point = resume.begin(options, embedder.run());
  Totals totals = start_point;
  xsr::install_stop_signals(&stop_requested);
  // Before the text that is done is read over, which takes minutes: a run that holds the lock is
  // told at once, and none that ends meanwhile leaves a later point than the one found here.
  xsr::VectorWriter writer(options.output, format, embedder.columns(),
                           {start_point.rows, start_point.row_bytes});
  if (start_point.rows > 0) {
    if (!options.quiet) {
      xsr::tell(fmt::format("xsr-embed: {}: going on behind row {}\n", options.output,
                            with_separators(start_point.rows)));
    }
    resume.skip(reader, start_point, options.quiet);
  } else {
    resume.remove();  // of a run whose partial file is gone
  }

  const auto start = std::chrono::steady_clock::now();
  const size_t scale = options.device == "cpu" ? 1 : kDeviceBatches;
  const BatchLimits most = {
      scale * std::clamp<size_t>(kBatchVectorBytes / (embedder.columns() * sizeof(float)), 1,
                                 kBatchLines),
      scale * kBatchTextBytes};
  BatchLimits limits = {std::min(most.lines, scale * kFirstBatchLines),
                        scale * kFirstBatchTextBytes};
  const uint64_t total_bytes = reader.total_bytes(), start_bytes = reader.source_bytes();
  xsr::Progress progress(stderr, ::isatty(STDERR_FILENO),
                         total_bytes - std::min(total_bytes, start_bytes));
  // Two of each: while one batch is embedded, the next is read and the one before is written.
  LineBatch batches[2];
  std::vector<float> vectors[2];
  std::future<bool> next;
  std::future<void> written;
  try {
    const auto read = [&reader](LineBatch& batch, BatchLimits its) {
      return reader.read(its.lines, its.text_bytes, batch);
    };
    next = std::async(kAsync, read, std::ref(batches[0]), limits);
    for (size_t turn = 0; next.get(); turn ^= 1) {
      const LineBatch& batch = batches[turn];
      next = std::async(kAsync, read, std::ref(batches[turn ^ 1]), limits);
      const auto batch_start = std::chrono::steady_clock::now();
      embedder.embed(batch, reader.name(), vectors[turn], totals);
      const auto [lines, bytes] = embedder.computed(batch);
      limits = most.after(lines, bytes, seconds_since(batch_start), limits);
      totals.text_bytes = batch.bytes_consumed;
      totals.text_hash = batch.text_hash;
      if (written.valid()) written.get();
      const auto write = [&, turn, count = batch.size(), whole = !batch.mid_line,
                          point = totals]() mutable {
        writer.append(vectors[turn].data(), count);
        point.row_bytes = writer.whole_bytes();
        if (whole) resume.appended(std::move(point), writer);
      };
      written = std::async(kAsync, write);
      if (!options.quiet) {
        progress.update(batch.source_bytes - start_bytes, totals.rows - start_point.rows,
                        seconds_since(start));
      }
      if (stop_requested) break;
    }
    if (next.valid()) next.wait();
    if (written.valid()) written.get();
  } catch (const std::exception& e) {
    stop_requested = true;  // the reader may be waiting for input
    if (next.valid()) next.wait();
    if (written.valid()) written.wait();
    progress.clear();
    const bool out_of_memory = dynamic_cast<const std::bad_alloc*>(&e) != nullptr;
    std::string message = out_of_memory ? "out of memory" : e.what();
    if (const std::string kept = writer.abandon(); !kept.empty())
      message += fmt::format(" ({} rows. {})", with_separators(writer.rows()), kept);
    message += resume.keep(writer);
    throw xsr::Error(out_of_memory ? XSR_STATUS_OUT_OF_MEMORY : XSR_STATUS_IO, message);
  }
  progress.clear();
  if (stop_requested) {
    const std::string kept = writer.abandon();
    xsr::tell(fmt::format("xsr-embed: {}: interrupted after {} rows.{}{}{}\n", options.output,
                          with_separators(writer.rows()), kept.empty() ? "" : " ", kept,
                          resume.keep(writer)));
    return kFailed;
  }
  try {
    writer.finish();
  } catch (const xsr::Error& e) {
    throw xsr::Error(e.status(), e.what() + resume.keep(writer));
  }
  resume.remove();
  const double seconds = seconds_since(start);
  if (!options.quiet) {
    const uint64_t lines = totals.rows - start_point.rows;
    const std::string resumed =
        start_point.rows == 0
            ? ""
            : fmt::format(" ({} of them by an earlier run)", with_separators(start_point.rows));
    xsr::tell(fmt::format(
        "xsr-embed: {} lines{}, {} tokens, {} truncated, {} empty, {} repeated, {} replaced "
        "bytes, {:.2f} s, {} sentences/s\n",
        with_separators(totals.rows), resumed, with_separators(totals.tokens),
        with_separators(totals.truncated), with_separators(totals.empty),
        with_separators(totals.repeated), with_separators(totals.replaced_bytes), seconds,
        with_separators(
            static_cast<uint64_t>(static_cast<double>(lines) / std::max(seconds, 1e-9) + 0.5))));
  }
  return kOk;
}

int tool_main(int argc, char** argv) {
  Options options;
  CLI::App app{
      "Turns sentences into vectors: one sentence a line in, row i is line i (blank lines are zero "
      "vectors)."};
  app.footer(
      "Text packed by gzip or Zstandard is unpacked, whatever the file's name; other archives and "
      "UTF-16 are refused.\n"
      "A line ends with LF or CRLF. Malformed UTF-8 is replaced and counted. Lines longer than the "
      "model's maximum are\n"
      "truncated and counted; of a line of more than 16 MiB only the first 16 MiB are looked at.\n"
      "The output is written as OUT.partial and renamed when whole; a run that fails or is "
      "interrupted leaves the rows it has\n"
      "there, and no OUT. OUT.resume says beside it how far it had come on the disk: --resume goes "
      "on from there, also after\n"
      "a crash, to the same bytes; the text may have been packed or unpacked meanwhile.\n"
      "With -o - the vectors go to standard output as raw f32, or as text when that is a "
      "terminal.\n"
      "Exit status: 0 done, 1 failed or interrupted, 2 wrong usage.");
  app.add_option("-m,--model", options.model, "Model file (.xsr)")->required();
  app.add_option("-i,--input", options.input,
                 "Text, UTF-8; plain, gzip or zstd; - is standard input")
      ->capture_default_str();
  app.add_option("-o,--output", options.output,
                 "Vectors: OUT.npy, OUT.f32 (raw, little-endian), OUT.tsv or -")
      ->required();
  app.add_flag("--ids", options.ids,
               "Lines hold token ids separated by spaces, special tokens included");
  app.add_option("--threads", options.threads, "Threads; 0: the processors this process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--device", options.device,
                 "cpu; cuda; or cuda:0,1 for several devices that share the sentences")
      ->capture_default_str();
  app.add_option("--isa", options.isa, "Instruction set of the CPU")
      ->check(CLI::IsMember(xsr::isa_names()))
      ->capture_default_str();
  app.add_option(
         "--compute", options.compute,
         "What the matrix products compute in; bf16x3 comes near f32, bf16 needs a bf16 "
         "model, int8 rounds other weights than i8 when it opens; a CUDA device computes in "
         "f32, tf32 or bf16")
      ->check(CLI::IsMember(xsr::compute_names()))
      ->capture_default_str();
  app.add_flag("--normalize", options.normalize,
               "Divide every vector by its length, so that dot products are cosines; that of an "
               "empty line stays zero");
  app.add_flag(
      "--qkv-table", options.qkv_table,
      "Compute the first layer's Q, K and V of every token of the vocabulary once, and look "
      "them up: faster from some ten thousand lines on, for vocabulary x 3 x hidden size x 4 "
      "bytes of memory; the vectors differ in their last bits from those without");
  app.add_flag("!--no-dedup", options.dedup,
               "Compute a line again each time it comes; the vectors are the same bits");
  app.add_flag("--resume", options.resume,
               "Go on where a run that was stopped or crashed had come, standard input from its "
               "beginning; begin where there was none");
  app.add_option("--save-seconds", options.save_seconds,
                 "How often rows are flushed to the disk and noted in OUT.resume")
      ->check(xsr::number_within(0, 86400))
      ->capture_default_str();
  app.add_flag("-q,--quiet", options.quiet, "No progress and no summary");
  app.set_version_flag("--version", std::string("xsr-embed ") + xsr_version_string());
  try {
    app.parse(argc, argv);
    xsr::vector_format(options.output);
    xsr_session_options checked = {};
    xsr::choose_device(options.device, &checked);
    if (options.resume && options.output == "-") {
      throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT,
                       "--resume goes on with a file; standard output has none");
    }
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kOk : kUsage;
  } catch (const xsr::Error& e) {
    xsr::tell(fmt::format("xsr-embed: {}\n", e.what()));
    return kUsage;
  }
  return run(options);
}

}  // namespace

int main(int argc, char** argv) {
  return xsr::run_tool("xsr-embed", [&] { return tool_main(argc, argv); });
}
