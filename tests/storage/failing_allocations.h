#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace shardwright {

/// Whether only one allocation fails, or all from that one on.
enum class Shortage { of_one, of_all_that_follow };

/// What came of work in which allocations failed.
struct Outcome {
  enum class Kind { success, no_memory, error } kind = Kind::success;
  bool is_told = false;                     ///< it ended with an Error, which says what is partly written
  std::vector<std::string> partly_written;  ///< by that
};

struct Failures {
  std::int64_t stride = 1;        ///< only one in so many fails
  std::int64_t most_is_lost = 0;  ///< allocations; protobuf loses what it was about to add to a list
};

/// Has each allocation that the work makes, on all its threads together, fail in turn: of memory (operator
/// new, aligned_alloc) or of a thread; in both ways. What is thrown must be bad_alloc, Error or system_error;
/// descriptors, threads and memory must be as before. Calls `check` after each, and once more after work in
/// which nothing failed, which must succeed. Returns how many failed.
int fail_each_allocation(const Failures& failures, const std::function<void()>& work,
                         const std::function<void(const Outcome&)>& check);

}  // namespace shardwright
