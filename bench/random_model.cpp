#include "bench/random_model.h"

#include <cmath>
#include <cstring>
#include <list>
#include <random>
#include <string>
#include <vector>

#include "kernels/gemm/gemm.h"
#include "kernels/shapes.h"

namespace xsr::bench {
namespace {

/// Tensors and the memory they stand in.
class Tensors {
 public:
  Tensors(DType storage, uint32_t seed) : storage_(storage), random_(seed) {}

  void vector(const std::string& name, int32_t size, float mean, float deviation) {
    void* data = allocate(size * sizeof(float));
    std::normal_distribution<float> normal(mean, deviation);
    for (int32_t i = 0; i < size; ++i) static_cast<float*>(data)[i] = normal(random_);
    add(name, DType::kF32, Layout::kRowMajor, {static_cast<uint64_t>(size)}, data);
  }

  void table(const std::string& name, int32_t rows, int32_t columns) {
    const size_t count = static_cast<size_t>(rows) * columns;
    void* data = allocate(count * dtype_size(storage_));
    std::normal_distribution<float> normal;
    float* scales = nullptr;
    if (storage_ == DType::kI8) {
      scales = static_cast<float*>(allocate(rows * sizeof(float)));
      std::vector<float> row(columns);
      for (int32_t r = 0; r < rows; ++r) {
        for (float& value : row) value = normal(random_);
        scales[r] = kernels::quantize_row_i8(
            row.data(), columns, static_cast<int8_t*>(data) + static_cast<size_t>(r) * columns);
      }
    } else {
      for (size_t i = 0; i < count; ++i) store(data, i, normal(random_));
    }
    add(name, storage_, Layout::kRowMajor,
        {static_cast<uint64_t>(rows), static_cast<uint64_t>(columns)}, data, scales);
  }

  void matrix(const std::string& name, int32_t N, int32_t K) {
    std::vector<float> plain(static_cast<size_t>(N) * K);
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(K)));
    for (float& value : plain) value = normal(random_);
    void* data = allocate(kernels::packed_elements(N, K, storage_) * dtype_size(storage_));
    float* scales = nullptr;
    if (storage_ == DType::kI8) {
      scales = static_cast<float*>(allocate(N * sizeof(float)));
      kernels::gemm_quantize_panels(plain.data(), N, K, static_cast<int8_t*>(data), scales);
    } else {
      kernels::gemm_pack_panels(plain.data(), N, K, storage_, data);
    }
    add(name, storage_, Layout::kPanels32, {static_cast<uint64_t>(N), static_cast<uint64_t>(K)},
        data, scales);
  }

  const std::vector<TensorSource>& sources() const { return sources_; }

 private:
  void* allocate(size_t bytes) {
    memory_.emplace_back(bytes);
    return memory_.back().data();
  }

  void store(void* data, size_t i, float value) const {
    if (storage_ == DType::kF32)
      static_cast<float*>(data)[i] = value;
    else
      static_cast<uint16_t*>(data)[i] =
          storage_ == DType::kBF16 ? kernels::bf16_from_f32(value) : kernels::f16_from_f32(value);
  }

  void add(const std::string& name, DType dtype, Layout layout, std::vector<uint64_t> dims,
           const void* data, const float* scales = nullptr) {
    TensorSource source;
    source.name = name;
    source.dtype = dtype;
    source.layout = layout;
    source.dims = std::move(dims);
    source.data = data;
    source.scales = scales;
    sources_.push_back(std::move(source));
  }

  DType storage_;
  std::mt19937 random_;
  std::list<std::vector<unsigned char>> memory_;
  std::vector<TensorSource> sources_;
};

}  // namespace

RandomModel::RandomModel(const RandomShape& shape, DType storage, uint32_t seed) {
  ModelConfig config;
  config.family = Family::kXsr;
  config.num_layers = shape.num_layers;
  config.hidden_size = shape.hidden_size;
  config.num_heads = shape.num_heads;
  config.intermediate_size = shape.intermediate_size;
  config.vocab_size = shape.vocab_size;
  config.activation = shape.activation;
  config.pooling = shape.pooling;
  config.num_positions = kernels::kXsrMaxSeqLen + 1;
  config.position_offset = 1;
  config.max_seq_len = kernels::kXsrMaxSeqLen;
  config.embedding_size = shape.hidden_size;
  config.pad_id = 0;
  validate(config);

  const int32_t C = shape.hidden_size, F = shape.intermediate_size;
  Tensors tensors(storage, seed);
  const auto norm = [&](const std::string& name) {
    tensors.vector(name + ".weight", C, 1.0f, 0.1f);
    tensors.vector(name + ".bias", C, 0.0f, 0.1f);
  };
  const auto dense = [&](const std::string& name, int32_t N, int32_t K) {
    tensors.matrix(name + ".weight", N, K);
    tensors.vector(name + ".bias", N, 0.0f, 0.1f);
  };
  tensors.table("embedding.token", shape.vocab_size, C);
  tensors.table("embedding.position", config.num_positions, C);
  norm("embedding.norm");
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    const std::string layer = "layer." + std::to_string(i) + ".";
    dense(layer + "qkv", 3 * C, C);
    dense(layer + "attention_output", C, C);
    norm(layer + "attention_norm");
    dense(layer + "up", F, C);
    dense(layer + "down", C, F);
    norm(layer + "output_norm");
  }
  const auto file = write_xsr_memory(config, tensors.sources(), "",
                                     R"({"source":"random weights of xsr-bench"})", &size_);
  buffer_ = std::make_unique<HugeBuffer>(size_);
  memcpy(buffer_->data(), file.get(), size_);
}

}  // namespace xsr::bench
