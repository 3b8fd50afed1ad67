#include "converter/provenance.h"

#include <nlohmann/json.hpp>

#include "converter/json_text.h"

namespace xsr {

void record(ConvertedModel& model, const char* key, const nlohmann::json& value) {
  nlohmann::json json = parse_json(model.provenance);
  json[key] = value;
  model.provenance = json_text(json);
}

}  // namespace xsr
