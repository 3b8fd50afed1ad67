#pragma once
// A library and a machine that take as long as a test says, on a clock that nothing else moves. For
// one file of a test program: these definitions stand before those of the libraries.
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bench/roofline_loops.h"
#include "runtime/encoder/device_encoder.h"
#include "xsr/xsr.h"

namespace xsr::test {

/// Every thread has a time of its own.
inline thread_local std::chrono::nanoseconds now{0};
/// What reading the clock takes.
inline std::chrono::nanoseconds reading_takes{0};
inline void pass_seconds(double seconds) {
  now += std::chrono::nanoseconds(std::llround(1e9 * seconds));
}

/// What the C API does: its model is `info`, a token of a text is a byte.
struct TimedLibrary {
  struct Call {
    std::vector<int32_t> token_ids;  // of texts none
    std::vector<size_t> lengths;     // tokens of the sentences
  };

  xsr_model_info info{};
  /// Seconds of the call of this number, of a session other than the ref kernels'.
  std::function<double(size_t call)> call_seconds = [](size_t) { return 0; };
  double tokenize_seconds = 0;  // of a text
  std::vector<Call> calls;
  /// Embeddings are `element` times 0, 1, 0, 1, ...; those of sessions other than the ref kernels'
  /// differ by `error` in the last sentence.
  float element = 1, error = 0;
};
inline TimedLibrary library;

/// What the loops of the roofline do.
struct TimedLoops {
  /// Called with a loop's name and the bytes that it reads.
  std::function<double(const std::string& name, int64_t bytes)> seconds;
  double flop = 0;  // what one that multiplies says it did
};
inline TimedLoops loops;

/// What make_cuda_encoder() gives.
struct TimedDevice {
  double peak = 0, bandwidth = 0;
  CudaEncoderOptions options;
  std::vector<size_t> lengths;  // of the last measure_resident()
  int32_t passes = 0;
  double resident_seconds = 0;
};
inline TimedDevice device;

namespace detail {

inline std::mutex loop_lock;
inline double run_loop(const char* name, int64_t bytes, float* sink) {
  const std::lock_guard lock(loop_lock);
  if (sink != nullptr) memset(sink, 0, 16 * sizeof *sink);
  pass_seconds(loops.seconds(name, bytes));
  return loops.flop;
}

class TimedEncoder final : public DeviceEncoder {
 public:
  const std::string& name() const override { return name_; }
  void embed(std::span<const std::span<const int32_t>>, float*) override {}
  double measure_resident(std::span<const std::span<const int32_t>> sentences,
                          int32_t passes) override {
    device.lengths.clear();
    for (const auto& sentence : sentences) device.lengths.push_back(sentence.size());
    device.passes = passes;
    return device.resident_seconds;
  }
  double measure_peak() override { return device.peak; }
  double measure_bandwidth() override { return device.bandwidth; }

 private:
  const std::string name_ = "timed device";
};

}  // namespace detail
}  // namespace xsr::test

std::chrono::steady_clock::time_point std::chrono::steady_clock::now() noexcept {
  xsr::test::now += xsr::test::reading_takes;
  return time_point(xsr::test::now);
}

namespace xsr {

std::string cuda_encoder_build() { return ""; }
std::unique_ptr<DeviceEncoder> make_cuda_encoder(const ModelConfig&, const EncoderWeights&,
                                                 const CudaEncoderOptions& options) {
  test::device.options = options;
  return std::make_unique<test::detail::TimedEncoder>();
}

namespace bench {

#define XSR_TIMED_LOOP(name)                            \
  double name(int64_t, const float*, float* sink) {     \
    return xsr::test::detail::run_loop(#name, 0, sink); \
  }
XSR_TIMED_LOOP(fma_loop_avx2)
XSR_TIMED_LOOP(fma_loop_avx512)
XSR_TIMED_LOOP(dot_loop_avx512_bf16)
XSR_TIMED_LOOP(dot_loop_avx512_vnni)
XSR_TIMED_LOOP(dot_loop_avx2_vnni)
XSR_TIMED_LOOP(madd_loop_avx2)
#undef XSR_TIMED_LOOP
uint64_t read_loop_avx2(const void*, int64_t bytes) {
  xsr::test::detail::run_loop("read_loop_avx2", bytes, nullptr);
  return 0;
}
uint64_t read_loop_avx512(const void*, int64_t bytes) {
  xsr::test::detail::run_loop("read_loop_avx512", bytes, nullptr);
  return 0;
}

}  // namespace bench
}  // namespace xsr

struct xsr_model {};
struct xsr_session {
  xsr_isa isa;
  int32_t threads;

