#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "storage/boxes/box_reading.h"
#include "storage/boxes/joined_tasks.h"
#include "storage/files/open_files.h"
#include "storage/load/load.h"

namespace shardwright {

/// How each of a catalog's files is read. The vectors are by index into Catalog::files.
struct FileReading {
  std::vector<ReadCosts> costs;
  std::vector<bool> in_background;   ///< by io_uring
  bool some_on_disk = false;         ///< some file is not in the page cache
  bool are_objects = false;          ///< at an address
  std::size_t requests_at_once = 0;  ///< of objects, where the caller does not give the staging for them,
  std::uint64_t request_bytes = 0;   ///< the most that is worth asking for at a time,
  std::uint64_t gap_bytes = 0;       ///< and what is read along sooner than asked for apart,
  std::uint64_t gaps_bytes = 0;      ///< of all that is read

  std::int64_t files_in_background() const;
};

/// Whether files are read past the page cache, as OpenFiles has it: too little staging for whole pages means
/// reading through it.
std::optional<bool> direct_io_of(const LoadOptions& options);

/// Opens all files that the plan needs, and decides for each of them how it is read. Throws Error(io) where a
/// file cannot be opened, Error(argument) for Reads::io_uring where there is none. Of objects nothing is
/// asked yet: how they are read follows from what their store was measured to do.
FileReading open_files_of(const LoadPlan& plan, const Catalog& catalog, OpenFiles& files,
                          const LoadOptions& options);

/// Which tasks one request brings, of at most so many bytes. Those of files are read one by one.
Joining joining_of(const FileReading& reading, std::size_t request_bytes);

/// What a load takes, settled before it begins.
struct Resources {
  int threads = 1;
  int buffers_per_thread = 1;
  std::size_t buffer_bytes = 0;
  bool huge_pages = false;
  bool gpu_direct = false;  ///< read what is for devices straight into them
};

/// What there is of each device for tasks to be staged in.
struct DeviceRoom {
  std::size_t block_bytes = 0;       ///< the most that a task may take; 0: no device is written to
  std::size_t gpu_direct_bytes = 0;  ///< for all tasks that are read straight into it; 0: none are
};

/// `most_tasks`: more threads than this would have nothing to do. Throws Error(argument) if there is too
/// little staging.
Resources resources_for(const LoadOptions& options, const FileReading& reading, bool some_file_is_direct,
                        std::size_t most_tasks, const DeviceRoom& device = {});

/// The most tasks that can be made of the plan.
std::size_t most_tasks_of(const LoadPlan& plan);

}  // namespace shardwright
