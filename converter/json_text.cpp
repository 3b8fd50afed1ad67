#include "converter/json_text.h"

#include <nlohmann/json.hpp>

namespace xsr {
namespace {

// dump() calls itself at every level, and files would have it use up the stack.
constexpr int kMostLevels = 100;

template <typename Json>
Json parse(std::string_view text) {
  bool deep = false;
  const auto shallow = [&](int level, auto, auto&) { return !(deep |= level > kMostLevels); };
  Json value = Json::parse(text.begin(), text.end(), shallow, false);
  return deep ? Json(Json::value_t::discarded) : value;
}

}  // namespace

nlohmann::json parse_json(std::string_view text) { return parse<nlohmann::json>(text); }

nlohmann::ordered_json parse_ordered_json(std::string_view text) {
  return parse<nlohmann::ordered_json>(text);
}

std::string json_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string json_text(const nlohmann::ordered_json& value, int indent) {
  return value.dump(indent);
}

}  // namespace xsr
