#pragma once

#include <atomic>
#include <cstdint>

namespace shardwright {

/// How far a piece of work is. Its threads count here, and anyone may look at any time. The unit is the
/// work's own: bytes, or ranks.
struct Progress {
  std::atomic<std::uint64_t> done{0};
  std::atomic<std::uint64_t> total{0};  ///< 0: not known yet
};

/// For work that may be watched by nobody.
inline void expect_in_all(Progress* progress, std::uint64_t total) {
  if (progress != nullptr) progress->total += total;
}
inline void count_done(Progress* progress, std::uint64_t more) {
  if (progress != nullptr) progress->done += more;
}

}  // namespace shardwright
