#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/load/load_plan.h"

namespace shardwright {

/// A box of a stored tensor that somebody else's planner asks for.
struct ReadRequest {
  std::string name;
  Shape chunk_offset;  ///< which chunk of the tensor; all zero for a tensor stored whole
  Box box;             ///< inside that chunk
};

/// True for a tensor whose elements are not its numbers: it has scales, or is FP8 that must have had some,
/// since the checkpoint has scales for others or something named like scales stands beside it. False for
/// wide floats, for tensors of scales, and for names that the catalog lacks.
bool needs_scales(const Catalog& catalog, std::string_view name);

/// Plans the reading of requests[i] into specs[i], which must be of the box's size; no names are mapped. A
/// spec of the stored dtype gets what is stored; into another one a tensor that needs_scales() is decoded,
/// and any other converted, where can_convert allows it. Throws one Error(mismatch) that tells what does
/// not fit, among it what cannot be decoded.
LoadPlan plan_reads(const std::vector<ReadRequest>& requests, const std::vector<TensorSpec>& specs,
                    const Catalog& catalog);

}  // namespace shardwright
