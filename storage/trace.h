#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <vector>

#include "planner/catalog.h"

namespace shardwright {

/// What each thread of a load did when: for chrome://tracing or Perfetto.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  struct Event {
    const char* what = "";     ///< "read", "decode", "wait"
    std::uint32_t tensor = 0;  ///< index into Catalog::tensors
    std::uint64_t bytes = 0;   ///< read, or taken in by the decoder
    Clock::time_point begin;
    Clock::time_point end;
  };

  /// Adds what one more thread did. Any thread may call it.
  void add(std::vector<Event> events);

  /// Writes a file in Chrome's trace event format (JSON; complete events, in microseconds from `begin` on).
  /// `process` is the number to show for this process: its rank. Throws Error(io).
  void write(const std::filesystem::path& path, Clock::time_point begin, int process,
             const Catalog& catalog) const;

 private:
  std::mutex mutex_;
  std::vector<std::vector<Event>> threads_;
};

}  // namespace shardwright
