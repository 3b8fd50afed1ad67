#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "xsr/xsr.h"

namespace xsr::bench {

/// The C API with exceptions (xsr::Error) for the bench's own use; what is timed is the C call.
class Model {
 public:
  explicit Model(const std::string& path);
  /// data must outlive the model.
  Model(const void* data, size_t size);

  const xsr_model* get() const { return model_.get(); }
  const xsr_model_info& info() const { return info_; }

 private:
  struct Close {
    void operator()(xsr_model* model) const { xsr_model_close(model); }
  };
  void read_info();

  std::unique_ptr<xsr_model, Close> model_;
  xsr_model_info info_{};
};

class Session {
 public:
  /// batch_tokens: tokens per chunk of work, 0: what the session thinks best. device: "cpu",
  /// "cuda", "cuda:0,1".
  Session(const Model& model, xsr_isa isa, xsr_compute compute, int32_t threads,
          int32_t batch_tokens = 0, bool qkv_table = false, const std::string& device = "cpu");

  xsr_isa isa() const { return xsr_session_get_isa(session_.get()); }
  xsr_compute compute() const { return compute_; }
  bool on_cpu() const { return on_cpu_; }
  std::string device_name() const { return xsr_session_get_device_name(session_.get()); }
  int32_t num_threads() const { return xsr_session_get_num_threads(session_.get()); }
  /// offsets.size() - 1 sequences; embeddings holds as many rows.
  void embed_ids(std::span<const int32_t> token_ids, std::span<const size_t> offsets,
                 float* embeddings);
  void embed_texts(std::span<const xsr_text> texts, float* embeddings, xsr_text_result* results);
  /// Tokens of the text after truncation.
  size_t tokenize(xsr_text text, std::vector<int32_t>& token_ids);

 private:
  struct Destroy {
    void operator()(xsr_session* session) const { xsr_session_destroy(session); }
  };
  void check(xsr_status status) const;

  std::unique_ptr<xsr_session, Destroy> session_;
  xsr_compute compute_;
  bool on_cpu_;
  size_t max_seq_len_ = 0;
};

}  // namespace xsr::bench
