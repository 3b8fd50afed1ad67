#include "training/parameters.h"

#include <stdexcept>

#include "converter/family.h"
#include "runtime/error.h"

namespace xsr::training {
namespace {

constexpr int64_t kAlignment = 16;  // floats

}  // namespace

ParameterTable::ParameterTable(const ModelConfig& config) {
  if (config.family != Family::kXsr || config.norm_placement != NormPlacement::kPost ||
      config.has_pooler || config.num_token_types > 0) {
    throw Error(XSR_STATUS_UNSUPPORTED,
                std::string("a model of family ") + to_string(config.family) + " with " +
                    to_string(config.norm_placement) + " layer norm" +
                    (config.has_pooler ? ", a pooler" : "") +
                    (config.num_token_types > 0 ? ", token types" : "") +
                    " cannot be trained; this version trains family xsr with post layer norm");
  }
  const auto add = [&](const TensorRule& rule) {
    Parameter p;
    p.name = rule.target;
    p.shape = {value_of(rule.rows, config) * static_cast<int64_t>(rule.sources.size())};
    if (rule.columns != Size::kOne) p.shape.push_back(value_of(rule.columns, config));
    p.offset = size_;
    p.size = p.shape[0] * (p.shape.size() == 2 ? p.shape[1] : 1);
    size_ += (p.size + kAlignment - 1) / kAlignment * kAlignment;
    parameters_.push_back(std::move(p));
  };
  const FamilyTable& family = family_xsr();
  for (const TensorRule& rule : encoder_rules(family, config.num_layers)) add(rule);
  for (const TensorRule& rule : family.head) add(rule);
}

const Parameter& ParameterTable::at(std::string_view name) const {
  for (const Parameter& p : parameters_) {
    if (p.name == name) return p;
  }
  throw std::out_of_range("no parameter is called " + std::string(name));
}

// Steps walk columns of many rows at once: huge pages, for fewer page walks.
FlatBuffer::FlatBuffer(int64_t size)
    : memory_(sizeof(float) * static_cast<size_t>(size), PageMemory::kHuge), size_(size) {}

}  // namespace xsr::training
