#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/dropout/dropout.h"
#include "kernels/gemm/column_sum_cuda.h"
#include "kernels/layernorm/layernorm_training_cuda.h"
#include "kernels/optimizer/optimizer_cuda.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/gemm.h"
#include "training/cuda/communicator.h"
#include "training/cuda/device_batch.h"
#include "training/cuda/vocabulary_tile.h"
#include "training/cuda_library.h"
#include "training/encoder_parameters.h"
#include "training/step.h"

namespace xsr::training {

/// One device's part of a CudaTrainer: its copy of the model, and what a share of a batch does to
/// it. Several exchange embeddings, losses and gradients over a communicator; each is then used by
/// a thread of its own. Throws as CudaTrainer does.
class DeviceTrainer {
 public:
  /// One flat buffer on the device and its copy on the host.
  struct Mirror {
    float* device = nullptr;
    FlatBuffer host;
    enum { kBoth, kHost, kDevice } newer = kHost;
    explicit Mirror(int64_t size) : host(size) {}
  };

  DeviceTrainer(const ModelConfig& config, const StepConfig& step, const ParameterTable& table,
                const CudaTrainerOptions& options, int32_t device,
                std::unique_ptr<Communicator> communicator);

  ~DeviceTrainer();

  // ---- state ----

  Mirror* mirror(State state);
  Mirror& gradients() { return gradients_; }

  void download(Mirror& mirror);

  /// The host's state onto the device.
  void upload(State state, const FlatBuffer& host);

  // ---- one batch ----

  /// Makes room for this device's share of a batch and brings it into the order of the device, or
  /// takes it as prepare() made it, which is then said by the result.
  bool take(const PairBatch& batch, bool is_prepared, kernels::Dropout dropout,
            const kernels::AdamStep& adam);

  /// Makes this device's share of a batch ready, while the device may work on another.
  void prepare(const PairBatch& batch);

  /// A step on what take() took; meanwhile() runs while the device works.
  void step(const std::function<void()>& meanwhile);

  /// The embeddings, and with_losses the losses, of what take() took.
  void evaluate(bool with_losses);

  /// A graph that talks to other devices is launched by all of them: where one has lost its graphs,
  /// the others are to forget theirs.
  bool has_lost_graphs() const { return lost_graphs_; }
  void forget_graphs() {
    graphs_.clear();
    lost_graphs_ = false;
  }
  void abort() noexcept {
    if (communicator_ != nullptr) communicator_->abort();
  }

  /// What the last step or evaluation left, the same on every device.
  const cuda::StepOutcome& outcome() const { return *host_outcome_; }

  const std::vector<float>& embeddings();

  /// The losses of an outcome under their names.
  LossParts parts(const cuda::StepOutcome& outcome) const;

 private:
  /// Rows on the device, next to each other: in f32, and in bf16 where products read that.
  struct Rows {
    float* wide = nullptr;
    uint16_t* narrow = nullptr;
  };

  /// Two buffers that are filled in turn, for beside the stream the one before may still be read;
  /// itself the one that was filled last.
  struct Turns : Rows {
    Rows both[2];
    std::optional<cuda::Event> read[2];
    bool is_read[2] = {};  // by what is beside, until the event
    int now = 0;
  };

  /// What the backward pass needs of one layer.
  struct LayerRows {
    Rows x;    // [N, C]
    Rows qkv;  // in bf16 without its bias
    float* lse = nullptr;
    Rows context;
    float *attention_sum = nullptr, *attention_statistics = nullptr;
    Rows y;
    Rows up;  // in bf16 without its bias
    Rows hidden;
    float *output_sum = nullptr, *output_statistics = nullptr;
  };

  cuda::Stream stream() const { return stream_->get(); }
  /// For gradients of weights, which nothing but the update waits for: they fill the
  /// multiprocessors that small kernels leave free.
  cuda::Stream beside() const { return beside_->get(); }
  int32_t rank() const { return communicator_ == nullptr ? 0 : communicator_->rank(); }
  int32_t ranks() const { return static_cast<int32_t>(options_.devices.size()); }
  /// What every rank's share of a batch is filled up to: the same, so that as few shapes come up as
  /// on one device; they wait for the largest share anyway.
  DeviceBatch::Filled filled(const PairBatch& batch) const;
  /// This device's share of a batch: all of it, or what is then put into `slice`.
  const PairBatch& own_share(const PairBatch& batch, PairBatch& slice) const;
  size_t bytes() const { return sizeof(float) * static_cast<size_t>(table_.size()); }
  void select_device() const { cuda::select_device(device_); }
  std::vector<Mirror*> mirrors();

