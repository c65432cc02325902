#pragma once

#include <cstdint>
#include <vector>

#include "planner/names/mesh.h"

namespace shardwright {

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

/// Runs the planning of a save (planner/save/plan_together.h) with all ranks of the mesh in turn, the ranks'
/// parts on up to `threads` threads (0: all processors).
SimulatedSave simulate_save(const TensorsOnMesh& tensors, int threads = 0);

}  // namespace shardwright
