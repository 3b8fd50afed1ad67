#include <xmmintrin.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "runtime/encoder/session.h"
#include "runtime/error.h"
#include "xsr/xsr.h"

struct xsr_model {
  std::shared_ptr<const xsr::Model> model;
};

struct xsr_session {
  xsr_session(std::shared_ptr<const xsr::Model> its_model, const xsr_session_options& options)
      : model(std::move(its_model)), session(*model, options) {}
  const std::shared_ptr<const xsr::Model> model;  // the caller may close it first
  xsr::Session session;
};

namespace {

void write_detail(char* detail, size_t size, const char* text) {
  if (detail == nullptr || size == 0) return;
  const size_t length = std::min(size - 1, std::strlen(text));
  std::memcpy(detail, text, length);
  detail[length] = '\0';
}

/// Rounding to nearest, denormals as they are, nothing trapped, as long as it lives, then what the
/// caller had: bits must not depend on that, nor may a program that traps inexact results stop
/// here. A session's threads inherit it from the call that starts them.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() { _mm_setcsr(_MM_MASK_MASK); }
  ~DefaultFloatingPoint() { _mm_setcsr(callers_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  const unsigned callers_ = _mm_getcsr();
};

/// The one catch-all: runs body, turns what it throws into a status and hands the message to
/// report(text).
template <typename Body, typename Report>
xsr_status guarded(Body&& body, Report&& report) noexcept {
  const DefaultFloatingPoint floating_point;
  try {
    try {
      body();
      return XSR_STATUS_OK;
    } catch (const xsr::Error& e) {
      report(e.what());
      return e.status();
    } catch (const std::bad_alloc&) {
      report("out of memory");
      return XSR_STATUS_OUT_OF_MEMORY;
    } catch (const std::length_error&) {
      report("out of memory: a size beyond what a container can hold");
      return XSR_STATUS_OUT_OF_MEMORY;
    } catch (const std::exception& e) {
      report(e.what());
      return XSR_STATUS_INTERNAL;
    }
  } catch (...) {  // report itself failed, or something that is no std::exception was thrown
    return XSR_STATUS_INTERNAL;
  }
}

void require(bool condition, const char* message) {
  if (!condition) throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT, message);
}

// No later version has more; a size beyond it was not set.
constexpr size_t kLargestOptions = 4096;

/// The caller's options as far as the caller knows them, defaults beyond. What this version does
/// not know may be there, but not set.
template <typename Options>
Options read_options(const Options* options, const char* size_message) {
  Options result;
  std::memset(&result, 0, sizeof result);
  if (options != nullptr) {
    require(options->size >= sizeof(size_t) && options->size <= kLargestOptions, size_message);
    std::memcpy(&result, options, std::min(options->size, sizeof result));
    const auto* bytes = reinterpret_cast<const unsigned char*>(options);
    for (size_t i = sizeof result; i < options->size; ++i) {
      if (bytes[i] == 0) continue;
      throw xsr::Error(XSR_STATUS_UNSUPPORTED,
                       "byte " + std::to_string(i) + " of the options is set, which xsr " +
                           xsr_version_string() +
                           " does not know; leave out what a later version added, or load that "
                           "version of the library");
    }
  }
  result.size = sizeof result;
  return result;
}

xsr_status open_model(std::unique_ptr<xsr::XsrFile> (*open)(const void* path, size_t size),
                      const void* source, size_t size, const xsr_model_options* options,
                      xsr_model** model, char* detail, size_t detail_size) {
  return guarded(
      [&] {
        require(model != nullptr, "model is NULL");
        require(source != nullptr, "path or data is NULL");
        const xsr_model_options chosen = read_options(
            options, "xsr_model_options.size is not set; set it to sizeof(xsr_model_options)");
        auto opened = std::make_shared<const xsr::Model>(open(source, size));
        if (chosen.verify_checksums != 0) opened->file().verify();
        *model = new xsr_model{std::move(opened)};
      },
      [&](const char* text) { write_detail(detail, detail_size, text); });
}

template <typename Body>
xsr_status session_call(xsr_session* session, Body&& body) {
  if (session == nullptr) return XSR_STATUS_INVALID_ARGUMENT;
  return guarded(
      [&] {
        session->session.error.clear();
        body(session->session);
      },
      [&](const char* text) { session->session.error = text; });
}

}  // namespace

