#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace xsr {

/// Appends the decimal token ids of a line, separated by spaces or tabs, to ids. True when all are
/// in [0, vocab_size); otherwise *bad is the first word that is not.
bool parse_token_line(std::string_view line, int32_t vocab_size, std::vector<int32_t>& ids,
                      std::string_view* bad);

}  // namespace xsr
