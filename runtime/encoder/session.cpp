#include "runtime/encoder/session.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <optional>
#include <system_error>

#include "runtime/device/isa_choice.h"
#include "runtime/encoder/chunks.h"
#include "runtime/error.h"

namespace xsr {
namespace {

// The kernels know no C API; their numbers are its.
static_assert(static_cast<int>(kernels::Isa::kAvx2Vnni) == XSR_ISA_AVX2_VNNI);
static_assert(static_cast<int>(kernels::Isa::kAvx512) == XSR_ISA_AVX512);
static_assert(static_cast<int>(kernels::Isa::kAvx512Bf16) == XSR_ISA_AVX512_BF16);
static_assert(static_cast<int>(kernels::Isa::kAmx) == XSR_ISA_AMX);
static_assert(static_cast<int>(Compute::kBf16) == XSR_COMPUTE_BF16);
static_assert(static_cast<int>(Compute::kBf16x3) == XSR_COMPUTE_BF16X3);
static_assert(static_cast<int>(Compute::kInt8) == XSR_COMPUTE_INT8);
static_assert(static_cast<int>(Compute::kTf32) == XSR_COMPUTE_TF32);

// Texts are tokenised and embedded in blocks of this many, so that memory does not grow with the
// call.
constexpr size_t kBlockSentences = 4096;
constexpr size_t kDeviceBlockSentences = 8192;  // some fifty chunks, so that few run dry
// Texts a thread claims at a time: some ten microseconds of tokenising each.
constexpr size_t kTextsPerTask = 16;
// A chunk shorter than this leaves the gemm tiles half empty; better one thread than two half-empty
// ones.
constexpr int32_t kLeastChunkTokens = 12;
constexpr int32_t kMostThreads = 1024;

kernels::Isa isa_wanted(xsr_isa wanted) {
  if (wanted == XSR_ISA_AUTO) return choose_isa(std::nullopt);
  if (wanted < XSR_ISA_REF || wanted > XSR_ISA_AMX) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "isa " + std::to_string(wanted) + " is no value of xsr_isa");
  }
  return choose_isa(static_cast<kernels::Isa>(wanted));
}

bool choose_normalize(xsr_normalize wanted, const ModelConfig& config) {
  switch (wanted) {
    case XSR_NORMALIZE_MODEL:
      return config.normalize;
    case XSR_NORMALIZE_OFF:
      return false;
    case XSR_NORMALIZE_ON:
      return true;
  }
  throw Error(XSR_STATUS_INVALID_ARGUMENT,
              "normalize " + std::to_string(wanted) + " is no value of xsr_normalize");
}

bool wants_cuda(xsr_device device) {
  if (device != XSR_DEVICE_CPU && device != XSR_DEVICE_CUDA) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "device " + std::to_string(device) + " is no value of xsr_device");
  }
  return device == XSR_DEVICE_CUDA;
}

Compute choose_compute(const xsr_session_options& options, const Model& model) {
  const xsr_compute wanted = options.compute;
  const bool cuda = wants_cuda(options.device);
  if (wanted == XSR_COMPUTE_F32) return Compute::kF32;
  if (wanted == XSR_COMPUTE_TF32) {
    if (cuda) return Compute::kTf32;
    throw Error(
        XSR_STATUS_UNSUPPORTED,
        "only CUDA devices compute in tf32; on the CPU f32, bf16x3, bf16 and int8 can be had");
  }
  if (cuda && (wanted == XSR_COMPUTE_BF16X3 || wanted == XSR_COMPUTE_INT8)) {
    throw Error(XSR_STATUS_UNSUPPORTED, std::string("a CUDA session does not compute in ") +
                                            (wanted == XSR_COMPUTE_INT8 ? "int8" : "bf16x3") +
                                            "; choose f32, tf32 or bf16");
  }
  if (wanted == XSR_COMPUTE_BF16X3) return Compute::kBf16x3;
  if (wanted == XSR_COMPUTE_INT8) return Compute::kInt8;
  if (wanted != XSR_COMPUTE_BF16) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "compute " + std::to_string(wanted) + " is no value of xsr_compute");
  }
  for (const LayerWeights& layer : model.weights().layers) {
    for (const LinearWeights* linear : products(layer)) {
      if (linear->weight.storage != kernels::Storage::kBF16) {
        throw Error(XSR_STATUS_UNSUPPORTED,
                    model.file().name() +
                        " does not store its weights in bf16, which computing in bf16 needs; "
                        "convert it, or what an i8 file was made from, with --dtype bf16");
      }
    }
  }
  return Compute::kBf16;
}

