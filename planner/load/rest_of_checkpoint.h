#pragma once

#include <string>
#include <vector>

#include "planner/load/load_plan.h"

namespace shardwright {

/// What a checkpoint holds beyond what the trainer's tensors take.
struct RestOfCheckpoint {
  std::vector<std::string> unused;   ///< names of tensors that have a place, or need none; see LoadPlan
  std::vector<std::string> unknown;  ///< see LoadPlan; in the order of the catalog
  std::vector<std::string> faults;   ///< lines for messages: what may not be left out
};

/// Looks for a place for each tensor of the catalog that is not `used` (by index into Catalog::tensors; of
/// weights, with which their scales go).
RestOfCheckpoint rest_of_checkpoint(const std::vector<TensorSpec>& specs, const Catalog& catalog,
                                    const WeightMap& map, const std::vector<bool>& used,
                                    const LoadPlanOptions& options);

}  // namespace shardwright
