#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "planner/error.h"

namespace shardwright {

/// How far a piece of work is. Its threads count here, and anyone may look at any time. The unit is the
/// work's own: bytes, or ranks.
struct Progress {
  std::atomic<std::uint64_t> done{0};
  std::atomic<std::uint64_t> total{0};  ///< 0: not known yet
  std::atomic<bool> stopped{false};     ///< set by whoever wants no more of it
};

/// For work that may be watched by nobody.
inline void expect_in_all(Progress* progress, std::uint64_t total) {
  if (progress != nullptr) progress->total += total;
}

/// Throws Error(io) with EINTR where the work has been stopped.
inline void count_done(Progress* progress, std::uint64_t more) {
  if (progress == nullptr) return;
  progress->done += more;
  if (progress->stopped) throw Error(ErrorKind::io, "stopped", EINTR);
}

}  // namespace shardwright
