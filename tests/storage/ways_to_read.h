#pragma once

#include <vector>

#include "storage/load.h"
#include "storage/uring.h"
#include "tests/planner/random_checkpoint.h"

namespace shardwright {

/// Any way to read that this machine has.
inline void choose_reads(Random& random, LoadOptions& options) {
  std::vector<Reads> ways = {Reads::automatic, Reads::pread};
  if (has_io_uring()) ways.push_back(Reads::io_uring);
  options.reads = random.one_of(ways);
  options.direct_io = random.one_of<DirectIo>({DirectIo::automatic, DirectIo::always, DirectIo::never});
  options.huge_pages = random.between(0, 3) == 0;
}

}  // namespace shardwright
