#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "storage/memory_units.h"

namespace shardwright {

/// Lies in memory that processes share, as zeros at first: a number that changes with whatever happens there,
/// and how many wait for that. Each stands in a cache line that nothing else is written in.
struct alignas(cache_line) SharedEvents {
  std::atomic<std::uint32_t> number;
  std::atomic<std::uint32_t> waiting;  ///< threads that want to be woken

  /// Something has happened. What was written before, who sees the new number sees.
  void happened();

  /// Waits until something has happened since `number` was that, or for so long.
  void wait(std::uint32_t since, std::chrono::microseconds longest);
};

static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

}  // namespace shardwright
