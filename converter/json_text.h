#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace xsr {

// Between JSON and its text. nlohmann's own parse() and dump() are templates, seconds to compile in
// every file that calls them; these are compiled once.

/// Throw nothing: what is no JSON, or nested more than 100 deep, gives a value that is_discarded().
nlohmann::json parse_json(std::string_view text);
nlohmann::ordered_json parse_ordered_json(std::string_view text);

/// On one line; keys come out sorted, and malformed UTF-8 is replaced.
std::string json_text(const nlohmann::json& value);
/// indent: spaces a level, a line for each value; -1: on one line. Throws
/// nlohmann::json::type_error for malformed UTF-8.
std::string json_text(const nlohmann::ordered_json& value, int indent = -1);

}  // namespace xsr
