#pragma once

#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// What is wrong where a model has been made with fewer layers than the checkpoint has: it takes all of the
/// first layers, and what comes before and after all layers, but not the last ones. Such a model would
/// compute something else, without a word. Empty where that is not so: a stage of a pipeline lacks one of the
/// two ends or has the last layer, a part of a model lacks something of a layer that it has. Layers that
/// config.json does not count (multi-token prediction), and all of them where it counts none, may be left.
///
/// `used` says of each tensor of the catalog whether it is read; `unused` are the names of weights that have
/// a place in the layout, but no destination.
std::string fault_of_cut_layers(const Catalog& catalog, const WeightMap& map, const std::vector<bool>& used,
                                const std::vector<std::string>& unused);

}  // namespace shardwright
