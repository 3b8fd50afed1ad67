#pragma once
// Checks of values on command lines.
#include <CLI/CLI.hpp>
#include <map>
#include <sstream>
#include <string>

namespace xsr {

/// As CLI::Range, which lets NaN through.
inline CLI::Validator number_within(double low, double high) {
  std::ostringstream range;
  range << low << " to " << high;
  return CLI::Validator(
      [low, high, text = range.str()](std::string& input) -> std::string {
        double value = 0;
        const bool within =
            CLI::detail::lexical_cast(input, value) && value >= low && value <= high;
        return within ? "" : "Value " + input + " not in range " + text;
      },
      range.str());
}

/// Of a file (or what it is) that may be left out: an empty name is a variable that was not set.
inline CLI::Validator names_one(const std::string& what = "file") {
  return CLI::Validator(
      [what](std::string& input) -> std::string {
        return input.empty() ? "names no " + what + "; leave it out, or give one" : "";
      },
      "");
}

/// As CLI::CheckedTransformer of these names, without the numbers behind them, which that takes as
/// well and shows.
template <typename Enum>
CLI::Validator one_of(std::map<std::string, Enum> names) {
  std::string list;
  for (const auto& [name, value] : names) list += (list.empty() ? "{" : ",") + name;
  list += "}";
  return CLI::Validator(
      [names = std::move(names), list](std::string& input) -> std::string {
        const auto found = names.find(input);
        if (found == names.end()) return input + " not in " + list;
        input = std::to_string(static_cast<int>(found->second));
        return "";
      },
      list);
}

}  // namespace xsr
