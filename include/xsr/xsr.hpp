/// xsr.hpp: RAII over xsr.h for C++20; header-only. Objects own their handles, spans replace
/// pointer and count, and an exception carries the status and the message. What xsr.h says about
/// threads, bits and errors holds here.
///
///     xsr::Model model("model.xsr");
///     xsr::Session session(model);
///     const std::array<std::string_view, 2> texts = {"A black cat.", "Un chat noir."};
///     std::vector<float> embeddings = session.embed(texts);
///
/// A moved-from Model or Session may be destroyed or assigned to, nothing else.
#ifndef XSR_XSR_HPP
#define XSR_XSR_HPP

#if __cplusplus <= 201703L
#error \
    "xsr/xsr.hpp needs C++20: -std=c++20, or in CMake target_compile_features(TARGET PRIVATE cxx_std_20)"
#endif

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "xsr/xsr.h"

namespace xsr {
// Inline: users write xsr::Model. The library's own xsr::Session and the like stay different
// symbols, so a program that links both (our tests do) does not break the one-definition rule.
inline namespace api {

/// A call that failed. what() says what was found, what was expected and where.
class Exception : public std::runtime_error {
 public:
  Exception(xsr_status status, const std::string& message)
      : std::runtime_error(message.empty() ? xsr_status_string(status) : message),
        status_(status) {}
  xsr_status status() const noexcept { return status_; }

 private:
  xsr_status status_;
};

namespace detail {
inline void check(xsr_status status, const char* message) {
  if (status != XSR_STATUS_OK) throw Exception(status, message);
}
/// Room for a message with a long path in it.
using Message = char[1024];
}  // namespace detail

/// An open model file. Immutable; may be shared by any number of threads and sessions. Copies share
/// one handle.
class Model {
 public:
  /// Maps the file. verify_checksums reads it whole. Throws Exception: IO, BAD_FILE, UNSUPPORTED,
  /// OUT_OF_MEMORY.
  explicit Model(const std::string& path, bool verify_checksums = false) {
    const xsr_model_options options = make_options(verify_checksums);
    detail::Message message = "";
    xsr_model* model = nullptr;
    detail::check(xsr_model_open(path.c_str(), &options, &model, message, sizeof message), message);
    handle_.reset(model, xsr_model_close);
  }

  /// The same from memory, which must be 64-byte aligned and outlive the model and its sessions; it
  /// is not copied.
  explicit Model(std::span<const std::byte> data, bool verify_checksums = false) {
    const xsr_model_options options = make_options(verify_checksums);
    detail::Message message = "";
    xsr_model* model = nullptr;
    detail::check(
        xsr_model_open_memory(data.data(), data.size(), &options, &model, message, sizeof message),
        message);
    handle_.reset(model, xsr_model_close);
  }

  /// The strings in it live as long as the model.
  xsr_model_info info() const {
    xsr_model_info info = {};
    info.size = sizeof info;
    detail::check(xsr_model_get_info(get(), &info), "");
    return info;
  }

  /// Checks the checksum of every tensor and makes the tokenizer's tables again; reads the whole
  /// file. Throws Exception(BAD_FILE) naming the tensor or the table.
  void verify() const {
    detail::Message message = "";
    detail::check(xsr_model_verify(get(), message, sizeof message), message);
  }

  const xsr_model* get() const noexcept { return handle_.get(); }

 private:
  static xsr_model_options make_options(bool verify_checksums) {
    xsr_model_options options = {};
    options.size = sizeof options;
    options.verify_checksums = verify_checksums;
    return options;
  }

  std::shared_ptr<xsr_model> handle_;
};

/// Serves one call at a time: give every thread a session of its own. Keeps its model open.
class Session {
 public:
  /// options.size is filled in here. Throws Exception: INVALID_ARGUMENT, UNSUPPORTED,
  /// OUT_OF_MEMORY, CUDA.
  explicit Session(const Model& model, xsr_session_options options = {}) {
    options.size = sizeof options;
    detail::Message message = "";
    xsr_session* session = nullptr;
    detail::check(xsr_session_create(model.get(), &options, &session, message, sizeof message),
                  message);
    handle_.reset(session);
    embedding_size_ = static_cast<size_t>(model.info().embedding_size);
  }

  /// Floats per embedding.
  size_t embedding_size() const noexcept { return embedding_size_; }
  /// The ISA this session runs.
  xsr_isa isa() const noexcept { return xsr_session_get_isa(handle_.get()); }
  int32_t num_threads() const noexcept { return xsr_session_get_num_threads(handle_.get()); }
  /// "cpu", or the CUDA device's name; lives as long as the session.
  const char* device_name() const noexcept { return xsr_session_get_device_name(handle_.get()); }

  /// Embeds texts of any length, in any order.
  ///   embeddings [texts.size(), embedding_size] f32, row i is texts[i]; after BAD_FILE,
  ///              OUT_OF_MEMORY or CUDA some rows may have been written, otherwise none
  ///   results    [texts.size()], or empty when they are of no interest; likewise
  /// Throws Exception: INVALID_ARGUMENT (a span of the wrong size too), UNSUPPORTED, BAD_FILE,
  /// OUT_OF_MEMORY, CUDA.
  void embed(std::span<const xsr_text> texts, std::span<float> embeddings,
             std::span<xsr_text_result> results = {}) {
    check_sizes(texts.size(), embeddings.size(), results.size());
    check(xsr_session_embed_texts(handle_.get(), texts.data(), texts.size(), embeddings.data(),
                                  results.empty() ? nullptr : results.data()));
  }
  void embed(std::span<const std::string_view> texts, std::span<float> embeddings,
             std::span<xsr_text_result> results = {}) {
    std::vector<xsr_text> c_texts;
    c_texts.reserve(texts.size());
    for (std::string_view text : texts) c_texts.push_back({text.data(), text.size()});
    embed(std::span<const xsr_text>(c_texts), embeddings, results);
  }
  /// Returns [texts.size(), embedding_size].
  std::vector<float> embed(std::span<const std::string_view> texts) {
    std::vector<float> embeddings(texts.size() * embedding_size_);
    embed(texts, embeddings);
    return embeddings;
  }
  /// The same of texts in braces. Without it embed({"A black cat.", "Un chat noir."}) would
  /// compile, the two literals taken for the ends of one text.
  std::vector<float> embed(std::initializer_list<std::string_view> texts) {
    return embed(std::span<const std::string_view>(texts.begin(), texts.size()));
  }
  /// Returns [embedding_size].
  std::vector<float> embed(std::string_view text) {
    return embed(std::span<const std::string_view>(&text, 1));
  }

  /// Embeds token sequences, as a tokenizer of this model gives them (special tokens included).
  ///   token_ids  [offsets.back()] ids in [0, vocab_size)
  ///   offsets    [count + 1], never falling: sequence i is token_ids[offsets[i] .. offsets[i + 1])
  ///   embeddings [count, embedding_size] f32, and results [count] or empty, as for texts
  /// Throws Exception: INVALID_ARGUMENT (a span of the wrong size too), OUT_OF_MEMORY, CUDA.
  void embed_ids(std::span<const int32_t> token_ids, std::span<const size_t> offsets,
                 std::span<float> embeddings, std::span<xsr_text_result> results = {}) {
    if (offsets.empty() || offsets.back() > token_ids.size()) {
      throw Exception(XSR_STATUS_INVALID_ARGUMENT,
                      "offsets must have count + 1 entries, the last at most token_ids.size() = " +
                          std::to_string(token_ids.size()) + ", found " +
                          (offsets.empty() ? "none" : std::to_string(offsets.back())));
    }
    const size_t count = offsets.size() - 1;
    check_sizes(count, embeddings.size(), results.size());
    check(xsr_session_embed_ids(handle_.get(), token_ids.data(), offsets.data(), count,
                                embeddings.data(), results.empty() ? nullptr : results.data()));
  }

  /// The ids embed() would embed, truncation included. Throws Exception: UNSUPPORTED, BAD_FILE,
  /// OUT_OF_MEMORY.
  std::vector<int32_t> tokenize(std::string_view text, xsr_text_result* result = nullptr) {
    const xsr_text c_text = {text.data(), text.size()};
    // Most texts have fewer tokens than bytes; the second call is for those that do not.
    std::vector<int32_t> ids(text.size() + 2);
    size_t num_tokens = 0;
    check(xsr_session_tokenize(handle_.get(), c_text, ids.data(), ids.size(), &num_tokens, result));
    if (num_tokens > ids.size()) {
      ids.resize(num_tokens);
      check(
          xsr_session_tokenize(handle_.get(), c_text, ids.data(), ids.size(), &num_tokens, result));
    }
    ids.resize(num_tokens);
    return ids;
  }

  xsr_session* get() const noexcept { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(xsr_session* session) const noexcept { xsr_session_destroy(session); }
  };

  void check(xsr_status status) const {
    if (status != XSR_STATUS_OK) throw Exception(status, xsr_session_get_error(handle_.get()));
  }
  void check_sizes(size_t count, size_t num_floats, size_t num_results) const {
    // By division: count * embedding_size_ might overflow.
    const bool fits = num_floats % embedding_size_ == 0 && num_floats / embedding_size_ == count;
    if (!fits) {
      throw Exception(XSR_STATUS_INVALID_ARGUMENT,
                      "embeddings has " + std::to_string(num_floats) + " floats, expected " +
                          std::to_string(count) + " x " + std::to_string(embedding_size_));
    }
    if (num_results != 0 && num_results != count) {
      throw Exception(XSR_STATUS_INVALID_ARGUMENT, "results has " + std::to_string(num_results) +
                                                       " entries, expected " +
                                                       std::to_string(count) + " or none");
    }
  }

  std::unique_ptr<xsr_session, Destroy> handle_;
  size_t embedding_size_ = 0;
};

}  // namespace api
}  // namespace xsr

#endif  // XSR_XSR_HPP
