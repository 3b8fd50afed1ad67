#include "kernels/gemm/gemm_onednn.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <dnnl_version.h>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <dnnl.hpp>
#include <limits>
#include <map>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace xsr::kernels {
namespace {

using dnnl::memory;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::algorithm eltwise_algorithm(Activation activation) {
  switch (activation) {
    case Activation::kSwish:
      return dnnl::algorithm::eltwise_swish;
    case Activation::kGeluErf:
      return dnnl::algorithm::eltwise_gelu_erf;
    case Activation::kGeluTanh:
      return dnnl::algorithm::eltwise_gelu_tanh;
    case Activation::kRelu:
      return dnnl::algorithm::eltwise_relu;
    case Activation::kTanh:
      return dnnl::algorithm::eltwise_tanh;
    case Activation::kNone:
      break;
  }
  return dnnl::algorithm::undef;
}

// oneDNN 2 (Debian bookworm) and 3 (trixie) word these differently.
#if DNNL_VERSION_MAJOR >= 3
template <typename Primitive, typename... Descs>
typename Primitive::primitive_desc describe(const dnnl::primitive_attr& attributes,
                                            const Descs&... descs) {
  return {cpu_engine(), descs..., attributes};
}
void append_eltwise(dnnl::post_ops& post_ops, dnnl::algorithm algorithm, float alpha) {
  post_ops.append_eltwise(algorithm, alpha, 0.0f);
}
#else
template <typename Primitive, typename... Descs>
typename Primitive::primitive_desc describe(const dnnl::primitive_attr& attributes,
                                            const Descs&... descs) {
  return {{descs...}, attributes, cpu_engine()};
}
void append_eltwise(dnnl::post_ops& post_ops, dnnl::algorithm algorithm, float alpha) {
  post_ops.append_eltwise(1.0f, algorithm, alpha, 0.0f);
}
#endif

/// On 2 MiB pages where the system grants them, as xsr's own weights are.
std::shared_ptr<void> huge_memory(size_t bytes) {
  constexpr size_t kPage = size_t{2} << 20;
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* data = std::aligned_alloc(kPage, size);
  if (data == nullptr) throw std::bad_alloc();
  madvise(data, size, MADV_HUGEPAGE);
  return {data, std::free};
}

// M, first_panel, last_panel, a_stride, out_stride, bias?, activation, residual (0, 1, 2: in
// place), residual_stride
using Key = std::tuple<int32_t, int32_t, int32_t, int64_t, int64_t, bool, Activation, int, int64_t>;

struct Product {
  dnnl::primitive primitive;
  memory a, weights, bias, residual, out;
  std::unordered_map<int, memory> arguments;
  std::shared_ptr<void> weights_memory;  // when they are reordered
  std::string implementation;
  bool reads_panels = false;

  void set(const float* a_data, const float* bias_data, const float* residual_data,
           float* out_data) {
    a.set_data_handle(const_cast<float*>(a_data));
    out.set_data_handle(out_data);
    if (bias) bias.set_data_handle(const_cast<float*>(bias_data));
    if (residual) residual.set_data_handle(const_cast<float*>(residual_data));
  }
};

}  // namespace

struct OnednnGemm::State {
  PackedMatrix w;
  dnnl::stream stream{cpu_engine()};
  // The matrix as [K, N] row-major f32; made when a primitive cannot read the panels.
  std::vector<float> plain;
  std::vector<float> widened;  // panels in f32, of a narrow matrix
  std::map<Key, Product> products;
  const Product* last = nullptr;

  const float* panels() {
    if (w.storage == Storage::kF32) return static_cast<const float*>(w.data);
    if (widened.empty()) {
      widened.resize(packed_elements(w.N, w.K, Storage::kF32));
      size_t at = 0;
      for (int32_t panel = 0; panel < panel_count(w.N); ++panel) {
        for (int32_t k = 0; k < w.K; ++k) {
          for (int32_t column = 0; column < kPanelColumns; ++column, ++at) {
            const int32_t n = panel * kPanelColumns + column;
            widened[at] = n < w.N ? gemm_packed_element(w, n, k) : 0.0f;
          }
        }
      }
    }
    return widened.data();
  }

  const float* rows() {
    if (plain.empty()) {
      plain.resize(static_cast<size_t>(w.N) * w.K);
      for (int32_t k = 0; k < w.K; ++k) {
        for (int32_t n = 0; n < w.N; ++n)
          plain[static_cast<size_t>(k) * w.N + n] = gemm_packed_element(w, n, k);
      }
    }
    return plain.data();
  }

  enum class Kind { kMatmul, kMatmulOnPanels, kInnerProduct };

