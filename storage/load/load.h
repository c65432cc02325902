#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"

namespace shardwright {

/// How files are read.
enum class Reads : std::uint8_t {
  automatic,  ///< io_uring for files that are not in the page cache, where the kernel allows it; else pread
  pread,      ///< each thread waits for its reads
  io_uring,   ///< reads ahead, several at a time for each thread
};

/// Which of the catalog's checksums are compared while blocks are read. Blocks that are read in part, tensors
/// that are read twice, and what goes straight into devices or is read together with other ranks are not.
enum class Checks : std::uint8_t {
  automatic,  ///< where it costs next to nothing: of files that are not in the page cache, and small loads
  none,
  all,
};

/// Which files are read past the page cache.
enum class DirectIo : std::uint8_t {
  automatic,  ///< for files that are not in the page cache
  always,     ///< for all files whose file system allows it
  never,
};

/// How a load is run. Nothing here changes what arrives.
struct LoadOptions {
  /// Threads that read and decode. 0: as many as this process may use processors. Four times as many run
  /// where files on a disk are read by pread, whose threads wait more than they work.
  int threads = 0;
  std::size_t staging_bytes = 0;  ///< memory between files and shards, for all threads together; 0: 1 MiB a
                                  ///< thread, up to 64 MiB in all where files are not in the page cache;
                                  ///< three times 1 MiB a thread, or 64 MiB, where tensors are on a device;
                                  ///< and never more than 128 MiB
  Reads reads = Reads::automatic;
  DirectIo direct_io = DirectIo::automatic;
  Checks checks = Checks::automatic;
  bool huge_pages = false;  ///< ask for staging in huge pages; not where tensors are on a device

  /// Where tensors are on CUDA devices, all staging in CPU memory is pinned. When load() returns, all that it
  /// did on the devices is done.
  DeviceOptions devices = {};

  /// File to write what each thread did when to (Chrome trace format); empty: none.
  std::filesystem::path trace = {};
  int trace_process = 0;  ///< the number of this process in the trace: its rank

  /// Called now and then, and at the end, from the calling thread with the bytes read so far and in all; may
  /// throw to stop the load.
  std::function<void(std::uint64_t, std::uint64_t)> progress = {};

  /// Called as often; may throw to stop the load.
  std::function<void()> check_for_interrupt = {};
};

/// What a load did. Seconds of `read` and `decode` are thread seconds divided by the number of threads, so
/// that the phases add up to the wall time when all threads are busy.
struct LoadReport {
  std::int64_t tensors = 0;
  std::uint64_t bytes_needed = 0;  ///< that this rank's parts take in the files, scales included
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_received = 0;    ///< from ranks that read together with this one
  std::uint64_t bytes_checked = 0;     ///< that were compared with checksums
  std::uint64_t bytes_written = 0;     ///< to the destinations
  std::uint64_t read_requests = 0;     ///< to the operating system
  std::int64_t boxes_with_gaps = 0;    ///< boxes (staged at a time) that were read with the gaps in them,
  std::int64_t boxes_in_pieces = 0;    ///< and those whose runs were read one by one, as that costs less
  std::size_t peak_staging_bytes = 0;  ///< of CPU memory, pinned where devices is not 0
  int devices = 0;                     ///< CUDA devices that were written to
  std::size_t peak_device_bytes = 0;   ///< of staging on a device, where it was most
  std::uint64_t bytes_to_devices = 0;  ///< copied there, as they are in the files
  std::uint64_t bytes_gpu_direct = 0;  ///< read straight into devices by GPUDirect Storage, of bytes_read
  std::int64_t device_batches = 0;     ///< of tiles that kernels decoded and placed there
  std::int64_t files = 0;              ///< that something was read from
  std::int64_t files_direct = 0;       ///< of them, past the page cache (O_DIRECT)
  std::int64_t files_remote = 0;       ///< of them, objects at an address
  std::int64_t files_io_uring = 0;     ///< of them, by io_uring; the others by pread
  int threads = 0;
  std::string instruction_set;  ///< of the kernels
  double catalog_seconds = 0;   ///< Catalog::seconds
  double plan_seconds = 0;      ///< LoadPlan::seconds
  double read_seconds = 0;
  double decode_seconds = 0;
  double together_seconds = 0;          ///< wall time of what was read together with other ranks
  double total_seconds = 0;             ///< wall time of running the plan, that included
  std::vector<std::string> unused;      ///< known HF weights that the trainer has no tensor for
  std::vector<std::string> unknown;     ///< HF tensors that no rule knows, left out because not strict
  std::vector<std::string> not_loaded;  ///< the trainer's tensors that the checkpoint lacks
  std::vector<std::string> zeroed;      ///< of which it lacks what is zero, and which were filled with zeros

  /// Tensors that a cast rounds, such as "F32 -> BF16", by name: filled by load_checkpoint() and
  /// resume_checkpoint(), as by Python.
  std::map<std::string, std::string> rounded;
};

/// Runs a plan that plan_load() has made of this catalog and these specs: reads extents into bounded staging
/// and decodes them into the shards in place, on the device that each of them is on. The memory of the specs
/// must stay valid and unused by others until this returns. Throws Error(io) naming file, offset and tensor
/// if a file cannot be read or ends too early, Error(device) naming tensor and call if a device refuses;
/// destinations are then partly written, see Error::partly_written. Throws Error(argument) for
/// Reads::io_uring where there is none, Error(mismatch) for tensors on CUDA devices where this build has no
/// kernels for them.
LoadReport load(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                const LoadOptions& options = {});

}  // namespace shardwright
