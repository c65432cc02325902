#pragma once

#include "planner/names/mesh.h"
#include "storage/tools/simulate.h"

namespace shardwright {

/// Runs the planning of a save (planner/save/plan_together.h) with all ranks of the mesh in turn, the ranks'
/// parts on up to `threads` threads (0: all processors).
SimulatedSave simulate_save(const TensorsOnMesh& tensors, int threads = 0);

}  // namespace shardwright
