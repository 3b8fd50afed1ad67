#pragma once
#include <nlohmann/json_fwd.hpp>

#include "converter/convert.h"

namespace xsr {

/// Puts a value into a model's provenance.
void record(ConvertedModel& model, const char* key, const nlohmann::json& value);

}  // namespace xsr
