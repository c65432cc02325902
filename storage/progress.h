#pragma once

#include <atomic>
#include <cstdint>

namespace shardwright {

/// How far a piece of work is. Its threads count here, and anyone may look at any time. The unit is the
/// work's own: bytes, or ranks.
struct Progress {
  std::atomic<std::uint64_t> done{0};
  std::atomic<std::uint64_t> total{0};  ///< 0: not known yet
  std::atomic<bool> stopped{false};     ///< set by whoever wants no more of it
};

}  // namespace shardwright