  void find_parameters();

  /// Every buffer of a batch, for the largest so far.
  void reserve();

  // ---- what runs beside the stream ----

  /// Behind what the stream was given so far.
  void fork();
  /// The stream waits for all of it.
  void join();
  /// The buffer of the two that is to be filled next, when nothing reads it any more.
  void turn(Turns& rows);
  /// What was given beside reads the rows.
  void reads(Turns& rows);
  /// out [M, N] ← a · bᵀ
  void product_beside(int32_t M, int32_t N, int32_t K, const cuda::Matrix& a, const cuda::Matrix& b,
                      float* out);

  // ---- forward ----

  float* value(int64_t offset) const { return values_.device + offset; }
  float* gradient(int64_t offset) const { return gradients_.device + offset; }

  cuda::Matrix operand(const Rows& rows, int32_t columns, bool transposed = false) const;
  static cuda::Matrix f32(const float* data, int64_t stride, bool transposed = false) {
    return {data, stride, cuda::Dtype::kF32, transposed};
  }
  cuda::Matrix weight(int64_t offset, int32_t columns, bool transposed = false) const;

  /// Products of few rows, or with few outputs, leave most of a device without work if their
  /// algorithm is the one for thousands of rows; training promises the same bits to the same batch
  /// alone, so each has its own.
  void run(cuda::Product p, bool is_beside = false);

  /// out [M, N] ← a · bᵀ (+ bias, + out)
  void product(int32_t M, int32_t N, int32_t K, const cuda::Matrix& a, const cuda::Matrix& b,
               float* out, const float* bias = nullptr, bool accumulate = false);

  /// out [tokens, N] bf16 ← a · bᵀ
  void narrow_product(int32_t N, int32_t K, const cuda::Matrix& a, const cuda::Matrix& b,
                      uint16_t* out);

  void linear(const Rows& x, const LinearParameters& l, float* out);

  /// The branch x · Wᵀ + bias, dropped, on its residual, and their LayerNorm: sum, out and
  /// statistics. In bf16 the branch is written in bf16, as autocast does, and out in f32 only where
  /// there is room for it; else its readers make it of sum again.
  void branch(const Rows& x, const LinearParameters& l, const cuda::NormRows& residual,
              const NormParameters& norm, uint32_t place, float* sum, const Rows& out,
              float* statistics);

  /// What branch() gave, as the residual of the next.
  cuda::NormRows normed(const Rows& out, const float* sum, const float* statistics,
                        const NormParameters& norm) const;

  const kernels::Dropout* dropout() const { return batch_.device().dropout; }

  void forward();

  /// Calls body(own, all, count) for side 1 and side 2: where the own sentences' floats are among
  /// themselves and among all.
  template <typename Body>
  void for_sides(Body&& body) const {
    const int64_t count = int64_t{batch_.pairs()} * C;
    for (int64_t side = 0; side < 2; ++side)
      body(side * count, (side * batch_.total_pairs() + first_) * C, count);
  }

  /// u_all ← every device's sentences
  void gather();

  // ---- losses ----

  int32_t tile() const { return tile(batch_.sentences()); }
  int32_t tile(int32_t S) const { return vocabulary_tile(options_.vocabulary_tile, S, V); }
  int32_t tiles() const { return tiles(batch_.sentences()); }
  int32_t tiles(int32_t S) const { return (V + tile(S) - 1) / tile(S); }

  /// The losses into outcome_, and with `learn` du and the gradients of head and token table.
  void losses(bool learn);

  void clear(const char* name);

  /// zᵀ of a tile, without the bias.
  void logits(int32_t first, int32_t R);

  /// training/objectives/generative_head.h
  void head(bool learn);

  void unhead();

  void sum_losses(int32_t count, int32_t num_losses, double factor, int32_t loss);

  /// training/objectives/contrastive.h
  void contrastive(const ContrastiveSettings& settings, double weight, int32_t loss, bool learn);

  /// s = x · yᵀ: dx += ds · y, dy += dsᵀ · x
  void unsimilarity(const float* ds, const float* x, const float* y, float* dx, float* dy);

  /// training/objectives/sim.h
  void sim(int32_t loss, bool learn);

  // ---- backward; each names the line it undoes ----

