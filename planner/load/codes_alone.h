#pragma once

#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// Names of the specs that hold packed codes of a weight (see packed_tensors.h) of which this rank does not
/// hold all the scales: cuts that fall inside a block give it to one rank and its scale to another, or the
/// shards of codes and of scales are cut differently. All is loaded as it was asked for; decoding it takes
/// another rank. `plan` is one of `packed`, which has the tensors of `catalog` as as_packed() sees them.
/// Strided cuts of blocks of several rows are taken for all that lies between.
std::vector<std::string> codes_alone(const LoadPlan& plan, const std::vector<TensorSpec>& specs,
                                     const Catalog& catalog, const Catalog& packed);

}  // namespace shardwright
