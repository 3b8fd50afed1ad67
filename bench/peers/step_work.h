#pragma once
#include <optional>

#include "bench/roofline.h"
#include "training/step.h"

namespace xsr::bench {

/// What the machine can do at most for each part's products; the same, but where the encoder's
/// products read 8 bits.
struct StepRoofline {
  Roofline encoder, objectives;
};

/// Measures a processor for steps of training in one precision.
class StepMeter {
 public:
  StepMeter(training::Precision precision, kernels::Isa isa, int32_t threads, int64_t state_bytes)
      : objectives_(isa, training::reads_bf16(precision) ? XSR_COMPUTE_BF16 : XSR_COMPUTE_F32,
                    threads, state_bytes) {
    if (precision == training::Precision::kInt8)
      encoder_.emplace(isa, XSR_COMPUTE_INT8, threads, state_bytes);
  }
  void measure() {
    objectives_.measure();
    if (encoder_) encoder_->measure();
  }
  StepRoofline roofline() const {
    const Roofline& objectives = objectives_.roofline();
    return {encoder_ ? encoder_->roofline() : objectives, objectives};
  }

 private:
  RooflineMeter objectives_;
  std::optional<RooflineMeter> encoder_;
};

/// What steps of training cannot do without: floating-point operations (2 a multiply-add, those of
/// the linear layers and of the vocabulary alone) and, for the update, bytes.
struct StepWork {
  double forward = 0, objectives = 0, backward = 0, update_bytes = 0;

  void add(const training::StepConfig& step, const ModelConfig& model, int64_t num_parameters,
           const training::PairBatch& batch) {
    const double C = model.hidden_size, layer = 4 * C * C + 2 * C * model.intermediate_size;
    const double encoder = 2 * layer * model.num_layers * batch.num_tokens();
    forward += encoder;
    backward += 2 * encoder;
    // The head's transform and the vocabulary's logits, each with two products back.
    const training::ObjectiveConfig& o = step.objectives;
    if (o.xtr_weight != 0 || o.ugt_weight != 0 || o.smlm_weight != 0)
      objectives += 3 * 2 * (C * C + C * model.vocab_size) * batch.num_sentences();
    // The gradient (twice, where its norm comes first); values and moments back and forth.
    const training::OptimizerConfig& a = step.optimizer;
    const double gradient = a.clip_norm > 0 ? 8 : 4, state = 8 * (a.amsgrad ? 4 : 3);
    const double narrow = training::reads_bf16(step.precision) ? 2 : 0;
    update_bytes += (gradient + state + narrow) * static_cast<double>(num_parameters);
  }

  /// The products at the roofline's peak, then the update at its bandwidth: a step that does one
  /// beside the other can be faster.
  double product_seconds(const StepRoofline& roofline) const {
    return (forward + backward) / (roofline.encoder.peak_gflops * 1e9) +
           objectives / (roofline.objectives.peak_gflops * 1e9);
  }
  double update_seconds(const StepRoofline& roofline) const {
    return update_bytes / (roofline.objectives.read_gb_per_s * 1e9);
  }
  double floor_seconds(const StepRoofline& roofline) const {
    return product_seconds(roofline) + update_seconds(roofline);
  }
};

}  // namespace xsr::bench