  /// Nothing when oneDNN has no kernel, or only its reference loop, for this combination.
  std::optional<Product> make(Kind kind, int64_t a_stride, int32_t M, int32_t first_panel,
                              int32_t last_panel, const GemmEpilogue& epilogue, bool in_place,
                              int64_t out_stride) {
    const int64_t K = w.K;
    const int64_t first = int64_t{first_panel} * kPanelColumns;
    const int64_t N = std::min<int64_t>(w.N, int64_t{last_panel} * kPanelColumns) - first;
    const auto f32 = memory::data_type::f32;
    const memory::desc a({M, K}, f32, memory::dims{a_stride, 1});
    const memory::desc out({M, N}, f32, memory::dims{out_stride, 1});
    const memory::desc residual({M, N}, f32, memory::dims{epilogue.residual_stride, 1});
    memory::desc bias;
    if (epilogue.bias != nullptr) {
      bias = kind == Kind::kInnerProduct ? memory::desc({N}, f32, memory::dims{1})
                                         : memory::desc({1, N}, f32, memory::dims{N, 1});
    }
    dnnl::post_ops post_ops;
    if (epilogue.activation != Activation::kNone) {
      const float alpha = epilogue.activation == Activation::kSwish ? 1.0f : 0.0f;
      append_eltwise(post_ops, eltwise_algorithm(epilogue.activation), alpha);
    }
    if (in_place) post_ops.append_sum(1.0f);
    const bool add_residual = epilogue.residual != nullptr && !in_place;
    if (add_residual) post_ops.append_binary(dnnl::algorithm::binary_add, residual);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(post_ops);
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);

    Product product;
    memory::desc weights, scratchpad, plain_weights;
    const auto take = [&](const auto& description) {
      weights = description.weights_desc();
      scratchpad = description.scratchpad_desc();
      product.implementation = description.impl_info_str();
    };
    try {
      if (kind == Kind::kInnerProduct) {
        plain_weights = memory::desc({N, K}, f32, memory::dims{1, w.N});
        const auto description = describe<dnnl::inner_product_forward>(
            attributes, dnnl::prop_kind::forward_inference, a,
            memory::desc({N, K}, f32, memory::format_tag::any), bias, out);
        take(description);
        product.primitive = dnnl::inner_product_forward(description);
      } else {
        // [N/32][K/16][16][32] is [N/32][K][32] when 16 divides K: the .xsr panels.
        product.reads_panels = kind == Kind::kMatmulOnPanels;
        if (product.reads_panels && (K % 16 != 0 || N % kPanelColumns != 0)) return std::nullopt;
        plain_weights = memory::desc({K, N}, f32, memory::dims{w.N, 1});
        const memory::desc layout(
            {K, N}, f32,
            product.reads_panels ? memory::format_tag::BA16a32b : memory::format_tag::any);
        const auto description = describe<dnnl::matmul>(attributes, a, layout, bias, out);
        take(description);
        product.primitive = dnnl::matmul(description);
      }
    } catch (const dnnl::error& error) {
      if (error.status == dnnl_unimplemented || error.status == dnnl_invalid_arguments)
        return std::nullopt;
      throw;
    }
    // The reference loop takes any layout, a thousand times slower.
    if (kind != Kind::kMatmul && product.implementation.find("ref") != std::string::npos)
      return std::nullopt;

