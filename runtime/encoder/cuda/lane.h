#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include "runtime/encoder/cuda/device_weights.h"

namespace xsr::cuda {

using Sentences = std::span<const std::span<const int32_t>>;

/// Sentences [first, last) of those that have tokens.
struct Chunk {
  size_t first, last;
};

/// What a chunk is filled up to.
struct Shape {
  int32_t tokens, sentences;
  int32_t tiles() const;
  /// int32_t of its token ids, positions, cu_seqlens and tiles, one behind the other.
  size_t input_size() const;
};

/// One chunk under way: a stream with all that it needs. Two take turns on a device, so that one is
/// copied from and to while the other computes. Used by one thread at a time, which has selected
/// the device. Every call throws Error(CUDA).
class Lane {
 public:
  /// For chunks of so many tokens and sentences. config and weights outlive the lane. Throws as
  /// Memory, too.
  Lane(const ModelConfig& config, const DeviceWeights& weights, const CudaEncoderOptions& options,
       int32_t most_tokens, int32_t most_sentences);
  ~Lane();
  Lane(const Lane&) = delete;

  static Shape shape_of(int32_t tokens, int32_t sentences);

  /// Gives the device a chunk: the sentences order[chunk.first .. chunk.last). order stays as it is
  /// until finish().
  void start(Sentences sentences, const std::vector<size_t>& order, Chunk chunk);
  /// Waits for the chunk that was started, if one was, and puts its rows where they belong.
  void finish(float* embeddings);
  /// Waits for whatever is under way, whose results nobody wants.
  void abandon() noexcept;

  // For benches:

  /// The input of a chunk as start() copies it: input [shape_of(...).input_size()].
  Shape pack(Sentences sentences, const std::vector<size_t>& order, Chunk chunk,
             int32_t* input) const;
  /// Does the chunk whose input is on the device already; its embeddings stay there.
  void run_resident(const int32_t* input, Shape shape);
  Stream stream() const { return stream_.get(); }
  void synchronize() const { stream_.synchronize(); }
  Gemm& gemm() { return gemm_; }

 private:
  struct Input;
  /// The whole forward pass, copies too where they are wanted: from the second time that a shape
  /// comes as one graph. The first time runs as it stands, since kernels are loaded and algorithms
  /// chosen outside a capture, and a shape that comes once is worth no graph.
  void enqueue(Shape shape, bool copies);
  void forward(const Shape& shape);
  /// out [M, N] ← a · Wᵀ + bias (+ residual, which may be out)
  void product(int32_t M, const Matrix& a, const DeviceLinear& linear, float* out,
               int64_t out_stride, const float* residual = nullptr);
  /// out [M, N] bf16 ← a · Wᵀ; what reads it adds the bias
  void product_without_bias(int32_t M, const Matrix& a, const DeviceLinear& linear, uint16_t* out,
                            int64_t out_stride);

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  const bool bf16_, normalize_;
  const bool first_tokens_;  // behind the last attention only each sentence's first token goes on
  const int32_t C_, F_, E_;
  StreamOwner stream_;
  Gemm gemm_;
  Memory memory_, pinned_;
  int32_t *input_ = nullptr, *host_input_ = nullptr;
  float* x_ = nullptr;                 // [N, C]
  uint16_t* narrow_ = nullptr;         // [N, C] bf16: of x or of context, whichever is multiplied
  float* qkv_ = nullptr;               // [N, 3C], in f32 and TF32, as the next two
  float* context_ = nullptr;           // [N, C]
  float* hidden_ = nullptr;            // [N, F]
  uint16_t* qkv_narrow_ = nullptr;     // [N, 3C] bf16
  uint16_t* hidden_narrow_ = nullptr;  // [N, F] bf16
  float* first_x_ = nullptr;           // [B, C]: with first_tokens_, as the next two
  float* first_context_ = nullptr;     // [B, C]
  uint16_t* first_narrow_ = nullptr;   // [B, C] bf16
  float* rstd_ = nullptr;              // [N]
  float* pooled_ = nullptr;            // [B, C]
  float *out_ = nullptr, *host_out_ = nullptr;  // [B, E]
  using Key = std::tuple<int32_t, int32_t, bool>;
  std::map<Key, Graph> graphs_;
  const std::vector<size_t>* order_ = nullptr;
  Chunk chunk_ = {};
  bool busy_ = false;
};

}  // namespace xsr::cuda
