#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "planner/catalog.h"
#include "planner/load_plan.h"
#include "planner/tensor_spec.h"

namespace shardwright {

struct LoadOptions {
  int threads = 0;  ///< 0: as many as this process may use processors
  std::size_t staging_bytes =
      0;  ///< memory between files and shards, for all threads together; 0: 1 MiB a thread

  /// Called now and then, and at the end, from the calling thread with the bytes read so far and in all; may
  /// throw to stop the load.
  std::function<void(std::uint64_t, std::uint64_t)> progress;
};

/// What a load did. Seconds of `read` and `decode` are thread seconds divided by the number of threads, so
/// that the phases add up to the wall time when all threads are busy.
struct LoadReport {
  std::int64_t tensors = 0;
  std::uint64_t bytes_needed = 0;  ///< that this rank's parts take in the files, scales included
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;  ///< to the destinations
  std::uint64_t read_requests = 0;  ///< to the operating system
  std::size_t peak_staging_bytes = 0;
  std::int64_t files = 0;  ///< that something was read from
  int threads = 0;
  std::string instruction_set;  ///< of the kernels
  double catalog_seconds = 0;   ///< Catalog::seconds
  double plan_seconds = 0;      ///< LoadPlan::seconds
  double read_seconds = 0;
  double decode_seconds = 0;
  double total_seconds = 0;             ///< wall time of running the plan
  std::vector<std::string> unused;      ///< known HF weights that the trainer has no tensor for
  std::vector<std::string> unknown;     ///< HF tensors that no rule knows, left out because not strict
  std::vector<std::string> not_loaded;  ///< the trainer's tensors that the checkpoint lacks
};

/// Runs a plan: reads extents into bounded staging and decodes them into the shards in place. The memory of
/// the specs must stay valid and unused by others until this returns. Throws Error(io) naming file, offset
/// and tensor if a file cannot be read or ends too early; destinations are then partly written.
LoadReport load(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                const LoadOptions& options = {});

}  // namespace shardwright
