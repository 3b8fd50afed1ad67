#include "runtime/encoder/cuda/device_weights.h"

#include <cstring>
#include <functional>

namespace xsr::cuda {
namespace {

using kernels::Storage;

/// Collects what is to be copied to a device, then allocates it all at once and fills it.
class Uploads {
 public:
  /// *to [count], which fill(T*) sets on the host.
  template <typename T, typename Fill>
  void add(T** to, int64_t count, Fill&& fill) {
    plan_.add(to, static_cast<size_t>(count));
    jobs_.push_back([=, fill = std::forward<Fill>(fill)](const StreamOwner& stream) {
      std::vector<T> host(static_cast<size_t>(count));
      fill(host.data());
      copy_to_device(*to, host.data(), sizeof(T) * host.size(), stream.get());
      stream.synchronize();  // the host's copy ends here
    });
  }
  /// *to [count], a copy of from [count].
  template <typename T>
  void copy(T** to, const void* from, int64_t count) {
    plan_.add(to, static_cast<size_t>(count));
    jobs_.push_back([=](const StreamOwner& stream) {
      copy_to_device(*to, from, sizeof(T) * static_cast<size_t>(count), stream.get());
    });
  }
  Memory run(const StreamOwner& stream) {
    Memory memory = plan_.allocate(Place::kDevice);
    for (const auto& job : jobs_) job(stream);
    stream.synchronize();
    return memory;
  }

 private:
  Plan plan_;
  std::vector<std::function<void(const StreamOwner&)>> jobs_;
};

/// A table [rows, C], widened where it is i8.
void table(Uploads& uploads, char** to, const void* from, const EncoderWeights& file,
           const float* scales, int64_t rows, int64_t C) {
  if (file.table_storage != Storage::kI8) {
    uploads.copy(to, from, rows * C * kernels::storage_size(file.table_storage));
    return;
  }
  uploads.add(to, rows * C * static_cast<int64_t>(sizeof(float)), [=](char* host) {
    const int8_t* values = static_cast<const int8_t*>(from);
    for (int64_t i = 0; i < rows * C; ++i) {
      const float value = static_cast<float>(values[i]) * scales[i / C];
      std::memcpy(host + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
    }
  });
}

void norm(Uploads& uploads, DeviceNorm& to, const NormWeights& from, int64_t C) {
  uploads.copy(&to.gamma, from.gamma, C);
  uploads.copy(&to.beta, from.beta, C);
}

void linear(Uploads& uploads, DeviceLinear& to, const LinearWeights& from, bool bf16) {
  const kernels::PackedMatrix w = from.weight;
  to.N = w.N;
  to.K = w.K;
  const int64_t stride = padded(w.K);
  const auto fill = [w, stride](auto* host, auto&& convert) {
    for (int32_t n = 0; n < w.N; ++n) {
      for (int32_t k = 0; k < w.K; ++k)
        host[n * stride + k] = convert(kernels::gemm_packed_element(w, n, k));
    }
  };
  if (bf16) {
    uploads.add(&to.narrow, w.N * stride,
                [fill](uint16_t* host) { fill(host, kernels::bf16_from_f32); });
  } else {
    uploads.add(&to.wide, w.N * stride,
                [fill](float* host) { fill(host, [](float value) { return value; }); });
  }
  uploads.copy(&to.bias, from.bias, w.N);
}

}  // namespace

DeviceWeights::DeviceWeights(const ModelConfig& config, const EncoderWeights& file,
                             const CudaEncoderOptions& options, const StreamOwner& stream)
    : table_storage(file.table_storage == Storage::kI8 ? Storage::kF32 : file.table_storage),
      layers(file.layers.size()) {
  const int64_t C = config.hidden_size;
  const bool bf16 = options.compute == Compute::kBf16;
  Uploads uploads;
  table(uploads, &token, file.token, file, file.token_scales, config.vocab_size, C);
  table(uploads, &position, file.position, file, file.position_scales, config.num_positions, C);
  if (file.token_type != nullptr) uploads.copy(&token_type, file.token_type, C);
  norm(uploads, embedding_norm, file.embedding_norm, C);
  for (size_t i = 0; i < layers.size(); ++i) {
    DeviceLayer& layer = layers[i];
    const auto to = products(layer);
    const auto from = products(file.layers[i]);
    // Of a table's layer the product is never computed.
    for (size_t k = options.qkv_table != nullptr && i == 0 ? 1 : 0; k < to.size(); ++k)
      linear(uploads, *to[k], *from[k], bf16);
    norm(uploads, layer.attention_norm, file.layers[i].attention_norm, C);
    norm(uploads, layer.output_norm, file.layers[i].output_norm, C);
  }
  if (config.has_pooler) linear(uploads, pooler, file.pooler, false);
  if (const QkvTable* from = options.qkv_table) {
    uploads.copy(&table_token, from->token(), config.vocab_size * 3 * C);
    uploads.copy(&table_position, from->position(), config.num_positions * 3 * C);
    uploads.copy(&table_bias, from->bias(), 3 * C);
  }
  memory = uploads.run(stream);
}

}  // namespace xsr::cuda