/// Null where the file's own matrices are what is computed with, or copied to a device.
std::shared_ptr<const DerivedWeights> choose_weights(const Model& model,
                                                     const xsr_session_options& options) {
  const Compute compute = choose_compute(options, model);
  if (wants_cuda(options.device)) return nullptr;
  if (compute == Compute::kInt8) {
    const kernels::KernelTable kernels = kernels::resolve_kernels(isa_wanted(options.isa));
    return model.derived_weights(compute, kernels.gemm_forward_i8_isa);
  }
  if (compute == Compute::kBf16x3) return model.derived_weights(compute);
  bool narrow = model.weights().pooler.weight.storage == kernels::Storage::kI8;
  for (const LayerWeights& layer : model.weights().layers) {
    for (const LinearWeights* linear : products(layer))
      narrow = narrow || linear->weight.storage == kernels::Storage::kI8;
  }
  return narrow ? model.derived_weights(Compute::kF32) : nullptr;
}

int32_t choose_threads(int32_t wanted) {
  if (wanted < 0 || wanted > kMostThreads) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT, "num_threads is " + std::to_string(wanted) +
                                                 "; it can be 0 (all) to " +
                                                 std::to_string(kMostThreads));
  }
  return wanted;
}

int32_t choose_chunk_tokens(const xsr_session_options& options, kernels::Isa isa,
                            const ModelConfig& config) {
  const int32_t wanted = options.max_batch_tokens;
  if (wanted < 0 || wanted > (1 << 20)) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT, "max_batch_tokens is " + std::to_string(wanted) +
                                                 "; it can be 0 (tuned) to 1048576");
  }
  if (wanted != 0) return wanted;
  return wants_cuda(options.device) ? kDeviceChunkTokens : tuned_chunk_tokens(isa, config);
}

std::vector<int32_t> choose_devices(uint64_t wanted) {
  std::vector<int32_t> devices;
  for (int32_t device = 0; device < 64; ++device) {
    if ((wanted >> device & 1) != 0) devices.push_back(device);
  }
  return devices.empty() ? std::vector<int32_t>{0} : devices;
}

}  // namespace

int32_t tuned_chunk_tokens(kernels::Isa isa, const ModelConfig& config) {
  if (isa != kernels::Isa::kAmx) return isa == kernels::Isa::kRef ? 32 : 96;
  const int64_t C = config.hidden_size,
                qkv = 3 * C / config.num_heads * heads_at_a_time(isa, config);
  const int64_t widest = std::max<int64_t>(qkv, config.intermediate_size);
  return static_cast<int32_t>(
      std::clamp<int64_t>((2 << 20) / (sizeof(float) * (C + widest)), 128, 256));
}

Session::Session(const Model& model, const xsr_session_options& options)
    : model_(model),
      derived_(choose_weights(model, options)),
      encoder_{model.config(), derived_ == nullptr ? model.weights() : derived_->weights(),
               kernels::resolve_kernels(isa_wanted(options.isa)), choose_compute(options, model),
               choose_normalize(options.normalize, model.config())},
      chunk_tokens_(choose_chunk_tokens(options, isa(), model.config())),
      pool_(choose_threads(options.num_threads)) {
  if (options.qkv_table < XSR_QKV_TABLE_AUTO || options.qkv_table > XSR_QKV_TABLE_OFF) {
    throw Error(XSR_STATUS_INVALID_ARGUMENT,
                "qkv_table " + std::to_string(options.qkv_table) + " is no value of xsr_qkv_table");
  }
  if (options.qkv_table == XSR_QKV_TABLE_ON) {
    if (model.config().num_layers == 0) {
      throw Error(
          XSR_STATUS_UNSUPPORTED,
          "qkv_table is on, but the model has no layers, so there is no product to keep in a "
          "table; use XSR_QKV_TABLE_AUTO");
    }
    qkv_table_ = model.qkv_table(encoder_.kernels, pool_);
    encoder_.qkv_table = qkv_table_.get();
  }
  if (wants_cuda(options.device)) {
    device_ = make_cuda_encoder(model.config(), model.weights(),
                                {encoder_.compute, encoder_.normalize, encoder_.qkv_table,
                                 choose_devices(options.cuda_devices), chunk_tokens_});
    encoder_.qkv_table = nullptr;  // the devices have copies
    qkv_table_.reset();
  } else {
    // Sentences are never split, so a chunk has room for the longest.
    const int32_t room = std::max(chunk_tokens_, model.config().max_seq_len);
    for (int32_t thread = 0; thread < pool_.num_threads(); ++thread) {
      // Thread 0's workspace also serves chunks that all threads share, so it holds everyone's
      // attention scratch.
      workspaces_.push_back(std::make_unique<Workspace>(model.config(), room, room,
                                                        thread == 0 ? pool_.num_threads() : 1));
    }
  }
  for (Block& block : blocks_) block.ids.resize(pool_.num_threads());
  tokenizer_states_.resize(pool_.num_threads());
  if (const Tokenizer* tokenizer = model.tokenizer()) {
    for (auto& state : tokenizer_states_) state = tokenizer->make_state();
  }
}

