#pragma once

#include <vector>

#include "planner/load/load_plan.h"
#include "storage/strided_memory.h"

namespace shardwright {

/// Runs a plan whose sources lie in memory instead of files: sources[i] is that of catalog.tensors[i] and may
/// be null where no transfer needs it. Decodes on `threads` threads (0: all processors), straight from source
/// to destination. Throws Error(argument), before anything is written, for a source that is needed and null
/// or laid out otherwise.
void place_from_memory(const LoadPlan& plan, const Catalog& catalog,
                       const std::vector<StridedMemory>& sources, const std::vector<TensorSpec>& specs,
                       int threads = 0);

}  // namespace shardwright