extern "C" {

const char* xsr_version_string(void) {
#define XSR_TEXT_(x) #x
#define XSR_TEXT(x) XSR_TEXT_(x)
  return XSR_TEXT(XSR_VERSION_MAJOR) "." XSR_TEXT(XSR_VERSION_MINOR) "." XSR_TEXT(
      XSR_VERSION_PATCH);
}

const char* xsr_status_string(xsr_status status) {
  switch (status) {
    case XSR_STATUS_OK:
      return "ok";
    case XSR_STATUS_INVALID_ARGUMENT:
      return "invalid argument";
    case XSR_STATUS_IO:
      return "input/output error";
    case XSR_STATUS_BAD_FILE:
      return "bad file";
    case XSR_STATUS_UNSUPPORTED:
      return "unsupported";
    case XSR_STATUS_OUT_OF_MEMORY:
      return "out of memory";
    case XSR_STATUS_CUDA:
      return "CUDA error";
    case XSR_STATUS_INTERNAL:
      return "internal error";
  }
  return "unknown status";
}

const char* xsr_isa_string(xsr_isa isa) {
  if (isa == XSR_ISA_AUTO) return "auto";
  return xsr::kernels::isa_name(static_cast<xsr::kernels::Isa>(isa));
}

xsr_status xsr_model_open(const char* path, const xsr_model_options* options, xsr_model** model,
                          char* detail, size_t detail_size) {
  return open_model([](const void* source,
                       size_t) { return xsr::XsrFile::open(static_cast<const char*>(source)); },
                    path, 0, options, model, detail, detail_size);
}

xsr_status xsr_model_open_memory(const void* data, size_t size, const xsr_model_options* options,
                                 xsr_model** model, char* detail, size_t detail_size) {
  return open_model(
      [](const void* source, size_t bytes) { return xsr::XsrFile::open_memory(source, bytes); },
      data, size, options, model, detail, detail_size);
}

void xsr_model_close(xsr_model* model) { delete model; }

xsr_status xsr_model_get_info(const xsr_model* model, xsr_model_info* info) {
  return guarded(
      [&] {
        require(model != nullptr && info != nullptr, "model or info is NULL");
        require(info->size >= sizeof(size_t), "xsr_model_info.size is not set");
        const xsr::ModelConfig& config = model->model->config();
        xsr_model_info full;
        std::memset(&full, 0, sizeof full);
        full.size = std::min(info->size, sizeof full);
        full.family = xsr::to_string(config.family);
        full.num_layers = config.num_layers;
        full.hidden_size = config.hidden_size;
        full.num_heads = config.num_heads;
        full.intermediate_size = config.intermediate_size;
        full.vocab_size = config.vocab_size;
        full.max_seq_len = config.max_seq_len;
        full.embedding_size = config.embedding_size;
        full.has_tokenizer = model->model->tokenizer() != nullptr;
        full.lowercase = config.lowercase;
        full.normalize = config.normalize;
        full.provenance = model->model->file().provenance().data();
        full.file_size = model->model->file().size();
        std::memcpy(info, &full, full.size);
      },
      [](const char*) {});
}

xsr_status xsr_model_verify(const xsr_model* model, char* detail, size_t detail_size) {
  return guarded(
      [&] {
        require(model != nullptr, "model is NULL");
        model->model->file().verify();
      },
      [&](const char* text) { write_detail(detail, detail_size, text); });
}

xsr_status xsr_session_create(const xsr_model* model, const xsr_session_options* options,
                              xsr_session** session, char* detail, size_t detail_size) {
  return guarded(
      [&] {
        require(model != nullptr, "model is NULL");
        require(session != nullptr, "session is NULL");
        const xsr_session_options chosen = read_options(
            options, "xsr_session_options.size is not set; set it to sizeof(xsr_session_options)");
        *session = new xsr_session(model->model, chosen);
      },
      [&](const char* text) { write_detail(detail, detail_size, text); });
}

void xsr_session_destroy(xsr_session* session) { delete session; }

xsr_isa xsr_session_get_isa(const xsr_session* session) {
  if (session == nullptr || session->session.on_device()) return XSR_ISA_AUTO;
  return static_cast<xsr_isa>(session->session.isa());
}

int32_t xsr_session_get_num_threads(const xsr_session* session) {
  return session == nullptr ? 0 : session->session.num_threads();
}

const char* xsr_session_get_device_name(const xsr_session* session) {
  return session == nullptr ? "" : session->session.device_name();
}

const char* xsr_session_get_error(const xsr_session* session) {
  return session == nullptr ? "session is NULL" : session->session.error.c_str();
}

xsr_status xsr_session_embed_texts(xsr_session* session, const xsr_text* texts, size_t count,
                                   float* embeddings, xsr_text_result* results) {
  return session_call(session, [&](xsr::Session& s) {
    require(count == 0 || (texts != nullptr && embeddings != nullptr),
            "texts or embeddings is NULL");
    for (size_t i = 0; i < count; ++i) {
      if (texts[i].data == nullptr && texts[i].size > 0) {
        throw xsr::Error(XSR_STATUS_INVALID_ARGUMENT, "texts[" + std::to_string(i) +
                                                          "].data is NULL but its size is " +
                                                          std::to_string(texts[i].size));
      }
    }
    s.embed_texts({texts, count}, embeddings, results);
  });
}

xsr_status xsr_session_embed_ids(xsr_session* session, const int32_t* token_ids,
                                 const size_t* offsets, size_t count, float* embeddings,
                                 xsr_text_result* results) {
  return session_call(session, [&](xsr::Session& s) {
    if (count == 0) return;
    require(offsets != nullptr && embeddings != nullptr, "offsets or embeddings is NULL");
    require(token_ids != nullptr || offsets[count] == offsets[0], "token_ids is NULL");
    s.embed_ids(token_ids, {offsets, count + 1}, embeddings, results);
  });
}

xsr_status xsr_session_tokenize(xsr_session* session, xsr_text text, int32_t* token_ids,
                                size_t capacity, size_t* num_tokens, xsr_text_result* result) {
  return session_call(session, [&](xsr::Session& s) {
    require(text.data != nullptr || text.size == 0, "text.data is NULL but its size is not 0");
    require(token_ids != nullptr || capacity == 0, "token_ids is NULL but its capacity is not 0");
    require(num_tokens != nullptr, "num_tokens is NULL");
    std::vector<int32_t> ids;
    const xsr_text_result found = s.tokenize(text, ids);
    if (!ids.empty() && capacity > 0) {
      std::memcpy(token_ids, ids.data(), sizeof(int32_t) * std::min(capacity, ids.size()));
    }
    *num_tokens = ids.size();
    if (result != nullptr) *result = found;
  });
}

}  // extern "C"