size_t Session::block_sentences() const {
  return on_device() ? kDeviceBlockSentences : kBlockSentences;
}

void Session::embed_chunk(const Block& block, size_t first, size_t last, Workspace& workspace,
                          ThreadPool* pool, float* embeddings) {
  int32_t num_tokens = 0;
  workspace.cu_seqlens[0] = 0;
  for (size_t i = first; i < last; ++i) {
    const Sentence& sentence = block.sentences[i];
    if (sentence.size > 0)
      std::memcpy(workspace.token_ids + num_tokens, sentence.ids(),
                  sizeof(int32_t) * sentence.size);
    for (int32_t t = 0; t < sentence.size; ++t) {
      workspace.positions[num_tokens + t] = model_.config().position_offset + t;
    }
    num_tokens += sentence.size;
    workspace.cu_seqlens[i - first + 1] = num_tokens;
  }
  encode_chunk(encoder_, static_cast<int32_t>(last - first), workspace, pool,
               embeddings + first * model_.config().embedding_size);
}

void Session::embed_block(Block& block, float* embeddings) {
  const std::vector<Sentence>& sentences = block.sentences;
  if (on_device()) {
    block.on_device.clear();
    for (const Sentence& sentence : sentences)
      block.on_device.emplace_back(sentence.size == 0 ? nullptr : sentence.ids(), sentence.size);
    device_->embed(block.on_device, embeddings);
    return;
  }
  const std::vector<size_t> chunks =
      cut_chunks(sentences.size(), [&](size_t i) { return sentences[i].size; },
                 {chunk_tokens_, kLeastChunkTokens, num_threads(),
                  static_cast<size_t>(workspaces_[0]->max_sentences())});
  const int32_t count = static_cast<int32_t>(chunks.size()) - 1;
  if (count < num_threads()) {  // the threads share each chunk
    ThreadPool* pool = num_threads() > 1 ? &pool_ : nullptr;
    for (int32_t c = 0; c < count; ++c)
      embed_chunk(block, chunks[c], chunks[c + 1], *workspaces_[0], pool, embeddings);
  } else {  // each thread takes whole chunks, without barriers
    pool_.for_each(count, [&](int32_t c, int32_t thread) {
      embed_chunk(block, chunks[c], chunks[c + 1], *workspaces_[thread], nullptr, embeddings);
    });
  }
}

void Session::embed_texts(std::span<const xsr_text> texts, float* embeddings,
                          xsr_text_result* results) {
  if (model_.tokenizer() == nullptr) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                model_.file().name() +
                    " holds no tokenizer, it takes token ids only; convert it with --spm to embed "
                    "text");
  }
  const size_t columns = static_cast<size_t>(model_.config().embedding_size);
  std::future<void> under_way;  // the block before, on the device
  const size_t block_size = block_sentences();
  size_t turn = 0;
  for (size_t first = 0; first < texts.size(); first += block_size) {
    const size_t count = std::min(block_size, texts.size() - first);
    Block& block = blocks_[turn];
    float* const out = embeddings + first * columns;
    tokenize_block(texts.subspan(first, count), block,
                   results == nullptr ? nullptr : results + first);
    if (under_way.valid()) under_way.get();
    if (on_device() && first + count < texts.size()) {
      try {
        under_way =
            std::async(std::launch::async, [this, &block, out] { embed_block(block, out); });
      } catch (const std::system_error&) {  // no thread is to be had
        embed_block(block, out);
      }
      turn ^= 1;
    } else {
      embed_block(block, out);
    }
  }
}

