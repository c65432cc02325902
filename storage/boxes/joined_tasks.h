#pragma once

#include <cstdint>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/boxes/box_reading.h"

namespace shardwright {

/// Tasks that are read together: one, or several whose bytes one request brings.
struct JoinedTasks {
  std::vector<ReadTask> tasks;
  std::uint64_t begin = 0;  ///< of several: the request, as offsets in their file
  std::uint64_t end = 0;
};

/// Which tasks are joined.
struct Joining {
  std::uint64_t request_bytes = 0;  ///< the most that one request brings; 0: none are joined
  std::uint64_t gap_bytes = 0;   ///< between two of them, that is read along: what takes less than a request,
  std::uint64_t gaps_bytes = 0;  ///< and of all gaps together
};

/// Joins the tasks of a cutter, which come in the order of their files, to requests. Cutter and catalog must
/// outlive it.
class TaskJoiner {
 public:
  TaskJoiner(TaskCutter& cutter, const Catalog& catalog, const Joining& joining)
      : cutter_(cutter), catalog_(catalog), joining_(joining) {}

  /// The next tasks; false when there is none left.
  bool next(JoinedTasks& joined);

 private:
  TaskCutter& cutter_;
  const Catalog& catalog_;
  Joining joining_;  // less the gaps that have been read
  ReadTask ahead_;   // taken from the cutter to see whether it can be joined
  bool is_ahead_ = false;
};

}  // namespace shardwright
