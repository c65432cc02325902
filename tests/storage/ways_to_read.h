#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <vector>

#include "storage/files/uring.h"
#include "storage/load/load.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/storage/decoded_checkpoint.h"

namespace shardwright {

/// Any way to read that this machine has.
inline void choose_reads(Random& random, LoadOptions& options) {
  std::vector<Reads> ways = {Reads::automatic, Reads::pread};
  if (has_io_uring()) ways.push_back(Reads::io_uring);
  options.reads = random.one_of(ways);
  options.direct_io = random.one_of<DirectIo>({DirectIo::automatic, DirectIo::always, DirectIo::never});
  options.huge_pages = random.between(0, 3) == 0;
}

/// Whether the file system that the checkpoint is on knows reads past the page cache: some in memory do not.
inline bool allows_direct_reads(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.catalog.path_of(checkpoint.catalog.tensors.front()).string();
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (descriptor >= 0) ::close(descriptor);
  return descriptor >= 0;
}

}  // namespace shardwright
