#include "runtime/text/stop_signals.h"

#include <csignal>

namespace xsr {
namespace {

std::atomic<std::atomic<bool>*> flag{nullptr};  // null again after the first signal
static_assert(std::atomic<std::atomic<bool>*>::is_always_lock_free &&
                  std::atomic<bool>::is_always_lock_free,
              "set in a signal handler");

void request_stop(int number) {
  if (std::atomic<bool>* const stop = flag.exchange(nullptr)) {
    stop->store(true);
    return;
  }
  if (number == SIGHUP) return;  // of one terminal the kernel and the shell may send it
  signal(number, SIG_DFL);
  raise(number);
}

}  // namespace

void install_stop_signals(std::atomic<bool>* stop) {
  flag.store(stop);
  struct sigaction action = {};
  action.sa_handler = request_stop;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction before;
  // By nohup.
  const bool ignored = sigaction(SIGHUP, nullptr, &before) == 0 && before.sa_handler == SIG_IGN;
  if (!ignored) sigaction(SIGHUP, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

}  // namespace xsr
