#include "converter/provenance.h"

namespace xsr {

std::string provenance_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void record(ConvertedModel& model, const char* key, const nlohmann::json& value) {
  nlohmann::json json = nlohmann::json::parse(model.provenance);
  json[key] = value;
  model.provenance = provenance_text(json);
}

}  // namespace xsr
