#pragma once

#include <vector>

#include "planner/handover/engine_tensors.h"
#include "storage/handover/refit.h"

namespace shardwright {

/// Throws Error: mismatch, naming the tensors, where elements of an engine's tensors share memory, of which
/// those that are written last would stay; argument where there is not one memory for each tensor.
void expect_memory_for_each(const std::vector<EngineTensor>& tensors,
                            const std::vector<EngineMemory>& memory);

}  // namespace shardwright