  void embed(std::vector<size_t> lengths, std::vector<int32_t> ids, float* embeddings) const {
    auto& library = xsr::test::library;
    const auto elements = static_cast<size_t>(library.info.embedding_size) * lengths.size();
    for (size_t i = 0; i < elements; ++i)
      embeddings[i] = library.element * static_cast<float>(i % 2);
    if (isa == XSR_ISA_REF && threads == 1) return;
    embeddings[elements - 1] += library.error;
    const size_t call = library.calls.size();
    library.calls.push_back({std::move(ids), std::move(lengths)});
    xsr::test::pass_seconds(library.call_seconds(call));
  }
};

extern "C" {

const char* xsr_version_string() { return "1.2.3"; }
const char* xsr_status_string(xsr_status) { return "a status"; }
const char* xsr_isa_string(xsr_isa) { return "an ISA"; }
xsr_status xsr_model_open(const char*, const xsr_model_options*, xsr_model** model, char*, size_t) {
  *model = new xsr_model;
  return XSR_STATUS_OK;
}
xsr_status xsr_model_open_memory(const void*, size_t, const xsr_model_options*, xsr_model** model,
                                 char*, size_t) {
  *model = new xsr_model;
  return XSR_STATUS_OK;
}
void xsr_model_close(xsr_model* model) { delete model; }
xsr_status xsr_model_get_info(const xsr_model*, xsr_model_info* info) {
  *info = xsr::test::library.info;
  return XSR_STATUS_OK;
}
xsr_status xsr_session_create(const xsr_model*, const xsr_session_options* options,
                              xsr_session** session, char*, size_t) {
  *session = new xsr_session{options->isa, options->num_threads};
  return XSR_STATUS_OK;
}
void xsr_session_destroy(xsr_session* session) { delete session; }
xsr_isa xsr_session_get_isa(const xsr_session* session) { return session->isa; }
int32_t xsr_session_get_num_threads(const xsr_session* session) { return session->threads; }
const char* xsr_session_get_device_name(const xsr_session*) { return "cpu"; }
const char* xsr_session_get_error(const xsr_session*) { return ""; }
xsr_status xsr_session_embed_texts(xsr_session* session, const xsr_text* texts, size_t count,
                                   float* embeddings, xsr_text_result* results) {
  std::vector<size_t> lengths;
  for (size_t i = 0; i < count; ++i) {
    const auto most = static_cast<size_t>(xsr::test::library.info.max_seq_len);
    lengths.push_back(std::min(texts[i].size, most));
    results[i].num_tokens = static_cast<int32_t>(lengths.back());
  }
  session->embed(std::move(lengths), {}, embeddings);
  return XSR_STATUS_OK;
}
xsr_status xsr_session_embed_ids(xsr_session* session, const int32_t* token_ids,
                                 const size_t* offsets, size_t count, float* embeddings,
                                 xsr_text_result*) {
  std::vector<size_t> lengths;
  for (size_t i = 0; i < count; ++i) lengths.push_back(offsets[i + 1] - offsets[i]);
  session->embed(std::move(lengths), {token_ids, token_ids + offsets[count]}, embeddings);
  return XSR_STATUS_OK;
}
xsr_status xsr_session_tokenize(xsr_session*, xsr_text text, int32_t*, size_t, size_t* num_tokens,
                                xsr_text_result*) {
  *num_tokens = text.size;
  xsr::test::pass_seconds(xsr::test::library.tokenize_seconds);
  return XSR_STATUS_OK;
}

}  // extern "C"