  /// linear: the gradient of the weight, beside
  void weight_gradient(Turns& dout, const Rows& x, const LinearParameters& l);
  /// linear: that of the bias, beside
  void bias_gradient(Turns& dout, const LinearParameters& l);
  /// linear: dx (+)= dout · W
  void input_gradient(const Rows& dout, const LinearParameters& l, float* dx, bool accumulate);
  /// linear, of rows that are also a residual, whose gradient dx_ has: of_rows() is then both
  void add_input_gradient(const Rows& dout, const LinearParameters& l);
  cuda::NormGradient of_rows() const { return {dx_, bf16_ ? branch_ : nullptr}; }
  /// branch, but for its product: dx_ becomes the gradient of the residual, dbranch_ that of the
  /// sum before dropout, which came out of l, whose bias' gradient is their sum
  void unbranch(const cuda::NormGradient& of_out, const float* sum, const float* statistics,
                const NormParameters& norm, uint32_t place, const LinearParameters& l);

  void backward();

  /// Room for a kernel's sums of blocks, which add_sums() adds. Throws Error(INTERNAL) where there
  /// is none.
  float* take_parts(int64_t floats);
  void add_sums();
  /// Adds those there are when there would not be room for so many more, of so many parts.
  void make_room_for_sums(int32_t count, int64_t parts);
  /// What a layer's backward pass takes.
  int64_t parts_of_layer(int32_t rows) const;

  void scatter(const DeviceBatch::Buckets& buckets, int32_t ids, float* dtable);

  void update();

  const ModelConfig& config_;
  const StepConfig& step_;
  const ParameterTable& table_;
  const CudaTrainerOptions options_;
  const int32_t device_;
  const std::unique_ptr<Communicator> communicator_;  // null for a single device
  const int32_t C, F, H, V;
  const bool bf16_;
  const bool bf16_attention_;  // on the tensor cores
  const bool pooled_norm_;     // pooling and the last LayerNorm's backward pass are without output_
  const float eps_;
  std::optional<cuda::StreamOwner> stream_, beside_;
  std::optional<cuda::Gemm> gemm_, gemm_beside_;
  std::optional<cuda::Event> forked_, joined_, tile_read_;
  bool is_forked_ = false;     // beside_ has what the stream does not wait for
  bool is_under_way_ = false;  // a step or an evaluation, or one ended by an error

  // The model
  Mirror values_, gradients_, first_moment_, second_moment_;
  std::optional<Mirror> max_second_moment_;
  uint16_t* narrow_ = nullptr;  // the parameters in bf16
  double* norm_parts_ = nullptr;
  cuda::StepOutcome *outcome_ = nullptr, *host_outcome_ = nullptr;
  cuda::Memory state_memory_, pinned_memory_;
  const EncoderParameters encoder_;
  LinearParameters transform_;
  NormParameters head_norm_;
  int64_t output_bias_ = 0;
  std::vector<std::pair<const char*, double>> names_;  // of the losses, and their weights

  // A batch
  DeviceBatch batch_;
  cuda::Memory memory_;
  float *embedding_sum_ = nullptr, *embedding_statistics_ = nullptr;
  std::vector<LayerRows> rows_;
  float *output_ = nullptr, *dx_ = nullptr, *delta_ = nullptr;
  uint16_t* branch_ = nullptr;  // [N, C], and in the backward pass what a branch gives its rows
  int32_t* sentence_of_ = nullptr;
  Rows dcontext_;
  Turns dbranch_, dwide_;
  float* parts_ = nullptr;
  int64_t parts_size_ = 0, parts_taken_ = 0;
  cuda::PartSums sums_;                         // of what is taken of parts_
  float *u_ = nullptr, *du_ = nullptr;          // of the own sentences
  float *u_all_ = nullptr, *du_all_ = nullptr;  // of all devices'
  float *unit_ = nullptr, *dunit_ = nullptr;    // likewise
  float *pre_ = nullptr, *activated_ = nullptr, *dt_ = nullptr, *head_statistics_ = nullptr;
  Rows t_;
  float *z_ = nullptr, *tile_max_ = nullptr, *tile_sum_ = nullptr;
  uint16_t* z_narrow_ = nullptr;
  double *lse_ = nullptr, *loss_parts_ = nullptr;
  float* s_[2] = {};
  float* similarity_statistics_ = nullptr;
  std::vector<float> embeddings_;
  bool embeddings_current_ = false;
  int32_t first_ = 0;  // of the own pairs among all
  // total pairs, tokens, chunks of the attention's long sentences: the same on every rank
  using Shape = std::array<int32_t, 3>;
  std::map<Shape, cuda::Graph> graphs_;
  bool lost_graphs_ = false;
};

/// The pairs [first, last) of a batch.
PairBatch slice_pairs(const PairBatch& batch, int32_t first, int32_t last);

}  // namespace xsr::training
