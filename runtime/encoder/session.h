#pragma once
#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/encoder/device_encoder.h"
#include "runtime/encoder/encoder.h"
#include "runtime/encoder/model.h"
#include "xsr/xsr.h"

namespace xsr {

/// Tokens of a chunk: enough rows for the tiles and to pay for one pass over the weights, few
/// enough that the chunk's activations stay in L2 (48 to 384 differ little in f32 with AVX-512).
/// AMX multiplies faster than weights come from beyond L2 until a chunk has some 128 tokens; from
/// there up to 256, as many as leave x and the wider of the Q, K, V that stand there at a time and
/// the hidden rows within its 2 MiB.
int32_t tuned_chunk_tokens(kernels::Isa isa, const ModelConfig& config);

/// Turns texts or token ids into embeddings with the threads and the ISA, or on the devices, it was
/// created with. One call at a time.
class Session {
 public:
  /// Throws Error: INVALID_ARGUMENT (an unknown XSR_FORCE_ISA too), UNSUPPORTED, OUT_OF_MEMORY,
  /// CUDA.
  Session(const Model& model, const xsr_session_options& options);

  /// The ISA of the kernel that does most of the work on the processor: the matrix product's.
  kernels::Isa isa() const {
    switch (encoder_.compute) {
      case Compute::kBf16:
        return encoder_.kernels.gemm_forward_bf16_isa;
      case Compute::kBf16x3:
        return encoder_.kernels.gemm_forward_bf16x3_isa;
      case Compute::kInt8:
        return encoder_.kernels.gemm_forward_i8_isa;
      case Compute::kF32:
      case Compute::kTf32:
        break;
    }
    return encoder_.kernels.gemm_forward_f32_isa;
  }
  int32_t num_threads() const { return pool_.num_threads(); }
  bool on_device() const { return device_ != nullptr; }
  const char* device_name() const { return on_device() ? device_->name().c_str() : "cpu"; }

  // As declared in xsr.h; arguments that are pointers have been checked there. Throw Error.
  void embed_texts(std::span<const xsr_text> texts, float* embeddings, xsr_text_result* results);
  void embed_ids(const int32_t* token_ids, std::span<const size_t> offsets, float* embeddings,
                 xsr_text_result* results);
  xsr_text_result tokenize(xsr_text text, std::vector<int32_t>& token_ids) const;

  std::string error;  // of the last call that failed; kept for xsr_session_get_error

 private:
  /// A sentence of a block.
  struct Sentence {
    const std::vector<int32_t>* owner = nullptr;  // null: `data` is the caller's own memory
    const int32_t* data = nullptr;
    size_t offset = 0;  // into *owner, whose memory may still move
    int32_t size = 0;
    const int32_t* ids() const { return owner == nullptr ? data : owner->data() + offset; }
  };

  /// Sentences that are embedded together.
  struct Block {
    std::vector<Sentence> sentences;
    std::vector<std::vector<int32_t>> ids;            // of texts, one a thread
    std::vector<std::span<const int32_t>> on_device;  // the sentences, for device_
  };

  size_t block_sentences() const;
  void tokenize_block(std::span<const xsr_text> texts, Block& block, xsr_text_result* results);
  void embed_block(Block& block, float* embeddings);
  void embed_chunk(const Block& block, size_t first, size_t last, Workspace& workspace,
                   ThreadPool* pool, float* embeddings);

  const Model& model_;
  std::shared_ptr<const DerivedWeights> derived_;  // null: the file's own are computed with
  Encoder encoder_;
  int32_t chunk_tokens_;
  ThreadPool pool_;
  std::shared_ptr<const QkvTable> qkv_table_;
  std::unique_ptr<DeviceEncoder> device_;               // null: the processor
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // one a thread; the processor's
  std::vector<std::unique_ptr<Tokenizer::State>> tokenizer_states_;  // one a thread, or null
  std::array<Block, 2> blocks_;  // on a device the next is made while one is under way
};

}  // namespace xsr
