#pragma once
#include <functional>
#include <string_view>

namespace xsr {

/// Words for people, to stderr. Where they cannot be written (stderr is closed, its disk is full)
/// the work goes on: it is worth more than the words about it.
void tell(std::string_view text) noexcept;

/// All of a tool's main(): gives what body() returns, or 1 behind words of what it has thrown
/// (control characters but line ends replaced), or where what was printed on standard output is not
/// all written.
///
/// The limit on a file's size becomes an error of the writing call, not a silent death. A standard
/// stream that the caller has closed leaves its number to the next file that is opened, which words
/// for people would then be written into: such a place is filled with something that can be neither
/// read nor written, so that using it is the error it would have been.
int run_tool(const char* name, const std::function<int()>& body) noexcept;

}  // namespace xsr
