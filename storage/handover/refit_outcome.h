#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "planner/geometry/box.h"

namespace shardwright {

/// A tensor of an engine in CPU memory, which the caller keeps alive.
struct EngineMemory {
  std::byte* data = nullptr;
  Shape strides;  ///< elements
};

/// What a rank did in a hand-over.
struct RefitReport {
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
  std::uint64_t bytes_kept = 0;       ///< that went from this rank to itself
  std::uint64_t bytes_in_memory = 0;  ///< of those sent and received, through memory that ranks share
  std::uint64_t messages = 0;         ///< sent
  std::size_t peak_staging_bytes = 0;
  std::size_t layers = 0;  ///< of this rank's engine
  double seconds = 0;
};

/// What became of it. The engine's tensors are new in `committed` layers, and as they were in `left` ones.
struct RefitOutcome {
  RefitReport report = {};
  std::vector<std::string> committed = {};
  std::vector<std::string> left = {};
  std::exception_ptr failure = nullptr;  ///< null: all is well

  /// Whether it was ended before all messages had come.
  bool has_ended_early = false;

  /// Why ranks of this rank's node share no memory; empty where they do, or there are none.
  std::string not_shared = {};
};

}  // namespace shardwright
