#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/mesh.h"
#include "planner/names/weight_map.h"
#include "storage/boxes/read_costs.h"
#include "storage/progress.h"

namespace shardwright {

/// What a simulation is to count.
struct SimulateOptions {
  std::int64_t ranks_per_node = 8;  ///< ranks n · ranks_per_node and up share node n; the last may have fewer
  std::int64_t sample = 0;  ///< so many ranks at least, as whole nodes spread over the mesh; 0: all ranks
  std::uint64_t buffer_bytes = std::uint64_t{4} << 20;  ///< of staging for each task, as load() has for disks
  ReadCosts costs = costs_of_files_on_disk;  ///< of all files: they decide whether gaps are read along
  int threads = 0;                           ///< 0: as many as there are processors
  LoadPlanOptions plan;
  Progress* progress = nullptr;  ///< counts ranks
};

/// What a rank reads from one file.
struct FileShare {
  std::uint32_t file = 0;   ///< index into Catalog::files
  std::uint64_t bytes = 0;  ///< read, gaps included
};

/// What one rank does. All bytes are counted from its plan, its read tasks and its specs: nothing is
/// estimated.
struct SimulatedRank {
  std::int64_t rank = 0;
  std::int64_t stage = 0;
  double planning_seconds = 0;  ///< processor time measured here: specs, plan with its proof, and tasks
  std::int64_t tensors = 0;     ///< HF tensors, scales included, that it needs a part of
  std::uint64_t bytes_needed = 0;
  std::uint64_t bytes_read = 0;  ///< gaps that are read along with what is needed included
  std::uint64_t requests = 0;    ///< to the file system
  std::uint64_t extents = 0;     ///< longest ranges of consecutive bytes that it needs
  std::uint64_t bytes_held = 0;  ///< of its parts of the native tensors, which a load writes

  /// A save in the trainer's form, and an export in the checkpoint's, of the same tensors. Where several
  /// ranks hold a part, one writes it: of a save the one that its plan says, of an export (and of a save on a
  /// mesh too large to plan) such that the copies write about equally much. The export counts
  /// weights and scales as the checkpoint encodes them; a scale whose block is cut between ranks counts on
  /// each.
  std::uint64_t bytes_saved = 0;
  std::uint64_t bytes_exported = 0;

  std::vector<FileShare> files;  ///< that it reads from, in their order
};

/// What the ranks of one node do, each for itself or together: each byte read once and handed around.
struct SimulatedNode {
  std::int64_t node = 0;
  std::uint64_t bytes_needed = 0;         ///< sum over its ranks
  std::uint64_t bytes_read = 0;           ///< sum over its ranks
  std::uint64_t requests = 0;             ///< sum over its ranks
  std::uint64_t bytes_distinct = 0;       ///< that one or more of them need
  std::uint64_t bytes_read_together = 0;  ///< by requests for the union of what they need, gaps included
  std::uint64_t requests_together = 0;
};

/// What all ranks of a mesh tell each other to plan a save of their tensors, as DTensors: each refers to the
/// description of its stage's mesh, which the first of them sends.
struct SimulatedSave {
  std::int64_t ranks = 0;
  std::uint64_t bytes_exchanged = 0;  ///< by a first save, all that ranks send and get
  std::uint64_t bytes_unchanged = 0;  ///< by the next one, of the same state
  std::uint64_t most_bytes_of_rank =
      0;               ///< sent and received by a rank other than the coordinator, first save
  double seconds = 0;  ///< processor time of the coordinator, first save
  double seconds_unchanged = 0;
  std::uint64_t chunks = 0;                  ///< in the checkpoint
  std::uint64_t bytes_metadata = 0;          ///< of the description of all tensors and chunks
  std::vector<std::uint64_t> bytes_of_rank;  ///< that each rank writes
};

/// Ranks of the largest mesh for which a save is simulated.
inline constexpr std::int64_t most_ranks_of_save = std::int64_t{1} << 16;

/// What a load on a mesh comes to. Bytes are counted, seconds measured on this machine.
struct Simulation {
  std::int64_t world = 0;  ///< ranks of the mesh; `ranks` has fewer where a sample was asked for
  std::int64_t stages = 1;
  std::vector<SimulatedRank> ranks;  ///< in their order
  std::vector<SimulatedNode> nodes;
  std::int64_t native_tensors = 0;
  std::uint64_t bytes_native = 0;      ///< of the native tensors over all ranks, copies not counted
  std::uint64_t bytes_checkpoint = 0;  ///< of all tensors in the catalog
  std::uint64_t bytes_distinct = 0;    ///< of the checkpoint that one or more of `ranks` need

  // Of all ranks of the mesh, sampled or not: together they hold every native tensor whole.
  std::uint64_t bytes_needed_by_job = 0;  ///< of the checkpoint, each counted once
  std::uint64_t bytes_read_by_job = 0;    ///< by requests for them, gaps included
  std::uint64_t requests_of_job = 0;
  std::optional<SimulatedSave> save;  ///< nothing on a mesh of more than most_ranks_of_save
  double seconds = 0;                 ///< that the simulation took, all threads together
};

/// Plans a load on every rank of a mesh, without the ranks: each gets its specs, its plan with the proof that
/// it writes every element once, and its read tasks, by the functions that a load itself calls; what they say
/// is added up. Reads no file. Memory is that of a plan for each thread and the union of what has been
/// needed. Throws Error: argument for options that make no sense, and whatever planning throws.
Simulation simulate(const TensorsOnMesh& tensors, const Catalog& catalog, const WeightMap& map,
                    const SimulateOptions& options = {});

}  // namespace shardwright
