#pragma once

#include <cerrno>

namespace shardwright {

/// The outcome of a system call that returns -1 with errno where it fails, made again as long as a signal
/// interrupts it. Not for close(): the descriptor is gone then.
template <typename Call>
auto uninterrupted(const Call& call) -> decltype(call()) {
  for (;;) {
    const auto outcome = call();
    if (outcome >= 0 || errno != EINTR) return outcome;
  }
}

}  // namespace shardwright
