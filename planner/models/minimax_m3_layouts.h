#pragma once

#include "planner/models/rules.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// The tables of MiniMax M3's native layouts, one file each: minimax_m3_<layout>.cpp. Each fills in the rules
/// of a map whose dialect is known, and the HF names that have no place in the layout. They speak of names
/// and places only; what is stored block-scaled is the checkpoint's matter, not a layout's.
void add_automodel_rules(WeightMap& map);
void add_transformers_rules(WeightMap& map);

}  // namespace shardwright