    if (product.reads_panels) {
      product.weights = memory(weights, cpu_engine(), const_cast<float*>(panels() + first * K));
    } else {
      memory source(plain_weights, cpu_engine(), const_cast<float*>(rows() + first));
      product.weights_memory = huge_memory(weights.get_size());
      product.weights = memory(weights, cpu_engine(), product.weights_memory.get());
      dnnl::reorder(source, product.weights).execute(stream, source, product.weights);
      stream.wait();
    }
    product.a = memory(a, cpu_engine(), nullptr);
    product.out = memory(out, cpu_engine(), nullptr);
    product.arguments = {{DNNL_ARG_SRC, product.a},
                         {DNNL_ARG_WEIGHTS, product.weights},
                         {DNNL_ARG_DST, product.out},
                         {DNNL_ARG_SCRATCHPAD, memory(scratchpad, cpu_engine())}};
    if (epilogue.bias != nullptr) {
      product.bias = memory(bias, cpu_engine(), nullptr);
      product.arguments[DNNL_ARG_BIAS] = product.bias;
    }
    if (add_residual) {
      product.residual = memory(residual, cpu_engine(), nullptr);
      const int index = epilogue.activation != Activation::kNone ? 1 : 0;
      product.arguments[DNNL_ARG_ATTR_MULTIPLE_POST_OP(index) | DNNL_ARG_SRC_1] = product.residual;
    }
    return product;
  }

  /// The fastest of oneDNN's ways to compute the product, by running each: which one wins depends
  /// on M and on the CPU, and a yardstick should be oneDNN at its best.
  Product fastest(int64_t a_stride, int32_t M, int32_t first_panel, int32_t last_panel,
                  const GemmEpilogue& epilogue, bool in_place, int64_t out_stride) {
    const int64_t columns = int64_t{last_panel - first_panel} * kPanelColumns;
    const std::vector<float> a(M * a_stride, 0.5f), bias(columns, 0.5f),
        residual(M * std::max<int64_t>(epilogue.residual_stride, 1), 0.5f);
    std::vector<float> out(M * out_stride, 0.5f);
    std::optional<Product> best;
    double best_seconds = 0;
    for (const Kind kind : {Kind::kMatmul, Kind::kMatmulOnPanels, Kind::kInnerProduct}) {
      std::optional<Product> product =
          make(kind, a_stride, M, first_panel, last_panel, epilogue, in_place, out_stride);
      if (!product) continue;
      product->set(a.data(), bias.data(), residual.data(), out.data());
      double seconds = std::numeric_limits<double>::infinity();
      for (int i = 0; i < 8; ++i) {
        const auto start = std::chrono::steady_clock::now();
        product->primitive.execute(stream, product->arguments);
        stream.wait();
        seconds = std::min(
            seconds,
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
      if (!best || seconds < best_seconds) {
        best = std::move(product);
        best_seconds = seconds;
      }
    }
    if (!best) throw std::runtime_error("no implementation");
    return std::move(*best);
  }
};

OnednnGemm::OnednnGemm(const PackedMatrix& w) : state_(new State) { state_->w = w; }
OnednnGemm::~OnednnGemm() = default;

void OnednnGemm::forward(const float* a, int64_t a_stride, int32_t M, int32_t first_panel,
                         int32_t last_panel, const GemmEpilogue& epilogue, float* out,
                         int64_t out_stride) {
  if (M == 0 || first_panel >= last_panel) return;
  State& state = *state_;
  const bool in_place = epilogue.residual == out && epilogue.residual_stride == out_stride;
  const Key key(M, first_panel, last_panel, a_stride, out_stride, epilogue.bias != nullptr,
                epilogue.activation,
                epilogue.residual == nullptr ? 0
                : in_place                   ? 2
                                             : 1,
                epilogue.residual_stride);
  try {
    auto found = state.products.find(key);
    if (found == state.products.end()) {
      found = state.products
                  .emplace(key, state.fastest(a_stride, M, first_panel, last_panel, epilogue,
                                              in_place, out_stride))
                  .first;
    }
    Product& product = found->second;
    const int64_t first = int64_t{first_panel} * kPanelColumns;
    product.set(a, epilogue.bias == nullptr ? nullptr : epilogue.bias + first,
                epilogue.residual == nullptr ? nullptr : epilogue.residual + first, out + first);
    product.primitive.execute(state.stream, product.arguments);
    state.stream.wait();
    state.last = &product;
  } catch (const std::exception& error) {
    throw std::runtime_error("oneDNN product of M=" + std::to_string(M) +
                             " N=" + std::to_string(state.w.N) + " K=" + std::to_string(state.w.K) +
                             ": " + error.what());
  }
}

const char* OnednnGemm::implementation() const {
  return state_->last == nullptr ? "" : state_->last->implementation.c_str();
}

bool OnednnGemm::reads_panels() const {
  return state_->last != nullptr && state_->last->reads_panels;
}

bool OnednnGemm::set_num_threads(int32_t threads) {
  // oneDNN has brought its OpenMP run-time along; asking for it by name works with any compiler.
  using SetNumThreads = void(int);
  auto* set = reinterpret_cast<SetNumThreads*>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set == nullptr) return false;
  set(threads);
  return true;
}

void gemm_backward_weight_f32_onednn(const float* dy, int64_t dy_stride, const float* x,
                                     int64_t x_stride, int32_t M, int32_t N, int32_t K,
                                     bool accumulate, float* dw, int64_t dw_stride) {
  const dnnl_status_t status = dnnl_sgemm('T', 'N', N, K, M, 1.0f, dy, dy_stride, x, x_stride,
                                          accumulate ? 1.0f : 0.0f, dw, dw_stride);
  if (status != dnnl_success)
    throw std::runtime_error("oneDNN sgemm: status " + std::to_string(status));
}

}  // namespace xsr::kernels
