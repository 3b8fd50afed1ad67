#pragma once
// The names that command lines give to values of the C API.
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/format/model_config.h"
#include "xsr/xsr.h"

namespace xsr {

inline constexpr std::pair<const char*, xsr_compute> kComputeNames[] = {
    {"f32", XSR_COMPUTE_F32},
    {"bf16x3", XSR_COMPUTE_BF16X3},
    {"bf16", XSR_COMPUTE_BF16},
    {"int8", XSR_COMPUTE_INT8},
    {"tf32", XSR_COMPUTE_TF32}};

inline std::vector<std::string> compute_names() {
  std::vector<std::string> names;
  for (const auto& [name, compute] : kComputeNames) names.emplace_back(name);
  return names;
}

/// F32 for a name that is none of compute_names().
inline xsr_compute compute_named(const std::string& wanted) {
  for (const auto& [name, compute] : kComputeNames) {
    if (wanted == name) return compute;
  }
  return XSR_COMPUTE_F32;
}

template <typename Enum>
std::map<std::string, Enum> names_of(std::initializer_list<Enum> values) {
  std::map<std::string, Enum> names;
  for (const Enum value : values) names[to_string(value)] = value;
  return names;
}

/// Those of feed-forward layers.
inline std::map<std::string, Activation> activation_names() {
  return names_of({Activation::kSwish, Activation::kGeluErf, Activation::kGeluTanh,
                   Activation::kRelu, Activation::kTanh});
}

inline std::map<std::string, Pooling> pooling_names() {
  return names_of({Pooling::kMean, Pooling::kMax, Pooling::kCls});
}

inline constexpr xsr_isa kIsas[] = {XSR_ISA_AUTO,        XSR_ISA_REF,    XSR_ISA_AVX2,
                                    XSR_ISA_AVX2_VNNI,   XSR_ISA_AVX512, XSR_ISA_AVX512_VNNI,
                                    XSR_ISA_AVX512_BF16, XSR_ISA_AMX};

inline std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const xsr_isa isa : kIsas) names.emplace_back(xsr_isa_string(isa));
  return names;
}

/// AUTO for a name that is none of isa_names().
inline xsr_isa isa_named(const std::string& wanted) {
  for (const xsr_isa isa : kIsas) {
    if (wanted == xsr_isa_string(isa)) return isa;
  }
  return XSR_ISA_AUTO;
}

}  // namespace xsr
