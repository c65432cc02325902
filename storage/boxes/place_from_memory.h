#pragma once

#include <cstddef>
#include <vector>

#include "planner/load/load_plan.h"

namespace shardwright {

/// The memory of a source tensor (or chunk). The last stride must be 1 if the tensor is block-scaled.
struct SourceMemory {
  const std::byte* data = nullptr;
  Shape strides;  ///< elements
};

/// Runs a plan whose sources lie in memory instead of files: sources[i] is that of catalog.tensors[i] and may
/// be null where no transfer needs it. Decodes on `threads` threads (0: all processors), straight from source
/// to destination. Throws Error(argument), before anything is written, for a source that is needed and null
/// or laid out otherwise.
void place_from_memory(const LoadPlan& plan, const Catalog& catalog, const std::vector<SourceMemory>& sources,
                       const std::vector<TensorSpec>& specs, int threads = 0);

}  // namespace shardwright
