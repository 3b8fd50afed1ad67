#pragma once
#include <atomic>

namespace xsr {

/// For tools with long work. The first SIGINT, SIGTERM or SIGHUP (where it is not ignored) sets
/// `stop`, so that the work ends in good order; the second ends the process at once, unless it is a
/// SIGHUP. A reader of standard output that has gone away becomes an error of the writing call, not
/// a silent death. `stop` has to live as long as the process. To be called once.
void install_stop_signals(std::atomic<bool>* stop);

}  // namespace xsr
