#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "converter/convert.h"

namespace xsr {

/// As a .xsr file keeps it: keys sorted, on one line, malformed UTF-8 replaced.
std::string provenance_text(const nlohmann::json& json);

/// Puts a value into a model's provenance.
void record(ConvertedModel& model, const char* key, const nlohmann::json& value);

}  // namespace xsr
