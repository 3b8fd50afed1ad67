#include "corpus/token_line.h"

#include <algorithm>
#include <charconv>

namespace xsr {

bool parse_token_line(std::string_view line, int32_t vocab_size, std::vector<int32_t>& ids,
                      std::string_view* bad) {
  constexpr std::string_view kSpaces = " \t";
  for (;;) {
    const size_t begin = line.find_first_not_of(kSpaces);
    if (begin == std::string_view::npos) return true;
    line.remove_prefix(begin);
    const std::string_view word = line.substr(0, line.find_first_of(kSpaces));
    int32_t id = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0 || id >= vocab_size) {
      *bad = word;
      return false;
    }
    ids.push_back(id);
    line.remove_prefix(word.size());
  }
}

}  // namespace xsr
