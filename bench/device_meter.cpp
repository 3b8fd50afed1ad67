#include "bench/device_meter.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "runtime/device/cuda_library.h"
#include "runtime/device/isa_choice.h"

namespace xsr::bench {

DeviceMeter::DeviceMeter(const XsrFile& file, xsr_compute compute, bool qkv_table,
                         int32_t batch_tokens, const std::string& device)
    : config_(file.config()) {
  const EncoderWeights weights = bind_weights(file);
  std::optional<QkvTable> table;
  if (qkv_table) {
    ThreadPool pool(0);
    table.emplace(config_, weights, kernels::resolve_kernels(choose_isa(std::nullopt)), pool);
  }
  CudaEncoderOptions options;
  options.compute = static_cast<Compute>(compute);
  options.normalize = config_.normalize;
  options.qkv_table = table ? &*table : nullptr;
  options.devices = {cuda_devices_of(device).front()};
  if (batch_tokens != 0) options.chunk_tokens = batch_tokens;
  encoder_ = make_cuda_encoder(config_, weights, options);
}

void DeviceMeter::measure() {
  roofline_.peak_gflops = std::max(roofline_.peak_gflops, 1e-9 * encoder_->measure_peak());
  roofline_.attention_gflops = roofline_.peak_gflops;
  roofline_.read_gb_per_s = std::max(roofline_.read_gb_per_s, 1e-9 * encoder_->measure_bandwidth());
}

double DeviceMeter::seconds(const IdBatch& batch, int32_t passes) {
  std::vector<std::span<const int32_t>> sentences;
  for (size_t i = 0; i < batch.count(); ++i) {
    const size_t size = std::min<size_t>(batch.offsets[i + 1] - batch.offsets[i],
                                         static_cast<size_t>(config_.max_seq_len));
    sentences.emplace_back(batch.token_ids.data() + batch.offsets[i], size);
  }
  return encoder_->measure_resident(sentences, passes);
}

double DeviceMeter::sentence_seconds(int32_t tokens) {
  IdBatch batch;
  batch.append(RandomIds(config_.vocab_size, 11).take(tokens));
  return seconds(batch, 100);
}

double DeviceMeter::corpus_seconds(const IdBatch& batch) { return seconds(batch, 5); }

}  // namespace xsr::bench
