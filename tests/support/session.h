#pragma once
// Models and sessions of the C API, held and called as tests do.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "xsr/xsr.h"

namespace xsr::test {

struct ModelCloser {
  void operator()(xsr_model* model) const { xsr_model_close(model); }
};
struct SessionDestroyer {
  void operator()(xsr_session* session) const { xsr_session_destroy(session); }
};
using ModelPointer = std::unique_ptr<xsr_model, ModelCloser>;
using SessionPointer = std::unique_ptr<xsr_session, SessionDestroyer>;

inline ModelPointer open_file(const std::string& path) {
  xsr_model* model = nullptr;
  char detail[256] = "";
  EXPECT_EQ(XSR_STATUS_OK, xsr_model_open(path.c_str(), nullptr, &model, detail, sizeof detail))
      << detail;
  return ModelPointer(model);
}

inline ModelPointer open_memory(const void* data, size_t size) {
  xsr_model* model = nullptr;
  char detail[256] = "";
  EXPECT_EQ(XSR_STATUS_OK,
            xsr_model_open_memory(data, size, nullptr, &model, detail, sizeof detail))
      << detail;
  return ModelPointer(model);
}

/// Token ids of several sentences to their vectors, C columns each.
inline xsr_status try_embed(xsr_session* session,
                            const std::vector<std::vector<int32_t>>& sentences, size_t C,
                            std::vector<float>* out,
                            std::vector<xsr_text_result>* results = nullptr) {
  std::vector<int32_t> ids;
  std::vector<size_t> offsets = {0};
  for (const auto& sentence : sentences) {
    ids.insert(ids.end(), sentence.begin(), sentence.end());
    offsets.push_back(ids.size());
  }
  out->assign(sentences.size() * C, NAN);
  if (results != nullptr) results->resize(sentences.size());
  return xsr_session_embed_ids(session, ids.data(), offsets.data(), sentences.size(), out->data(),
                               results == nullptr ? nullptr : results->data());
}

/// The same where it must succeed.
inline std::vector<float> embed(xsr_session* session,
                                const std::vector<std::vector<int32_t>>& sentences, size_t C,
                                std::vector<xsr_text_result>* results = nullptr) {
  std::vector<float> out;
  EXPECT_EQ(XSR_STATUS_OK, try_embed(session, sentences, C, &out, results))
      << xsr_session_get_error(session);
  return out;
}

}  // namespace xsr::test
