#pragma once

#include <cerrno>
#include <cstdint>

#include "planner/error.h"
#include "storage/progress.h"

namespace shardwright {

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