void Session::tokenize_block(std::span<const xsr_text> texts, Block& block,
                             xsr_text_result* results) {
  const Tokenizer& tokenizer = *model_.tokenizer();
  const size_t max_tokens = model_.config().max_seq_len, count = texts.size();
  block.sentences.assign(count, Sentence());
  for (std::vector<int32_t>& ids : block.ids) ids.clear();
  const size_t tasks = (count + kTextsPerTask - 1) / kTextsPerTask;
  pool_.for_each(static_cast<int32_t>(tasks), [&](int32_t task, int32_t thread) {
    std::vector<int32_t>& ids = block.ids[thread];
    const size_t end = std::min(count, (task + 1) * kTextsPerTask);
    for (size_t i = task * kTextsPerTask; i < end; ++i) {
      const size_t offset = ids.size();
      const Tokenizer::Result result = tokenizer.encode({texts[i].data, texts[i].size}, max_tokens,
                                                        ids, tokenizer_states_[thread].get());
      Sentence& sentence = block.sentences[i];
      sentence = {&ids, nullptr, offset, static_cast<int32_t>(ids.size() - offset)};
      if (results != nullptr) {
        results[i] = {sentence.size, result.truncated, sentence.size == 0, 0,
                      result.replaced_bytes};
      }
    }
  });
}

void Session::embed_ids(const int32_t* token_ids, std::span<const size_t> offsets,
                        float* embeddings, xsr_text_result* results) {
  const ModelConfig& config = model_.config();
  const size_t total = offsets.size() - 1;
  const size_t block_size = block_sentences();
  // All offsets before any id: only when none falls is none of them behind the caller's last id.
  for (size_t i = 0; i < total; ++i) {
    if (offsets[i + 1] < offsets[i]) {
      throw Error(XSR_STATUS_INVALID_ARGUMENT,
                  "offsets[" + std::to_string(i + 1) + "] is " + std::to_string(offsets[i + 1]) +
                      ", below offsets[" + std::to_string(i) + "] = " + std::to_string(offsets[i]));
    }
  }
  for (size_t i = 0; i < total; ++i) {
    for (size_t t = offsets[i]; t < offsets[i + 1]; ++t) {
      if (token_ids[t] < 0 || token_ids[t] >= config.vocab_size) {
        throw Error(XSR_STATUS_INVALID_ARGUMENT,
                    "token_ids[" + std::to_string(t) + "] (sequence " + std::to_string(i) +
                        ") is " + std::to_string(token_ids[t]) + ", expected 0 to " +
                        std::to_string(config.vocab_size - 1));
      }
    }
  }
  for (size_t first = 0; first < total; first += block_size) {
    const size_t count = std::min(block_size, total - first);
    Block& block = blocks_[0];
    block.sentences.assign(count, Sentence());
    for (size_t i = 0; i < count; ++i) {
      const size_t begin = offsets[first + i], length = offsets[first + i + 1] - begin;
      const bool truncated = length > static_cast<size_t>(config.max_seq_len);
      const int32_t size = truncated ? config.max_seq_len : static_cast<int32_t>(length);
      // Where there are no ids at all token_ids may be null, wherever the offsets stand.
      block.sentences[i] = {nullptr, size == 0 ? nullptr : token_ids + begin, 0, size};
      if (results != nullptr) results[first + i] = {size, truncated, size == 0, 0, 0};
    }
    embed_block(block, embeddings + first * config.embedding_size);
  }
}

xsr_text_result Session::tokenize(xsr_text text, std::vector<int32_t>& token_ids) const {
  if (model_.tokenizer() == nullptr) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                model_.file().name() + " holds no tokenizer, it takes token ids only");
  }
  const Tokenizer::Result result = model_.tokenizer()->encode(
      {text.data, text.size}, model_.config().max_seq_len, token_ids, tokenizer_states_[0].get());
  const int32_t size = static_cast<int32_t>(token_ids.size());
  return {size, result.truncated, size == 0, 0, result.replaced_bytes};
}

}  // namespace xsr
