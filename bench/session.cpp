#include "bench/session.h"

#include "runtime/device/cuda_library.h"
#include "runtime/error.h"

namespace xsr::bench {

Model::Model(const std::string& path) {
  xsr_model* model = nullptr;
  char detail[512] = "";
  const xsr_status status = xsr_model_open(path.c_str(), nullptr, &model, detail, sizeof detail);
  if (status != XSR_STATUS_OK) throw Error(status, detail);
  model_.reset(model);
  read_info();
}

Model::Model(const void* data, size_t size) {
  xsr_model* model = nullptr;
  char detail[512] = "";
  const xsr_status status =
      xsr_model_open_memory(data, size, nullptr, &model, detail, sizeof detail);
  if (status != XSR_STATUS_OK) throw Error(status, detail);
  model_.reset(model);
  read_info();
}

void Model::read_info() {
  info_.size = sizeof info_;
  const xsr_status status = xsr_model_get_info(model_.get(), &info_);
  if (status != XSR_STATUS_OK) throw Error(status, xsr_status_string(status));
}

Session::Session(const Model& model, xsr_isa isa, xsr_compute compute, int32_t threads,
                 int32_t batch_tokens, bool qkv_table, const std::string& device)
    : compute_(compute),
      on_cpu_(device == "cpu"),
      max_seq_len_(static_cast<size_t>(model.info().max_seq_len)) {
  xsr_session_options options{};
  options.size = sizeof options;
  options.isa = isa;
  options.compute = compute;
  options.qkv_table = qkv_table ? XSR_QKV_TABLE_ON : XSR_QKV_TABLE_OFF;
  options.num_threads = threads;
  choose_device(device, &options);
  options.max_batch_tokens = batch_tokens;
  xsr_session* session = nullptr;
  char detail[512] = "";
  const xsr_status status =
      xsr_session_create(model.get(), &options, &session, detail, sizeof detail);
  if (status != XSR_STATUS_OK) throw Error(status, detail);
  session_.reset(session);
}

void Session::check(xsr_status status) const {
  if (status != XSR_STATUS_OK) throw Error(status, xsr_session_get_error(session_.get()));
}

void Session::embed_ids(std::span<const int32_t> token_ids, std::span<const size_t> offsets,
                        float* embeddings) {
  check(xsr_session_embed_ids(session_.get(), token_ids.data(), offsets.data(), offsets.size() - 1,
                              embeddings, nullptr));
}

void Session::embed_texts(std::span<const xsr_text> texts, float* embeddings,
                          xsr_text_result* results) {
  check(xsr_session_embed_texts(session_.get(), texts.data(), texts.size(), embeddings, results));
}

size_t Session::tokenize(xsr_text text, std::vector<int32_t>& token_ids) {
  token_ids.resize(max_seq_len_);
  size_t count = 0;
  check(xsr_session_tokenize(session_.get(), text, token_ids.data(), token_ids.size(), &count,
                             nullptr));
  token_ids.resize(count);
  return count;
}

}  // namespace xsr::bench
