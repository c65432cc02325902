#pragma once

#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/tensor_spec.h"
#include "storage/strided_memory.h"

namespace shardwright {

/// The tensors of an HF state dict as the sources of a load: what this rank holds of them, in memory.
struct StateDictMemory {
  Catalog catalog;                    ///< without files; the chunks are this rank's
  std::vector<StridedMemory> memory;  ///< of each of catalog.tensors
};

/// Describes the tensors of an HF state dict. A tensor of which the rank holds a part is a chunk for each of
/// its boxes; its global shape is kept, since a chunk of no elements lies at its far corner. Owns nothing:
/// the tensors must outlive it. Throws Error(argument) if a name comes twice.
StateDictMemory memory_of(const std::vector<TensorSpec>& hf_tensors);

/// How a plan between native tensors and such memory, which may hold a part of the model, is made.
LoadPlanOptions options_for_memory(bool exporting = false);

}  // namespace shardwright
