#pragma once
// Models of random weights that a test changes before they are opened.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench/random_model.h"
#include "kernels/gemm/gemm.h"
#include "runtime/format/xsr_file.h"
#include "tests/support/kernel_harness.h"
#include "tests/support/session.h"

namespace xsr::test {

using ModelEdit = std::function<void(ModelConfig&, std::vector<TensorSource>&)>;

/// The bytes of a random model, changed by edit(config, tensors) where one is given.
struct ModelBytes {
  ModelBytes(const bench::RandomShape& shape, DType storage, const ModelEdit& edit = nullptr,
             std::string_view tokenizer = "") {
    const bench::RandomModel random(shape, storage, 5);
    const auto plain = XsrFile::open_memory(random.data(), random.size());
    ModelConfig config = plain->config();
    std::vector<TensorSource> sources;
    for (const TensorView& view : plain->tensors()) {
      sources.push_back(
          {std::string(view.name), view.dtype, view.layout, view.dims, view.data, view.scales});
    }
    if (edit) edit(config, sources);
    data = write_xsr_memory(config, sources, tokenizer, "{}", &size);
  }
  std::shared_ptr<unsigned char[]> data;
  size_t size = 0;
};

/// The same, opened.
class TestModel {
 public:
  TestModel(const bench::RandomShape& shape, DType storage, const ModelEdit& edit = nullptr,
            std::string_view tokenizer = "")
      : bytes_(shape, storage, edit, tokenizer),
        file_(XsrFile::open_memory(bytes_.data.get(), bytes_.size)),
        model_(open_memory(bytes_.data.get(), bytes_.size)) {}
  const xsr_model* get() const { return model_.get(); }
  const ModelPointer& pointer() const { return model_; }
  const XsrFile& file() const { return *file_; }
  size_t columns() const { return static_cast<size_t>(file_->config().embedding_size); }

 private:
  ModelBytes bytes_;
  std::unique_ptr<XsrFile> file_;
  ModelPointer model_;
};

/// An edit that gives the model a dense layer of embedding_size outputs after pooling, in
/// `storage`, unit vectors, and two types of tokens.
class DenseLayer {
 public:
  DenseLayer(int32_t hidden_size, int32_t embedding_size, DType storage)
      : C_(hidden_size), E_(embedding_size), storage_(storage), types_(2 * C_), bias_(E_) {
    Random random(3);
    std::vector<float> dense(static_cast<size_t>(E_) * C_);
    for (float& value : dense) value = random.normal(0.1f);
    for (float& value : bias_) value = random.normal();
    for (float& value : types_) value = random.normal();
    weight_.resize(kernels::packed_elements(E_, C_, storage) * dtype_size(storage));
    if (storage == DType::kI8) {
      scales_.resize(E_);
      kernels::gemm_quantize_panels(dense.data(), E_, C_, reinterpret_cast<int8_t*>(weight_.data()),
                                    scales_.data());
    } else {
      kernels::gemm_pack_panels(dense.data(), E_, C_, storage, weight_.data());
    }
  }
  void operator()(ModelConfig& config, std::vector<TensorSource>& sources) const {
    const auto C = static_cast<uint64_t>(C_), E = static_cast<uint64_t>(E_);
    config.has_pooler = config.normalize = true;
    config.pooler_activation = Activation::kTanh;
    config.embedding_size = E_;
    config.num_token_types = 2;
    sources.push_back({"pooler.weight",
                       storage_,
                       Layout::kPanels32,
                       {E, C},
                       weight_.data(),
                       scales_.empty() ? nullptr : scales_.data()});
    sources.push_back({"pooler.bias", DType::kF32, Layout::kRowMajor, {E}, bias_.data(), nullptr});
    sources.push_back(
        {"embedding.token_type", DType::kF32, Layout::kRowMajor, {2, C}, types_.data(), nullptr});
  }

 private:
  int32_t C_, E_;
  DType storage_;
  std::vector<float> types_, bias_, scales_;
  std::vector<unsigned char> weight_;
};

}  // namespace xsr::test
