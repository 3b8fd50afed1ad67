#pragma once
#include <string_view>

namespace xsr {

/// Words for people, to stderr. Where they cannot be written (stderr is closed, its disk is full)
/// the work goes on: it is worth more than the words about it.
void tell(std::string_view text) noexcept;

/// For the first line of a tool's main(). A standard stream that the caller has closed leaves its
/// number to the next file that is opened, which words for people would then be written into. Puts
/// something in such a place that can be neither read nor written, so that using it is the error it
/// would have been.
void occupy_closed_standard_streams() noexcept;

}  // namespace xsr
