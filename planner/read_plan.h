#pragma once

#include <string>
#include <vector>

#include "planner/load_plan.h"

namespace shardwright {

/// A box of a stored tensor that somebody else's planner asks for, as it is stored.
struct ReadRequest {
  std::string name;
  Shape chunk_offset;  ///< which chunk of the tensor; all zero for a tensor stored whole
  Box box;             ///< inside that chunk
};

/// Plans the plain reading of requests[i] into specs[i], which must be of the box's size: no names are
/// mapped, nothing is decoded, dtypes are converted where can_convert allows it. Throws one Error(mismatch)
/// that lists all that does not fit.
LoadPlan plan_reads(const std::vector<ReadRequest>& requests, const std::vector<TensorSpec>& specs,
                    const Catalog& catalog);

}  // namespace shardwright
